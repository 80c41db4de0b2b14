"""``bonmini-guard forget``: delete rows from traces by id or group, while guards may go on writing."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("traces", metavar="TRACES", help="trace_to's path; files put aside beside it, and thumbs, are included")
    parser.add_argument("--id", action="append", default=[], dest="ids", help="of a row: a message's request_id (may be repeated)")
    parser.add_argument("--group", action="append", default=[], dest="groups", help="a user or conversation (may be repeated)")


def run(options: argparse.Namespace) -> int:
    """Delete, and say how many."""
    from bonmini_guard.errors import ConfigurationError
    from bonmini_guard.logs.trace_files import forget

    if not options.ids and not options.groups:
        raise ConfigurationError("say what to forget: --id ID or --group GROUP")
    removed = forget(options.traces, ids=set(options.ids), groups=set(options.groups))
    print(f"{options.traces}: {removed:,} rows deleted")
    return 0
