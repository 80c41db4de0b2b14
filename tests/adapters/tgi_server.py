"""A loopback server that speaks as much of TGI's protocol as the tests need, and fails on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

OVERLOADED = {"error": "Model is overloaded", "error_type": "overloaded"}
INFO = {
    "model_id": "tiny/model",
    "model_sha": "abc123",
    "max_concurrent_requests": 64,
    "max_best_of": 2,
    "max_stop_sequences": 4,
    "max_input_tokens": 1024,
    "max_total_tokens": 2048,
    "max_client_batch_size": 4,
    "router": "text-generation-router",
    "validation_workers": 2,
    "version": "3.3.6",
}


def chat(text: str, reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": reason, "logprobs": None, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    return {"choices": [choice], "created": 1, "id": "", "model": "tiny/model", "object": "chat.completion", "usage": usage}


def chat_chunks(text: str, reason: str = "stop") -> list[dict[str, Any]]:
    def chunk(delta: str, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": finish, "delta": {"role": "assistant", "content": delta}}
        return {"choices": [choice], "created": 1, "id": "", "model": "tiny/model", "usage": None}

    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    return [*(chunk(letter, None) for letter in text), chunk("", reason), {"choices": [], "model": "tiny/model", "usage": usage}]


def generated(text: str, reason: str = "eos_token", seed: int | None = 1) -> list[dict[str, Any]]:
    details = {"finish_reason": reason, "generated_tokens": 3, "prefill": [], "tokens": [], "seed": seed, "best_of_sequences": None}
    return [{"generated_text": text, "details": details}]


def events(text: str, reason: str = "eos_token") -> list[dict[str, Any]]:
    def event(index: int, letter: str) -> dict[str, Any]:
        token = {"id": index, "text": letter, "logprob": -0.1, "special": False}
        return {"index": index, "token": token, "generated_text": None, "details": None}

    several = [event(index, letter) for index, letter in enumerate(text)]
    details = {"finish_reason": reason, "generated_tokens": len(text), "input_length": 7, "seed": 1}
    return [*several[:-1], several[-1] | {"generated_text": text, "details": details}]


class TGIServer:
    """``async with TGIServer() as server``: answers on ``server.url``.

    Attributes:
        faults: what the next requests meet, one each, then none: a status, (status, body), or one of the names "stall",
            "half", "reset", "garbage", "html", "drip", "error event", "cut stream".
        answer: body of an answer that is no stream; None for one that names the seed.
        chunks: chunks of a stream.
        headers: sent with every answer.
        slow: seconds before each answer, or a function of the body.
        pause: seconds after each chunk of a stream.
        requests: (path, headers, body) of each request but those to ``/info``.
        closed_early: requests whose client hung up before the answer was complete.
        open: connections at present.
    """

    def __init__(self) -> None:
        self.faults: list[Any] = []
        self.answer: Any = None
        self.chunks: list[dict[str, Any]] | None = None
        self.headers: dict[str, str] = {}
        self.slow: Any = 0.0
        self.pause = 0.0
        self.info: Any = INFO
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.info_requests = 0
        self.closed_early = 0
        self.open = 0
        self.busy = 0
        self.busiest = 0
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> TGIServer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while (request := await self._read(reader)) is not None:
                await self._answer(request, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> tuple[str, dict[str, str], dict[str, Any]] | None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return head[0].split()[1], headers, json.loads(body) if body else {}

    async def _answer(self, request: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path, _, body = request
        if path == "/info":
            self.info_requests += 1
            self._send(writer, 200 if self.info else 404, json.dumps(self.info or {}))
            return
        self.requests.append(request)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        work = asyncio.create_task(self._work(path, body, writer))
        gone = asyncio.create_task(_hung_up(reader))
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

    async def _work(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        fault = self.faults.pop(0) if self.faults else None
        if await self._fail(fault, writer):
            return
        await asyncio.sleep(self.slow(body) if callable(self.slow) else self.slow)
        if body.get("stream"):
            await self._stream(path, body, fault, writer)
        else:
            seed = body.get("seed") or body.get("parameters", {}).get("seed")
            plain = chat(f"answer {seed}") if path.startswith("/v1") else generated(f"answer {seed}", seed=seed)
            self._send(writer, 200, json.dumps(plain if self.answer is None else self.answer))

    async def _fail(self, fault: Any, writer: asyncio.StreamWriter) -> bool:
        if isinstance(fault, int | tuple):
            status, said = fault if isinstance(fault, tuple) else (fault, OVERLOADED)
            self._send(writer, status, said if isinstance(said, str) else json.dumps(said))
        elif fault == "stall":
            await asyncio.sleep(60)
        elif fault == "half":
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n" + b'{"choices": [{"mess'
            )
            writer.close()
        elif fault == "reset":
            writer.transport.abort()
        elif fault == "garbage":
            self._send(writer, 200, '{"choices": [{]]')
        elif fault == "html":
            self._send(writer, 200, "<html>welcome</html>", "text/html")
        elif fault == "drip":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.02)
        else:
            return False
        return True

    async def _stream(self, path: str, body: dict[str, Any], fault: Any, writer: asyncio.StreamWriter) -> None:
        chat_route = path.startswith("/v1")
        chunks: list[dict[str, Any]] = self.chunks or (chat_chunks("answer") if chat_route else events("answer"))
        if fault == "error event":
            broken = {"error": "Incomplete generation stream", "error_type": "incomplete_generation_stream"}
            chunks = [*chunks[:2], {"error": {"message": broken["error"], "http_status_code": 422}} if chat_route else broken]
        if fault == "cut stream":
            chunks = chunks[:3]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: keep-alive\n\n")
        for line in self._lines(chunks, chat_route and fault is None):
            writer.write(line)
            await writer.drain()
            await asyncio.sleep(self.pause)
        writer.close()

    @staticmethod
    def _lines(chunks: Iterable[dict[str, Any]], done: bool) -> list[bytes]:
        return [b"data:" + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + ([b"data: [DONE]\n\n"] if done else [])

    def _send(self, writer: asyncio.StreamWriter, status: int, body: str, kind: str = "application/json") -> None:
        location = {"location": "/elsewhere"} if 300 <= status < 400 else {}
        headers = {"content-type": kind, **location, "content-length": str(len(body.encode())), **self.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {status} Reason\r\n{lines}\r\n{body}".encode())


async def _hung_up(reader: asyncio.StreamReader) -> None:
    # Looks instead of reading: a byte read here would be missing from the next request.
    while not reader.at_eof() and reader.exception() is None:
        await asyncio.sleep(0.005)
