"""Turn what a user passes as ``generator`` into a generator."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import Runnable

from bonmini_guard.engine.protocols import Generator, GroupGenerator
from bonmini_guard.errors import ConfigurationError


def as_generator(generator: Any) -> Generator | GroupGenerator:
    """A generator as it is, or any LangChain model made into one.

    Raises:
        ConfigurationError: it is neither.
    """
    if callable(getattr(generator, "draw", None)) or callable(getattr(generator, "draw_group", None)):
        return generator  # type: ignore[no-any-return]
    if isinstance(generator, Runnable):
        from bonmini_guard.adapters.langchain import LangChainGenerator

        return LangChainGenerator(generator)
    raise ConfigurationError(
        f"generator is a {type(generator).__name__}: pass a LangChain chat model or LLM, or an object with an async draw(request)"
    )
