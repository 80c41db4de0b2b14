"""What commands print: prose wrapped at words, and tables that give up columns, the least important first, to fit the terminal.

Only on a terminal: a pipe gets each line, and each table, whole, and nothing of how far a command is.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

#: A line to be copied into a shell, which no break may fall into.
_COMMAND = re.compile(r"\s*(next: |then: )?(pip install|bonmini-guard) ")
#: Progress says nothing of what is over by then.
QUIET_SECONDS = 2.0
_CLEAR = "\r\x1b[K"


def width() -> int | None:
    """Columns of the terminal that standard output is; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say(text: str) -> None:
    """Print lines of prose; further lines of a wrapped one stand two columns further in."""
    print("\n".join(wrapped(text, width())), flush=True)


def wrapped(text: str, room: int | None) -> list[str]:
    """The lines in so many columns; commands stay whole."""
    found = []
    for line in text.split("\n"):
        if room is None or len(line) <= room or _COMMAND.match(line):
            found.append(line)
            continue
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        found += textwrap.wrap(line, room, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return found


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], room: int | None) -> str:
    """Aligned columns, the first to the left, the others to the right; the most important ones come first.

    The last ones are left out until the table fits into the ``room`` (columns of the terminal), down to two.
    """
    sizes = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    count = len(sizes)
    while room is not None and count > 2 and sum(sizes[:count]) + 2 * (count - 1) > room:
        count -= 1
    lines = []
    for first, *others in [heads, *rows]:
        cells = [first.ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(others, sizes[1:count], strict=False))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class Progress:
    """What a command is at, on stderr, once it has taken two seconds; said by calls, and written over by the next one."""

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
