"""``--max-bad``: how many odd records a command bears."""

from __future__ import annotations

import argparse

from bonmini_guard.logs.odd import USUAL


def add_max_bad(parser: argparse.ArgumentParser) -> None:
    """Declare the option."""
    told = f"leave odd records out, count them and name the first of each kind; stop if they are a larger share (default {USUAL:g})"
    parser.add_argument("--max-bad", type=float, default=USUAL, metavar="SHARE", help=told)
