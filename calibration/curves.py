"""The curves and figures of a report, each an exact expectation over draw orders, with its formula.

Notation: a prompt has n logged candidates sorted by score (:mod:`bonmini_guard.calibration.replay`), q_p is the quality of the one
at position p (label, or the mean label of its tie), (x)_k = x (x-1) ... (x-k+1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from bonmini_guard.calibration.evidence import percent
from bonmini_guard.calibration.figures import interval
from bonmini_guard.calibration.logs import Floats, Log
from bonmini_guard.calibration.replay import Ranking, block_chances, replay_rankings, tie_starts
from bonmini_guard.policy.profile import GuardProfile


@dataclass(frozen=True)
class FixedN:
    """Best-of-k for k = 1..K, (K,) arrays: chances that the served answer is acceptable, and that it passes and is bad, or good.

    The threshold to pass is the same for all k.
    """

    draws: Floats
    quality: Floats
    served_bad: Floats
    served_good: Floats


@dataclass(frozen=True)
class Reliability:
    """Bins of sigmoid(score) with equally many labelled candidates: (B,) arrays.

    Attributes:
        predicted: mean sigmoid(score).
        observed: share acceptable.
        low, high: exact 90 % limits of it, as if candidates were independent (those of one prompt are not).
        count: candidates.
    """

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    count: Floats

    @property
    def error(self) -> float:
        """Expected calibration error, ``sum_b count_b |observed_b - predicted_b| / sum_b count_b`` (Naeini et al., AAAI 2015)."""
        return float(np.average(np.abs(self.observed - self.predicted), weights=self.count))


def fixed_n(rankings: Sequence[Ranking], most: int, threshold: float) -> FixedN:
    """Best-of-k for every k up to ``most``: quality against draws, and over-optimisation.

    ``quality(k) = mean over prompts of sum_p q_p ((p)_k - (p-1)_k) / (n)_k``, the mean over all samples of k of the n candidates
    (the unbiased estimator of best-of-k, arXiv 2310.20624, appendix). With a threshold t the sum runs over the positions with
    score >= t: served at t by plain best-of-k. Gao et al., arXiv 2210.10760, name the fall of such a curve over-optimisation.
    """
    prompts = sum(len(ranking.rows) for ranking in rankings)
    sums = np.zeros((3, most))
    for ranking in rankings:
        chances = np.diff(_within(ranking.size, most), axis=1)
        passed = np.arange(1, ranking.size + 1) > ranking.below(threshold)[:, None]
        sums[0] += chances @ ranking.quality.sum(axis=0)
        sums[1] += chances @ (passed * (1.0 - ranking.quality)).sum(axis=0)
        sums[2] += chances @ (passed * ranking.quality).sum(axis=0)
    quality, served_bad, served_good = sums / prompts
    return FixedN(np.arange(1, most + 1, dtype=np.float64), quality, served_bad, served_good)


def _within(size: int, most: int) -> Floats:
    """(K, n+1): ``(x)_k / (n)_k``, the chance that k draws all lie within positions 1..x."""
    return np.asarray(np.cumprod(block_chances(size, (1,) * most), axis=0), dtype=np.float64)


def paired_difference(rankings: Sequence[Ranking], first: int, second: int) -> tuple[float, float]:
    """Quality of best-of-``second`` minus that of best-of-``first``, with its standard error over prompts.

    Mean and ``s / sqrt(R)`` of the R exact paired differences of :func:`fixed_n`'s sum, prompt by prompt.
    """
    parts = []
    for ranking in rankings:
        chances = np.diff(_within(ranking.size, max(first, second)), axis=1)
        parts.append(ranking.quality @ (chances[second - 1] - chances[first - 1]))
    values = np.concatenate(parts)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan


def over_optimised(rankings: Sequence[Ranking], fixed: FixedN, budget: int) -> tuple[str, bool] | None:
    """Whether best-of-N is worse at the budget than at the N below with the largest quality; None where that is the budget.

    By how much it is better there, and whether the difference (:func:`paired_difference`) is more than two standard errors.
    """
    quality = fixed.quality
    best = int(np.argmax(quality[:budget])) + 1
    if quality[best - 1] - quality[budget - 1] < 1e-9:
        return None
    fall, error = paired_difference(rankings, best, budget)
    sure = abs(fall) > 2 * error
    told = "more than two standard errors" if sure else "less than two standard errors: it may be chance"
    more, fewer = (percent(float(quality[n - 1])) for n in (best, budget))
    said = (
        f"N = {best} serves more acceptable answers than N = {budget} here, {more} of requests against {fewer} "
        f"(difference {100 * fall:+.1f} points, standard error {100 * error:.1f}; {told})."
    )
    return said, sure


def smallest_equal_n(curve: FixedN, profile: GuardProfile, good: float) -> int | None:
    """The smallest k whose plain best-of-k does as well as the guard; None if no k in the log does.

    An accelerator is compared by quality, a guardrail by the chance of serving an acceptable answer, best-of-k being served at the
    guardrail's last threshold: ``min {k : quality(k) >= good}`` with :func:`fixed_n`'s quality. ``good`` is the guard's own figure,
    ``acceptable_rate`` of the replay.
    """
    reached = curve.quality if profile.mode == "accelerator" else curve.served_good
    enough = np.flatnonzero(reached >= good - 1e-9)
    return int(curve.draws[enough[0]]) if enough.size else None


def clairvoyant_draws(rankings: Sequence[Ranking], profile: GuardProfile) -> float:
    """Draws an oracle would need that sees all scores in advance but must draw in the schedule's loops.

    An accelerator's oracle stops with the loop in which best-of-N's answer (its score) first appears. With K draws up to loop j,
    lo_p candidates that score less than the one at position p, and ``r(p) = (p - K)_(N - K) / (n - K)_(N - K)``,
    ``P(it is not there by loop j) = sum_p (lo_p)_K / (n)_K (r(p) - r(p-1))``.
    A guardrail's oracle stops with the loop that passes, and gives a request up after the first loop if none will:
    ``E[draws] - (N - k_1) P(no pass)``. No rule that sees scores only as they come
    can cost less at the same answers (derived here).
    """
    if profile.mode == "guardrail":
        settled = replay_rankings(rankings, profile.mode, profile.schedule, profile.serial_thresholds)
        spared = (sum(profile.schedule) - profile.schedule[0]) * (1.0 - settled.accepted)
        return float((settled.draws - spared).mean())
    return float(np.concatenate([_oracle_draws(ranking, profile.schedule) for ranking in rankings]).mean())


def _oracle_draws(ranking: Ranking, schedule: Sequence[int]) -> Floats:
    """(P,) ``sum_j k_j P(not there by loop j-1)``."""
    budget, size = sum(schedule), ranking.size
    within = np.vstack([np.ones(size + 1), _within(size, budget)])
    low = np.maximum.accumulate(np.where(tie_starts(ranking.scores), np.arange(size), 0), axis=1)
    draws, before = np.full(len(ranking.rows), float(schedule[0])), schedule[0]
    for block in schedule[1:]:
        _, rest = block_chances(size, (before, budget - before))
        draws += block * np.sum(within[before][low] * np.diff(rest), axis=1)
        before += block
    return draws


def reliability(log: Log, bins: int = 10) -> Reliability | None:
    """sigmoid(score) against labels, over labelled candidates; None where there are none.

    ``observed_b = acceptable in bin b / candidates in bin b``, with Clopper-Pearson limits at 5 % on either side.
    Reliability diagram: Murphy and Winkler (1977).
    """
    known = np.isfinite(log.scores) & np.isfinite(log.labels)
    if not known.any():
        return None
    chance = expit(log.scores[known])
    label = log.labels[known]
    edges = np.unique(np.quantile(chance, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, chance, side="right")
    count = np.bincount(place, minlength=edges.size + 1).astype(np.float64)
    used = np.flatnonzero(count)
    good = np.bincount(place, weights=label, minlength=count.size)[used]
    predicted = np.bincount(place, weights=chance, minlength=count.size)[used] / count[used]
    low, high = np.array([interval(int(k), int(n)) for k, n in zip(good, count[used], strict=True)]).T
    return Reliability(predicted, good / count[used], low, high, count[used])
