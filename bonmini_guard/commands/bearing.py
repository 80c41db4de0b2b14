"""``--max-bad``: how many odd records a command bears."""

from __future__ import annotations

import argparse

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.logs.odd import USUAL


def add_max_bad(parser: argparse.ArgumentParser) -> None:
    """Declare the option."""
    told = f"leave odd records out, count them and name the first of each kind; stop if they are a larger share (default {USUAL:g})"
    parser.add_argument("--max-bad", type=float, default=USUAL, metavar="SHARE", help=told)


def check_share(share: float) -> None:
    """Refuse what is no share.

    Raises:
        ConfigurationError: it is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ConfigurationError(f"--max-bad is {share}: use a share between 0 (bear none) and 1")
