"""``bonmini-guard drift``: compare traces with a profile: exit 4 if its promise no longer covers them."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bonmini_guard.commands import refuse_pipes, row_key
from bonmini_guard.commands.replay import REFUTED, say_what_was_left_out
from bonmini_guard.commands.terminal import say
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.writing import check_output

if TYPE_CHECKING:
    from bonmini_guard.calibration.findings import Drift, Finding
    from bonmini_guard.policy.profile import GuardProfile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("profile", metavar="PROFILE", help="profile file that 'bonmini-guard calibrate' wrote")
    parser.add_argument("traces", nargs="+", metavar="TRACES", help="log files of later requests, in the order they came")
    parser.add_argument("--false-alarm-rate", type=float, metavar="RATE", help="chance of exit 4 without drift (default 0.01)")
    repeated = parser.add_mutually_exclusive_group()
    repeated.add_argument("--state", metavar="FILE", help="keep a state here: the rate then holds for any number of looks")
    repeated.add_argument("--looks", type=int, default=1, metavar="K", help="the rate is for K such looks together (default 1)")
    parser.add_argument("--follow", action="store_true", help="look again and again as the traces grow, until Ctrl-C")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="--follow: between two looks (default 2)")
    for name, what in (("input", "read"), ("output", "written")):
        parser.add_argument(f"--{name}-price", type=float, metavar="PRICE", help=f"--follow: of a million tokens {what}")
    parser.add_argument("--slice", type=row_key, metavar="KEY", help="also name the values of a row key whose requests changed")
    parser.add_argument("--reward-model", metavar="SPEC", help="also ask this scorer whether it is still the profile's")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(options: argparse.Namespace) -> int:
    """Compare and print; 4 if drift was found."""
    from bonmini_guard.calibration.evidence import check_share
    from bonmini_guard.policy.profile import GuardProfile

    for name, least in (("every", "above 0"), ("input_price", "0 or more"), ("output_price", "0 or more")):
        value = getattr(options, name)
        if value is not None and not (options.follow and 0 <= value <= 1e9 and (value or name != "every")):
            raise ConfigurationError(f"--{name.replace('_', '-')} belongs to --follow, and is a number, {least}, of 1e9 at most")
    if options.false_alarm_rate is not None:
        check_share("--false-alarm-rate", options.false_alarm_rate)
    if options.follow:
        refuse_pipes(options.traces)
    if options.state is not None:
        check_output(Path(options.state), [options.profile, *dict.fromkeys(options.traces)])
    profile = GuardProfile.load(options.profile)
    also: list[Finding] = []
    if options.reward_model is not None:
        from bonmini_guard.calibration.drift import same_scorer
        from bonmini_guard.reward.declared import load_scorer

        also.append(same_scorer(profile, load_scorer(options.reward_model)))
    drift = _look(options, profile, also)
    if not options.follow:
        say_what_was_left_out(drift.left_out)
        print(json.dumps(asdict(drift), indent=2, allow_nan=False)) if options.json else say(lines(drift))
    return REFUTED if drift.drift else 0


def _look(options: argparse.Namespace, profile: GuardProfile, also: list[Finding]) -> Drift:
    from bonmini_guard.calibration.drift import find_drift
    from bonmini_guard.calibration.findings import FALSE_ALARM_RATE
    from bonmini_guard.calibration.traces import read_traces
    from bonmini_guard.calibration.watch import watching

    if options.follow and (options.looks != 1 or options.json):
        raise ConfigurationError("--follow looks any number of times, and prints no JSON; leave out --looks and --json")
    if options.follow or options.state is not None:
        with watching(options.state, profile, false_alarm_rate=options.false_alarm_rate, key=options.slice) as watch:
            if options.follow:  # until Ctrl-C; a state is written then
                from bonmini_guard.commands.following import follow

                prices = (options.input_price or 0.0, options.output_price or 0.0)
                return follow(options.traces, profile, watch, also, prices=prices, every=options.every or 2.0)
            return watch.look(read_traces(options.traces, profile, memory=watch.memory, key=watch.key), also)
    traces, rate = read_traces(options.traces, profile, key=options.slice), options.false_alarm_rate or FALSE_ALARM_RATE
    return find_drift(profile, traces, false_alarm_rate=rate, looks=options.looks, key=options.slice, also=also)


def lines(drift: Drift) -> str:
    """One line a finding, those that found something first."""
    verdict = "drift found" if drift.drift else "no drift found"
    rate = f"false-alarm rate {100 * drift.false_alarm_rate:g} % {drift.holds_for}"
    changed_first = sorted(drift.findings, key=lambda each: not each.found)
    findings = [f"  {'CHANGED' if each.found else 'ok     '}  {each}" for each in changed_first]
    further = [f"what to do: {drift.todo}"] if drift.todo else []
    further += [f"labels: {drift.labels_wanted.sentence}"] if drift.labels_wanted else []
    return "\n".join([f"{verdict} in {drift.traces:,} traces ({rate})", *findings, *further])
