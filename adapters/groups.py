"""A loop's draws one by one, for generators that can draw several at once and sometimes must not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from langchain_core.messages import AIMessage

from bonmini_guard.protocols import DrawRequest


async def one_by_one(
    draw: Callable[[DrawRequest], Awaitable[AIMessage]], requests: Sequence[DrawRequest], first: int = 0
) -> AsyncGenerator[tuple[int, AIMessage | BaseException]]:
    """Yield (position, answer or error) of the draws from ``first`` on, at the same time, as each finishes.

    Closing it cancels those that still run, and waits until they are gone.
    """
    running = {asyncio.ensure_future(draw(requests[position])): position for position in range(first, len(requests))}
    try:
        while running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield running.pop(task), task.exception() or task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
