"""What a LangChain runnable is made of: class, settings, server, bindings, steps, templates and functions; no secrets.

The description is JSON. Whatever it has no words for is ``"unknown"`` in it.
"""

from __future__ import annotations

import ast
import enum
import hashlib
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from logging import Logger
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from urllib.parse import urlsplit

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable, RunnableBinding, RunnableLambda, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.runnables.configurable import DynamicRunnable
from langchain_core.runnables.retry import RunnableRetry
from pydantic import BaseModel, SecretBytes, SecretStr

from bonmini_guard.adapters.elsewhere import answering_step
from bonmini_guard.engine.fingerprints import UNKNOWN, fingerprint_of
from bonmini_guard.engine.protocols import NO_OPTIONS

#: Texts longer than this stand as a digest.
LONGEST = 200
#: Fields that say nothing of what is drawn: names, listeners, connections, and what a draw's own copy of a model overrides.
NOT_SAID = {
    *("name", "callbacks", "callback_manager", "tags", "metadata", "verbose", "cache", "rate_limiter", "custom_get_token_ids"),
    *("disable_streaming", "streaming", "stream_usage", "output_version", "profile", "max_retries", "timeout", "request_timeout"),
    *("client", "async_client", "root_client", "root_async_client", "http_client", "http_async_client", "include_response_headers"),
    *("input_types", "input_variables", "optional_variables", "output_parser", "validate_template", "n"),
}
#: What holds JSON schemas, in which False is as good as not said.
_SHAPES = {
    *("tools", "functions", "response_format", "ls_structured_output_format", "format", "output_format"),
    *("response_schema", "response_json_schema"),
    *("guided_json", "json_schema", "schema", "structured_outputs", "grammar"),
}
_SECRET = re.compile(
    r"(^|_)(key|apikey|access_key_id|pass(w(or)?d|phrase)?|pwd|secret|credentials?|authorization|cookie)$"
    r"|^token$|(^|_)(api|access|auth|bearer|session|refresh|hf|hub|ad|id|security|private|x)_token$"
)
#: How many functions deep one that uses another is followed.
DEEPEST = 3


def described(value: Any, options: Mapping[str, Any] = NO_OPTIONS) -> Any:
    """What a runnable, or anything that one holds, is when it is called with options, which stand in for a model's settings."""
    return _Describing().of(value, options)


class _Describing:
    """One description; what is met inside itself is not described twice."""

    def __init__(self) -> None:
        self._inside: list[int] = []
        self._functions = self._shapes = 0

    def of(self, value: Any, options: Mapping[str, Any] = NO_OPTIONS) -> Any:
        if _is_plain(value):
            return _plain(value)
        if id(value) in self._inside:
            return UNKNOWN
        self._inside.append(id(value))
        try:
            return self._runnable(value, options) if isinstance(value, Runnable) else self._object(value)
        finally:
            self._inside.pop()

    def _runnable(self, value: Any, options: Mapping[str, Any]) -> Any:
        if isinstance(value, DynamicRunnable):
            return self.of(value.prepare(var_child_runnable_config.get())[0], options)
        if isinstance(value, RunnableBinding | RunnableRetry):
            return self.of(value.bound, {**value.kwargs, **options})
        if isinstance(value, BaseLanguageModel):
            return self._model(value, options)
        if isinstance(value, RunnableSequence):
            answers = answering_step(value)
            return {"steps": [self.of(step, options if at == answers else NO_OPTIONS) for at, step in enumerate(value.steps)]}
        if isinstance(value, RunnableWithFallbacks):
            return {"first": self.of(value.runnable, options), "fallbacks": [self.of(each, options) for each in value.fallbacks]}
        said = self._other(value)
        return said | {"options": self._mapping(options)} if options else said

    def _other(self, value: Any) -> dict[str, Any]:
        kind = {"class": type(value).__name__}
        if isinstance(value, RunnableLambda):
            functions = [getattr(value, name, None) for name in ("func", "afunc")]
            return kind | {"functions": [self.of(function) for function in functions if function is not None]}
        if isinstance(value, RunnableBindingBase):
            return kind | {"bound": self.of(value.bound, value.kwargs)}
        if isinstance(value, BaseModel):
            return kind | self._fields(value)
        return kind | {"inside": UNKNOWN}

    def _model(self, model: BaseLanguageModel[Any], options: Mapping[str, Any]) -> dict[str, Any]:
        names = {field.alias: name for name, field in type(model).model_fields.items() if field.alias}
        given = {names.get(key, key): value for key, value in options.items()}
        told = {names.get(key, key): value for key, value in getattr(model, "_identifying_params", {}).items() if _is_plain(value)}
        settings = {**self._mapping(told), **self._fields(model), **self._mapping(given)}
        return {"class": type(model).__name__, "settings": settings}

    def _fields(self, value: BaseModel) -> dict[str, Any]:
        known = type(value).model_fields
        held = {name: getattr(value, name, None) for name, field in known.items() if not field.exclude}
        # What a model does not show of itself is a secret, or state; its parts are told all the same.
        shown = {name: each for name, each in held.items() if known[name].repr or isinstance(each, Runnable)}
        # No is an answer where nothing said leaves it to the server, as with ChatOllama's reasoning.
        no = {name for name in value.model_fields_set & shown.keys() - NOT_SAID if known[name].default is None}
        denied = {name: False for name in no if shown[name] is False}
        return self._mapping(shown | (value.__pydantic_extra__ or {})) | denied

    def _mapping(self, value: Mapping[Any, Any], skip: Collection[str] = NOT_SAID) -> dict[str, Any]:
        """What is said of named values; None and what is empty is as good as not given, and so is False among settings."""
        said: dict[str, Any] = {}
        for key, each in value.items():
            if key not in skip and not _is_secret(key, each):
                self._shapes += key in _SHAPES
                said[str(key)] = self.of(each)
                self._shapes -= key in _SHAPES
        # In a body or a template's options (``{"enable_thinking": False}``) nothing said is True at times.
        told = not (skip or self._shapes)
        return {key: each for key, each in said.items() if each not in (None, "", [], {}) and (told or each is not False)}

    def _object(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self._mapping(value, ())
        if isinstance(value, list | tuple | set | frozenset):
            told = [self.of(each) for each in value]
            return sorted(told, key=str) if isinstance(value, set | frozenset) else told
        if isinstance(value, FunctionType | MethodType | BuiltinFunctionType):
            return self._function(value)
        return value.__name__ if isinstance(value, type) else self._instance(value)

    def _instance(self, value: Any) -> Any:
        if (told := fingerprint_of(value)) is not None:
            return told
        if isinstance(value, BaseModel):
            return {"class": type(value).__name__, **self._fields(value)}
        if is_dataclass(value):
            held = {each.name: getattr(value, each.name) for each in fields(value)}
            return {"class": type(value).__name__, **self._mapping(held)}
        return UNKNOWN

    def _function(self, function: Callable[..., Any]) -> dict[str, Any]:
        """A function by its source and what it uses from outside, as far as that can be said."""
        said: dict[str, Any] = {"function": getattr(function, "__name__", "?")}
        if isinstance(function, BuiltinFunctionType):
            return said
        plain = inspect.unwrap(function)
        plain = getattr(plain, "__func__", plain)
        said["source"] = _source(plain)
        if (owner := getattr(function, "__self__", None)) is not None:
            said["of"] = self.of(owner)
        self._functions += 1
        uses = self._used(plain) if self._functions <= DEEPEST else {}
        self._functions -= 1
        return said | ({"uses": uses} if uses else {})

    def _used(self, function: Any) -> dict[str, Any]:
        """What a function takes from outside of it; a container may be its state, of which nothing is said."""
        outside = inspect.getclosurevars(function)
        used = sorted({**outside.globals, **outside.nonlocals}.items())
        told = {name: each for name, each in used if not isinstance(each, ModuleType | type | Logger)}
        return {name: UNKNOWN if isinstance(each, list | dict | set) else self.of(each) for name, each in told.items()}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bytes | int | float | enum.Enum | PurePath | SecretStr | SecretBytes)


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr | SecretBytes):
        return None
    if isinstance(value, enum.Enum):
        return _plain(value.value) if _is_plain(value.value) else value.name
    if isinstance(value, bytes):
        return _digest(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
        return int(value) if whole else value if math.isfinite(value) else repr(value)
    text = _without_credentials(str(value))
    return text if len(text) <= LONGEST else _digest(text.encode())


def _is_secret(key: Any, value: Any) -> bool:
    words = re.sub("(?<=[a-z])(?=[A-Z])|-", "_", str(key)).lower()
    return _is_plain(value) and _SECRET.search(words) is not None


def _without_credentials(text: str) -> str:
    """A server's address without user, password and query, which holds keys at times, or its digest; other texts as they are."""
    if "://" not in text or any(map(str.isspace, text)):
        return text
    try:
        parts = urlsplit(text)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}".rstrip("/")
    except ValueError:  # no address that can be taken apart, and so not its keys
        return _digest(text.encode())


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"


def _source(function: Any) -> str:
    """A digest of a function's source, whatever its layout and comments; unknown where there is none to read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return UNKNOWN
    if function.__name__ != "<lambda>":
        return _digest(ast.unparse(tree).encode())
    lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    # Of several in one line no one can say which it is.
    return _digest(ast.unparse(lambdas[0]).encode()) if len(lambdas) == 1 else UNKNOWN
