"""``bonmini-guard replay``: replay a profile on a log: exact expectations, next to plain best-of-N."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from bonmini_guard.commands import row_key
from bonmini_guard.commands.terminal import say, shown, table, width

#: Exit code: the log at hand refutes what is promised, or declared.
REFUTED = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("logs", nargs="+", metavar="LOGS", help="log files: JSON lines, packed or not, or Parquet; - is stdin")
    parser.add_argument("--profile", required=True, help="profile file; mode, schedule and thresholds suffice")
    add_group(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def add_group(parser: argparse.ArgumentParser) -> None:
    """Declare what a unit is."""
    parser.add_argument("--group", type=row_key, metavar="KEY", help="a unit: none, prompt, a row key (default group, else prompt)")


def run(options: argparse.Namespace) -> int:
    """Replay and print; 4 if the log refutes the profile's promise."""
    from bonmini_guard.calibration.figures import replay_log
    from bonmini_guard.calibration.logs import load_log, load_timed
    from bonmini_guard.calibration.refutation import standing
    from bonmini_guard.policy.profile import GuardProfile

    profile = GuardProfile.load(options.profile)
    with shown() as progress:
        load = load_log if profile.exit == "loop" else load_timed
        log = load(options.logs, group=options.group, progress=progress.rows)
        progress.say(f"replaying {len(log):,} rows")
        figures, (said, refuted) = replay_log(log, profile), standing(log, profile)
    say_what_was_left_out(figures["left_out"])
    if options.json:
        print(json.dumps({"standing": said, **figures}, indent=2, allow_nan=False))
    else:
        if said:
            say(said)
        print(shown_figures(figures, width()))
    return REFUTED if refuted else 0


def say_what_was_left_out(left_out: dict[str, int]) -> None:
    """Warn on stderr about rows that were not used."""
    from bonmini_guard.calibration.figures import LEFT_OUT

    whys = {reason: f" ({why})" for reason, why in LEFT_OUT.items()}
    if parts := [f"{number} {reason}{whys.get(reason, '')}" for reason, number in left_out.items() if number]:
        print(f"rows left out: {', '.join(parts)}", file=sys.stderr)


def shown_figures(figures: dict[str, Any], room: int | None) -> str:
    """The figures as a table: the profile, best-of-N, best-of-N at zero."""
    from bonmini_guard.calibration.figures import SHOWN, cell

    columns = (figures, figures["best_of_n"], figures["best_of_n_at_zero"])
    rows = [[name, *(cell(column[key], kind) for column in columns)] for key, name, kind in SHOWN]
    return table(("", "profile", f"best-of-{figures['budget']}", "... at zero"), rows, room)
