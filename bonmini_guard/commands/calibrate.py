"""``bonmini-guard calibrate``: choose thresholds with a guarantee from a log, and write a profile."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonmini_guard.commands.replay import estimated_labels, say_what_was_left_out
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.writing import check_output

if TYPE_CHECKING:
    from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence
    from bonmini_guard.calibration.logs import Log
    from bonmini_guard.profile import ScoreTransform

HELP = "choose thresholds with a guarantee from a log of complete, labelled rows, and write a profile"

NOT_ENOUGH = 3
MINI_N, MAX_LOOPS = 4, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("logs", nargs="*", metavar="LOGS", help="log files: JSON lines (gzip or not) or Parquet")
    parser.add_argument("--mode", required=True, choices=("guardrail", "accelerator"))
    parser.add_argument("-o", "--output", metavar="PROFILE", help="where to write the profile")
    parser.add_argument(
        "--risk",
        default=None,
        choices=("served_and_bad", "bad_among_served", "false_acceptance"),
        help="what the guardrail promises (default served_and_bad)",
    )
    parser.add_argument("--alpha", type=float, default=None, help="the most that the risk may be (guardrail; default 0.05)")
    parser.add_argument("--epsilon", type=float, default=None, help="the most quality that may be lost (accelerator; default 0.01)")
    parser.add_argument("--delta", type=float, default=0.1, help="chance that the promise is missed (default 0.1)")
    parser.add_argument(
        "--bound", default=None, choices=("auto", "betting", "hoeffding_bentkus", "binomial"), help="guardrail only"
    )
    parser.add_argument("--mini-n", type=int, default=None, help=f"draws of a loop (default {MINI_N})")
    parser.add_argument("--max-loops", type=int, default=None, help=f"loops (default {MAX_LOOPS}, or what the log supports)")
    parser.add_argument("--schedule", type=_schedule, default=None, metavar="4,28", help="draws of each loop, instead of the two")
    parser.add_argument("--fit-share", type=float, default=0.4, help="share of the log on which choices are made (default 0.4)")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default 0)")
    parser.add_argument(
        "--search", action="store_true", help="choose the schedule's shape, per-loop thresholds and hopeless exits on the fit split"
    )
    parser.add_argument(
        "--cost", default=None, choices=("draws", "tokens", "seconds"), help="what an accelerator is to save (default draws)"
    )
    parser.add_argument(
        "--estimate-labels", action="store_true", help="model missing labels from the scores: figures become estimates, no promise"
    )
    parser.add_argument("--fit-zero", action="store_true", help="fit an average zero (a * score + b) for a model that only ranks")
    parser.add_argument(
        "--plan", action="store_true", help="guardrail: only say how many labelled prompts are needed; labels are not"
    )
    parser.add_argument("--assume-served", type=float, metavar="SHARE", help="with --plan, instead of LOGS: requests served")
    parser.add_argument("--assume-bad", type=float, metavar="SHARE", help="with --plan: of those answers, not acceptable")


def run(options: argparse.Namespace) -> int:
    """Calibrate; write the profile, or say why not and return 3."""
    _check(options)
    if options.plan:
        return _plan(options)
    from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence
    from bonmini_guard.calibration.logs import load_log

    log, transform, notes = _prepared(
        load_log(options.logs, cost=None if options.cost in (None, "draws") else options.cost), options
    )
    outcome = _calibrate(log, options)
    if isinstance(outcome, Certificate):
        outcome = _marked(outcome, transform, notes)
    say_what_was_left_out(_left_out(outcome))
    if isinstance(outcome, NotEnoughEvidence):
        print(f"bonmini-guard calibrate: {outcome.sentence}", file=sys.stderr)
        return NOT_ENOUGH
    try:
        outcome.profile.save(options.output)
    except OSError as error:
        raise ConfigurationError(f"{options.output}: cannot write the profile ({error.strerror}); give another -o") from error
    print(outcome.sentence)
    return 0


def _prepared(log: Log, options: argparse.Namespace) -> tuple[Log, ScoreTransform, dict[str, str]]:
    """The log with a zero and with expected labels where asked for, and what to say about each."""
    from bonmini_guard.calibration.figures import transformed
    from bonmini_guard.calibration.partial import average_zero
    from bonmini_guard.profile import ScoreTransform

    transform, notes = ScoreTransform(), {}
    if options.fit_zero:
        zero = average_zero(log)
        transform, notes["zero"] = zero.transform, zero.sentence
        log = transformed(log, transform)
    if options.estimate_labels:
        log, estimated = estimated_labels(log, options.seed)
        notes |= {"estimated": estimated} if estimated else {}
    return log, transform, notes


def _marked(outcome: Certificate, transform: ScoreTransform, notes: dict[str, str]) -> Certificate:
    """The certificate with its transform; without its promise where labels were modelled."""
    from bonmini_guard.calibration.evidence import Certificate

    update: dict[str, Any] = {"score_transform": transform, "evidence": {**outcome.profile.evidence, **notes}}
    sentence = outcome.sentence
    if "estimated" in notes:
        update["delta"] = None
        sentence = f"An estimate, not a promise: {sentence.split(', with ')[0]} (estimated). {notes['estimated']}."
    if "zero" in notes:
        sentence = f"{sentence}\n{notes['zero']}"
    return Certificate(outcome.profile.model_copy(update=update), sentence)


def _plan(options: argparse.Namespace) -> int:
    """Say how many labelled prompts are needed; 3 if no number would do."""
    from bonmini_guard.calibration.logs import load_log
    from bonmini_guard.calibration.plan import plan_from_log, plan_from_shares

    asked = {
        "risk": options.risk or "served_and_bad",
        "alpha": _default(options.alpha, 0.05),
        "delta": options.delta,
        "fit_share": options.fit_share,
    }
    if options.assume_served is not None:
        plan = plan_from_shares(options.assume_served, options.assume_bad, **asked)
    else:
        log = load_log(options.logs)
        plan = plan_from_log(log, schedule=choose_schedule(log, options), seed=options.seed, **asked)
    print(plan.sentence)
    return 0 if plan.prompts is not None else NOT_ENOUGH


def choose_schedule(log: Log, options: argparse.Namespace) -> tuple[int, ...]:
    """The schedule asked for, or 4 x 8, or as many loops as the row with the fewest candidates supports."""
    if options.schedule is not None:
        return tuple(options.schedule)
    fewest = int(log.counts.min())
    mini_n = options.mini_n or min(MINI_N, fewest)
    loops = options.max_loops or max(1, min(MAX_LOOPS, fewest // mini_n))
    return (mini_n,) * loops


def _calibrate(log: Log, options: argparse.Namespace) -> Certificate | NotEnoughEvidence:
    shared = {"delta": options.delta, "fit_share": options.fit_share, "seed": options.seed, "search": options.search}
    schedule = choose_schedule(log, options)
    if options.mode == "accelerator":
        from bonmini_guard.calibration.accelerator import calibrate_accelerator

        return calibrate_accelerator(
            log, schedule=schedule, epsilon=_default(options.epsilon, 0.01), cost=options.cost or "draws", **shared
        )
    from bonmini_guard.calibration.guardrail import calibrate_guardrail

    return calibrate_guardrail(
        log,
        schedule=schedule,
        risk=options.risk or "served_and_bad",
        alpha=_default(options.alpha, 0.05),
        bound=options.bound or "auto",
        **shared,
    )


def _check(options: argparse.Namespace) -> None:
    """Refuse what can be refused before a large log is read."""
    _check_plan(options)
    foreign = ("epsilon", "cost") if options.mode == "guardrail" else ("alpha", "risk", "bound")
    for name in foreign:
        if getattr(options, name) is not None:
            raise ConfigurationError(f"--{name} does not belong to --mode {options.mode}; leave it out")
    for name in ("alpha", "epsilon", "delta", "fit_share"):
        value = getattr(options, name)
        if value is not None and not 0.0 < value < 1.0:
            flag = name.replace("_", "-")
            raise ConfigurationError(f"--{flag} is {value:g}: give a number between 0 and 1, both excluded, e.g. 0.1")
    if options.schedule is not None and (options.mini_n, options.max_loops) != (None, None):
        raise ConfigurationError("--schedule already says what --mini-n and --max-loops would; give one or the other")
    if min(options.mini_n or 1, options.max_loops or 1) < 1 or 0 in (options.mini_n, options.max_loops):
        raise ConfigurationError("--mini-n and --max-loops must be 1 or more")
    if options.seed < 0:
        raise ConfigurationError(f"--seed is {options.seed}: give 0 or more")
    if not options.plan:
        check_output(Path(options.output), options.logs)


def _check_plan(options: argparse.Namespace) -> None:
    assumed = (options.assume_served, options.assume_bad)
    if not options.plan:
        if assumed != (None, None):
            raise ConfigurationError("--assume-served and --assume-bad belong to --plan; add it or leave them out")
        if not options.logs or options.output is None:
            raise ConfigurationError("give a log and -o PROFILE, or --plan to ask how many labels are needed")
        return
    if options.mode != "guardrail" or options.output is not None:
        raise ConfigurationError("--plan is for --mode guardrail and writes no profile; leave out -o")
    if (None in assumed) == (not options.logs) or (assumed.count(None) == 1):
        raise ConfigurationError("--plan needs either a log, or both --assume-served and --assume-bad")


def _schedule(text: str) -> tuple[int, ...]:
    try:
        schedule = tuple(int(part) for part in text.split(","))
    except ValueError:
        schedule = ()
    if not schedule or min(schedule) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no schedule: list the draws of each loop, e.g. 4,28")
    return schedule


def _default(value: float | None, default: float) -> float:
    return default if value is None else value


def _left_out(outcome: Certificate | NotEnoughEvidence) -> dict[str, int]:
    from bonmini_guard.calibration.evidence import Certificate

    evidence = outcome.profile.evidence if isinstance(outcome, Certificate) else outcome.evidence
    left_out: dict[str, int] = evidence["left_out"]
    return left_out
