"""LangChain models on several event loops, of which one conducts sync calls: a connection belongs to the loop that opened it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from langchain_core.language_models import BaseLanguageModel, BaseLLM
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.runnables import (
    RouterRunnable,
    Runnable,
    RunnableAssign,
    RunnableBranch,
    RunnableParallel,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase

from bonmini_guard.engine.bridge import ByLoop, is_bridge

#: Where integrations keep the client of their async methods.
_KEPT = ("root_async_client", "async_client", "_async_client")
#: Fields that say nothing to a copy: clients that the model has made, and a check that was made once.
_MADE = {"client", "root_client", "async_client", "root_async_client", "validate_model_on_init"}
#: Fields that take a client of the user's: what is set there is not to be guessed at.
_GIVEN = {"http_client", "http_async_client"}


def with_models(runnable: Runnable[Any, Any], change: Callable[[Any], Any]) -> Runnable[Any, Any]:
    """A copy of a model, or of models in what :func:`with_parts` knows, with what ``change`` makes of each in its place."""
    return (
        change(runnable) if isinstance(runnable, BaseLanguageModel) else with_parts(runnable, partial(with_models, change=change))
    )


def with_parts(runnable: Runnable[Any, Any], change: Callable[[Runnable[Any, Any]], Any]) -> Runnable[Any, Any]:
    """A copy of a binding, retries, fallbacks, a sequence, branches or parallel steps with each part changed, or itself."""
    parts: dict[str, Any] = {}
    if isinstance(runnable, RunnableBindingBase):
        parts = {"bound": change(runnable.bound)}
    elif isinstance(runnable, RunnableWithFallbacks):
        parts = {"runnable": change(runnable.runnable), "fallbacks": [change(each) for each in runnable.fallbacks]}
    elif isinstance(runnable, RunnableSequence):
        first, *middle, last = [change(step) for step in runnable.steps]
        parts = {"first": first, "middle": middle, "last": last}
    elif isinstance(runnable, RunnableBranch):
        branches = [(condition, change(each)) for condition, each in runnable.branches]
        parts = {"branches": branches, "default": change(runnable.default)}
    elif isinstance(runnable, RunnableAssign):
        parts = {"mapper": change(runnable.mapper)}
    elif isinstance(runnable, RunnableParallel):
        parts = {"steps__": {name: change(each) for name, each in runnable.steps__.items()}}
    elif isinstance(runnable, RouterRunnable):
        parts = {"runnables": {name: change(each) for name, each in runnable.runnables.items()}}
    return runnable.model_copy(update=parts) if parts else runnable  # type: ignore[attr-defined]


def within(model: Any) -> Iterator[Any]:
    """A model, and those in its parts."""
    yield model
    parts: list[Any] = []
    with_parts(model, lambda part: parts.append(part) or part)  # type: ignore[func-returns-value]
    for part in parts:
        yield from within(part)


def has_model(runnable: Any) -> bool:
    """Whether a language model is in it."""
    return any(isinstance(each, BaseLanguageModel) for each in within(runnable))


def answering_step(chain: RunnableSequence[Any, Any]) -> int:
    """Which step of a chain answers, and is called with its options: the last that has a model, else the first."""
    return max((place for place, step in enumerate(chain.steps) if has_model(step)), default=0)


def apart(model: BaseLanguageModel[Any], loop: asyncio.AbstractEventLoop) -> BaseLanguageModel[Any]:
    """A model for a loop: itself on the first one that is not there for sync calls, else a copy that shares no connection with it.

    The model of an integration is built anew, where that gives the same settings and another connection. Where it does not, or the
    class is somebody's own, sync calls use its sync methods, in threads: a draw that is given up runs on there.
    """
    wire = wire_of(model) if type(model).__module__.startswith("langchain_") else None
    serves_sync = is_bridge(loop)
    if wire is not None and not serves_sync and _first.setdefault(wire, weakref.ref(loop))() is loop:
        return model
    twin = None if wire is None else _rebuilt(model, loop)
    return twin or (in_threads(model) if serves_sync else model)


def in_threads(model: BaseLanguageModel[Any]) -> BaseLanguageModel[Any]:
    """A copy of a model whose async methods call its sync ones, where it has any and says nothing else (``any_loop``)."""
    base: Any = BaseLLM if isinstance(model, BaseLLM) else BaseChatModel
    kind = type(model)
    own = getattr(kind, "_agenerate", None)
    if own is None or own is base._agenerate or getattr(kind, "any_loop", False):
        return model

    async def generate(messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> Any:
        try:
            return await base._agenerate(twin, messages, stop, run_manager, **options)
        except NotImplementedError:
            return await own(twin, messages, stop, run_manager, **options)

    twin = model.model_copy()
    vars(twin)["_agenerate"] = generate
    return twin


def _rebuilt(model: BaseLanguageModel[Any], loop: asyncio.AbstractEventLoop) -> BaseLanguageModel[Any] | None:
    """A model of the same class and settings with a connection of its own; None where that cannot be had."""
    client = _client(model)
    if client is None or any(getattr(model, name, None) is not None for name in _GIVEN):
        return None
    fields, wire = type(model).model_fields, _wire(client)
    by_name = model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name")
    told = fields.keys() - _MADE - _GIVEN
    given = {(not by_name and fields[name].alias) or name: getattr(model, name) for name in model.model_fields_set & told}
    with contextlib.suppress(Exception):  # whatever a class may say to its own settings
        own = {"http_async_client": _shared(client, loop)} if "http_async_client" in fields else {}
        twin = type(model)(**given, **own)
        if wire_of(twin) is wire:  # one for all models of a server
            vars(twin)["_async_client"] = _client(twin).with_options(http_client=_shared(client, loop))
        elif not own:
            closed_with(twin, wire_of(twin), loop)
        same = type(_client(twin)) is type(client) and all(getattr(twin, name) == getattr(model, name) for name in told)
        return twin if same and wire_of(twin) is not wire else None
    return None


def _client(model: BaseLanguageModel[Any]) -> Any:
    return next((client for name in _KEPT if (client := getattr(model, name, None)) is not None), None)


def wire_of(model: Any) -> Any:
    """The HTTP client at the bottom of a model's client."""
    return _wire(_client(model))


def _wire(client: Any) -> Any:
    while hasattr(client, "_client"):
        client = client._client
    return client


#: By HTTP client: the loop that it belongs to, and what stands for it on others. Models that share one share those, too.
_first: WeakKeyDictionary[Any, weakref.ref[asyncio.AbstractEventLoop]] = WeakKeyDictionary()
_instead: WeakKeyDictionary[Any, ByLoop] = WeakKeyDictionary()


def _shared(client: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """An HTTP client as the SDK of a client makes them, one for each that there is and each loop."""
    wire = _wire(client)

    def make() -> Any:
        made = importlib.import_module(type(client).__module__.partition(".")[0]).DefaultAsyncHttpxClient()
        closed_with(wire, made, loop)
        return made

    return _instead.setdefault(wire, ByLoop()).of(loop, make)


def closed_with(owner: Any, wire: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Close an HTTP client when nobody holds its owner any more; on a caller's loop it ends with that."""
    if is_bridge(loop):
        weakref.finalize(owner, _close, wire, loop).atexit = False


def _close(wire: Any, loop: asyncio.AbstractEventLoop) -> None:
    if is_bridge(loop):  # and not that of the process from which this one was forked
        loop.call_soon_threadsafe(lambda: loop.create_task(wire.aclose()))
