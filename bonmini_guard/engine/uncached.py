"""No draw is answered by LangChain's global cache: all draws of a request, and of the next one, would be the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from langchain_core.globals import get_llm_cache, set_llm_cache

from bonmini_guard.forks import Lock

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
