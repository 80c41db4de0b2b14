"""Thresholds with a promise, for both modes: the laxest that the evidence certifies, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypedDict, Unpack

import numpy as np

from bonmini_guard import __version__
from bonmini_guard.calibration.certify import RISKS
from bonmini_guard.calibration.evidence import (
    Certificate,
    NotEnoughEvidence,
    check_share,
    consequence,
    profile_fingerprints,
    sealed,
)
from bonmini_guard.calibration.logs import Log
from bonmini_guard.calibration.orders import Order, labelled_units, mixed, split
from bonmini_guard.calibration.paths import Cost, Missing, exits, paths
from bonmini_guard.calibration.search import pace_of, priced, searched
from bonmini_guard.calibration.sequence import LEAST_SERVED, Evidence, Request, Rung, rows_needed, suffices, test
from bonmini_guard.conversation import clean
from bonmini_guard.engine.load import LADDER
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.policy.policy import Exit, Mode, check_schedule
from bonmini_guard.policy.profile import GuardProfile

#: How many best scores of first loops a profile keeps for drift; each row's in its one order, one row a unit.
REFERENCE = 1000
#: Rows on which ``search`` chooses; rows below which it does not.
FIT_SHARE, LEAST_SEARCHED = 0.25, 1000


class Asked(TypedDict, total=False):
    """What may be asked of a calibration beside its promise.

    delta: the chance that the promise is missed, in (0, 1), over logs like this one (default 0.1).
    offsets: of a guardrail: loop l exits at ``t + offsets[l]``, t being searched; they must not be chosen on this log's labels.
    search: choose the schedule's shape (same budget), then offsets, on 25 % of the units; the rest certifies.
    cost: what is counted: draws, tokens or seconds (the log read with that ``cost``).
    order: which order of its draws a row is run in.
    seed: another digest order and split; each seed tried is a calibration.
    calibrations: how many calibrations on this log are made and chosen from: each gets ``delta / calibrations``.
    exit: ``eager`` and ``rolling`` (a schedule of ones) decide in order of arrival, which the log's ``costs`` tell (see
        :func:`bonmini_guard.calibration.logs.load_timed`); without, draws arrive as launched, and the profile says so.
    in_flight: for a rolling exit, the draws in flight that the promise is to hold for, ascending.
    wait: of a search: what waiting for as long as a draw takes costs, in draws (default 1). A loop waits for its slowest draw.
    price: of a search: what a draw (or one of ``cost``) costs in money; ``wait`` is then what waiting a second costs.
    max_p95: of a search: the most that 95 % of the requests may wait, in what the log's ``costs`` count.
    """

    delta: float
    offsets: Sequence[float] | None
    search: bool
    cost: Cost
    order: Order
    seed: int
    calibrations: int
    exit: Exit
    in_flight: Sequence[int]
    wait: float | None
    price: float | None
    max_p95: float | None


def calibrate_guardrail(
    log: Log, *, schedule: Sequence[int], risk: str = "served_and_bad", alpha: float = 0.05, **more: Unpack[Asked]
) -> Certificate | NotEnoughEvidence:
    """Choose a guardrail's thresholds: the laxest whose risk is at most alpha with confidence 1 - delta.

    Args:
        log: complete rows. Rows without any label are left out, unless a set was fixed for labelling (``label_sampling``), of which
            every row counts, and a label that is missing where it is needed counts as bad.
        schedule: draws of each loop.
        risk: served_and_bad, bad_among_served or false_acceptance.
        alpha: the most that the risk may be, in (0, 1).
        more: see :class:`Asked`.

    Raises:
        ConfigurationError: a number, the risk or the schedule is not usable.
        InputError: the log has too few candidates a row, or no label.
    """
    return calibrated(log, _request("guardrail", risk, alpha, schedule, more), more.get("search", False))


def calibrate_accelerator(
    log: Log, *, schedule: Sequence[int], epsilon: float = 0.01, **more: Unpack[Asked]
) -> Certificate | NotEnoughEvidence:
    """Choose an accelerator's threshold: the laxest whose answers are acceptable at most epsilon less often than best-of-N's.

    Without any label "acceptable" is the scorer's own word (score >= 0): an estimate of agreement with the scorer, not a promise.

    Args:
        log: complete rows; as :func:`calibrate_guardrail`.
        schedule: draws of each loop, two loops or more.
        epsilon: the most quality that may be lost, in (0, 1).
        more: see :class:`Asked`.

    Raises:
        ConfigurationError: epsilon, delta or the schedule is not usable.
        InputError: a row has fewer candidates than the schedule draws.
    """
    asked, search = _request("accelerator", None, epsilon, schedule, more), more.get("search", False)
    if bool(np.all(np.isnan(log.labels))):
        return _estimated(calibrated(_by_scorer(log), asked, search))
    return calibrated(log, asked, search)


def _request(mode: Mode, risk: str | None, level: float, schedule: Sequence[int], more: Asked) -> Request:
    given: dict[str, Any] = {"delta": 0.1} | {name: value for name, value in more.items() if name != "search"}
    if given.get("offsets") is not None:
        given["offsets"] = tuple(given["offsets"])
    widths = tuple(given.get("in_flight", LADDER))
    # No request has more draws in flight than it makes.
    rungs = tuple(width for width in widths if width <= len(schedule)) or widths[:1]
    given["in_flight"] = rungs if given.get("exit") == "rolling" else (1,)
    return Request(mode, risk, level, schedule=tuple(schedule), **given)


def calibrated(log: Log, asked: Request, search: bool) -> Certificate | NotEnoughEvidence:
    """What is asked for, on the labelled rows of a log."""
    if search and (asked.exit != "loop" or asked.offsets is not None):
        raise ConfigurationError(f"a search is for loops (exit={asked.exit!r}) and finds their offsets: leave it out")
    units, requests, missing, evidence = prepared(log, asked)
    part = units
    if search and len(units) >= LEAST_SEARCHED:
        fit, rest = split(units, FIT_SHARE, asked.seed * 2 + 1)
        asked, front = searched(units.take(fit), asked, missing)
        evidence, part = evidence | {"front": front, "priced": priced(asked, log.costs_are)}, units.take(rest)
    elif search:
        evidence["search"] = f"not made: {len(units)} units are fewer than {LEAST_SEARCHED}, and all of them certify instead"
    tested = test(part, asked, missing)
    evidence |= {"certify_rows": len(tested.log), "fit_rows": len(units) - len(tested.log), "missing_labels": missing}
    first = tested.rungs[0]
    evidence |= {"labels_used": tested.labels, "tested": first.found.tested, "p_value": first.found.p_value}
    if not suffices(first, asked):
        return _refused(part, len(tested.log), asked, evidence)
    if asked.max_p95 is not None and (slow := pace_of(tested, asked).p95) > asked.max_p95:
        return NotEnoughEvidence(
            f"95 % of the requests wait up to {slow:.3g} s on the rows that certify, and --max-p95 is {asked.max_p95:g}: allow "
            "more, or draw fewer",
            evidence,
        )
    return certificate_of(tested, asked, evidence, requests)


def prepared(log: Log, asked: Request) -> tuple[Log, Log | None, Missing, dict[str, Any]]:
    """The labelled rows, one a unit; those that drift looks at, if others; what a missing label means; evidence before any test."""
    check(asked)
    if asked.cost not in ("draws", log.costs_are):
        raise InputError(f'{log.source}: was read without "{asked.cost}" of candidates; pass cost="{asked.cost}" to load_log')
    log.require(sum(asked.schedule))
    log.require_scores()
    # scores are enough for drift: where units have several rows, the first one of each group counts, labelled or not
    requests = None if np.unique(log.groups).size == len(log) else log.take(log.requests)
    log, units, missing = labelled_units(log)
    labels = int(np.isfinite(log.labels).sum())
    evidence: dict[str, Any] = {"source": clean(log.source), "rows": len(log), "labels": labels, "same_prompt": log.same_prompt}
    evidence |= {"left_out": dict(log.left_out), "units": len(units), "order": asked.order}
    evidence |= {} if log.group_key in (None, "group") else {"group_key": log.group_key}  # for drift
    if asked.calibrations > 1 or asked.seed:
        evidence |= {"calibrations": asked.calibrations, "seed": asked.seed}
    return units, requests, missing, evidence


def check(asked: Request) -> None:
    """Refuse what no log could certify, by a ConfigurationError."""
    if asked.risk is not None and asked.risk not in RISKS:
        raise ConfigurationError(f"unknown risk {asked.risk!r}: use one of {', '.join(RISKS)}")
    check_share("alpha" if asked.risk else "epsilon", asked.level)
    check_share("delta", asked.delta)
    try:
        check_schedule(asked.schedule)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    if asked.risk is None and len(asked.schedule) < 2:
        raise ConfigurationError(f"schedule {list(asked.schedule)} has one loop, so nothing can be saved; use e.g. 4,28")
    if asked.offsets is not None and asked.mode == "accelerator":
        raise ConfigurationError("offsets are of a guardrail: an accelerator has one threshold")
    if asked.offsets is not None and len(asked.offsets) != len(asked.schedule):
        raise ConfigurationError(f"{len(asked.offsets)} offsets for {len(asked.schedule)} loops: give one for each loop")
    if asked.exit != "loop" and (asked.offsets is not None or asked.cost != "draws"):
        raise ConfigurationError(f"exit={asked.exit!r} decides at each draw: offsets and other costs than draws are of loops")
    if asked.exit == "rolling" and (set(asked.schedule) != {1} or list(asked.in_flight) != sorted(set(asked.in_flight))):
        raise ConfigurationError("a rolling exit has a schedule of ones, and in_flight ascending")
    if asked.price is not None and (asked.wait is None or not math.isfinite(asked.price) or min(asked.price, asked.wait) < 0):
        raise ConfigurationError("a price in money is 0 or more, and needs wait=: what waiting a second costs, 0 for nothing")
    if asked.calibrations < 1:
        raise ConfigurationError(f"calibrations is {asked.calibrations}: give how many are made and chosen from, 1 or more")


def _refused(part: Log, seen: int, asked: Request, evidence: dict[str, Any]) -> NotEnoughEvidence:
    def further() -> int | None:
        needed = rows_needed(part, asked, len(part))
        return None if needed is None else math.ceil((needed[0] - len(part)) * evidence["units"] / len(part))

    units = "prompts" if evidence["units"] == evidence["rows"] else "groups of prompts"
    why = f"not enough evidence for {asked}: the test saw {seen:,} {units}"
    if len(part) < LEAST_SERVED:
        return NotEnoughEvidence(f"{why}, too few to say what others would be like; collect more", evidence)
    return NotEnoughEvidence(why, evidence, further)


def certificate_of(tested: Evidence, asked: Request, evidence: dict[str, Any], requests: Log | None) -> Certificate:
    """The profile and the sentence of what was found; ``requests`` are those that drift looks at, where they are other rows."""
    first, rows = tested.rungs[0], len(tested.log)
    cut = first.found.cut
    assert cut is not None
    kinds = ("rows", "served", "served_bad", "selected_bad", "lost", "won")
    counts = {name: float(getattr(first.steps, name)[cut]) for name in kinds}
    draws = float(first.steps.draws[cut])
    evidence |= {"requests": float(rows), "counted": counts["rows"], "mean_draws": draws / rows, "order_of": "one order a row"}
    others = counts["rows"] - counts["served"]
    if asked.risk:
        evidence |= {name: counts[name] for name in ("served", "served_bad", "selected_bad")}
        evidence |= {"abstained": others, "false_acceptances": counts["served_bad"]}
    else:
        evidence |= {"lost": counts["lost"], "won": counts["won"], "best_effort": others}
    if asked.cost != "draws":
        full = float(first.path.cost[:, -1].mean())
        evidence |= {"cost": asked.cost, "mean_cost": float(first.steps.cost[cut]) / rows, "cost_of_whole_budget": full}
    thresholds = [rung.threshold for rung in tested.rungs]
    evidence |= {} if math.isinf(first.start) else {"certified_above": first.start - first.threshold}
    rolling: dict[str, Any] = {}
    if asked.exit != "loop":
        evidence["arrivals"] = tested.log.costs_are or "launch order"
    if asked.exit == "rolling":
        evidence["in_flight"] = {str(rung.in_flight): _means(rung, asked) for rung in tested.rungs}
        rolling = {"in_flight": tuple(rung.in_flight for rung in tested.rungs), "max_draws": len(asked.schedule)}
        rolling |= {"in_flight_thresholds": tuple(thresholds)} if len(thresholds) > 1 else {}
    path, of = first.path, tested.log
    if requests is not None and asked.exit == "loop":
        path, of = paths(requests, asked.schedule, asked.order, seed=asked.seed), requests
    seen = np.isfinite(path.best[:, 0])  # drift leaves out requests whose first loop failed as a whole
    if asked.exit == "loop" and (requests is not None or not seen.all()):
        others = int(np.sum(exits(path, asked.thresholds(max(thresholds)))[seen] == path.draws.size))
        evidence["first_of_groups"] = {"requests": int(seen.sum()), "abstained" if asked.risk else "best_effort": others}
    # by digest: a log's first rows may be of one of its shards
    kept = np.flatnonzero(seen)[np.argsort(mixed(of.keys[seen], -2), kind="stable")[:REFERENCE]]
    profile = GuardProfile(
        mode=asked.mode,
        schedule=asked.schedule,
        thresholds=asked.thresholds(max(thresholds)),
        exit=asked.exit,
        risk=asked.risk,
        alpha=asked.level if asked.risk else None,
        epsilon=None if asked.risk else asked.level,
        delta=asked.delta,
        evidence=evidence,
        reference=tuple(path.best[np.sort(kept), 0].tolist()),
        fingerprints=profile_fingerprints(tested.log),
        created_at=datetime.now(UTC).replace(microsecond=0),
        package_version=__version__,
        **rolling,
    )
    return Certificate(sealed(profile), consequence(profile))


def _means(rung: Rung, asked: Request) -> dict[str, float]:
    draws = np.minimum(exits(rung.path, asked.thresholds(rung.threshold)) + 1, len(asked.schedule))
    started = np.minimum(draws + rung.in_flight - 1, len(asked.schedule))
    return {"mean_draws": float(draws.mean()), "mean_started": float(started.mean())}


def _by_scorer(log: Log) -> Log:
    """The log with the scorer's own word for a label; refused where scores show no zero."""
    scores = log.scores[np.isfinite(log.scores)]
    if scores.size and not (scores.min() < 0.0 <= scores.max()):
        raise ConfigurationError(
            f"{log.source}: no label, and no score changes sign, so that nothing says which answers are acceptable; "
            f"label rows with 'bonmini-guard label'"
        )
    labels = np.where(np.isfinite(log.scores), log.scores >= 0.0, np.nan).astype(np.float32)
    return replace(log, labels=labels, asked=np.zeros(len(log), dtype=bool))


def _estimated(outcome: Certificate | NotEnoughEvidence) -> Certificate | NotEnoughEvidence:
    """The outcome without a promise: its labels were the scorer's own word."""
    said = "An estimate of agreement with the scorer (acceptable = score >= 0; no labels), not a promise"
    if isinstance(outcome, NotEnoughEvidence):
        return replace(outcome, why=f"{said}: {outcome.why}")
    profile = sealed(outcome.profile, {"estimated": said, "labels": 0}, delta=None)
    return Certificate(profile, f"{said}. {outcome.sentence.rsplit(', with ', 1)[0]}.")
