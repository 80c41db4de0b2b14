"""Sync calls into the async core: one background thread with one event loop, shared by all guards.

It works where a loop is already running (notebooks), carries the caller's context variables over, and starts anew after
a fork, since threads do not survive one.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Blocking calls at a time, over all sync requests. Threads are started as they are needed.
BLOCKING_CALLS = 64


class LoopThread:
    """A daemon thread that runs one event loop for ever."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        # Blocking models and scorers run here. The default executor has few threads, and would draw a loop one part at a time.
        self.loop.set_default_executor(ThreadPoolExecutor(BLOCKING_CALLS, thread_name_prefix="bonmini-guard"))
        self.thread = threading.Thread(target=self._serve, name="bonmini-guard", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                self.loop.run_forever()
            except BaseException as error:
                # asyncio lets SystemExit of any task end its loop; other callers are waiting on this one.
                logger.warning("the background loop was interrupted by %s and goes on", type(error).__name__)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine to its end; an interrupt of the caller cancels it and waits until it is gone."""
        done: Future[T] = Future()
        tasks: list[asyncio.Task[None]] = []
        context = contextvars.copy_context()

        async def settle() -> None:
            try:
                done.set_result(await work())
            except BaseException as error:
                done.set_exception(error)

        def begin() -> None:
            tasks.append(self.loop.create_task(settle(), context=context))
            tasks[0].add_done_callback(gone)

        def gone(_: asyncio.Task[None]) -> None:
            # A task that is cancelled before its first step never enters settle().
            if not done.done():
                done.set_exception(asyncio.CancelledError())

        self.loop.call_soon_threadsafe(begin)
        try:
            return done.result()
        except KeyboardInterrupt:
            self.loop.call_soon_threadsafe(lambda: tasks[0].cancel())  # noqa: PLW0108 - not begun yet, perhaps
            done.exception()
            raise


_lock = threading.Lock()
_bridges: list[LoopThread] = []


def run_sync(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work()`` on the shared background loop and return its result."""
    return _bridge().run(work)


def _bridge() -> LoopThread:
    """The first loop, or the one after it for a sync call made on a bridge's own thread, which would wait for itself."""
    here = threading.current_thread()
    with _lock:
        depth = next((depth for depth, bridge in enumerate(_bridges, start=1) if bridge.thread is here), 0)
        if depth == len(_bridges):
            _bridges.append(LoopThread())
        return _bridges[depth]


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - another thread may have held the old one
    _lock = threading.Lock()
    _bridges.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
