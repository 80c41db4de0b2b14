"""No draw is answered by LangChain's global cache: all draws of a request, and of the next one, would be the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
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
        cache = get_llm_cache()
        if cache is not None and not isinstance(cache, _OutsideOfDraws):
            set_llm_cache(_OutsideOfDraws(cache))
    try:
        yield
    finally:
        with _lock.held:
            _requests.discard(request)
            cache = get_llm_cache()
            if not _requests and isinstance(cache, _OutsideOfDraws):
                set_llm_cache(cache.cache)


class _OutsideOfDraws(BaseCache):
    """A cache that no draw sees."""

    def __init__(self, cache: BaseCache) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return None if drawing.get() else self.cache.lookup(prompt, llm_string)

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if not drawing.get():
            self.cache.update(prompt, llm_string, return_val)

    def clear(self, **kwargs: Any) -> None:
        self.cache.clear(**kwargs)

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return None if drawing.get() else await self.cache.alookup(prompt, llm_string)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if not drawing.get():
            await self.cache.aupdate(prompt, llm_string, return_val)

    async def aclear(self, **kwargs: Any) -> None:
        await self.cache.aclear(**kwargs)
