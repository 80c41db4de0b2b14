"""How much of an answer is read: bytes, events of a stream, depth of tool calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cache
from typing import Any

from bonmini_guard.adapters.http_errors import MalformedAnswer

#: Bytes of an answer at most.
LONGEST_ANSWER = 64 * 2**20
#: Events of a streamed answer at most; a token is one, as a rule.
LONGEST_STREAM = 200_000
#: Objects and lists in a tool call's arguments, one inside the other, at most.
DEEPEST = 100


@cache
def bounded(base: Any) -> Any:
    """A class of streams of a response's bytes, made of another, that end with MalformedAnswer where they are too many."""

    class Bounded(base):  # type: ignore[misc]
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

    return Bounded


def check_events(found: int) -> None:
    """Raise MalformedAnswer for one more event of a stream that had so many."""
    if found >= LONGEST_STREAM:
        raise MalformedAnswer(f"the endpoint's answer is a stream of more than {LONGEST_STREAM} events", status=200)
