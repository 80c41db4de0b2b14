"""``bonmini-guard drift``: is the calibration still valid for this traffic?"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from bonmini_guard.commands.replay import say_what_was_left_out

if TYPE_CHECKING:
    from bonmini_guard.calibration.drift import Drift, Finding

HELP = "compare traces with a profile: exit 4 if its promise no longer covers them"

FOUND = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("profile", metavar="PROFILE", help="profile file that 'bonmini-guard calibrate' wrote")
    parser.add_argument("traces", nargs="+", metavar="TRACES", help="log files of later requests, in the order they came")
    parser.add_argument("--false-alarm-rate", type=float, default=0.01, help="chance of exit 4 without drift (default 0.01)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(options: argparse.Namespace) -> int:
    """Compare and print; 4 if drift was found."""
    from bonmini_guard.calibration.drift import find_drift
    from bonmini_guard.calibration.evidence import check_share
    from bonmini_guard.calibration.traces import read_traces
    from bonmini_guard.profile import GuardProfile

    check_share("--false-alarm-rate", options.false_alarm_rate)
    profile = GuardProfile.load(options.profile)
    drift = find_drift(profile, read_traces(options.traces, profile), false_alarm_rate=options.false_alarm_rate)
    say_what_was_left_out(drift.left_out)
    print(json.dumps(drift.as_json(), indent=2, allow_nan=False) if options.json else lines(drift))
    return FOUND if drift.drift else 0


def lines(drift: Drift) -> str:
    """One line a finding, those that found something first."""
    verdict = "drift found" if drift.drift else "no drift found"
    head = f"{verdict} in {drift.traces:,} traces (false-alarm rate {100 * drift.false_alarm_rate:g} %)"
    findings = sorted(drift.findings, key=lambda finding: not finding.found)
    return "\n".join([head, *map(_line, findings), *([f"what to do: {drift.todo}"] if drift.todo else [])])


def _line(finding: Finding) -> str:
    p_value = "" if finding.p_value is None else f" [p = {finding.p_value:.2g}, level {finding.level:.2g}]"
    return f"  {'CHANGED' if finding.found else 'ok     '}  {finding.what}{p_value}"
