"""A generator that draws a whole loop at once, and notes which draws it was asked for together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from langchain_core.messages import AIMessage


class Grouped:
    """Draw i answers the number ``i - less``.

    Args:
        less: taken off.
        seconds: that a draw takes after the one before it in its group.

    Attributes:
        asked: the numbers of each group's draws.
    """

    def __init__(self, less: int, seconds: Callable[[int], float]) -> None:
        self.asked: list[list[int]] = []
        self._less, self._seconds = less, seconds

    async def draw_group(self, requests):
        self.asked.append([request.index for request in requests])
        for position, request in enumerate(requests):
            await asyncio.sleep(self._seconds(request.index))
            yield position, AIMessage(str(request.index - self._less))
