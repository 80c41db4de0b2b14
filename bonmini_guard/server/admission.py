"""Who is let in: a bounded number of requests and of bytes; the rest is told when to come back."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic

#: How much a new request weighs in the running mean of seconds between two answers.
_NEWEST = 0.1
#: Bytes of a body that may arrive whatever others hold.
_SMALL = 2**16


class Full(Exception):  # noqa: N818 - a state, not a fault
    """Nobody is let in for so many seconds."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


class Admission:
    """Counts what is in the house."""

    def __init__(self, most_requests: int, most_bytes: int) -> None:
        self.requests = 0
        self.bytes = 0
        self._arriving = 0
        self._most_requests = most_requests
        self._most_bytes = most_bytes
        self._between = 0.0
        self._last: float | None = None

    def check(self, size: int) -> None:
        """Refuse a body of ``size`` bytes for which there is no place.

        Raises:
            Full: too many are in.
        """
        if self.requests >= self._most_requests or (self.requests and self.bytes + size > self._most_bytes):
            raise Full(self._wait())

    @contextmanager
    def arriving(self) -> Iterator[Callable[[int], int]]:
        """While a body arrives; tell how many bytes have come, and hear how many those are in all.

        A small body needs no room, so that large ones that come slowly keep none out.

        Raises:
            Full: from what is told: bodies that arrive hold as many bytes as bodies may.
        """
        mine = 0

        def arrived(size: int) -> int:
            nonlocal mine
            mine += size
            self._arriving += size
            if mine > _SMALL and self._arriving > self._most_bytes:
                raise Full(self._wait())
            return mine

        try:
            yield arrived
        finally:
            self._arriving -= mine

    @asynccontextmanager
    async def entered(self, size: int) -> AsyncIterator[None]:
        """Let a request in with a body of ``size`` bytes.

        Raises:
            Full: too many are in.
        """
        self.check(size)
        self.requests += 1
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= size
            self._left()

    def _left(self) -> None:
        now = monotonic()
        if self._last is not None and self.requests:
            self._between += _NEWEST * (now - self._last - self._between)
        self._last = now

    def _wait(self) -> int:
        """Whole seconds in which about half of those inside will have left."""
        return min(60, max(1, math.ceil(self._between * self.requests / 2)))
