"""A concurrency limit that is native to the event loop, safe to share between loops, bounded, and fair to requests.

Places are counted for each running loop: a blocking or loop-bound semaphore shared between loops deadlocks or raises. Who
waits for a place waits in the lane of his request, and lanes take turns: a request of 64 draws does not hold up one of 4.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from bonmini_guard.errors import TooBusy
from bonmini_guard.forks import Lock
from bonmini_guard.validation import Count, Natural, checked

T = TypeVar("T")

#: Draws that may wait on one loop where nothing else is said: far more than a healthy service holds, and still an end.
DEFAULT_MAX_WAITING = 10_000


class Lane:
    """Whose turn a wait for a place uses up: one for each request; it can be a weak key."""


#: That of the request that is being worked for.
request_lane: ContextVar[object | None] = ContextVar("bonmini_guard_request_lane", default=None)
#: The limit that a call's config sets (``max_concurrency``); the requests of a batch share it. None where draws run: a guard inside
#: one would wait for the place that the draw itself holds.
limit_of_call: ContextVar[Limiter | None] = ContextVar("bonmini_guard_call_limit", default=None)


class Limiter:
    """At most ``limit`` holders at a time on each event loop; requests that wait take turns, each in order of arrival.

    Pass one limiter to several guards (``max_concurrency=``) or adapters to hold them to one limit together.

    Args:
        limit: holders allowed at a time, 1 or more.
        max_waiting: holders-to-be that may wait at a time; any more are refused with :class:`~bonmini_guard.errors.TooBusy`.

    Raises:
        ConfigurationError: a number is out of range.
    """

    @checked
    def __init__(self, limit: Count, max_waiting: Natural = DEFAULT_MAX_WAITING) -> None:
        self.limit = limit
        self.max_waiting = max_waiting
        self._lock = Lock()
        self._everywhere: WeakKeyDictionary[asyncio.AbstractEventLoop, Places] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[Limiter], tuple[int, int]]:
        return type(self), (self.limit, self.max_waiting)

    def here(self, lane: object | None = None, inner: Places | None = None) -> Places:
        """The places of the running loop, to be used as ``async with limiter.here()``.

        Args:
            lane: whose turn a wait uses; None for that of the request being worked for then.
            inner: of another limiter: whoever has a place here takes one there, too.
        """
        loop = asyncio.get_running_loop()
        with self._lock.held:
            places = self._everywhere.get(loop)
            if places is None:
                places = self._everywhere[loop] = Places(_Room(self.limit, self.max_waiting))
        return places if lane is None and inner is None else Places(places.room, lane, inner)


def build_limiter(limit: int | Limiter | None) -> Limiter | None:
    """A limiter as it is, one of so many places, or none."""
    return limit if limit is None or isinstance(limit, Limiter) else Limiter(limit)


def call_limit(config: Mapping[str, Any] | None) -> AbstractContextManager[None]:
    """Requests begun inside share the ``max_concurrency`` of a LangChain config, unless a batch around them has set one."""
    most = (config or {}).get("max_concurrency")
    return nullcontext() if most is None or limit_of_call.get() is not None else holding(limit_of_call, Limiter(most))


@contextmanager
def holding(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Set a context variable for what runs inside."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def places_of(limiter: Limiter | None, lane: object) -> Places | None:
    """The places that a request's draws need: of the call's limit and of a guard's. None without either.

    Draws of the request are to run outside the call's limit.
    """
    ours, calls = None if limiter is None else limiter.here(lane), limit_of_call.get()
    return ours if calls is None else calls.here(lane, ours)


class Places:
    """The places of one loop, for one lane or, without one, for whichever is being worked for."""

    __slots__ = ("_inner", "_lane", "room")

    def __init__(self, room: _Room, lane: object | None = None, inner: Places | None = None) -> None:
        self.room = room
        self._lane = lane
        self._inner = inner

    @property
    def free(self) -> int:
        """Places nobody holds, of both limits where there are two."""
        return self.room.free if self._inner is None else min(self.room.free, self._inner.free)

    def admit(self) -> None:
        """Raise TooBusy if one more would find no room to wait in."""
        self.room.admit()
        if self._inner is not None:
            self._inner.admit()

    async def acquire(self) -> None:
        """Take a place, in turn."""
        room = self.room
        # Whoever frees a place hands it to a waiter: a free one means that nobody waits.
        if room.free:
            room.free -= 1
        else:
            await self._wait()
        if self._inner is not None:
            try:
                await self._inner.acquire()
            except BaseException:
                room.release()
                raise

    async def _wait(self) -> None:
        room, lane = self.room, self._lane or request_lane.get() or object()
        room.admit()
        place = room.queue(lane)
        try:
            await place
        except BaseException:
            if place.done() and not place.cancelled():
                # Handed over and no longer wanted, both at once.
                room.release()
            else:
                room.leave(lane, place)
            raise

    def release(self) -> None:
        """Give a place to whoever's turn it is."""
        if self._inner is not None:
            self._inner.release()
        if self.room.lanes:
            self.room.release()
        else:
            self.room.free += 1

    __aenter__ = acquire

    async def __aexit__(self, *_: object) -> None:
        self.release()


class _Room:
    """The places of one event loop, and who waits for them."""

    __slots__ = ("free", "lanes", "limit", "max_waiting", "waiting")

    def __init__(self, limit: int, max_waiting: int) -> None:
        self.free = self.limit = limit
        self.max_waiting = max_waiting
        self.waiting = 0
        self.lanes: OrderedDict[object, deque[asyncio.Future[None]]] = OrderedDict()

    def queue(self, lane: object) -> asyncio.Future[None]:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lanes.setdefault(lane, deque()).append(place)
        self.waiting += 1
        return place

    def leave(self, lane: object, place: asyncio.Future[None]) -> None:
        waiters = self.lanes.get(lane, deque())
        # A release may have met it, cancelled, in the same turn of the loop.
        if place in waiters:
            waiters.remove(place)
            self.waiting -= 1
            if not waiters:
                del self.lanes[lane]

    def admit(self) -> None:
        if self.free == 0 and self.waiting >= self.max_waiting:
            raise TooBusy(
                f"{self.waiting} wait for one of {self.limit} places already: retry later, or raise max_waiting= of the limiter"
            )

    def release(self) -> None:
        """Hand a place to the first of the lane whose turn it is, and send that lane to the end."""
        while self.lanes:
            lane, waiters = self.lanes.popitem(last=False)
            place = waiters.popleft()
            self.waiting -= 1
            if waiters:
                self.lanes[lane] = waiters
            if not place.done():
                place.set_result(None)
                return
        self.free += 1
