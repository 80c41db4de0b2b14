"""``bonmini-guard demo``: watch a guard on a real language model, offline, next to one draw and plain best-of-N."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from bonmini_guard.demo import room, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--recorded", action="store_true", help="show what an earlier run gave, at once and without any model")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with an entry for each request and guard")


def run(options: argparse.Namespace) -> int:
    """Conduct or read the requests and show them as they come."""
    from bonmini_guard.demo import run as demonstration

    lacking = None if options.recorded else room.missing()
    if lacking is not None:
        print(f"recorded draws, for the live ones need what is {lacking}", file=sys.stderr)
    known = options.recorded or lacking is not None
    record = demonstration.recorded()
    requests = iter(record["requests"]) if known else demonstration.live(_progress)
    if options.json:
        print(json.dumps(demonstration.entries(list(requests)), indent=2))
        return 0
    source = record["source"] if known else "Live, on this machine, from what is installed on it."
    _show(requests, len(demonstration.chosen()), source)
    return 0


def _show(requests: Iterator[dict[str, Any]], count: int, source: str) -> None:
    width = max(60, min(120, shutil.get_terminal_size().columns))
    _print(show.opening(width, source))
    shown = []
    for number, request in enumerate(requests, start=1):
        shown.append(request)
        _progress("")
        _print(show.request(request, f"{number} of {count}", width))
    _print(show.totals(shown, width))


def _print(lines: list[show.Line]) -> None:
    print(show.text(lines, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR")), end="", flush=True)


def _progress(what: str) -> None:
    """One line that is written over on a terminal, lines of a log elsewhere; on stderr, so that a pipe gets the show alone."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what} ..." if what else "\r\x1b[K", end="", file=sys.stderr, flush=True)
    elif what:
        print(f"{what} ...", file=sys.stderr, flush=True)
