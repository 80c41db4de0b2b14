"""``bonmini-guard calibrate``: choose thresholds with a guarantee from a log of complete, labelled rows, and write a profile."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonmini_guard.commands import logs_in_words, whole
from bonmini_guard.commands.replay import add_group, say_what_was_left_out
from bonmini_guard.commands.terminal import say, shown, table, width
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.writing import check_output

if TYPE_CHECKING:
    from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence
    from bonmini_guard.calibration.logs import Log

NOT_ENOUGH = 3
MINI_N, MAX_LOOPS = 4, 8
#: What is promised unless the options say it; the first risk, too.
ALPHA, EPSILON, DELTA = 0.05, 0.01, 0.1
#: Rows that say which N is best.
MOST_RANKED = 10_000
RISKS = ("served_and_bad", "bad_among_served", "false_acceptance")
#: Of options that are told from those not given while it is checked which go together.
_DEFAULTS = {"risk": RISKS[0], "alpha": ALPHA, "epsilon": EPSILON, "cost": ("draws", None), "cost_abstain": 1.0, "cost_draw": 0.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("logs", nargs="*", metavar="LOGS", help="log files: JSON lines, packed or not, or Parquet; - is stdin")
    parser.add_argument("--mode", required=True, choices=("guardrail", "accelerator"))
    parser.add_argument("-o", "--output", metavar="PROFILE", help="where to write the profile")
    parser.add_argument("--risk", choices=RISKS, help=f"what the guardrail promises (default {RISKS[0]})")
    parser.add_argument("--alpha", type=float, help=f"the most that the risk may be (guardrail; default {ALPHA:g})")
    parser.add_argument("--epsilon", type=float, help=f"the most quality that may be lost (accelerator; default {EPSILON:g})")
    parser.add_argument("--delta", type=float, default=DELTA, help=f"chance that the promise is missed (default {DELTA:g})")
    parser.add_argument("--mini-n", type=int, help=f"draws of a loop (default {MINI_N})")
    parser.add_argument("--max-loops", type=int, help=f"loops (default {MAX_LOOPS}, or what the log supports)")
    parser.add_argument("--schedule", type=schedule_of, metavar="4,28", help="draws of each loop, instead of the two")
    parser.add_argument("--max-draws", type=int, metavar="N", help="a rolling exit of so many draws, no loops")
    parser.add_argument("--in-flight", type=width_of, metavar="auto|K", help="rolling: draws kept in flight (auto: any rung)")
    parser.add_argument("--exit", choices=("loop", "eager", "rolling"), help="the stopping procedure (default loop)")
    parser.add_argument("--order", default="auto", choices=("auto", "logged"), help="logged: rows stand in drawing order")
    add_group(parser)
    parser.add_argument("--calibrations", type=int, default=1, metavar="K", help="made and chosen from: each gets delta / K")
    parser.add_argument("--seed", type=int, default=0, help="another order and split; each seed tried counts in --calibrations")
    parser.add_argument("--relax", action="store_true", help="guardrail: how far below its thresholds, from a guard's own traces")
    parser.add_argument("--search", action="store_true", help="choose the shape, too, on 25 %% of the units; the rest certifies")
    told = "what waiting as long as a draw takes costs, in draws (search; default 1); with --cost draws=PRICE a second, in money"
    parser.add_argument("--wait-price", type=float, metavar="PRICE", help=told)
    parser.add_argument("--max-p95", type=float, metavar="SECONDS", help="--search: what 95 %% of the requests may wait at most")
    told = "what --search or an accelerator is to save (default draws), and what one of it costs in money"
    parser.add_argument("--cost", type=cost_of, metavar="draws|tokens|seconds[=PRICE]", help=told)
    parser.add_argument("--cost-bad", type=float, metavar="PRICE", help="guardrail without an alpha: what a bad answer costs")
    parser.add_argument("--cost-abstain", type=float, metavar="PRICE", help="... and what a refusal costs (default 1)")
    parser.add_argument("--cost-draw", type=float, metavar="PRICE", help="... and what a draw costs (default 0)")
    parser.add_argument("--target-accuracy", type=float, metavar="SHARE", help="--risk bad_among_served with alpha = 1 - SHARE")
    parser.add_argument("--plan", action="store_true", help="only say how many rows and labels are needed; labels are not")


def run(options: argparse.Namespace) -> int:
    """Calibrate; write the profile, or say why not and return 3."""
    _check(options)
    if options.plan:
        return _plan(options)
    from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence
    from bonmini_guard.calibration.logs import load_log, load_timed
    from bonmini_guard.runnables.settings import not_vouched_for

    counted, price = options.cost
    in_seconds = options.max_p95 is not None or (price is not None and options.wait_price)
    cost = counted if counted != "draws" else "seconds" if in_seconds else None
    with shown() as progress:
        if options.exit == "loop" and not (options.search and cost is None):
            log = load_log(options.logs, cost=cost, group=options.group, cut=options.relax, progress=progress.rows)
        else:
            log = load_timed(options.logs, group=options.group, progress=progress.rows)
        progress.say(f"testing thresholds on {len(log):,} rows")
        outcome = _calibrate(log, options)
    evidence = outcome.profile.evidence if isinstance(outcome, Certificate) else outcome.evidence
    say_what_was_left_out(evidence["left_out"])
    if log.same_prompt:
        said = f"{log.same_prompt} row(s) repeat a prompt and count with it as one unit (--group none: each by itself)"
        print(said, file=sys.stderr)
    if isinstance(outcome, NotEnoughEvidence):
        print(f"bonmini-guard calibrate: {outcome.sentence}", file=sys.stderr)
        return NOT_ENOUGH
    outcome.profile.save(options.output)
    say(outcome.sentence)
    _say_if_over_optimised(log, sum(outcome.profile.schedule))
    _show_front(outcome.profile.evidence)
    if unknown := not_vouched_for(outcome.profile):
        say(f"The promise does not vouch for {'; '.join(unknown)}.")
    profile = shlex.quote(str(options.output))
    group = f" --group {shlex.quote(options.group)}" if options.group else ""
    report = f"report {logs_in_words(options.logs)} --profile {profile}{group} -o report.html"
    if outcome.profile.exit != "eager":  # neither report nor drift takes its profiles
        say(f"next: bonmini-guard {report if log.complete.any() else f'drift {profile} TRACES --follow'}")
    return 0


def _say_if_over_optimised(log: Log, budget: int) -> None:
    """Whether plain best-of-N serves more acceptable answers with fewer draws, on the first rows that are labelled throughout."""
    import numpy as np

    from bonmini_guard.calibration import curves
    from bonmini_guard.calibration.figures import quality_of
    from bonmini_guard.calibration.replay import rank

    whole = (np.isfinite(log.labels) | ~log.drawn).all(1) & log.complete & (log.counts >= budget)
    used = log.take(np.flatnonzero(whole)[:MOST_RANKED])
    if len(used) > 1:
        rankings = rank(used.scores, quality_of(used), used.counts)
        worse = curves.over_optimised(rankings, curves.fixed_n(rankings, budget, math.inf), budget)
        if worse is not None and worse[1]:
            say(f"Best-of-N is over-optimised: {worse[0]}")


def _show_front(evidence: Mapping[str, Any]) -> None:
    """What a search found that no other shape beats, on the rows that it chose on; cheapest first."""
    from bonmini_guard.calibration.search import table_of

    if said := evidence.get("search"):
        say(f"The search was {said}.")
    if rows := table_of(evidence):
        print(table(*rows, width()))
        say(f"Prices are in {evidence['priced']}.")


def _plan(options: argparse.Namespace) -> int:
    """Say how many rows and labels are needed; 3 if no number would do."""
    from bonmini_guard.calibration.logs import load_log
    from bonmini_guard.calibration.on_demand import plan, request

    guardrail = options.mode == "guardrail"
    what, level = (options.risk, options.alpha) if guardrail else (options.mode, options.epsilon)
    with shown() as progress:
        log = load_log(options.logs, group=options.group, progress=progress.rows)
        schedule = choose_schedule(log, options.schedule, options.mini_n, options.max_loops)
        tries = {name: getattr(options, name) for name in ("order", "seed", "calibrations")}
        found = plan(log, request(what, level, options.delta, schedule, **tries))
    say(found.sentence)
    return 0 if found.rows is not None else NOT_ENOUGH


def choose_schedule(
    log: Log, schedule: Sequence[int] | None, mini_n: int | None = None, max_loops: int | None = None
) -> tuple[int, ...]:
    """The schedule asked for, or 4 x 8, or as many loops as the row with the fewest candidates supports."""
    if schedule is not None:
        return tuple(schedule)
    fewest = int(log.counts.min())
    mini_n = mini_n or min(MINI_N, fewest)
    loops = max_loops or max(1, min(MAX_LOOPS, fewest // mini_n))
    return (mini_n,) * loops


def _calibrate(log: Log, options: argparse.Namespace) -> Certificate | NotEnoughEvidence:
    shared = {name: getattr(options, name) for name in ("delta", "seed", "search", "order", "calibrations")}
    schedule = choose_schedule(log, options.schedule, options.mini_n, options.max_loops)
    if options.exit == "rolling":
        schedule = (1,) * (options.max_draws or min(MINI_N * MAX_LOOPS, int(log.counts.min())))
    arriving: dict[str, Any] = {"exit": options.exit} | ({"in_flight": (options.in_flight,)} if options.in_flight else {})
    arriving |= {"wait": options.wait_price, "max_p95": options.max_p95}
    arriving |= dict(zip(("cost", "price"), options.cost, strict=True))
    if options.mode == "accelerator":
        from bonmini_guard.calibration.choose import calibrate_accelerator

        return calibrate_accelerator(log, schedule=schedule, epsilon=options.epsilon, **shared, **arriving)
    if options.relax:
        from bonmini_guard.calibration.relax import relax_guardrail

        return relax_guardrail(log, risk=options.risk, alpha=options.alpha, delta=options.delta, calibrations=options.calibrations)
    if options.cost_bad is not None:
        from bonmini_guard.calibration.prices import Prices, calibrate_costs

        prices = Prices(options.cost_bad, options.cost_abstain, options.cost_draw)
        del shared["search"]
        return calibrate_costs(log, schedule=schedule, prices=prices, **shared)
    from bonmini_guard.calibration.choose import calibrate_guardrail

    return calibrate_guardrail(log, schedule=schedule, risk=options.risk, alpha=options.alpha, **shared, **arriving)


#: Which options do not go together: relaxing takes the shape that the traces ran under, prices and a target accuracy are other ways
#: to say a risk and its alpha, and a rolling or eager exit has no loops to search, plan, relax or price.
_APART = {
    "mode guardrail": "epsilon",
    "mode accelerator": "risk alpha relax target_accuracy cost_bad cost_abstain cost_draw",
    "target_accuracy": "risk alpha cost_bad cost_abstain cost_draw",
    "cost_bad": "risk alpha relax search plan",
    "relax": "search seed plan mini_n max_loops schedule",
    "plan": "search cost",
    "schedule": "mini_n max_loops max_draws in_flight",
    "exit rolling": "schedule mini_n max_loops relax search plan cost cost_bad",
    "exit eager": "max_draws in_flight relax search plan cost cost_bad",
    "exit loop": "max_draws in_flight",
}


def _check(options: argparse.Namespace) -> None:
    """Refuse what can be refused before a large log is read."""
    if not options.logs or (options.output is None) != options.plan:
        raise ConfigurationError("give a log and -o PROFILE, or a log and --plan to ask how many rows and labels are needed")
    rolling = options.max_draws is not None or options.in_flight is not None
    options.exit = options.exit or ("rolling" if rolling else "loop")
    _check_apart(options)
    vars(options).update({name: value for name, value in _DEFAULTS.items() if getattr(options, name) is None})
    _check_numbers(options)
    _check_search(options)
    if options.target_accuracy is not None:
        options.risk, options.alpha = "bad_among_served", round(1 - options.target_accuracy, 9)
    if not options.plan:
        check_output(Path(options.output), options.logs)


def _check_apart(options: argparse.Namespace) -> None:
    given = {name for name, value in vars(options).items() if value is not None and value is not False}
    given = given - (set() if options.seed else {"seed"}) | {f"mode {options.mode}", f"exit {options.exit}"}
    for one, others in _APART.items():
        if one in given and (other := next((name for name in others.split() if name in given), None)):
            both = " and ".join(f"--{name.replace('_', '-')}" for name in (other, one))
            raise ConfigurationError(f"{both} do not go together: leave out one of them")
    if options.cost_bad is None and given & {"cost_abstain", "cost_draw"}:
        raise ConfigurationError("--cost-abstain and --cost-draw are prices beside that of a bad answer: give --cost-bad, too")


def _check_numbers(options: argparse.Namespace) -> None:
    from bonmini_guard.calibration.evidence import check_share

    for name in ("target_accuracy", "alpha", "epsilon", "delta"):
        if (share := getattr(options, name)) is not None:
            check_share(f"--{name.replace('_', '-')}", share)
    for name in ("mini_n", "max_loops", "max_draws", "calibrations"):
        if (number := getattr(options, name)) is not None and not 0 < number <= 10**6:
            raise ConfigurationError(f"--{name.replace('_', '-')} is {number}: give 1 to 1,000,000")
    if options.seed < 0:
        raise ConfigurationError("--seed must be 0 or more")
    if options.seed and options.calibrations == 1:
        raise ConfigurationError("a seed given by hand is one of several tries: say how many with --calibrations, or leave it out")


def _check_search(options: argparse.Namespace) -> None:
    for name, value in (("wait-price", options.wait_price), ("max-p95", options.max_p95)):
        if value is not None and (not options.search or not 0 <= value < math.inf):
            raise ConfigurationError(f"--{name} is a search's, and 0 or more: add --search, or leave it out")
    counted, price = options.cost
    if options.max_p95 is not None and counted == "tokens":
        raise ConfigurationError("--max-p95 is in seconds: leave out --cost tokens")
    if not options.search and (price is not None or (counted != "draws" and options.mode == "guardrail")):
        raise ConfigurationError("a guardrail's --cost, and one with a price, is a search's: add --search, or leave it out")
    if price is not None and options.wait_price is None:
        raise ConfigurationError("with a price in money, say with --wait-price what waiting a second costs; 0 for nothing")


def schedule_of(text: str) -> tuple[int, ...]:
    """The draws of each loop, as an option gives them."""
    try:
        schedule = tuple(int(part) for part in text.split(","))
    except ValueError:
        schedule = ()
    if not schedule or min(schedule) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no schedule: list the draws of each loop, e.g. 4,28")
    return schedule


def cost_of(text: str) -> tuple[str, float | None]:
    """What is counted, and what one of it costs in money."""
    name, _, price = text.partition("=")
    try:
        found = name, float(price) if price else None
    except ValueError:
        found = "", None
    if found[0] not in ("draws", "tokens", "seconds") or text.endswith("=") or not 0 <= (found[1] or 0.0) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is none of draws, tokens, seconds, or one of them with its price: tokens=6e-7")
    return found


def width_of(text: str) -> int:
    """A number of draws in flight; 0 for each of the ladder."""
    return 0 if text == "auto" else whole(text)
