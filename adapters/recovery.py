"""Asking again: when, how often, and together, so that an endpoint in trouble meets one request and not everybody's."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from bonmini_guard.adapters.http_errors import EndpointError, GenerationFailedAtEndpoint, MalformedAnswer

T = TypeVar("T")
#: What one request has to say to the others: an error, that the endpoint works, or nothing, since it was given up.
Heard = EndpointError | bool

#: Failures that are seldom cured by trying again get one more attempt.
_BOUNDED = (GenerationFailedAtEndpoint, MalformedAnswer)
BOUNDED_RETRIES = 1
#: Seconds between two attempts at most, where the server names no time of its own.
LONGEST_BACKOFF = 8.0
#: Seconds that a server's Retry-After is obeyed for at most.
LONGEST_RETRY_AFTER = 60.0
#: Failures in a row that are no chance any more.
TROUBLE = 2
#: Seconds after which an endpoint that has not failed a request is taken to work on it.
WORKING = 1.0


def pause(error: EndpointError, attempts: int, backoff: float) -> float:
    """Seconds to wait after so many attempts: a random time that doubles its range, or what the server asked for and a bit more."""
    if error.retry_after is None:
        return random.uniform(0, min(LONGEST_BACKOFF, backoff * 2.0 ** (attempts - 1)))
    # Not all at the very moment that the server named.
    return min(error.retry_after, LONGEST_RETRY_AFTER) + random.uniform(0, backoff)


class Recovery:
    """What the requests of one event loop know of one endpoint.

    While it works, each request retries for itself. After failures in a row one asks, and all others wait for what it hears; a
    second of work lets them go on, too, for dead endpoints fail at once.
    """

    def __init__(self) -> None:
        #: Failures since the last answer, and the time before which nobody is to ask.
        self.failed = 0
        self._until = 0.0
        self._last: EndpointError | None = None
        self._asking: asyncio.Future[Heard] | None = None

    async def persist(
        self, attempt: Callable[[], Awaitable[T]], *, retries: int = 3, backoff: float = 0.5, within: float | None = None
    ) -> T:
        """Await ``attempt()``, again while its :class:`EndpointError` is worth it.

        A wait that would end after ``within`` seconds is not begun. An attempt is not interrupted.
        """
        deadline = float("inf") if within is None else monotonic() + within
        wait, attempts = 0.0, 0
        while True:
            attempts += 1
            try:
                return await self._in_turn(attempt, wait, deadline)
            except EndpointError as error:
                wait = pause(error, attempts, backoff)
                if error.retryable and error.retry_after is not None:
                    self._until = max(self._until, monotonic() + wait)
                most = min(retries, BOUNDED_RETRIES) if isinstance(error, _BOUNDED) else retries
                if not error.retryable or attempts > most or monotonic() + wait >= deadline:
                    raise

    async def _in_turn(self, attempt: Callable[[], Awaitable[T]], wait: float, deadline: float) -> T:
        """One attempt, after a wait; what comes of it is told to those who wait for it."""
        # While it works there is nothing to wait for.
        asking = await self._turn(wait, deadline) if wait or self._until or self.failed >= TROUBLE else None
        heard: Heard = False
        try:
            if asking is not None:
                await self._wait(wait, deadline)
                asyncio.get_running_loop().call_later(WORKING, self._works, asking)
            answer = await attempt()
            self.failed, self._until, heard = 0, 0.0, True
            return answer
        except EndpointError as error:
            if error.retryable:
                self.failed += 1
                self._last = heard = error
            else:  # what one request is refused for is not the others' matter: whoever refuses is alive
                heard = True
            raise
        finally:
            if asking is not None:
                self._tell(asking, heard)

    async def _turn(self, wait: float, deadline: float) -> asyncio.Future[Heard] | None:
        """Wait until it is one's turn to ask; where one asks for all, what they wait for."""
        heard: Heard = False
        if wait:
            # Failures that come together are all counted before anybody goes on for itself.
            await asyncio.sleep(0)
        while True:
            if self.failed < TROUBLE:
                if not await self._wait(wait, deadline):
                    return None
            elif self._asking is None:
                self._asking = asyncio.get_running_loop().create_future()
                return self._asking
            elif isinstance(heard := await asyncio.shield(self._asking), EndpointError):
                raise copy.copy(heard)
            elif heard:
                return None
            # It was long, or nothing was heard: things may have changed.
            wait = 0.0

    async def _wait(self, seconds: float, deadline: float) -> bool:
        """Wait so long, or as long as the server asked for; whether there was anything to wait for."""
        held = self._until - monotonic()
        if held > seconds and self._last is not None:
            if monotonic() + held >= deadline:
                raise copy.copy(self._last)
            seconds = held
        if seconds > 0:
            await asyncio.sleep(seconds)
        return seconds > 0

    def _works(self, asking: asyncio.Future[Heard]) -> None:
        if not asking.done():
            self.failed = TROUBLE - 1
            self._tell(asking, True)

    def _tell(self, asking: asyncio.Future[Heard], heard: Heard) -> None:
        if not asking.done():
            asking.set_result(heard)
        if asking is self._asking:
            self._asking = None
