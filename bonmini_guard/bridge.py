"""Sync calls into the async core: one background thread with one event loop, shared by all guards.

It works where a loop is already running (notebooks), carries the caller's context variables over, and starts anew after
a fork, since threads do not survive one.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """A daemon thread that runs one event loop for ever."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.process = os.getpid()
        self.thread = threading.Thread(target=self.loop.run_forever, name="bonmini-guard", daemon=True)
        self.thread.start()

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine to its end; an interrupt of the caller cancels it and waits until it is gone."""
        done: Future[T] = Future()
        task: list[asyncio.Task[None]] = []
        context = contextvars.copy_context()

        async def settle() -> None:
            try:
                done.set_result(await work())
            except BaseException as error:
                done.set_exception(error)

        self.loop.call_soon_threadsafe(lambda: task.append(self.loop.create_task(settle(), context=context)))
        try:
            return done.result()
        except KeyboardInterrupt:
            self.loop.call_soon_threadsafe(lambda: task[0].cancel())
            done.exception()
            raise


_lock = threading.Lock()
_shared: LoopThread | None = None


def run_sync(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work()`` on the shared background loop and return its result."""
    bridge = _bridge()
    if threading.current_thread() is bridge.thread:
        # A sync call made on the loop's own thread would wait for itself: give it a thread of its own.
        return LoopThread().run(work)
    return bridge.run(work)


def _bridge() -> LoopThread:
    global _shared  # noqa: PLW0603 - one loop for the process is the point
    with _lock:
        if _shared is None or _shared.process != os.getpid():
            _shared = LoopThread()
        return _shared


def _after_fork() -> None:
    global _lock, _shared  # noqa: PLW0603
    _lock, _shared = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
