"""How far a command is: a line on a terminal's stderr, once it has taken two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Nothing is said of what is over by then.
QUIET_SECONDS = 2.0
_CLEAR = "\r\x1b[K"


class Progress:
    """What a command is at; said by calls, and written over by the next one."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.is_shown = sys.stderr.isatty()

    def rows(self, number: int) -> None:
        """So many rows are read."""
        self.say(f"{number:,} rows read")

    def say(self, what: str) -> None:
        """Show it, if anything is to be shown by now."""
        if self.is_shown and time.monotonic() - self._begun > QUIET_SECONDS:
            print(f"{_CLEAR}{what} ...", end="", file=sys.stderr, flush=True)


@contextmanager
def shown() -> Iterator[Progress]:
    """A progress line that is gone when the block ends, however it ends."""
    progress = Progress()
    try:
        yield progress
    finally:
        if progress.is_shown:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
