"""Whole grids of (schedule, threshold) at once: exact totals over all prompts of a log.

The total over prompts is a step function of the threshold. Each candidate adds one step at its own score, so that
a grid costs one weighted histogram over all candidates, not one replay a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bonmini_guard.calibration.constant import Kernel, kernel
from bonmini_guard.calibration.logs import Floats, Integers
from bonmini_guard.calibration.ranking import Ranking
from bonmini_guard.calibration.replay import Outcomes
from bonmini_guard.policy import check_schedule

#: Prompts worked on at a time: keeps the temporary arrays small.
CHUNK = 16384


def grid_totals(rankings: Sequence[Ranking], schedules: Sequence[Sequence[int]], thresholds: Floats) -> Outcomes:
    """Outcomes summed over all prompts, for each schedule with each threshold in all its loops.

    Args:
        rankings: the sorted candidates; each prompt must have enough for the largest schedule.
        schedules: S schedules.
        thresholds: (T,) finite or +inf, ascending.

    Returns:
        Outcomes whose arrays are (S, T): sums over prompts of :mod:`bonmini_guard.calibration.constant`'s formulas.

    Raises:
        ValueError: the thresholds are not ascending, or one is -inf or NaN.
    """
    cuts = np.asarray(thresholds, dtype=np.float64)
    if not (np.all(np.diff(cuts) >= 0) and np.all(cuts > -np.inf)):
        raise ValueError("thresholds must be ascending, and none -infinity or NaN")
    for schedule in schedules:
        check_schedule(schedule)
    totals = np.zeros((7, len(schedules), cuts.size))
    for ranking in rankings:
        kernels = [kernel(ranking.size, schedule) for schedule in schedules]
        for begin in range(0, len(ranking.rows), CHUNK):
            totals += _chunk(ranking, slice(begin, begin + CHUNK), kernels, cuts)
    return Outcomes(*totals)


def _chunk(ranking: Ranking, rows: slice, kernels: list[Kernel], cuts: Floats) -> Floats:
    """(7, S, T) totals of some prompts, in the order of the fields of Outcomes."""
    # a candidate counts as below every threshold above its score: from this index on
    first = np.searchsorted(cuts, ranking.scores[rows], side="right")
    below = _histogram(first, cuts.size, ranking.size)
    quality = ranking.quality[rows]
    lost = np.bincount(ranking.failed[rows], minlength=ranking.size + 1)
    return np.stack([_totals(part, below, first, quality, lost) for part in kernels], axis=1)


def _histogram(first: Integers, bins: int, size: int) -> Floats:
    """(T, n+1): how many prompts have exactly a candidates below the threshold."""
    cells = first * size + np.arange(size)
    steps = np.bincount(cells.ravel(), minlength=(bins + 1) * size).reshape(bins + 1, size)[:bins]
    at_least = np.cumsum(steps, axis=0, dtype=np.float64)  # column p-1: prompts with at least p candidates below
    padded = np.concatenate([np.full((bins, 1), float(first.shape[0])), at_least, np.zeros((bins, 1))], axis=1)
    exactly: Floats = padded[:, :-1] - padded[:, 1:]
    return exactly


def _totals(part: Kernel, below: Floats, first: Integers, quality: Floats, lost: Integers) -> Floats:
    prompts, bins = float(len(quality)), len(below)
    never = below @ part.never
    nothing = np.full(bins, float(lost @ part.never))
    at_zero = float((quality @ part.accepted_at[:, 0]).sum())
    accepted_good = at_zero + _steps(first, quality @ np.diff(part.accepted_at, axis=1), bins)
    rest_good = _steps(first, quality * part.rest_at, bins)
    return np.stack([prompts - never, accepted_good, never - nothing, rest_good, nothing, below @ part.draws, below @ part.loops])


def _steps(first: Integers, weights: Floats, bins: int) -> Floats:
    """(T,) sum of the weights of all candidates below each threshold."""
    total: Floats = np.cumsum(np.bincount(first.ravel(), weights=weights.ravel(), minlength=bins + 1)[:bins])
    return total
