"""Run a request's draws and scoring detached from the caller's callbacks, streams and tracers, and from LangChain's global cache.

An ordinary child run would hand every rejected candidate to ``on_chat_model_end``, to token streams and to usage
counters, and the cache would have all draws of a request, and of the next one, be the first. Nothing else is taken away: models,
scorers and fallbacks find the caller's configurable values, thread, store, metadata, tags and run in their config, as in any
runnable, and the caller's own context variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context, ContextVar, copy_context
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracing
from langsmith._internal import _context as langsmith_context

from bonmini_guard.engine.limiter import holding
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.forks import Lock

#: LangSmith's switch, which outranks its environment variables. Its public ``tracing_context`` costs 50 us, here once a draw.
_LANGSMITH: ContextVar[Any] = langsmith_context._TRACING_ENABLED
#: Its current setting: True, False, "local", or None to ask the environment.
langsmith = _LANGSMITH.get

#: LangGraph hands these down to graphs that run inside a node: through them a graph in a draw would stream, and save its state.
_HANDED_DOWN = ("__pregel_stream", "__pregel_checkpointer")
#: Says that there was a checkpointer, where it is not handed down.
_CHECKPOINTED = "bonmini_guard_checkpointed"
#: Through this a node writes to the graph's state; an interrupt that was answered is written so, too.
_SEND, _ANSWERS = "__pregel_send", "__resume__"
#: Through this a function marked as a task runs as one of the graph's: what it returns is streamed, and saved.
_CALL = "__pregel_call"
#: Of the caller's own run.
_OF_ONE_RUN = ("run_id", "run_name")
NO_STREAM = "nostream"


def detached() -> Context:
    """A copy of the current context without LangChain's ambient callbacks, tracers and counters; the config is :func:`silent`."""
    context = copy_context()
    # The hooks are variables through which get_usage_metadata_callback and its kin attach handlers to every run.
    hooks = [hook[0] for hook in getattr(tracing, "_configure_hooks", ())]
    for variable in (tracing.tracing_v2_callback_var, *hooks):
        if context.get(variable) is not None:
            context.run(variable.set, None)
    if config := context.get(var_child_runnable_config):
        context.run(var_child_runnable_config.set, silent(config))
    context.run(_LANGSMITH.set, False)
    return context


def ambient(config: RunnableConfig | None) -> AbstractContextManager[None]:
    """Run something under a config, as if inside a runnable that has it."""
    return holding(var_child_runnable_config, config)


def silent(config: RunnableConfig) -> RunnableConfig:
    """A config without callbacks, and without ways to stream, to save or to write a state; all else stays, also for interrupts."""
    kept = {key: _quiet(key, value) for key, value in config.get("configurable", {}).items() if key not in _HANDED_DOWN}
    kept[_CHECKPOINTED] = checkpointed(config.get("configurable", {}))
    tags = list(config.get("tags") or ())
    # Of nobody, but of the same run. A list would not do: completion LLMs read its first item.
    deaf = AsyncCallbackManager([], parent_run_id=getattr(config.get("callbacks"), "parent_run_id", None))
    about: Any = {key: value for key, value in config.items() if key not in _OF_ONE_RUN}
    about |= {"tags": tags if NO_STREAM in tags else [*tags, NO_STREAM], "callbacks": deaf, "configurable": kept}
    silenced: RunnableConfig = about
    return silenced


def checkpointed(configurable: Mapping[str, Any]) -> bool:
    """Whether the graph that runs here has a checkpointer; what it keeps can be resumed."""
    return bool(configurable.get(_CHECKPOINTED)) or configurable.get("__pregel_checkpointer") not in (None, False)


def _quiet(key: str, value: Any) -> Any:
    # LangGraph's Runtime, by what it offers, so that it need not be installed.
    if callable(getattr(value, "stream_writer", None)) and callable(getattr(value, "override", None)):
        return value.override(stream_writer=say_nothing)
    return _answers_alone(value) if key == _SEND else _no_task if key == _CALL else value


def _answers_alone(send: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A node's way to write, for answers to interrupts and nothing else: a rejected draw would write to the state."""

    def narrowed(writes: Sequence[tuple[str, Any]]) -> None:
        if kept := [write for write in writes if write[0] == _ANSWERS]:
            send(kept)

    return narrowed


def _no_task(function: Any, *_: Any, **__: Any) -> None:
    name = getattr(function, "__name__", type(function).__name__)
    raise ConfigurationError(f"in a draw, LangGraph would stream and save what the task {name}() returns: call its function, .func")


def say_nothing(_: Any) -> None:
    """A stream writer of nobody."""


def is_graph_signal(error: BaseException) -> bool:
    """Whether it is no failure but LangGraph's way out of a node: an interrupt, or a command for the parent graph."""
    return any((kind.__module__, kind.__name__) == ("langgraph.errors", "GraphBubbleUp") for kind in type(error).__mro__)


def langsmith_set(enabled: Any) -> AbstractContextManager[None]:
    """Set LangSmith's switch for what runs inside."""
    return holding(_LANGSMITH, enabled)


#: Whether draws are made in this context.
drawing: ContextVar[bool] = ContextVar("bonmini_guard_drawing", default=False)
_lock, _requests = Lock(), set[object]()


def uncached() -> AbstractContextManager[None]:
    """While requests run, the global cache neither answers their draws nor keeps them; it works for all else.

    Models are copied without their cache where they can be found; those inside functions, routers and graphs cannot.
    """
    return nullcontext() if get_llm_cache() is None else _hidden()


@contextmanager
def _hidden() -> Iterator[None]:
    request = object()
    with _lock.held:
        _requests.add(request)
        cache: Any = get_llm_cache()
        if cache is not None and not isinstance(cache, _OutsideOfDraws):
            around: Any = _OutsideOfDraws(cache)
            set_llm_cache(around)
    try:
        yield
    finally:
        with _lock.held:
            _requests.discard(request)
            cache = get_llm_cache()
            if not _requests and isinstance(cache, _OutsideOfDraws):
                set_llm_cache(cache.cache)


def _nothing(*_: Any) -> None: ...


async def _nothing_later(*_: Any) -> None: ...


#: What a draw finds of a cache.
_DEAF = {"lookup": _nothing, "update": _nothing, "alookup": _nothing_later, "aupdate": _nothing_later}


class _OutsideOfDraws:
    """A cache that no draw sees."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        return _DEAF[name] if name in _DEAF and drawing.get() else getattr(self.cache, name)
