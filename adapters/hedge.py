"""Hedging: when a call is late, make the same call once more and take whichever answers first.

For scores this changes nothing but the time. For draws it could change *which* answers win: of two independent draws the
shorter one tends to arrive first, so a hedge with a seed of its own would favour short answers, and a threshold that was
calibrated without it would promise for other draws. A hedge therefore repeats the very same request, seed included. Where
the server honours seeds both copies are the same answer, and it does not matter which arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from langchain_core.messages import AIMessage

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.protocols import DrawRequest, Generator

T = TypeVar("T")


@dataclass
class Hedge:
    """When to call a second time, and how often that may happen.

    Args:
        after: seconds without an answer until the second call; about the 95th percentile of usual answers.
        share: of all calls that may be made twice at most. When everything is late, the server is overloaded, and twice the
            calls would make it worse.

    Attributes:
        calls: first calls so far.
        hedged: second calls so far.

    Raises:
        ConfigurationError: a number is out of range.
    """

    after: float
    share: float = 0.1
    calls: int = 0
    hedged: int = 0

    def __post_init__(self) -> None:
        if not self.after > 0 or not 0 < self.share <= 1:
            raise ConfigurationError(f"need after > 0 and 0 < share <= 1, not {self.after} and {self.share}")

    async def call(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The first answer of one call, or of two. An error counts as an answer only when no other call is under way."""
        self.calls += 1
        tasks = {asyncio.ensure_future(attempt())}
        try:
            done, _ = await asyncio.wait(tasks, timeout=self.after)
            if not done and self._may():
                tasks.add(asyncio.ensure_future(attempt()))
            return await _first(set(tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _may(self) -> bool:
        # The first late call may always be made again.
        if self.hedged >= max(1.0, self.share * self.calls):
            return False
        self.hedged += 1
        return True


async def _first(tasks: set[asyncio.Future[T]]) -> T:
    while True:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        fine = [task for task in done if task.exception() is None]
        if fine or not tasks:
            return (fine or list(done))[0].result()


async def all_or_none(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """The results of all calls; when one fails, the others are cancelled and gone before its error goes on."""
    if len(calls) == 1:
        return [await calls[0]()]
    tasks = [asyncio.ensure_future(call()) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class HedgedGenerator:
    """A generator whose late draws are asked for a second time, with the same seed.

    Use it where the server honours seeds; elsewhere the two answers differ and short ones are favoured. The tokens of the
    answer that is not used are spent and appear in no usage. Everything else is the wrapped generator's.

    Args:
        generator: draws one answer a call (protocol ``Generator``).
        after: seconds until the second request; about the 95th percentile of usual draws.
        share: of all draws that may be asked for twice at most.

    Raises:
        ConfigurationError: the generator draws whole groups, or a number is out of range.
    """

    def __init__(self, generator: Generator, *, after: float, share: float = 0.1) -> None:
        if not callable(getattr(generator, "draw", None)) or callable(getattr(generator, "draw_group", None)):
            raise ConfigurationError(f"{type(generator).__name__} cannot be hedged: it does not draw one answer a call")
        self._generator = generator
        self.hedge = Hedge(after, share)

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer; see the wrapped generator."""
        return await self.hedge.call(lambda: self._generator.draw(request))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._generator, name)

    def __repr__(self) -> str:
        return f"HedgedGenerator({self._generator!r}, after={self.hedge.after})"
