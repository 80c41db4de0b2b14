"""Work in the background of any event loop, which can be waited for from anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any


class Background:
    """Tasks under way, each on the event loop that began it."""

    def __init__(self) -> None:
        self._process = os.getpid()
        # Kept, for an event loop holds its tasks weakly.
        self._tasks: dict[Future[None], asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._here())

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin work on the running loop. Its errors are nobody's, so it should raise none."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # whoever waits for it cannot cancel it
        task = asyncio.get_running_loop().create_task(work)
        self._here()[done] = task
        task.add_done_callback(lambda _: self._end(done))

    async def afinish(self) -> None:
        """Wait for all that is under way."""
        if self._here():
            await asyncio.wait([asyncio.wrap_future(done) for done in self._here()])

    def finish(self, timeout: float | None = None) -> None:
        """``afinish`` for sync code; not on an event loop that has work under way."""
        wait(list(self._here()), timeout)

    def _end(self, done: Future[None]) -> None:
        if self._tasks.pop(done, None) is not None:
            done.set_result(None)

    def _here(self) -> dict[Future[None], asyncio.Task[None]]:
        """What is under way in this process; a child after a fork begins with nothing."""
        if self._process != os.getpid():
            self._process, self._tasks = os.getpid(), {}
        for done, task in list(self._tasks.items()):
            if task.get_loop().is_closed():
                self._end(done)
                _close(task)
        return self._tasks


def _close(task: asyncio.Task[None]) -> None:
    """Let work whose event loop was closed under it come to its ``finally``: nobody else will."""
    coroutine = task.get_coro()
    # Clean-up that would have to wait cannot: there is no loop to wait on.
    with contextlib.suppress(RuntimeError):
        if coroutine is not None:
            coroutine.close()
