"""What the chat model needs to know of the model it wraps."""

from __future__ import annotations

import hashlib
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableBinding, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase

from bonmini_guard.engine.fingerprints import fingerprint_of, unknown_in
from bonmini_guard.engine.scorers import CallableScorer


def chat_model_of(generator: Any) -> BaseChatModel | None:
    """The LangChain chat model that a generator draws from, the first of fallbacks of one class; None if it is something else."""
    model = _below(generator)
    if isinstance(model, RunnableWithFallbacks):
        several = [chat_model_of(each) for each in model.runnables]
        return several[0] if len({type(each) for each in several}) == 1 else None
    return model if isinstance(model, BaseChatModel) else None


def language_model_of(generator: Any) -> BaseLanguageModel[Any] | None:
    """The LangChain language model that answers in a generator: below bindings and retries, first of fallbacks, last of a chain."""
    model = _below(generator)
    if isinstance(model, RunnableWithFallbacks):
        return language_model_of(model.runnable)
    if isinstance(model, RunnableSequence):
        return next(filter(None, map(language_model_of, reversed(model.steps))), None)
    return model if isinstance(model, BaseLanguageModel) else None


def _below(generator: Any) -> Any:
    model = generator if isinstance(generator, Runnable) else getattr(generator, "chat_model", None)
    return unbound(model, RunnableBindingBase)[0]


def call_options(bound: Runnable[Any, Any], model: BaseChatModel) -> dict[str, Any]:
    """The call options with which a binding calls its model.

    Raises:
        NotImplementedError: it is not a binding of this very model, so that options cannot stand for it.
    """
    bound, options = unbound(bound)
    if type(bound) is not type(model):
        raise NotImplementedError(f"{type(model).__name__} gave a {type(bound).__name__}: pass generator=model.bind_tools(...)")
    return options


def unbound(model: Any, through: type[Runnable[Any, Any]] = RunnableBinding) -> tuple[Any, dict[str, Any]]:
    """What lies below a model's bindings of a kind, and the call options that they hold."""
    options: dict[str, Any] = {}
    while isinstance(model, through):
        model, options = model.bound, {**model.kwargs, **options}  # type: ignore[attr-defined]
    return model, options


def model_name(generator: Any) -> str:
    """The wrapped model's name, for traces and usage counters; the class's where it has none."""
    wrapped = chat_model_of(generator)
    if wrapped is not None:
        return wrapped._get_ls_params().get("ls_model_name") or type(wrapped).__name__
    name = getattr(generator, "model_name", None)
    return name if isinstance(name, str) else type(generator).__name__


def identity_of(part: Any, exact: bool) -> str:
    """What a generator or a scorer is: its class, and with ``exact`` a digest of its fingerprint, which may read its weights."""
    kind = type(part).__name__
    if not exact:
        return kind
    if (mark := fingerprint_of(part)) is not None:
        # What cannot be described is told apart by its place in memory alone.
        itself = f":{id(part)}" if unknown_in(mark) else ""
        return f"{kind}:{hashlib.sha256(mark.encode()).hexdigest()[:16]}{itself}"
    function = part.function if isinstance(part, CallableScorer) else part
    return f"{kind}:{id(function)}"
