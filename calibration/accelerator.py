"""Accelerator thresholds with a promise: the quality is within epsilon of best-of-N with confidence 1 - delta.

On a fit split, families of thresholds are lined up from safe to cheap; the most promising family is then tested on the rest,
in that order, on the paired differences of each prompt's exact expected quality (learn-then-test, arXiv 2110.01052).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bonmini_guard.calibration import bounds
from bonmini_guard.calibration.costs import Cost, expected_cost, loop_prices
from bonmini_guard.calibration.enough import further_prompts, units_named
from bonmini_guard.calibration.evidence import (
    Certificate,
    NotEnoughEvidence,
    base_evidence,
    check_share,
    first_decisions,
    percent,
    profile_fingerprints,
    reference_scores,
    split_units,
    stamp,
    unit_numbers,
)
from bonmini_guard.calibration.induction import thresholds_for_cost
from bonmini_guard.calibration.logs import Floats, Integers, Log
from bonmini_guard.calibration.ranking import Mask, Ranking, rank
from bonmini_guard.calibration.replay import replay_rankings
from bonmini_guard.calibration.search import shapes
from bonmini_guard.calibration.sequence import Run, run_blocks
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.policy import check_schedule
from bonmini_guard.profile import GuardProfile

Thresholds = tuple[float, ...]

#: Constant thresholds tried, and costs of a draw tried for the per-loop ones.
CONSTANTS, COSTS = 100, tuple(np.geomspace(1e-5, 0.1, 25).tolist())
#: A configuration that takes more than this share of the budget saves nothing.
MOST_DRAWS = 0.999
#: The backward induction looks at no more prompts than this.
MOST_FIT = 4000


@dataclass(frozen=True)
class Member:
    """One candidate configuration, with its figures on the fit split.

    Attributes:
        family: constant, zero (a constant threshold of 0) or per_loop.
        thresholds: one for each loop.
        draws: expected draws.
        cost: expected cost: draws, or what is asked for instead.
        loss: mean quality of best-of-N minus its own.
        error: standard error that loss would have on the certify split.
    """

    family: str
    thresholds: Thresholds
    draws: float
    cost: float
    loss: float
    error: float


@dataclass(frozen=True)
class Paired:
    """What a configuration does on a split: draws, cost and loss of quality against best-of-N, for each prompt, (R,)."""

    draws: Floats
    cost: Floats
    loss: Floats


class Split:
    """One part of the log, ready to be replayed with many thresholds."""

    def __init__(self, log: Log, schedule: Sequence[int], cost: Cost = "draws") -> None:
        self.log = log
        self._schedule = tuple(schedule)
        self.prices = None if cost == "draws" else loop_prices(log, schedule, cost)
        self.full_cost = float(loop_prices(log, (sum(schedule),), cost).mean())
        self.rankings: list[Ranking] = rank(log.scores, quality_of(log), log.counts)
        self._best_of_n = self._quality((sum(schedule),), (np.inf,))[0]

    def _quality(self, schedule: tuple[int, ...], thresholds: Thresholds) -> tuple[Floats, Floats]:
        settled = replay_rankings(self.rankings, schedule, thresholds).settle("accelerator")
        return settled.served_good, settled.draws

    def paired(self, thresholds: Thresholds) -> Paired:
        """Replay one configuration."""
        quality, draws = self._quality(self._schedule, thresholds)
        cost = draws if self.prices is None else expected_cost(self.rankings, self._schedule, thresholds, self.prices)
        return Paired(draws, cost, self._best_of_n - quality)

    @property
    def best_of_n(self) -> float:
        """Mean quality of best-of-N."""
        return float(self._best_of_n.mean())


def quality_of(log: Log) -> Floats:
    """(R, W) acceptable or not in rows that are wholly labelled, else sigmoid(score), the modelled chance of it.

    NaN for failed draws. Qualities of one row are compared with each other, so they are all of one kind: a label beside a model
    whose zero is off says nothing about which answer is better.
    """
    with np.errstate(over="ignore"):
        modelled = 1.0 / (1.0 + np.exp(-log.scores))
    return np.where(_by_label(log)[:, None], np.where(log.drawn, log.labels, np.nan), modelled)


def _by_label(log: Log) -> Mask:
    """(R,): rows whose quality is what their labels say."""
    told: Mask = log.labelled & np.any(np.isfinite(log.labels), axis=1)
    return told


def calibrate_accelerator(
    log: Log,
    *,
    schedule: Sequence[int],
    epsilon: float = 0.01,
    delta: float = 0.1,
    fit_share: float = 0.4,
    seed: int = 0,
    search: bool = False,
    cost: Cost = "draws",
) -> Certificate | NotEnoughEvidence:
    """Choose an accelerator's thresholds: the cheapest whose mean quality is within epsilon of best-of-N.

    Quality is 1 or 0 in rows that are wholly labelled, elsewhere sigmoid(score). Tried: one threshold for all loops,
    0 among them (the outside option's own utility), and per-loop thresholds by backward induction.

    Args:
        log: complete rows; labels are optional.
        schedule: draws of each loop, two loops or more.
        epsilon: the most quality that may be lost, in (0, 1).
        delta: the chance that the promise is missed, in (0, 1).
        fit_share: share of the units on which the family is chosen.
        seed: of the split and of the order in which the betting test sees the units.
        search: choose the schedule's shape too, among those of the same budget, on the fit split.
        cost: what is to be saved against best-of-N in one loop: draws, tokens or seconds (the log read with that ``cost``).

    Raises:
        ConfigurationError: epsilon, delta, fit_share or the schedule is not usable.
        InputError: a row has fewer candidates than the schedule draws.
    """
    _check(schedule, epsilon, delta, fit_share)
    log.require(sum(schedule))
    log.require_scores()
    generator = np.random.default_rng(seed)
    fit, certify = split_units(log.groups, fit_share, generator)
    if not fit.size or not certify.size:
        raise ConfigurationError(f"{len(log)} rows are too few to split; log more prompts")
    if search:
        schedule = choose_shape(log.take(fit), sum(schedule), epsilon, certify.size, cost)
    fitted = Split(log.take(fit), schedule, cost)
    if not fitted.full_cost > 0:
        raise InputError(f"{log.source}: all {cost} are 0, so that there is nothing to save; log them, or save draws")
    family, table = choose_family(fitted, schedule, epsilon, certify.size)
    if family[0].cost >= MOST_DRAWS * fitted.full_cost:
        return NotEnoughEvidence(f"no early exit saves any {cost} on this log; use plain best-of-N", None, base_evidence(log))
    part = Split(log.take(certify), schedule, cost)
    units = unit_numbers(part.log.groups, generator)
    run = _certify(part, family, units, epsilon, delta)
    evidence = base_evidence(log, fit_rows=int(fit.size), certify_rows=int(certify.size), seed=seed, families=table)
    evidence |= {"rows_by_label": int(_by_label(log).sum())}
    evidence |= {"bound": "betting", "p_value": run.p_value, "tested": run.tested, "quality_best_of_n": part.best_of_n}
    if run.last is None:
        return _refused(part, family[0], units, (epsilon, delta, fit_share), evidence)
    if cost != "draws":
        evidence |= {"cost": cost, "mean_cost": float(part.paired(family[run.last].thresholds).cost.mean())}
        evidence |= {"cost_of_best_of_n": part.full_cost}
    return _certificate(log, part, (tuple(schedule), family[run.last].thresholds), (epsilon, delta, seed), evidence)


def choose_shape(fit: Log, budget: int, epsilon: float, certify: int, cost: Cost = "draws") -> tuple[int, ...]:
    """The shape whose promising member is the cheapest on the fit split; see :mod:`bonmini_guard.calibration.search`."""
    costs = {}
    for shape in shapes(budget):
        family, _ = choose_family(Split(fit, shape, cost), shape, epsilon, certify)
        costs[shape] = _promising(family, epsilon).cost
    return min(costs, key=lambda shape: (costs[shape], len(shape)))


def choose_family(
    split: Split, schedule: Sequence[int], epsilon: float, certify: int
) -> tuple[list[Member], dict[str, dict[str, float]]]:
    """The family with the cheapest promising member, from safe to cheap, and each family's promising member for the record."""
    constant = [_member(split, "constant", (t,) * len(schedule), certify) for t in _constants(split.log)]
    zero = _member(split, "zero", (0.0,) * len(schedule), certify)
    few = _some(split.rankings)
    unit = split.full_cost / sum(schedule)  # so that the costs tried are those of a draw, whatever is saved
    loops = {thresholds_for_cost(few, schedule, cost / unit, split.prices) for cost in COSTS}
    families = {
        "constant": _safe_to_cheap([*constant, zero], split.full_cost),
        "per_loop": _safe_to_cheap([_member(split, "per_loop", each, certify) for each in loops], split.full_cost),
    }
    promising = {name: _promising(family, epsilon) for name, family in families.items() if family}
    if not promising:
        return [zero], {"zero": _figures(zero)}
    chosen = min(promising, key=lambda name: promising[name].cost)
    record = {name: _figures(member) for name, member in promising.items()}
    return families[chosen], {**record, "zero": _figures(zero)}


def _constants(log: Log) -> list[float]:
    """Thresholds between scores, spread evenly over the candidates of the fit split."""
    scores = np.unique(log.scores[np.isfinite(log.scores)])
    if scores.size < 2:
        return [float(score) for score in scores]
    middles = (scores[1:] + scores[:-1]) / 2
    places = np.unique(np.linspace(0, middles.size - 1, CONSTANTS).astype(int))
    return [float(middle) for middle in middles[places]]


def _some(rankings: Sequence[Ranking]) -> list[Ranking]:
    few = []
    for ranking in rankings:
        step = slice(0, MOST_FIT)
        few.append(Ranking(ranking.rows[step], ranking.scores[step], ranking.quality[step], ranking.failed[step]))
    return few


def _member(split: Split, family: str, thresholds: Thresholds, certify: int) -> Member:
    paired = split.paired(thresholds)
    error = float(paired.loss.std()) / np.sqrt(certify)
    draws, cost, loss = (float(values.mean()) for values in (paired.draws, paired.cost, paired.loss))
    return Member(family, thresholds, draws, cost, loss, float(error))


def _safe_to_cheap(members: list[Member], full: float) -> list[Member]:
    """Members that save anything at all, the costliest first."""
    return sorted((member for member in members if member.cost < MOST_DRAWS * full), key=lambda member: -member.cost)


def _promising(family: list[Member], epsilon: float) -> Member:
    """The last member up to which the sequence is likely to get: loss and 1.5 standard errors within epsilon."""
    best = family[0]
    for member in family:
        if member.loss + 1.5 * member.error > epsilon:
            break
        best = member
    return best


def _figures(member: Member) -> dict[str, float]:
    return {"draws": member.draws, "loss": member.loss, "threshold_first_loop": member.thresholds[0]}


def _losses(part: Split, member: Member, units: Integers) -> Floats:
    """(U, 1) (1 + mean loss of the unit) / 2, in [0, 1]."""
    loss = part.paired(member.thresholds).loss
    mean = np.bincount(units, weights=loss) / np.bincount(units)
    shifted: Floats = np.clip((1.0 + mean) / 2, 0.0, 1.0)[:, None]
    return shifted


def _certify(part: Split, family: list[Member], units: Integers, epsilon: float, delta: float) -> Run:
    def p_values(begin: int, end: int) -> Floats:
        losses = np.hstack([_losses(part, member, units) for member in family[begin:end]])
        return bounds.betting(losses, (1.0 + epsilon) / 2, delta)

    return run_blocks(p_values, len(family), 0, delta, 1)


def _refused(
    part: Split, member: Member, units: Integers, asked: tuple[float, float, float], evidence: dict[str, Any]
) -> NotEnoughEvidence:
    epsilon, delta, fit_share = asked
    losses = _losses(part, member, units)[:, 0]
    further = further_prompts(losses, (1.0 + epsilon) / 2, delta, "betting")
    why = f"not enough evidence for a quality within {epsilon:g} of best-of-N with confidence {1 - delta:g}"
    if further is None:
        lost = float(2 * losses.mean() - 1)
        sentence = f"{why}: even the safest early exit loses {lost:.3g} at the rates of this log; no number of prompts would do"
        return NotEnoughEvidence(sentence, None, evidence)
    further = int(np.ceil(further / (1 - fit_share)))
    seen = f"{losses.size} {units_named(losses.size, len(part.log))}"
    sentence = f"{why}: the test saw {seen}; about {further:,} further ones like them would suffice"
    return NotEnoughEvidence(sentence, further, evidence)


def _certificate(
    log: Log,
    part: Split,
    shape: tuple[tuple[int, ...], Thresholds],
    asked: tuple[float, float, int],
    evidence: dict[str, Any],
) -> Certificate:
    (schedule, thresholds), (epsilon, delta, seed) = shape, asked
    paired = part.paired(thresholds)
    draws, loss = float(paired.draws.mean()), float(paired.loss.mean())
    served = replay_rankings(part.rankings, schedule, thresholds).settle("accelerator")
    evidence = {**evidence, "requests": float(served.draws.size), "best_effort": float(served.best_effort.sum())}
    evidence |= first_decisions(part.log, "best_effort", served.best_effort)
    profile = GuardProfile(
        mode="accelerator",
        schedule=schedule,
        thresholds=thresholds,
        delta=delta,
        epsilon=epsilon,
        evidence={**evidence, "mean_draws": draws, "quality_loss": loss},
        reference=reference_scores(log, schedule[0], seed),
        fingerprints=profile_fingerprints(log),
        **stamp(),
    )
    budget = sum(schedule)
    sentence = (
        f"Requests like these would take {draws:.1f} draws instead of {budget} ({percent(1 - draws / budget)} fewer), "
        f"with a quality at most {epsilon:g} below best-of-{budget} ({loss:+.4f} lower in this log), "
        f"with {percent(1 - delta)} confidence."
    )
    if not evidence["rows_by_label"]:
        sentence += " Quality is sigmoid(score) here, no label: right as far as the reward model's zero is."
    elif evidence["rows_by_label"] < evidence["rows"]:
        sentence += f" Quality is the label in {evidence['rows_by_label']:,} of {evidence['rows']:,} rows, else sigmoid(score)."
    if "cost" in evidence:
        saved = 1 - evidence["mean_cost"] / evidence["cost_of_best_of_n"]
        sentence += f" That is {evidence['mean_cost']:.4g} {evidence['cost']} instead of {evidence['cost_of_best_of_n']:.4g}"
        sentence += f" ({percent(saved)} fewer)."
    return Certificate(profile, sentence)


def _check(schedule: Sequence[int], epsilon: float, delta: float, fit_share: float) -> None:
    for name, value in (("epsilon", epsilon), ("delta", delta), ("fit_share", fit_share)):
        check_share(name, value)
    try:
        check_schedule(schedule)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    if len(schedule) < 2:
        raise ConfigurationError(f"schedule {list(schedule)} has one loop, so nothing can be saved; use e.g. 4,28")
