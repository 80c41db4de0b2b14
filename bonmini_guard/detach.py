"""Run the wrapped model detached from the caller's callbacks, streams and tracers.

An ordinary child run would hand every rejected candidate to ``on_chat_model_end``, to token streams and to usage
counters. The caller's own context variables are kept; only LangChain's are cleared.
"""

from __future__ import annotations

import contextvars
from typing import Any

from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracing


def detached_context() -> contextvars.Context:
    """A copy of the current context in which no LangChain callback, stream or counter is inherited."""
    context = contextvars.copy_context()
    context.run(_clear)
    return context


def _clear() -> None:
    var_child_runnable_config.set(None)
    for hook in _hooks():
        hook[0].set(None)


def _hooks() -> list[Any]:
    # Context variables through which get_usage_metadata_callback and its kin attach handlers to every run.
    return list(getattr(tracing, "_configure_hooks", ()))
