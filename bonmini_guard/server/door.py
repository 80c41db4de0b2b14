"""What stands before every route of a server: keys, places, bodies that arrive in time, clients that hang up."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from bonmini_guard.errors import needing

with needing("serve"):
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

from bonmini_guard.validation import is_loopback

T = TypeVar("T")

#: A body that nobody waits for any more has no answer; this is what web servers write into their logs.
GONE = 499
#: Bytes of a body that may arrive whatever others hold.
_SMALL = 2**16


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        body: most bytes of one body.
        requests: most requests that wait or run.
        bytes: most bytes of their bodies together.
        patience: seconds in which a body must arrive. Until it has, it takes no place.
    """

    body: int = 8 * 2**20
    requests: int = 64
    bytes: int = 64 * 2**20
    patience: float = 30.0


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """An answer other than what was asked for; ``about`` is what else is told of it."""

    def __init__(self, status: int, kind: str, message: str, seconds: int | None = None, *, about: Any = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.seconds, self.about = status, kind, message, seconds, about

    @property
    def headers(self) -> dict[str, str]:
        """When to come again, if that is known."""
        return {} if self.seconds is None else {"Retry-After": str(self.seconds)}


class Admission:
    """Counts what is in the house."""

    def __init__(self, most_requests: int, most_bytes: int) -> None:
        self.requests = 0
        self.bytes = 0
        self._arriving = 0
        self._most_requests = most_requests
        self._most_bytes = most_bytes

    def check(self, size: int) -> None:
        """Refuse a body of ``size`` bytes for which there is no place."""
        if self.requests >= self._most_requests or (self.requests and self.bytes + size > self._most_bytes):
            raise _full()

    @contextmanager
    def arriving(self) -> Iterator[Callable[[int], int]]:
        """While a body arrives; tell how many bytes have come, and hear how many those are in all.

        A small body needs no room, so that large ones that come slowly keep none out.

        Raises:
            Refused: from what is told: bodies that arrive hold as many bytes as bodies may.
        """
        mine = 0

        def arrived(size: int) -> int:
            nonlocal mine
            mine += size
            self._arriving += size
            if mine > _SMALL and self._arriving > self._most_bytes:
                raise _full()
            return mine

        try:
            yield arrived
        finally:
            self._arriving -= mine

    @asynccontextmanager
    async def entered(self, size: int) -> AsyncIterator[None]:
        """Let a request in with a body of ``size`` bytes, or refuse it."""
        self.check(size)
        self.requests += 1
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= size


class Door:
    """Base of the servers, whose clients must show one of the keys, if there are any.

    Attributes:
        ending: set it to have new requests answered with 503.
        renew: called at SIGHUP, on the event loop; None leaves that signal as it is.
    """

    app: Starlette
    renew: Callable[[], None] | None = None

    def __init__(self, keys: Collection[str], limits: Limits) -> None:
        self.ending = False
        self.admission = Admission(limits.requests, limits.bytes)
        self._limits = limits
        self._keys = [f"Bearer {key}".encode() for key in keys]

    def check_key(self, request: Request) -> None:
        """Refuse who shows no key."""
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        shown = f"{scheme.title()} {secret.strip()}".encode()
        # All are compared, so that the time tells nothing.
        if self._keys and sum(hmac.compare_digest(shown, key) for key in self._keys) == 0:
            raise Refused(401, "unauthorized", "show the server's token as 'Authorization: Bearer ...'")

    def shape(self, refused: Refused, path: str) -> dict[str, Any]:
        """The body of a refusal at a path."""
        raise NotImplementedError

    def secured(self, answer: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
        """A route for who shows a key."""

        async def endpoint(request: Request) -> Response:
            self.check_key(request)
            return answer()

        return endpoint

    def operations(self, told: Callable[[], bytes], ready: Callable[[], dict[str, Any]]) -> list[Route]:
        """``/health`` and ``/ready``, without a key, and ``/metrics``."""

        async def is_alive(_: Request) -> Response:
            return JSONResponse({"status": "alive"})

        async def is_ready(_: Request) -> Response:
            if self.ending:
                raise _ending()
            return JSONResponse({"status": "ready", **ready()})

        metrics = self.secured(lambda: Response(told(), media_type="text/plain; version=0.0.4"))
        return [Route("/health", is_alive), Route("/ready", is_ready), Route("/metrics", metrics)]

    def serving(self, routes: list[Route], lifespan: Any) -> Starlette:
        """The application; that nothing is at a path, or not by that method, is told as every refusal is."""
        told: dict[Any, Any] = {HTTPException: self.refuse, Refused: self.refuse}
        return Starlette(routes=routes, lifespan=lifespan, exception_handlers=told)

    def refuse(self, request: Request, error: Any) -> Response:
        """The answer to a request that is refused."""
        refused = error if isinstance(error, Refused) else Refused(error.status_code, "not_found", error.detail)
        return JSONResponse(self.shape(refused, request.url.path), refused.status, error.headers)

    @asynccontextmanager
    async def entered(self, request: Request) -> AsyncIterator[bytes]:
        """Let a request in, with its body.

        Raises:
            Refused: it shows no key, is too large or too slow, there is no place, or the server ends before it does.
        """
        self.check_key(request)
        if not self._keys:
            _check_sender(request)
        if self.ending:
            raise _ending()
        if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            raise Refused(415, "validation", "bodies are not unpacked here: send it as it is, without content-encoding")
        size = _announced(request, self._limits.body)
        self.admission.check(size)
        body = await self._body(request, size)
        async with self.admission.entered(len(body)):
            try:
                yield body
            except asyncio.CancelledError:
                raise _ending() from None

    async def _body(self, request: Request, size: int) -> bytes:
        parts: list[bytes] = []
        with self.admission.arriving() as arrived:
            try:
                async with asyncio.timeout(self._limits.patience):
                    async for part in request.stream():
                        parts.append(part)
                        if arrived(len(part)) > size:
                            raise Refused(413, "validation", f"the body has more than {size} bytes")
            except TimeoutError:
                raise Refused(408, "validation", f"the body took more than {self._limits.patience:g} s") from None
        return b"".join(parts)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The work's result; a client that goes away takes the work with it.

    Raises:
        ClientDisconnect: it went away.
    """

    async def gone() -> None:
        if (await request.receive())["type"] != "http.disconnect":
            # The body has been read: anything else is not what a server sends, and nothing to act on.
            await asyncio.Event().wait()

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _ending() -> Refused:
    return Refused(503, "ending", "the server is ending", 1)


def _full() -> Refused:
    return Refused(429, "overloaded", "the queue is full; try again in 1 s", 1)


def _check_sender(request: Request) -> None:
    """Without keys, refuse what a page of a browser can send from elsewhere.

    It asks for another host (a name that was made to lead here), or sends what needs no leave to be sent.
    """
    if not is_loopback(request.url.hostname or ""):
        raise Refused(421, "validation", "a server without a token answers to localhost and loopback addresses alone: set a token")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "validation", "send the body as content-type application/json")


def _announced(request: Request, most: int) -> int:
    """How many bytes the body may have."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < 19 and int(announced) <= most:
        return int(announced)
    if announced:
        raise Refused(413, "validation", f"the body may have at most {most} bytes")
    return most
