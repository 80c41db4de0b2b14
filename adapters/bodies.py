"""How an answer is read, and how much of it: bytes, events of a stream, depth of tool calls."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Any

from bonmini_guard.adapters.http_errors import MalformedAnswer

logger = logging.getLogger(__name__)

#: Bytes of an answer at most.
LONGEST_ANSWER = 64 * 2**20
#: Events of a streamed answer at most; a token is one, as a rule.
LONGEST_STREAM = 200_000
#: Objects and lists in a tool call's arguments, one inside the other, at most.
DEEPEST = 100
#: Encodings that are none; "none" keeps a proxy from packing a stream.
_PLAIN = frozenset({"", "identity", "none", "utf-8", "utf8"})
#: How a stream of events begins, whatever content type a server gives it.
_STREAM = re.compile(rb"(\xef\xbb\xbf)?\s*(data|event|error|id|retry)?:")
#: Seconds that the end of a stream which said that it ends is waited for.
_TAIL = 0.05


@cache
def bounding(library: Any) -> Callable[[Any], Awaitable[None]]:
    """A hook that bounds what is read of a response, whoever reads it, and refuses one that came packed although nobody asked."""

    class Bounded(library.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            self._stream = stream
            self.aclose = stream.aclose

        async def __aiter__(self) -> AsyncIterator[bytes]:
            told = 0
            async for piece in self._stream:
                told += len(piece)
                if told > LONGEST_ANSWER:
                    raise MalformedAnswer(f"the endpoint's answer is longer than {LONGEST_ANSWER} bytes", status=200)
                yield piece

    async def bound(response: Any) -> None:
        packed = response.headers.pop("content-encoding", "identity").lower()
        if packed not in _PLAIN and response.is_success:
            raise MalformedAnswer(f"the endpoint answered in the encoding {packed[:40]!r}, which was not asked for", status=200)
        response.stream = Bounded(response.stream)

    return bound


def parsed(said: bytes) -> Any:
    """What JSON says; MalformedAnswer if it is none."""
    try:
        return json.loads(said)
    except (ValueError, RecursionError):
        # Not chained: it would hold the whole answer.
        raise MalformedAnswer("the endpoint answered with no JSON", status=200, retryable=True) from None


def events(said: bytes) -> tuple[list[Any], bool]:
    """The data of server-sent events, and whether their end was said. Lines end where the protocol says, not where Unicode does."""
    found: list[Any] = []
    # A mark of byte order may come first.
    for block in said.lstrip(b"\xef\xbb\xbf \r\n").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n"):
        fields = [(name, value.removeprefix(b" ")) for name, _, value in (line.partition(b":") for line in block.split(b"\n"))]
        data = b"\n".join(value for name, value in fields if name in (b"data", b"error")).strip()
        if data == b"[DONE]":
            return found, True
        if data:
            if len(found) >= LONGEST_STREAM:
                raise MalformedAnswer(f"the endpoint's answer is a stream of more than {LONGEST_STREAM} events", status=200)
            # llama.cpp begins the line of an error with that word, and others name the event so.
            failed = (b"event", b"error") in fields or fields[0][0] == b"error"
            told = parsed(data)
            found.append({"error": told} if failed and not (isinstance(told, dict) and told.get("error")) else told)
    return found, False


async def read(response: Any) -> tuple[bytes, bool]:
    """What a response says, and whether it is a stream of events; one that said that it ends is read no further."""
    # The stream itself, which does not hand its connection to the next request before it was looked at.
    pieces = aiter(response.stream)
    said = bytearray()
    async for piece in pieces:
        said += piece
        # On a line of its own: an answer may hold these words, and be broken there.
        done = said[-20:].rstrip().endswith((b"\ndata: [DONE]", b"\ndata:[DONE]")) and _STREAM.match(said)
        if done and not await _ends(pieces):
            break
    else:
        await _drop_unread(response)
    return bytes(said), _STREAM.match(said) is not None


async def _ends(pieces: AsyncIterator[bytes]) -> bool:
    """Whether a stream that said that it ends does so at once: then its connection serves the next request."""
    try:
        async with asyncio.timeout(_TAIL):
            return await anext(pieces, None) is None
    except Exception:
        # The answer is there: whatever goes wrong behind it is no failure.
        return False


async def _drop_unread(response: Any) -> None:
    """Close a connection on which more came than the answer: it would be read as the answer to the next request."""
    # HTTP/1.1's parser has what is left, below what httpx and httpcore show; what arrives later, httpcore sees by itself.
    part = response.stream
    while part is not None and not hasattr(part, "_h11_state"):
        names = (name for name in ("_stream", "_httpcore_stream", "_connection") if hasattr(part, name))
        part = getattr(part, next(names, ""), None)
    if part is not None and part._h11_state.trailing_data[0]:
        logger.warning("an endpoint sent more than its answer: the connection is dropped")
        await response.extensions["network_stream"].aclose()
