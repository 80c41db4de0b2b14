"""Several calls at the same time of which none outlives its caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from langchain_core.messages import AIMessage

from bonmini_guard.engine.protocols import DrawRequest

T = TypeVar("T")
Outcomes = AsyncGenerator[tuple[int, AIMessage | BaseException]]


async def in_one_call(
    draw: Callable[[DrawRequest], Awaitable[AIMessage]],
    together: Callable[[Sequence[DrawRequest]], Awaitable[Sequence[AIMessage | BaseException]]],
    requests: Sequence[DrawRequest],
) -> Outcomes:
    """Yield (position, answer or error): what one call for all gives, then the others, at the same time, as each finishes.

    Closing it cancels those that still run, and waits until they are gone.
    """
    known = await together(requests)
    for outcome in enumerate(known):
        yield outcome
    running = {asyncio.ensure_future(draw(requests[position])): position for position in range(len(known), len(requests))}
    try:
        while running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield running.pop(task), task.exception() or task.result()
    finally:
        await _end(running)


async def all_or_none(calls: Sequence[Awaitable[T]]) -> list[T]:
    """The results of all calls; when one fails, the others are cancelled and gone before its error goes on."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def _end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
