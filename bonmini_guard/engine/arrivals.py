"""The queue of finished draws: many writers, one reader that takes everything that has arrived at once."""

from __future__ import annotations

import asyncio

from bonmini_guard.engine.result import Candidate


class Arrivals:
    """Draws in order of arrival. ``asyncio.Queue`` hands items out one at a time, at three times the cost of a draw's record."""

    def __init__(self) -> None:
        self._items: list[Candidate] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Candidate) -> None:
        """Add an item and wake the reader; never blocks. Call it on the reader's loop."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Candidate]:
        """All items that have arrived, at least one; waits for the first."""
        if not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        items, self._items = self._items, []
        return items
