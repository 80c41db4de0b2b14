"""What commands print: prose wrapped at words, and tables that give up columns, the least important first, to fit the terminal.

Only on a terminal: a pipe gets each line, and each table, whole.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

#: A line to be copied into a shell, which no break may fall into.
_COMMAND = re.compile(r"\s*(next: |then: )?(pip install|bonmini-guard) ")


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
