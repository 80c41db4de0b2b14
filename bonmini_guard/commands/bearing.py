"""``--max-bad``: how many odd records a command bears; and what it says of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from bonmini_guard.logs.odd import USUAL, Odd


def add_max_bad(parser: argparse.ArgumentParser) -> None:
    """Declare the option."""
    told = f"leave odd records out, count them and name the first of each kind; stop if they are a larger share (default {USUAL:g})"
    parser.add_argument("--max-bad", type=float, default=USUAL, metavar="SHARE", help=told)


def say_left_out(odd: Odd, left_out: Mapping[str, int]) -> None:
    """What was not taken, on stderr: by kind, and the odd records."""
    lines = [f"left out: {reason}: {count:,}" for reason, count in left_out.items() if count]
    print("".join(f"{line}\n" for line in [*lines, *odd.lines()]), end="", file=sys.stderr)
