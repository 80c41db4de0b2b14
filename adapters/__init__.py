"""One file for each outside system: what draws candidates, and what scores them elsewhere."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bonmini_guard.adapters.langchain import LangChainGenerator
    from bonmini_guard.adapters.local import TransformersGenerator
    from bonmini_guard.adapters.tgi import TGIGenerator

_HOMES = {"LangChainGenerator": "langchain", "TGIGenerator": "tgi", "TransformersGenerator": "local"}
__all__ = ["LangChainGenerator", "TGIGenerator", "TransformersGenerator"]


def __getattr__(name: str) -> Any:
    """Import an adapter when it is first used: each may need an extra of its own."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
