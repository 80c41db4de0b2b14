"""The ASGI application: chat completions by guards, in OpenAI's protocol. Nothing is sent before it is decided."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.gateway import wire
from bonmini_guard.gateway.config import Configuration
from bonmini_guard.gateway.feedback import Feedback, join
from bonmini_guard.gateway.metrics import Metrics, p_values
from bonmini_guard.gateway.models import Guarded, Upstream
from bonmini_guard.gateway.refusals import body_of, refusal_of
from bonmini_guard.server.door import GONE, Door, Limits, Refused, while_connected
from bonmini_guard.server.schemas import read

logger = logging.getLogger("bonmini_guard.gateway")

#: Seconds between two signs of life of a stream that waits for a decision. Until the first, the status is still open.
KEEP_ALIVE = 10.0
#: Seconds that explored requests have to end when the server does.
_LAST = 10.0
#: Seconds between two looks for drift.
_LOOK = 600.0
_JSON = "application/json"
#: Proxies keep nothing of a stream back.
_EVENTS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}

#: What the log says of a request, of what the guard says: no text.
_NOTED = ("request_id", "decision", "reason", "draws")
Note = dict[str, Any]


class Gateway(Door):
    """Guards behind routes."""

    def __init__(self, configuration: Configuration, limits: Limits | None = None, keep_alive: float = KEEP_ALIVE) -> None:
        super().__init__(configuration.keys, limits or Limits())
        self._configuration, self._keep_alive = configuration, keep_alive
        self._metrics = Metrics(self.admission)
        self.renew = self._reload
        self._finishing: set[asyncio.Future[None]] = set()
        self.app = self.serving(self.routes(), self._lifespan)

    def routes(self) -> list[Route]:
        """What is answered, and by what."""
        return [
            Route("/v1/chat/completions", self, methods=["POST"]),
            Route("/v1/feedback", self, methods=["POST"]),
            Route("/v1/models", self.secured(self._models)),
            *self.operations(lambda: self._metrics.text(self._configuration), lambda: {"models": list(self._configuration.models)}),
        ]

    def shape(self, refused: Refused, _: str) -> dict[str, Any]:
        """As OpenAI's protocol writes errors."""
        return body_of(refused)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        watching = asyncio.ensure_future(self._watch())
        yield
        watching.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST):
                await asyncio.gather(*(guarded.aclose() for guarded in self._configuration.guards.values()), *self._finishing)

    async def _watch(self) -> None:
        while True:
            known = self._metrics.drift
            # While another process looks, what was found before holds. Between looks no guard is held: a reload may remove it.
            self._metrics.drift = {
                name: await asyncio.to_thread(p_values, guarded.guard) or known.get(name, {})
                for name, guarded in self._configuration.guards.items()
            }
            await asyncio.sleep(_LOOK)

    def _reload(self) -> None:
        """Take over a changed file; requests end with the guard that they began with."""
        loop = asyncio.get_running_loop()

        def load() -> None:
            try:
                for guarded in self._configuration.load():
                    loop.call_soon_threadsafe(self._finish, guarded)
                logger.info("%s: in force", self._configuration.path)
            except Exception as error:  # whatever is wrong: nobody else would tell
                logger.warning("refused, the old configuration stays in force: %s", error)

        loop.run_in_executor(None, load)

    def _finish(self, guarded: Guarded) -> None:
        """See what a guard that is in force no more does in the background to its end; no longer is it held."""
        work = asyncio.ensure_future(guarded.aclose())
        self._finishing.add(work)
        work.add_done_callback(self._finishing.discard)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that has a body."""
        request, came, begun = Request(scope, receive), perf_counter(), ""
        note: Note = {"status": GONE, "model": "-"}
        work = self._note if request.url.path.endswith("feedback") else self._answer

        async def tell(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                if begun:  # a stream, by signs of life
                    return
                begun = Headers(raw=message["headers"]).get("content-type") or "unknown"
            await send(message)

        try:
            async with self.entered(request) as body:
                await while_connected(request, work(request, body, tell, note))
        except (ClientDisconnect, OSError):
            pass
        except Exception as error:
            refused = refusal_of(error)
            note.update(_noted(refused.about or {}), status=refused.status, error=refused.kind)
            said = wire.event(body_of(refused)) if begun else json.dumps(body_of(refused))
            # What is passed through and no stream stays without its end: nobody takes it for whole.
            if not begun or begun.startswith("text/event-stream"):
                await Response(said, refused.status, refused.headers, _JSON)(scope, receive, tell)
        finally:
            seconds = perf_counter() - came
            self._metrics.answered(note["model"], note["status"], seconds)
            logger.info("%s", json.dumps({**note, "seconds": round(seconds, 4)}))

    async def _answer(self, request: Request, body: bytes, send: Send, note: Note) -> None:
        wanted = read(wire.ChatRequest, body)
        model = self._configuration.models.get(wanted.model)
        if model is None:
            raise Refused(404, "model_not_found", "there is no such model here; GET /v1/models lists those that there are")
        note["model"] = wanted.model
        if isinstance(model, Upstream):
            note["status"] = await model.pass_on(body, send)
            return
        group = request.headers.get("x-conversation-id") or wanted.group
        work = asyncio.ensure_future(model.answer(wanted, group, self._metrics.decided))
        try:
            while wanted.stream and not (await asyncio.wait((work,), timeout=self._keep_alive))[0]:
                await send({"type": "http.response.start", "status": 200, "headers": Headers(_EVENTS).raw})
                await send({"type": "http.response.body", "body": wire.KEEP_ALIVE, "more_body": True})
            answer = await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if self._configuration.guards.get(wanted.model) is not model:
                self._finish(model)
        note.update(_noted(answer["bonmini_guard"]), status=200)
        await _response(answer, wanted)(request.scope, request.receive, send)

    async def _note(self, request: Request, body: bytes, send: Send, note: Note) -> None:
        said = read(Feedback, body)
        for name, model in self._configuration.guards.items():
            if isinstance(traces := model.guard.options["trace_to"], str):
                await model.guard.aflush()
                try:
                    joined = await asyncio.to_thread(join, traces, said)
                except (OSError, ConfigurationError) as error:
                    logger.error("feedback cannot be kept: %s", error)
                    raise Refused(503, "outage", f"the thumb could not be kept: {type(error).__name__}") from None
                if joined:
                    note.update(status=200, model=name)
                    self._metrics.thumbs.labels(said.thumbs).inc()
                    return await JSONResponse({"status": "noted"})(request.scope, request.receive, send)
        raise Refused(404, "not_found", "request_id: there is no trace of that request, or not yet")

    def _models(self) -> Response:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "bonmini-guard"} for name in self._configuration.models]
        return JSONResponse({"object": "list", "data": listed})


def _response(answer: dict[str, Any], wanted: wire.ChatRequest) -> Response:
    """The response with an answer."""
    headers = wire.headers(answer["bonmini_guard"])
    if wanted.stream:
        return Response(b"".join(wire.chunks(answer, wanted)), headers=_EVENTS | headers)
    # Not Starlette's: half a surrogate pair, as models write them, can be escaped, and not encoded.
    return Response(json.dumps(answer), headers=headers, media_type=_JSON)


def _noted(about: Mapping[str, Any]) -> Note:
    return {name: about[name] for name in _NOTED if name in about}
