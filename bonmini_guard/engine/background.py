"""Work that outlives who began it: in the background of any event loop, or to its end though the caller is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from threading import Lock
from typing import Any

from bonmini_guard.forks import renewed_in_children


class Background:
    """Tasks under way, each on the event loop that began it; several loops may share it."""

    def __init__(self) -> None:
        self.renew()
        renewed_in_children(self)

    def renew(self) -> None:
        """Nothing under way: at first, and in a child after a fork, where another thread may have held the lock."""
        self._lock = Lock()
        # Kept, for an event loop holds its tasks weakly.
        self._tasks: dict[Future[None], asyncio.Task[None] | None] = {}

    def __reduce__(self) -> tuple[type[Background], tuple[()]]:
        return type(self), ()

    def __len__(self) -> int:
        return len(self._under_way())

    def start(self, work: Callable[[], Coroutine[Any, Any, None]], most: float = math.inf) -> bool:
        """Begin work on the running loop, unless so many are under way already; whether it began.

        Its errors are nobody's, so it should raise none.
        """
        self._under_way()
        with self._lock:
            if len(self._tasks) >= most:
                return False
            done: Future[None] = Future()
            done.set_running_or_notify_cancel()  # whoever waits for it cannot cancel it
            self._tasks[done] = None
        # Without the lock: an eager task begins at once, and may begin more.
        task = self._tasks[done] = asyncio.get_running_loop().create_task(work())
        task.add_done_callback(lambda _: self._end(done))
        return True

    async def afinish(self) -> None:
        """Wait for all that is under way."""
        if under_way := self._under_way():
            await asyncio.wait([asyncio.wrap_future(done) for done in under_way])

    def finish(self, timeout: float | None = None) -> None:
        """``afinish`` for sync code; not on an event loop that has work under way."""
        wait(self._under_way(), timeout)

    def _end(self, done: Future[None]) -> None:
        with self._lock:
            task = self._tasks.pop(done, None)
        if task is not None:
            done.set_result(None)

    def _under_way(self) -> list[Future[None]]:
        with self._lock:
            tasks = dict(self._tasks)
        for done, task in tasks.items():
            if task is not None and task.get_loop().is_closed():
                self._end(done)
                close(task)
        return [done for done in tasks if not done.done()]


def close(task: asyncio.Task[None]) -> None:
    """Let work whose event loop was closed under it come to its ``finally``: nobody else will."""
    coroutine = task.get_coro()
    # Clean-up that would have to wait cannot: there is no loop to wait on.
    with contextlib.suppress(RuntimeError):
        if coroutine is not None:
            coroutine.close()


async def to_its_end(work: Coroutine[Any, Any, None], grace: float) -> None:
    """Await clean-up though the caller is cancelled meanwhile, once or (anyio) at every await; it is cancelled afterwards.

    The work itself is cancelled only if it goes on for longer than ``grace`` (seconds) after the caller was.
    """
    task, loop = asyncio.create_task(work), asyncio.get_running_loop()
    cancelled: asyncio.CancelledError | None = None
    end = math.inf
    while not task.done() and loop.time() < end:
        try:
            await asyncio.wait([task], timeout=None if cancelled is None else grace)
        except asyncio.CancelledError as error:
            cancelled, end = error, min(end, loop.time() + grace)
    task.cancel()
    if cancelled is not None:
        raise cancelled
    task.result()
