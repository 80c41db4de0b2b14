"""``bonmini-guard report``: write a self-contained HTML report of a profile on a log."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from bonmini_guard.commands import row_key
from bonmini_guard.commands.replay import REFUTED, add_group, say_what_was_left_out
from bonmini_guard.commands.terminal import say, shown
from bonmini_guard.errors import InputError
from bonmini_guard.writing import check_output, write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("logs", nargs="+", metavar="LOGS", help="log files: JSON lines, packed or not, or Parquet; - is stdin")
    parser.add_argument("--profile", required=True, help="profile file")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="REPORT", help="HTML file to write")
    add_group(parser)
    parser.add_argument("--slice", type=row_key, metavar="KEY", help="a row key: figures for each value, limits for all at once")
    parser.add_argument("--against", metavar="PROFILE", help="another profile, to be seen beside the first")
    parser.add_argument("--texts", action="store_true", help="show prompts and answers in the page, not only the ids of rows")


def run(options: argparse.Namespace) -> int:
    """Write the report."""
    check_output(options.output, [*options.logs, options.profile, *([options.against] if options.against else [])])
    from bonmini_guard.calibration.logs import load_log, load_timed
    from bonmini_guard.calibration.refutation import standing
    from bonmini_guard.calibration.report import build_report, prompt_offsets
    from bonmini_guard.policy.profile import GuardProfile

    profile, against = GuardProfile.load(options.profile), GuardProfile.load(options.against) if options.against else None
    with shown() as progress:
        load = load_log if profile.exit == (against or profile).exit == "loop" else load_timed
        keys = ["id", *([options.slice] if options.slice else [])]
        log = load(options.logs, keys=keys, group=options.group, progress=progress.rows)
    if options.slice and all(value is None for value in log.extra[options.slice]):
        raise InputError(f'{log.source}: no row has the key "{options.slice}"; give --slice a key of the rows')
    say_what_was_left_out(log.left_out)
    with shown() as progress:
        progress.say(f"reporting on {len(log):,} rows")
        text = build_report(log, profile, options.slice or None, against=against, texts=options.texts)
    write_atomically(options.output, text)
    told, refuted = standing(log, profile)
    said = [*([told] if told else []), *prompt_offsets(log), f"{options.output}: open it in a browser"]
    if profile.exit == "loop" and not refuted:
        said.append(f"next: bonmini-guard drift {shlex.quote(options.profile)} TRACES --follow")
    say("\n".join(said))
    return REFUTED if refuted else 0
