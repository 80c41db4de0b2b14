"""What ``--for`` adds to ``bonmini-guard label``: questions on demand, about a set of rows that is fixed before the first label."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bonmini_guard.commands import logs_in_words, refuse_pipes
from bonmini_guard.commands.calibrate import ALPHA, DELTA, EPSILON, RISKS, choose_schedule, schedule_of
from bonmini_guard.commands.replay import say_what_was_left_out
from bonmini_guard.commands.terminal import say
from bonmini_guard.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from bonmini_guard.labelling.items import Goal, Plan
    from bonmini_guard.labelling.on_demand import OnDemand
    from bonmini_guard.labelling.rows import LabelRow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group("only what a certificate needs")
    group.add_argument("--for", dest="what", choices=(*RISKS, "accelerator"), help="ask on demand, strict thresholds first")
    group.add_argument("--alpha", type=float, help=f"the most that the risk may be (default {ALPHA:g})")
    group.add_argument("--epsilon", type=float, help=f"accelerator: the most quality that may be lost (default {EPSILON:g})")
    group.add_argument("--delta", type=float, help=f"chance that the promise is missed (default {DELTA:g})")
    group.add_argument("--schedule", type=schedule_of, metavar="4,28", help="draws of each loop (default 4 x 8, or what fits)")
    group.add_argument("--rows", type=int, metavar="N", help="rows that count, fixed before the first label (default all)")


def check(options: argparse.Namespace) -> None:
    """Refuse what can be refused before a log is read."""
    given = _given(options)
    if options.what is None:
        if given and not options.output.exists():
            raise ConfigurationError(f"--{given[0]} belongs to --for; give both or neither")
        return
    if options.mode == "choice" or options.pairs is not None:
        raise ConfigurationError("--for asks about one answer at a time; leave out --mode choice and --pairs")
    foreign = "alpha" if options.what == "accelerator" else "epsilon"
    if foreign in given:
        raise ConfigurationError(f"--{foreign} does not belong to --for {options.what}; leave it out")


def demanded(rows: Sequence[LabelRow], plan: Plan, options: argparse.Namespace) -> tuple[Plan, OnDemand | None, str | None]:
    """The plan, with its goal; the questions that ``--for`` or the file that is continued asks, None if neither asks on demand.

    And why no labels of these rows could certify anything; None if they could.
    """
    goal = plan.goal
    if goal is None and options.what is None:
        return plan, None, None
    from bonmini_guard.calibration.logs import load_log
    from bonmini_guard.calibration.on_demand import fixed_set, prospect, request, same_set, too_few
    from bonmini_guard.labelling.items import Goal
    from bonmini_guard.labelling.on_demand import OnDemand

    refuse_pipes(options.logs)
    log = load_log(options.logs)
    say_what_was_left_out(log.left_out)
    if goal is not None:
        asked = request(goal.what, goal.level, goal.delta, goal.schedule)
        return plan, OnDemand(same_set(log, goal.rows), asked, rows), None
    level, default = (options.epsilon, EPSILON) if options.what == "accelerator" else (options.alpha, ALPHA)
    delta = DELTA if options.delta is None else options.delta
    asked = request(options.what, default if level is None else level, delta, choose_schedule(log, options.schedule))
    chosen = fixed_set(log, options.rows)
    asking, short = OnDemand(chosen, asked, rows), too_few(chosen, asked)
    if not short:
        say(prospect(chosen, asked))
    return replace(plan, goal=Goal(options.what, asked.level, asked.delta, asked.schedule, asking.ids)), asking, short


def next_command(goal: Goal, log: str = "labelled.jsonl") -> str:
    """What makes a profile of the labels in an exported log."""
    mode = "accelerator" if goal.what == "accelerator" else f"guardrail --risk {goal.what}"
    level = f"--{'epsilon' if goal.what == 'accelerator' else 'alpha'} {goal.level:g} --delta {goal.delta:g}"
    schedule = ",".join(map(str, goal.schedule))
    return f"bonmini-guard calibrate {logs_in_words([log])} --mode {mode} {level} --schedule {schedule} -o profile.json"


def _given(options: argparse.Namespace) -> list[str]:
    return [name for name in ("alpha", "epsilon", "delta", "schedule", "rows") if getattr(options, name) is not None]


def require_same(plan: Plan, options: argparse.Namespace) -> None:
    """Refuse options that say something else than a file that is continued."""
    from bonmini_guard.labelling.session import NO_MORE_ROWS

    goal = plan.goal
    if goal is None:
        if wrong := [*(["for"] if options.what else []), *_given(options)]:
            raise ConfigurationError(
                f"{options.output}: was begun without --for; leave out --{wrong[0]} to go on, or give another -o"
            )
        return
    if options.rows not in (None, len(goal.rows)):
        raise InputError(
            f"{options.output}: {len(goal.rows):,} rows were fixed before the first label; {NO_MORE_ROWS}; leave out --rows"
        )
    level = {"alpha": None, "epsilon": None, ("epsilon" if goal.what == "accelerator" else "alpha"): goal.level}
    written = {"what": goal.what, "delta": goal.delta, "schedule": goal.schedule, **level}
    if any(getattr(options, name) not in (None, value) for name, value in written.items()):
        raise ConfigurationError(f"{options.output}: was begun with other options; leave them out to go on, or give another -o")
