"""Threads for blocking work: bounded, of one owner each, never waited for at the end of the process, and new after a fork."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

from bonmini_guard.engine.containment import as_failure
from bonmini_guard.errors import TooBusy
from bonmini_guard.forks import renewed_in_children

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds after which an idle thread ends.
IDLE = 10.0
#: Seconds that the end of the process waits for threads that compute: cut off in the middle of it, some libraries crash.
AT_EXIT = 1.0


class _Place(threading.local):
    #: How many sync calls into this package the running thread works for, one inside the other.
    depth = 0


place = _Place()


class Workers(ThreadPoolExecutor):
    """An executor whose threads neither keep a process alive nor are missing in a forked one.

    A call whose caller has gone stays in its thread until it ends by itself, for a thread cannot be killed: it is left behind, and
    counted. It is a ``ThreadPoolExecutor`` in name, for event loops take no other; nothing of that is used.

    Args:
        most: threads at most, those with calls left behind included.
        name: of the threads.

    Attributes:
        left_behind: calls that run although nobody waits for them any more.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._closed = False
        self.renew()
        _all.add(self)
        renewed_in_children(self)

    def renew(self) -> None:
        """No threads and nothing to do: at first, and in a child after a fork, which has neither threads nor callers."""
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], int, Callable[[], Any]]] = deque()
        self._running = self._idle = self.left_behind = 0

    def __reduce__(self) -> tuple[type[Workers], tuple[int, str]]:
        return type(self), (self._most, self._name)

    def admit(self) -> None:
        """Refuse work that would wait for calls left behind.

        Raises:
            TooBusy: they hold every thread.
        """
        if self.left_behind >= self._most:
            raise TooBusy(f"{self.left_behind} calls of {self._name} that did not return in time hold all of its threads")

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have a call made.

        Raises:
            RuntimeError: it is shut down, or no thread can be started.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._idle <= len(self._calls) and self._running < self._most:
                # If the process has no threads left, it raises, and there is no call.
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
                self._running += 1
            self._calls.append((future, place.depth, partial(function, *args, **kwargs)))
            self._changed.notify()
        return future

    async def run(self, function: Callable[..., T], /, *args: Any) -> T:
        """Await a call, made in a copy of the caller's context. A cancelled caller leaves it behind.

        Raises:
            TooBusy: calls left behind hold every thread.
        """
        self.admit()
        call = self.submit(contextvars.copy_context().run, function, *args)
        try:
            return await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            self._leave(call)
            raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and let the threads end; it waits for none of them, whatever ``wait`` says."""
        with self._changed:
            self._closed = True
            calls = list(self._calls) if cancel_futures else []
            if cancel_futures:
                self._calls.clear()
            self._changed.notify_all()
        for future, _, _ in calls:
            future.cancel()

    def _leave(self, call: Future[Any]) -> None:
        def returned(_: object) -> None:
            with self._changed:
                self.left_behind -= 1

        if call.cancel():
            return
        with self._changed:
            self.left_behind += 1
            if self.left_behind & (self.left_behind - 1) == 0:
                logger.warning("%d calls of %s run on although nobody waits for them any more", self.left_behind, self._name)
        call.add_done_callback(returned)

    def _serve(self) -> None:
        changed = self._changed
        while True:
            with changed:
                self._idle += 1
                while not self._calls and not self._closed and changed.wait(IDLE):
                    pass
                self._idle -= 1
                if not self._calls:
                    self._running -= 1
                    return
                future, place.depth, call = self._calls.popleft()
            _carry_out(future, call)
            # Nothing of it may live on while this thread waits.
            del future, call


def _carry_out(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(as_failure(error))
    else:
        future.set_result(result)


_all: WeakSet[Workers] = WeakSet()


def _at_exit() -> None:
    deadline = time.monotonic() + AT_EXIT
    while any(workers._running - workers._idle > workers.left_behind for workers in list(_all)) and time.monotonic() < deadline:
        time.sleep(0.01)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: vars(place).clear())
