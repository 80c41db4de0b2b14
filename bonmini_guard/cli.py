"""The ``bonmini-guard`` command. Each sub-command is one file of ``bonmini_guard.commands``.

Exit codes: 0 success; 2 bad input, told in one line; 3 the evidence does not suffice; 4 drift found; 130 stopped by Ctrl-C;
143 stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from linecache import getline

from bonmini_guard import __version__

#: Each module says what it does in its first line, has ``add_arguments(parser)`` and ``run(options) -> int``, and imports nothing
#: heavy at the top.
#: With each stands the extra that brings what it needs.
COMMANDS = {
    "demo": "demo",
    "start": "calibration",
    "import": "calibration",
    "convert": "calibration",
    "train": "train",
    "distill": "distill",
    "inspect": "local,calibration",
    "score": "local,calibration",
    "zero": "local,calibration",
    "judge": "local,calibration",
    "label": "label,calibration",
    "replay": "calibration",
    "calibrate": "calibration",
    "report": "calibration",
    "drift": "calibration",
    "forget": "calibration",
    "serve": "serve",
    "gateway": "gateway",
}
#: Commands whose name no module can, or should, have.
_MODULES = {"import": "importing", "inspect": "inspecting"}
#: What a command needs only for some files or servers has an extra of its own.
_CHOSEN = ("parquet", "ray", "remote", "openai", "tgi")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    parser = argparse.ArgumentParser(prog="bonmini-guard", description="Best of mini-N in loops, with a calibrated exit.")
    parser.add_argument("--version", action="version", version=f"bonmini-guard {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"bonmini_guard.commands.{_MODULES.get(name, name)}")
        told = (module.__doc__ or getline(str(module.__file__), 1)).partition(": ")[2].rstrip('."\n')  # python -OO has no __doc__
        child = subparsers.add_parser(name, help=told, description=told)
        module.add_arguments(child)
        child.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _open_streams()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    command, name, code = "", "bonmini-guard", 0
    try:
        # Here, as it takes most of the time until a command begins: Ctrl-C meanwhile is one line, too.
        from bonmini_guard.errors import BonMiniGuardError, MissingExtraError

        try:
            options = build_parser().parse_args(arguments)
        finally:
            sys.stdout.flush()  # what --help says
        command, name = options.command, f"bonmini-guard {options.command}"
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130
    except BonMiniGuardError as error:
        print(f"{name}: {error}", file=sys.stderr)
    except (MissingExtraError, ModuleNotFoundError) as error:
        print(f"{name}: {_missing(command, error)}", file=sys.stderr)
    except BrokenPipeError:
        _give_output_up()
        return code
    except OSError as error:
        # A disk that is full, a file that vanished: one line here too.
        print(f"{name}: {error.filename or 'a file or standard output'}: {error.strerror or error}", file=sys.stderr)
        _give_output_up()
    return 2


def _end(number: int, _: object) -> None:
    """At SIGTERM: what is half written goes on the way out."""
    sys.exit(128 + number)


def _give_output_up() -> None:
    """What standard output does not take: Python would try again when it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # it is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_streams() -> None:
    """Standard output and error, where a service has closed them, too; what they cannot spell comes as an escape."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or io.StringIO()
        setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _missing(command: str, error: ImportError) -> ImportError:
    """What to install: what the command needs, whichever part of it was met first."""
    from bonmini_guard.errors import MissingExtraError

    if isinstance(error, MissingExtraError):
        return error if error.extra in _CHOSEN else MissingExtraError(error.package, COMMANDS[command])
    if (error.name or "bonmini_guard").startswith("bonmini_guard"):
        raise error
    return MissingExtraError(str(error.name), COMMANDS[command])


if __name__ == "__main__":
    sys.exit(main())
