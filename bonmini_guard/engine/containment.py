"""What foreign code may do to a request: fail it in part, and no more. Nobody awaits it for ever, or takes it for the caller."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Collection, Coroutine, Iterable
from typing import Any

from bonmini_guard.errors import TooBusy

logger = logging.getLogger(__name__)

Task = asyncio.Task[Any]

#: Seconds that what was cancelled is waited for at least, when the time is up.
LAST_GRACE = 0.1
#: Tasks that may be left behind before new requests are refused.
MOST_LEFT_BEHIND = 64


def is_failure(error: BaseException, own: Collection[Task | None]) -> bool:
    """Whether what foreign code raised is a failure of its own.

    What is none: an interrupt or an exit in the process's main thread, where signals raise them, and the cancellation, or the
    closing, of the task that it runs in, which is one of ``own``.
    """
    if isinstance(error, Exception):
        return True
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return threading.current_thread() is not threading.main_thread()
    task = current()
    return task is not None and task in own and not task.cancelling()


def current() -> Task | None:
    """The task that runs, which is another or none where a coroutine is closed from outside: collected, or with its event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def as_failure(error: BaseException) -> Exception:
    """An error as it is; what is none, or cannot be awaited, as one that says what it was."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    failure = RuntimeError(f"it raised {type(error).__name__}")
    failure.__cause__ = error
    return failure


class Quarantine:
    """Tasks that did not end when they were told to: kept, counted, reported, never awaited.

    Args:
        most: after so many, new requests are refused.
    """

    def __init__(self, most: int = MOST_LEFT_BEHIND) -> None:
        self._most = most
        self._tasks: set[Task] = set()

    def __reduce__(self) -> tuple[type[Quarantine], tuple[int]]:
        return type(self), (self._most,)

    def __len__(self) -> int:
        # Those of event loops that were closed under them have ended, too.
        return sum(not task.done() and not task.get_loop().is_closed() for task in list(self._tasks))

    def admit(self) -> None:
        """Refuse a request while too many are left behind.

        Raises:
            TooBusy: there are.
        """
        if len(self._tasks) >= self._most and (left := len(self)) >= self._most:
            raise TooBusy(
                f"{left} draws or scorings ignored their cancellation and still run: the generator or the scorer is stuck"
            )

    def hold(self, tasks: Iterable[Task], after: float) -> None:
        """Leave tasks behind that still run some seconds after they were cancelled."""
        if not (stubborn := [task for task in tasks if not task.done()]):
            return
        for task in stubborn:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(quiet)
        logger.warning(
            "%d draws, scorings or callbacks ignored their cancellation for %.2g s and were left behind (%d in all)",
            len(stubborn),
            after,
            len(self._tasks),
        )


async def within(work: Coroutine[Any, Any, Any], seconds: float | None, quarantine: Quarantine) -> Task | None:
    """The task of foreign work, done in so many seconds; None where it was not: cancelled, and left behind if it ignores that."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(quiet)
            await asyncio.wait([task], timeout=LAST_GRACE)
            quarantine.hold([task], LAST_GRACE)
    return task if done else None


def quiet(task: Task) -> None:
    """Look at a task's error, so that nobody is told that nobody did."""
    if not task.cancelled():
        task.exception()
