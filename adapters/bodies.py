"""How much of an answer is read: bytes on the wire, bytes when inflated, events of a stream, depth of tool calls."""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any

from bonmini_guard.adapters.http_errors import MalformedAnswer

#: Bytes of an answer at most, on the wire and inflated.
LONGEST_ANSWER = 64 * 2**20
#: Events of a streamed answer at most; a token is one, as a rule.
LONGEST_STREAM = 200_000
#: Objects and lists in a tool call's arguments, one inside the other, at most.
DEEPEST = 100
#: Bytes that are inflated at a time.
_STEP = 2**20
_BRACKETS = re.compile(r"[][{}]")
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_INFLATED = ("gzip", "x-gzip", "deflate")


@cache
def bounded(base: Any) -> Any:
    """A class of streams of a response's bytes that end with an error where they are too many.

    One is made of a stream of the wire's bytes, and of how they are encoded; they come out inflated. It raises MalformedAnswer for
    too many bytes, and for an encoding that was not asked for and is not known.
    """

    class Bounded(base):  # type: ignore[misc]
        def __init__(self, stream: Any, packed: str) -> None:
            self._stream, self._packed = stream, packed
            self.aclose = stream.aclose

        async def __aiter__(self) -> AsyncIterator[bytes]:
            inflate = None if self._packed in ("identity", "") else _inflater(self._packed)
            wire = told = 0
            async for piece in self._stream:
                wire += len(piece)
                for part in (piece,) if inflate is None else inflate(piece):
                    told += len(part)
                    if max(wire, told) > LONGEST_ANSWER:
                        raise MalformedAnswer(f"the endpoint's answer is longer than {LONGEST_ANSWER} bytes", status=200)
                    yield part

    return Bounded


def check_events(found: int) -> None:
    """Refuse one more event of a stream that had so many.

    Raises:
        MalformedAnswer: they are too many.
    """
    if found >= LONGEST_STREAM:
        raise MalformedAnswer(f"the endpoint's answer is a stream of more than {LONGEST_STREAM} events", status=200)


def deeper_than(most: int, written: str) -> bool:
    """Whether JSON opens more brackets one inside the other, strings aside."""
    if written.count("{") + written.count("[") <= most:
        return False
    depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub("", written)):
        depth += 1 if bracket in "{[" else -1
        if depth > most:
            return True
    return False


def _inflater(packed: str) -> Callable[[bytes], Iterator[bytes]]:
    if packed not in _INFLATED:
        raise MalformedAnswer(f"the endpoint answered in the encoding {packed[:40]!r}, which was not asked for", status=200)
    # 32: finds out by itself which of the two it is.
    unpacking = zlib.decompressobj(32 + zlib.MAX_WBITS)

    def inflate(piece: bytes) -> Iterator[bytes]:
        while piece:
            try:
                part = unpacking.decompress(piece, _STEP)
            except zlib.error:
                raise MalformedAnswer("the endpoint's answer cannot be inflated", status=200, retryable=True) from None
            piece = unpacking.unconsumed_tail
            if part:
                yield part

    return inflate
