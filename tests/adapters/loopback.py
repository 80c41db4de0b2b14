"""A loopback HTTP server for tests and benchmarks: real sockets, answers that a subclass gives, faults on demand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Self

OVERLOADED = {"error": "Model is overloaded", "error_type": "overloaded"}
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

#: Faults by name, for those that want to try each. Statuses and (status, body[, headers]) are faults too.
FAULTS = ("stall", "half", "reset", "garbage", "html", "drip")
STREAM_FAULTS = ("error event", "cut stream")


def storm(requests: int, retry_after: str | None = None, status: int = 429, body: Any = None) -> list[Any]:
    """Faults for so many requests in a row: refused, with or without a Retry-After."""
    return [(status, OVERLOADED if body is None else body, {} if retry_after is None else {"retry-after": retry_after})] * requests


class LoopbackServer:
    """``async with LoopbackServer() as server``: answers on ``server.url``. A subclass says what, in ``reply`` and ``chunks``.

    Attributes:
        faults: what the next requests meet, one each, then none: a status, (status, body), (status, body, headers), or a name
            of ``FAULTS`` or ``STREAM_FAULTS``; None is no fault. Or a function of (path, body) that says it for each request.
        headers: sent with every answer.
        slow: seconds before each answer, or a function of the body.
        pause: seconds after each chunk of a stream.
        extra: what the fault "extra" sends behind an answer, as one more answer that nobody asked for.
        requests: (path, headers, body) of each counted request.
        closed_early: requests whose client hung up before the answer was complete.
        connections: connections accepted since the start.
        port: to listen at; 0 takes a free one.
        open: connections at present.
        busy: requests at present; ``busiest`` is the most there were at a time.
    """

    #: What comes before the first chunk of a stream.
    opening = b": keep-alive\n\n"
    #: What follows the last chunk of a stream on some routes.
    done = b"data: [DONE]\n\n"

    def __init__(self) -> None:
        self.faults: list[Any] | Callable[[str, Any], Any] = []
        self.headers: dict[str, str] = {}
        self.slow: float | Callable[[Any], float] = 0.0
        self.pause = 0.0
        self.port = 0
        self.extra: Any = None
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.closed_early = 0
        self.connections = 0
        self.open = 0
        self.busy = 0
        self.busiest = 0
        self._serving: set[asyncio.Task[None]] = set()

    # For subclasses

    def aside(self, path: str) -> tuple[int, Any] | None:
        """(status, body) of a route that meets no fault and is not counted, such as a description; None for all others."""
        return None

    def reply(self, path: str, body: Any) -> Any:
        """The body of an answer that is no stream; a tuple (status, body) to refuse."""
        raise NotImplementedError

    def chunks(self, path: str, body: Any) -> Sequence[Any]:
        """The events of a stream."""
        raise NotImplementedError

    def error_event(self, path: str) -> Any:
        """What a failure within a stream looks like."""
        return {"error": {"message": "the engine died", "type": "InternalServerError", "code": 500}}

    def event(self, chunk: Any) -> bytes:
        """A chunk as it stands in a stream."""
        return b"data:" + json.dumps(chunk).encode() + b"\n\n"

    def ends_with_done(self, path: str) -> bool:
        """Whether streams of this route end with ``done``."""
        return True

    # Serving

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self._accept), "127.0.0.1", self.port, backlog=4096)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(connection, reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.connections += 1
        try:
            while True:
                await self._answer(await _read(reader), connection, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _answer(self, request: Any, connection: _Connection, writer: asyncio.StreamWriter) -> None:
        path, _, body = request
        aside = self.aside(path)
        if aside is not None:
            self._send(writer, aside[0], aside[1])
            return
        self.requests.append(request)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        work = asyncio.create_task(self._work(path, body, writer))
        gone = asyncio.create_task(connection.gone.wait(), name="loopback")
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.closed_early += 1
                raise ConnectionResetError
            await work
        finally:
            self.busy -= 1
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _work(self, path: str, body: Any, writer: asyncio.StreamWriter) -> None:
        fault = self._fault(path, body)
        if await self._fail(fault, writer):
            return
        await asyncio.sleep(self.slow(body) if callable(self.slow) else self.slow)
        if isinstance(body, dict) and body.get("stream"):
            await self._stream(path, body, fault, writer)
            return
        said = self.reply(path, body)
        status, said = said if isinstance(said, tuple) else (200, said)
        # At once, so that the client finds both in what it reads.
        behind = self._whole(200, self.extra) if fault == "extra" else b""
        writer.write(self._whole(status, said) + behind)

    def _fault(self, path: str, body: Any) -> Any:
        if callable(self.faults):
            return self.faults(path, body)
        return self.faults.pop(0) if self.faults else None

    async def _fail(self, fault: Any, writer: asyncio.StreamWriter) -> bool:
        if isinstance(fault, int):
            self._send(writer, fault, OVERLOADED)
        elif isinstance(fault, tuple):
            self._send(writer, *fault[:2], headers=fault[2] if len(fault) > 2 else {})
        elif fault == "stall":
            await asyncio.sleep(3600)
        elif fault == "half":
            writer.write(JSON_HEAD % 500 + b'{"choices": [{"mess')
            writer.close()
        elif fault == "reset":
            writer.transport.abort()
        elif fault == "garbage":
            self._send(writer, 200, '{"choices": [{]]')
        elif fault == "html":
            self._send(writer, 200, "<html>welcome</html>", "text/html")
        elif fault == "drip":
            writer.write(JSON_HEAD % 100000)
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.02)
        else:
            return False
        return True

    async def _stream(self, path: str, body: Any, fault: Any, writer: asyncio.StreamWriter) -> None:
        chunks = list(self.chunks(path, body))
        if fault == "error event":
            chunks = [*chunks[:2], self.error_event(path)]
        elif fault == "cut stream":
            chunks = chunks[:3]
        writer.write(STREAM_HEAD + (_piece(self.opening) if self.opening else b""))
        for chunk in chunks:
            writer.write(_piece(self.event(chunk)))
            await writer.drain()
            await asyncio.sleep(self.pause)
        writer.write((_piece(self.done) if fault is None and self.ends_with_done(path) else b"") + _piece(b""))

    def _send(self, writer: asyncio.StreamWriter, *said: Any, **headers: Any) -> None:
        writer.write(self._whole(*said, **headers))

    def _whole(self, status: int, body: Any, kind: str = "application/json", headers: Mapping[str, str] | None = None) -> bytes:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        location = {"location": "/elsewhere"} if 300 <= status < 400 else {}
        fields = {"content-type": kind, **location, "content-length": len(content), **self.headers, **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"HTTP/1.1 {status} Reason\r\n{lines}\r\n".encode() + content


class InThread:
    """``with InThread(server) as server``: serves on a loop of its own, for what blocks its thread or runs a loop itself."""

    def __init__(self, server: LoopbackServer) -> None:
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> LoopbackServer:
        self._thread.start()
        return self._await(self._server.__aenter__())

    def __exit__(self, *_: object) -> None:
        self._await(self._server.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Connection(asyncio.StreamReaderProtocol):
    """Tells at once when the client hangs up, also while its request is being answered."""

    def __init__(self, accept: Callable[[_Connection, asyncio.StreamReader, asyncio.StreamWriter], None]) -> None:
        self.gone = asyncio.Event()
        super().__init__(asyncio.StreamReader(), lambda reader, writer: accept(self, reader, writer))

    def eof_received(self) -> bool | None:
        self.gone.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        super().connection_lost(exc)


async def _read(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return head[0].split()[1], headers, json.loads(body) if body else {}


def _piece(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
