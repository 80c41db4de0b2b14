"""Guardrail thresholds with a promise: the laxest threshold whose risk is at most alpha with confidence 1 - delta.

Learn-then-test (arXiv 2110.01052) along every distinct score from strict to lax, on each prompt's exact expected loss under
the whole stopping procedure. The unit is the prompt, or the ``group`` where rows carry one: then each group counts once,
by the mean over its prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bonmini_guard.calibration import bounds
from bonmini_guard.calibration import search as search_space
from bonmini_guard.calibration.enough import LEAST_SERVED, further_prompts, refusal, too_few
from bonmini_guard.calibration.evidence import (
    Certificate,
    NotEnoughEvidence,
    base_evidence,
    check_share,
    first_decisions,
    group_means,
    percent,
    profile_fingerprints,
    reference_scores,
    split_units,
    stamp,
    unit_numbers,
)
from bonmini_guard.calibration.figures import figures_of
from bonmini_guard.calibration.logs import Floats, Integers, Log
from bonmini_guard.calibration.ranking import rank
from bonmini_guard.calibration.replay import Settled, replay
from bonmini_guard.calibration.risks import Risk, risk_named
from bonmini_guard.calibration.sequence import BLOCK, Bound, Run, betting_run, choose_bound, run_totals
from bonmini_guard.calibration.staircase import Shape, Staircase, staircase
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.policy import check_schedule
from bonmini_guard.profile import GuardProfile


@dataclass(frozen=True)
class Request:
    """What is asked for: a risk, its level alpha, the chance delta of missing it, and the procedure's shape."""

    risk: Risk
    alpha: float
    delta: float
    shape: Shape
    bound: Bound = "auto"


@dataclass(frozen=True)
class Certified:
    """The outcome of the tests on one split.

    Attributes:
        run: where the sequence ended.
        threshold: the certified threshold; None if there is none.
        bound: the bound used.
        losses: (U,) the losses at the first threshold tested.
        first: the first threshold tested.
    """

    run: Run
    threshold: float | None
    bound: Bound
    losses: Floats
    first: float


def calibrate_guardrail(
    log: Log,
    *,
    schedule: Sequence[int],
    risk: str = "served_and_bad",
    alpha: float = 0.05,
    delta: float = 0.1,
    bound: Bound = "auto",
    offsets: Sequence[float] | None = None,
    floors: Sequence[float] | None = None,
    fit_share: float = 0.4,
    seed: int = 0,
    search: bool = False,
) -> Certificate | NotEnoughEvidence:
    """Choose a guardrail's thresholds.

    Args:
        log: complete rows, labelled; wholly unlabelled rows are left out.
        schedule: draws of each loop.
        risk: served_and_bad, bad_among_served or false_acceptance.
        alpha: the most that the risk may be, in (0, 1).
        delta: the chance that the promise is missed, in (0, 1), over logs like this one.
        bound: auto, betting, hoeffding_bentkus or binomial (0/1 losses only).
        offsets: loop l exits at ``t + offsets[l]``, t being searched; they must not be chosen on this log's labels.
        floors: hopeless floors, one for each loop; likewise.
        fit_share: share of the units on which the start of the sequence is chosen, for the risks that are shares.
        seed: of the split, and of the order in which the betting test sees the units.
        search: choose the schedule's shape (same budget), the loops' offsets and the hopeless floors on the fit split.

    Raises:
        ConfigurationError: alpha, delta, fit_share, the risk, the bound or the schedule is not usable.
        InputError: the log has too few candidates a row, or is labelled in part.
    """
    request = Request(risk_named(risk), alpha, delta, _shape(schedule, offsets, floors), bound)
    _check(request, fit_share)
    log.require(sum(schedule))
    log = log.require_labels()
    generator = np.random.default_rng(seed)
    fit, certify = split_units(log.groups, fit_share if search or request.risk.is_share else 0.0, generator)
    if search and fit.size:
        request = searched(log.take(fit), request, generator)
    fit = fit if request.risk.is_share else fit[:0]
    schedule = request.shape.schedule
    start = _best_start(log.take(fit), request, generator) if fit.size else np.inf
    part = log.take(certify)
    found = certify_threshold(part, request, start, generator)
    evidence = base_evidence(
        log, fit_rows=len(log) - int(certify.size), certify_rows=int(certify.size), seed=seed, bound=found.bound
    )
    if found.threshold is None:
        return _refused(request, found, part, evidence, 1 - certify.size / len(log))
    settled = _replayed(part, request, found.threshold)
    evidence |= {"units": found.losses.size, "p_value": found.run.p_value, "tested": found.run.tested}
    if settled.served.sum() < LEAST_SERVED:
        return _too_few(request, settled, evidence)
    plain = replay(part, "accelerator", (sum(schedule),), (np.inf,))
    evidence |= figures_of(settled, float(plain.served_good.sum()))
    evidence |= first_decisions(part, "abstained", settled.abstained_good + settled.abstained_bad)
    return Certificate(_profile(log, request, found.threshold, evidence, seed), _consequence(request, settled, part))


def searched(fit: Log, request: Request, generator: np.random.Generator) -> Request:
    """The request with the best shape, then offsets, then floors, each judged by what it would certify on the fit split.

    Better is: serves at least 1 % of the requests more, or as many (within 1 %) for fewer draws.
    """
    best, result = request, _worth(fit, request, generator)
    for wishes in (_shapes_of, _offsets_of, _floors_of):
        for shape in wishes(fit, best.shape):
            candidate = replace(best, shape=shape)
            served, draws = _worth(fit, candidate, generator)
            if served > result[0] + 0.01 or (served > result[0] - 0.01 and draws < 0.98 * result[1]):
                best, result = candidate, (max(served, result[0]), draws)
    return best


def _shapes_of(fit: Log, shape: Shape) -> list[Shape]:
    return [Shape(schedule) for schedule in search_space.shapes(sum(shape.schedule))]


def _offsets_of(fit: Log, shape: Shape) -> list[Shape]:
    return [replace(shape, offsets=offsets) for offsets in search_space.tilts(fit, len(shape.schedule))]


def _floors_of(fit: Log, shape: Shape) -> list[Shape]:
    return [replace(shape, floors=floors) for floors in search_space.floors(fit, shape.schedule)]


def _worth(fit: Log, request: Request, generator: np.random.Generator) -> tuple[float, float]:
    """(share served, draws) of what would be certified if the fit split were the whole log."""
    start = _best_start(fit, request, generator) if request.risk.is_share else np.inf
    found = certify_threshold(fit, request, start, generator)
    if found.threshold is None:
        return 0.0, float(sum(request.shape.schedule))
    settled = _replayed(fit, request, found.threshold)
    return float(settled.served.mean()), float(settled.draws.mean())


def certify_threshold(log: Log, request: Request, start: float, generator: np.random.Generator) -> Certified:
    """Test from the threshold ``start`` (infinity: the strictest that serves anything) towards laxer ones.

    ``start`` must not depend on this log.
    """
    log.require_scores()
    units = unit_numbers(log.groups, generator)
    losses = _losses(log, request, units)
    column = losses.column_of(start)
    run, bound = _run(log, request, losses, units, column)
    threshold = None if run.last is None else min(losses.inside(run.last), start)
    first = losses.block(column, column + 1)[:, 0]
    return Certified(run, threshold, bound, first, float(losses.cuts[column]))


def _losses(log: Log, request: Request, units: Integers) -> Staircase:
    return staircase(rank(log.scores, log.labels, log.counts), request.shape, lambda o: request.risk.loss(o, request.alpha), units)


def _run(log: Log, request: Request, losses: Staircase, units: Integers, column: int) -> tuple[Run, Bound]:
    zero_one = _zero_one(log, request, units)
    bound = choose_bound(request.bound, losses, zero_one is not None)
    if bound == "binomial" and zero_one is not None:
        numerator, denominator = zero_one
        return run_totals(bounds.binomial(numerator, denominator, request.alpha), column, request.delta), bound
    if bound == "hoeffding_bentkus":
        means = losses.totals() / losses.units
        return run_totals(bounds.hoeffding_bentkus(means, losses.units, request.alpha), column, request.delta), bound
    return betting_run(losses, column, request.alpha, request.delta), bound


def _zero_one(log: Log, request: Request, units: Integers) -> tuple[Floats, Floats] | None:
    """Counts of numerator and denominator under each column if both are 0 or 1 for every unit, else None."""
    if np.any(log.counts != sum(request.shape.schedule)):
        return None
    rankings = rank(log.scores, log.labels, log.counts)
    stairs = [staircase(rankings, request.shape, part, units) for part in (request.risk.numerator, request.risk.denominator)]
    whole = all(_whole(stair.start) and _whole(stair.step) for stair in stairs)
    return (np.round(stairs[0].totals()), np.round(stairs[1].totals())) if whole else None


def _whole(values: Floats) -> bool:
    return bool(np.all(np.abs(values - np.round(values)) < 1e-9))


def _best_start(log: Log, request: Request, generator: np.random.Generator) -> float:
    """Where the evidence is strongest on the fit split: where a gambler against the risk ends richest."""
    losses = _losses(log, request, unit_numbers(log.groups, generator))
    columns, width = losses.cuts.size, max(1, BLOCK // losses.units)
    # at most about 2,000 places are looked at: where to start is a choice, not a claim
    stride = max(1, columns // 2000)
    best, start = -np.inf, -1
    for begin in range(0, columns, width):
        block = np.clip(losses.block(begin, min(begin + width, columns))[:, ::stride], 0.0, 1.0)
        capital = bounds.log_capital(block, request.alpha, request.delta)[-1]
        richest = int(np.argmax(capital))
        if capital[richest] > best:
            best, start = float(capital[richest]), begin + richest * stride
    return losses.inside(start) if start >= 0 else float("inf")


def _shape(schedule: Sequence[int], offsets: Sequence[float] | None, floors: Sequence[float] | None) -> Shape:
    try:
        check_schedule(schedule)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    for name, values in (("offsets", offsets), ("floors", floors)):
        if values is not None and len(values) != len(schedule):
            raise ConfigurationError(f"{len(values)} {name} for {len(schedule)} loops: give one for each loop")
    return Shape(tuple(schedule), None if offsets is None else tuple(offsets), None if floors is None else tuple(floors))


def _check(request: Request, fit_share: float) -> None:
    check_share("alpha", request.alpha)
    check_share("delta", request.delta)
    check_share("fit_share", fit_share)


def _refused(request: Request, found: Certified, part: Log, evidence: dict[str, Any], spent: float) -> NotEnoughEvidence:
    """``spent`` is the share of rows that went into the fit split, as that share of further ones would."""
    further = further_prompts(found.losses, request.alpha, request.delta, found.bound)
    if further is not None:
        further = int(np.ceil(further / (1 - spent)))
    settled = _replayed(part, request, found.first)
    tested = (found.losses.size, found.first)
    evidence = {**evidence, "mean_loss": float(found.losses.mean()), "p_value": found.run.p_value}
    return NotEnoughEvidence(refusal(_asked(request), request.risk, settled, further, tested), further, evidence)


def _too_few(request: Request, settled: Settled, evidence: dict[str, Any]) -> NotEnoughEvidence:
    served, seen = float(settled.served.sum()), settled.served.size
    further = int(np.ceil(LEAST_SERVED * evidence["rows"] / served)) - evidence["rows"]
    return NotEnoughEvidence(too_few(_asked(request), served, seen, further), further, evidence)


def _asked(request: Request) -> str:
    return f"{request.risk.name} <= {request.alpha:g} with confidence {1 - request.delta:g}"


def _replayed(part: Log, request: Request, threshold: float) -> Settled:
    shape = request.shape
    return replay(part, "guardrail", shape.schedule, shape.thresholds(threshold), shape.floors)


def _profile(log: Log, request: Request, threshold: float, evidence: dict[str, Any], seed: int) -> GuardProfile:
    return GuardProfile(
        mode="guardrail",
        schedule=request.shape.schedule,
        thresholds=request.shape.thresholds(threshold),
        hopeless=request.shape.floors,
        risk=request.risk.name,
        alpha=request.alpha,
        delta=request.delta,
        evidence=evidence,
        reference=reference_scores(log, request.shape.schedule[0], seed),
        fingerprints=profile_fingerprints(log),
        **stamp(),
    )


def _consequence(request: Request, settled: Settled, part: Log) -> str:
    # Groups are what the test saw, each counted once, however many requests it holds.
    served = 10_000 * float(group_means(part, settled.served).mean())
    budget = sum(request.shape.schedule)
    which = "" if np.unique(part.groups).size == len(part) else ", each from another group,"
    if request.risk.is_share:
        promise = f"; at most {percent(request.alpha)} of {request.risk.promise}"
    else:
        seen = 10_000 * float(group_means(part, settled.served_bad).mean())
        promise = f", at most {10_000 * request.alpha:,.0f} of them bad ({seen:,.0f} at the rates of this log)"
    return (
        f"Of 10,000 requests like these{which} you would serve about {served:,.0f}{promise}, with {percent(1 - request.delta)} "
        f"confidence, using {float(group_means(part, settled.draws).mean()):.1f} draws a request instead of {budget}."
    )
