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

from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracing
from langsmith._internal import _context as langsmith_context

Attached = list[tuple[ContextVar[Any], Any]]

#: LangSmith's switch, which outranks its environment variables. Its public ``tracing_context`` costs 50 us, here once a draw.
_LANGSMITH: ContextVar[Any] = langsmith_context._TRACING_ENABLED


def detach() -> Attached:
    """Clear LangChain's ambient callbacks, tracers and counters in the current context; what :func:`attach` puts back."""
    attached: Attached = []
    for variable in _variables():
        value = variable.get(None)
        if value is not None:
            variable.set(None)
            attached.append((variable, value))
    return attached


def attach(attached: Attached) -> None:
    """Undo a :func:`detach`."""
    for variable, value in attached:
        variable.set(value)


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
