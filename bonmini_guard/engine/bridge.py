"""Sync calls into the async core: one background thread with one event loop, shared by all guards; anew after a fork."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from bonmini_guard.engine.workers import Workers, place
from bonmini_guard.forks import Lock, renewed_in_children

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Blocking calls at a time, over all sync requests. Threads are started as they are needed.
BLOCKING_CALLS = 64


class LoopThread:
    """A daemon thread that runs one event loop for ever.

    Args:
        depth: how many sync calls are under way, one inside the other, in the work that it and its pool do.
    """

    def __init__(self, depth: int = 1) -> None:
        self.depth = depth
        self.loop = asyncio.new_event_loop()
        # Blocking models run here. The default executor has few threads, and would draw a loop one part at a time.
        self.loop.set_default_executor(Workers(BLOCKING_CALLS, "bonmini-guard"))
        self.thread = threading.Thread(target=self._serve, name="bonmini-guard", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        place.depth = self.depth
        while True:
            try:
                self.loop.run_forever()
            except BaseException as error:
                # asyncio lets SystemExit of any task end its loop; other callers are waiting on this one.
                logger.warning("the background loop was interrupted by %s and goes on", type(error).__name__)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine to its end.

        Whatever interrupts the caller (Ctrl-C, the handler of a signal) cancels it and waits until it is gone.
        """
        done: Future[T] = Future()
        task: asyncio.Task[None] | None = None

        async def carry_out() -> None:
            try:
                done.set_result(await work())
            except BaseException as error:
                done.set_exception(error)

        def begin() -> None:
            nonlocal task
            task = self.loop.create_task(carry_out())
            task.add_done_callback(gone)

        def gone(_: object) -> None:
            if not done.done():
                done.set_exception(asyncio.CancelledError())

        def stop() -> None:
            if task is not None:
                task.cancel()
            else:  # the caller was interrupted before the beginning was handed over
                gone(None)

        try:
            self.loop.call_soon_threadsafe(begin)  # with the context of the caller
            return done.result()
        except BaseException:
            if not done.done():
                self.loop.call_soon_threadsafe(stop)
                done.exception()
            raise


class _Bridges:
    """The loops of this process, by depth."""

    def __init__(self) -> None:
        self.renew()
        renewed_in_children(self)

    def renew(self) -> None:
        """None: at first, and after a fork, when another thread may have held the lock, and the threads are gone."""
        self.lock = threading.Lock()
        self.loops: list[LoopThread] = []


_bridges = _Bridges()


def run_sync(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work()`` on the shared background loop, or, in such a loop's own work, on the one after it, and return its result.

    The loop's thread would wait for itself; the threads of its pool, once all of them wait, for a thread of that pool.
    """
    with _bridges.lock:
        depth = min(place.depth, len(_bridges.loops))
        if depth == len(_bridges.loops):
            _bridges.loops.append(LoopThread(depth + 1))
        bridge = _bridges.loops[depth]
    return bridge.run(work)


def is_bridge(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop is one of those that conduct sync calls."""
    return any(each.loop is loop for each in _bridges.loops)


class ByLoop:
    """Something for each event loop; what was for a closed one is forgotten."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[asyncio.AbstractEventLoop, Any] = {}

    def __reduce__(self) -> tuple[type[ByLoop], tuple[()]]:
        return type(self), ()

    def of(self, loop: asyncio.AbstractEventLoop, make: Callable[[], T]) -> T:
        """What there is for a loop, made when it is first asked for."""
        with self._lock.held:
            if loop not in self._kept:
                self._kept = {each: kept for each, kept in self._kept.items() if not each.is_closed()}
                self._kept[loop] = make()
            made: T = self._kept[loop]
            return made
