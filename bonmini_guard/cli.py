"""The ``bonmini-guard`` command. Each sub-command is one file of ``bonmini_guard.commands``.

Exit codes: 0 success; 2 bad input, told in one line; 3 the evidence does not suffice; 4 drift found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from bonmini_guard.errors import BonMiniGuardError, MissingExtraError

#: Each module has ``HELP: str``, ``add_arguments(parser)`` and ``run(options) -> int``, and imports nothing heavy at the top.
COMMANDS = ("demo", "convert", "train", "distill", "score", "label", "replay", "calibrate", "report", "drift", "forget", "serve")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    parser = argparse.ArgumentParser(prog="bonmini-guard", description="Best of mini-N in loops, with a calibrated exit.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"bonmini_guard.commands.{name}")
        child = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(child)
        child.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (BonMiniGuardError, MissingExtraError) as error:
        print(f"bonmini-guard {options.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except OSError as error:
        # A disk that is full, a file that vanished: one line here too.
        print(f"bonmini-guard {options.command}: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
