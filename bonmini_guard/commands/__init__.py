"""The sub-commands of ``bonmini-guard``, one a file."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from bonmini_guard.conversation import clean
from bonmini_guard.errors import InputError
from bonmini_guard.logs.odd import USUAL, Odd
from bonmini_guard.logs.opening import is_pipe
from bonmini_guard.logs.reading import RowFile


def settings_of(kind: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The options that are fields of a dataclass of settings, by name; fields without an option keep their defaults."""
    return {each.name: getattr(options, each.name) for each in fields(kind) if hasattr(options, each.name)}


def logs_in_words(paths: Sequence[str]) -> str:
    """The files in a command to be run next; a pipe cannot be read again."""
    return " ".join("LOG" if is_pipe(path) else shlex.quote(path) for path in paths)


def refuse_pipes(paths: Sequence[str]) -> None:
    """Refuse what can be read only once, where it is read twice; the InputError names the first."""
    if pipe := next(filter(is_pipe, paths), None):
        raise InputError(f"{pipe}: a pipe can be read only once; write it to a file first")


def check_readable(paths: Sequence[str]) -> None:
    """Refuse a file that cannot be opened before a model is loaded for it; a pipe is left as it is."""
    for path in paths:
        if not is_pipe(path):
            with RowFile(path).open():
                pass


def row_key(text: str) -> str:
    """A key of rows, as an option names it; no row has one that is no UTF-8."""
    if clean(text) != text:
        raise argparse.ArgumentTypeError(f"{text!a} is no UTF-8; name a key of the rows")
    return text


def whole(text: str, least: int = 1, most: int | None = None) -> int:
    """A whole number, as an option gives it."""
    if text.isdecimal() and least <= int(text) <= (most or math.inf):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more{f', up to {most}' if most else ''}")


def add_max_bad(parser: argparse.ArgumentParser) -> None:
    """Declare ``--max-bad``: how many odd records a command bears."""
    told = f"leave odd records out, count them and name the first of each kind; stop if they are a larger share (default {USUAL:g})"
    parser.add_argument("--max-bad", type=float, default=USUAL, metavar="SHARE", help=told)


def say_left_out(odd: Odd, left_out: Mapping[str, int]) -> None:
    """What was not taken, on stderr: by kind, and the odd records."""
    lines = [f"left out: {reason}: {count:,}" for reason, count in left_out.items() if count]
    print("".join(f"{line}\n" for line in [*lines, *odd.lines()]), end="", file=sys.stderr)


def say_torn(number: int) -> None:
    """So many last lines of logs were torn, and dropped."""
    say_left_out(Odd(), {"torn last lines": number})
