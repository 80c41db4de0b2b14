"""The page and what it talks to: one address with a random key, one page, one call; candidates are hostile input."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import socket
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from bonmini_guard.errors import ConfigurationError, InputError, needing
from bonmini_guard.labelling.agreement import agreement
from bonmini_guard.labelling.items import Item, sides
from bonmini_guard.labelling.session import Session, check_annotator

with needing("label"):
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

from bonmini_guard.server.door import Door, Limits, Refused
from bonmini_guard.server.schemas import read
from bonmini_guard.validation import is_number

#: Of a request's body, in bytes.
LARGEST_BODY = 16_384
#: Requests with the key at the same time; further ones are answered 429, and the page says so and tries again.
MOST_AT_ONCE = 64


class Asked(BaseModel):
    """What the page asks; every act has an id, so that one that is sent twice is one. A time that is none is left out."""

    do: Literal["hello", "next", "label", "skip", "undo"]
    annotator: str | None = None
    item: str = ""
    answer: str = ""
    event: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] = ""
    seconds: Any = None


class LabelServer(Door):
    """The web application around a session.

    Args:
        annotator: whose labels these are; None lets the page ask once.
        tell: told what the labels certify, whenever a session with a goal has looked again.
        after: lines to show when there is no further question: what the labels make possible, then commands.

    Attributes:
        key: the random part of the address.
    """

    def __init__(
        self,
        session: Session,
        annotator: str | None = None,
        tell: Callable[[str], None] = lambda said: None,
        after: Sequence[str] = (),
    ) -> None:
        self.session, self._after = session, list(after)
        self._told, self._tell = session.said, tell
        self.key = secrets.token_urlsafe(24)
        self._annotator = annotator
        super().__init__([self.key], Limits(body=LARGEST_BODY, requests=MOST_AT_ONCE))
        routes = [Route("/{key}/", self._page), Route("/{key}/api", self._api, methods=["POST"])]
        self.app = Starlette(routes=routes)

    def serve(self, listening: socket.socket) -> None:
        """Serve until the process is told to stop."""
        # No limit of connections: those that show no key, and perhaps say nothing, would take the labeller's place.
        settings = uvicorn.Config(self.app, log_level="warning", access_log=False, server_header=False)
        uvicorn.Server(settings).run(sockets=[listening])

    def check_key(self, request: Request) -> None:
        """The key is in the address; whoever does not know it is Refused and told nothing."""
        if not hmac.compare_digest(request.path_params["key"].encode(), self.key.encode()):
            raise Refused(404, "unknown", "")

    async def _page(self, request: Request) -> Response:
        try:
            self.check_key(request)
        except Refused as refused:
            return Response(status_code=refused.status)
        text, headers = self._document
        return HTMLResponse(text, headers=headers)

    async def _api(self, request: Request) -> Response:
        try:
            async with self.entered(request) as body:
                told = await run_in_threadpool(self._do, read(Asked, body))
        except Refused as refused:
            return _told({"error": refused.message}, refused.status) if refused.message else Response(status_code=refused.status)
        except (InputError, ConfigurationError) as error:
            return _told({"error": str(error)}, 400)
        except OSError as error:
            return _told({"error": f"the label could not be written to disk ({error.strerror}); make room and try again"}, 507)
        return _told(told)

    @cached_property
    def _document(self) -> tuple[str, dict[str, str]]:
        text = resources.files("bonmini_guard.labelling").joinpath("page.html").read_text(encoding="utf-8")
        return text, {**_HEADERS, "Content-Security-Policy": _policy(text)}

    def _do(self, asked: Asked) -> dict[str, Any]:
        """Carry out what the page asks; the answer says what to show next."""
        if asked.do == "hello":
            return {"annotator": self._annotator, "question": self.session.question}
        if asked.do != "next" and not asked.event:
            raise InputError("an act has an id; reload the page")
        annotator, undone = self._annotator or check_annotator(asked.annotator), None
        if asked.do == "label":
            seconds = round(float(asked.seconds), 2) if is_number(asked.seconds) and 0 <= asked.seconds < 1e6 else None
            self.session.label(annotator, asked.item, asked.answer, asked.event, seconds)
        elif asked.do == "skip":
            self.session.put_off(annotator, asked.item, asked.event)
        elif asked.do == "undo":
            undone = self.session.undo(annotator, asked.event)
        return self._state(annotator, undone)

    def _state(self, annotator: str, undone: Item | None) -> dict[str, Any]:
        standing = self.session.standing(annotator)
        item = undone or standing.item
        state = {key: getattr(standing, key) for key in ("done", "total", "put_off", "undoable")}
        state["said"] = self.session.said
        if self._told != state["said"]:
            self._told = state["said"]
            self._tell(self._told)
        state["item"] = None if item is None else self._shown(item, annotator)
        if item is None:
            state |= {"agreement": agreement(self.session.snapshot()), "after": self._after}
        return state

    def _shown(self, item: Item, annotator: str) -> dict[str, Any]:
        """What a labeller may know: no score, no model, no decision, no row, no order drawn."""
        answers = [item.row.texts[index] for index in sides(item, annotator, self.session.plan)]
        return {"key": item.key, "turns": [list(turn) for turn in item.row.turns], "answers": answers}


_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def _policy(page: str) -> str:
    """A Content-Security-Policy that knows the page's own script and style by their SHA-256."""
    script, style = (_source(page, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _source(page: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert found is not None, tag  # the page is part of this package
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"


def _told(value: dict[str, Any], status: int = 200) -> Response:
    """JSON in ASCII: a lone surrogate, which UTF-8 cannot write, arrives as its escape."""
    return Response(json.dumps(value, allow_nan=False), status, _HEADERS, "application/json")
