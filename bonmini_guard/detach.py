"""Run a request's draws and scoring detached from the caller's callbacks, streams and tracers.

An ordinary child run would hand every rejected candidate to ``on_chat_model_end``, to token streams and to usage
counters. The caller's own context variables are kept; only LangChain's and LangSmith's are changed, and they come back
afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracing
from langsmith._internal import _context as langsmith_context

#: LangSmith's switch, which outranks its environment variables. Its public ``tracing_context`` costs 50 us, here once a draw.
_LANGSMITH: ContextVar[Any] = langsmith_context._TRACING_ENABLED


#: LangGraph hands these down to graphs that run inside a node: through them a graph in a draw would stream, and save its state.
_HANDED_DOWN = ("__pregel_stream", "__pregel_checkpointer")


@contextmanager
def detached() -> Iterator[None]:
    """Without LangChain's ambient callbacks, tracers and counters, in the current context."""
    attached = [(variable, variable.get(None)) for variable in _variables()]
    for variable, value in attached:
        if value is not None:
            variable.set(None)
    try:
        yield
    finally:
        for variable, value in attached:
            if variable.get(None) is not value:
                variable.set(value)


@contextmanager
def ambient(config: RunnableConfig | None) -> Iterator[None]:
    """Run something under a config, as if inside a runnable that has it."""
    token = var_child_runnable_config.set(config)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)


def silent(config: RunnableConfig | None) -> RunnableConfig | None:
    """A node's config, so that interrupts work, but without callbacks, and without ways to stream or to save."""
    if config is None:
        return None
    kept = {key: value for key, value in config.get("configurable", {}).items() if key not in _HANDED_DOWN}
    for key, value in kept.items():
        # LangGraph's Runtime, by what it offers, so that it need not be installed.
        if callable(getattr(value, "stream_writer", None)) and callable(getattr(value, "override", None)):
            kept[key] = value.override(stream_writer=say_nothing)
    return {**config, "callbacks": None, "tags": ["nostream"], "configurable": kept}


def say_nothing(_: Any) -> None:
    """A stream writer of nobody."""


def langsmith() -> Any:
    """The current setting of LangSmith's switch: True, False, "local", or None to ask the environment."""
    return _LANGSMITH.get()


@contextmanager
def langsmith_set(enabled: Any) -> Iterator[None]:
    """Set LangSmith's switch for what runs inside."""
    token = _LANGSMITH.set(enabled)
    try:
        yield
    finally:
        _LANGSMITH.reset(token)


def _variables() -> list[ContextVar[Any]]:
    # The hooks are variables through which get_usage_metadata_callback and its kin attach handlers to every run.
    hooks = getattr(tracing, "_configure_hooks", ())
    return [var_child_runnable_config, tracing.tracing_v2_callback_var, *(hook[0] for hook in hooks)]
