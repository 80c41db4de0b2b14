"""Exact replay: what a guard would have done on a log, in expectation over draw orders. No Monte Carlo.

The draws of a request are a uniformly random ordered sample, without replacement, of N of the n candidates that the log
holds for the prompt. Write M_j for the position (see :mod:`bonmini_guard.calibration.ranking`) of the best candidate in
blocks 1..j. The procedure goes on after loop j when ``low_j < M_j <= top_j``: the best score does not pass the threshold and
is not under the floor. With ``G_j(x)`` the chance that block j lies within positions 1..x, given that the blocks before do,

    F_j(x) = P(went on after loops 1..j-1, M_j <= x) = H_{j-1}(x) G_j(x)
    H_j(x) = P(went on after loops 1..j,   M_j <= x) = max(0, F_j(min(x, top_j)) - F_j(low_j)),   H_0 = 1

because M_j <= x holds exactly when M_{j-1} <= x and block j lies within 1..x, and the chance of the latter does not depend
on where below x the earlier blocks lie. ``F_j(p) - F_j(p-1)`` is then the chance of arriving at the end of loop j with
the best at position p. Without floors this is the product of hypergeometric terms over blocks with
``cap_i = min(t_i, ..., t_l)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from bonmini_guard.calibration.logs import Bools, Floats, Integers, Log
from bonmini_guard.calibration.ranking import Ranking, block_chances, rank
from bonmini_guard.policy.policy import Mode, check_mode, check_schedule, check_thresholds


@dataclass(frozen=True)
class Settled:
    """Expectations of a guard for each of R prompts, (R,) arrays. The first four are chances that sum to 1.

    Attributes:
        served_good: served and acceptable: a true positive.
        served_bad: served and not acceptable: a false acceptance.
        abstained_good: abstained though the best so far is acceptable: a false negative.
        abstained_bad: abstained, and the best so far is not acceptable or does not exist: a true negative.
        accepted: served because it passed.
        best_effort: served without a pass: by an accelerator, the best so far, where any draw has a score.
        draws: draws taken.
        loops: loops taken.
    """

    served_good: Floats
    served_bad: Floats
    abstained_good: Floats
    abstained_bad: Floats
    accepted: Floats
    best_effort: Floats
    draws: Floats
    loops: Floats


def replay(
    log: Log, mode: Mode, schedule: Sequence[int], thresholds: Sequence[float], floors: Sequence[float] | None = None
) -> Settled:
    """The exact expectation of a guard on every prompt of a log.

    Args:
        log: R complete rows; scores must already be those that the thresholds are compared with.
        mode: guardrail or accelerator.
        schedule: draws of each loop.
        thresholds: one for each loop, in any order; infinity never exits there.
        floors: one for each loop: a best score below it gives the request up (``BelowFloor``).

    Raises:
        InputError: a row has fewer candidates than the schedule draws, or lacks labels.
        ValueError: schedule and thresholds do not fit.
    """
    check_thresholds(thresholds, len(schedule))
    check_schedule(schedule)
    log.require(sum(schedule))
    log = log.require_labels()
    return replay_rankings(rank(log.scores, log.labels.astype(np.float64), log.counts), mode, schedule, thresholds, floors)


def replay_rankings(
    rankings: Sequence[Ranking],
    mode: Mode,
    schedule: Sequence[int],
    thresholds: Sequence[float],
    floors: Sequence[float] | None = None,
) -> Settled:
    """The same on sorted candidates: all prompts, grouped by their number of candidates; rows come back in the log's order."""
    check_mode(mode)
    parts = [_replay_one(ranking, mode, schedule, thresholds, floors) for ranking in rankings]
    back = np.argsort(np.concatenate([ranking.rows for ranking in rankings]), kind="stable")
    return Settled(*(np.concatenate([getattr(part, f.name) for part in parts])[back] for f in fields(Settled)))


def _replay_one(
    ranking: Ranking, mode: Mode, schedule: Sequence[int], thresholds: Sequence[float], floors: Sequence[float] | None
) -> Settled:
    # Chances of a pass and of an end without one, and that the best so far is then acceptable.
    passes, rests = np.zeros((2, 2, len(ranking.rows)))
    drawn, loops = np.zeros((2, len(ranking.rows)))
    scored = np.arange(1, ranking.size + 1) > ranking.failed[:, None]
    went_on = np.ones((len(ranking.rows), ranking.size + 1))
    for loop, chances in enumerate(block_chances(ranking.size, schedule)):
        drawn += went_on[:, -1] * schedule[loop]
        loops += went_on[:, -1]
        arrived, top = went_on * chances, ranking.below(thresholds[loop])
        low = np.zeros_like(top) if floors is None else np.minimum(ranking.under_floor(floors[loop]), top)
        ended = top if loop == len(schedule) - 1 else low
        for sums, where in ((passes, ~_within(ranking.size, top)), (rests, scored & _within(ranking.size, ended))):
            mass = np.diff(arrived, axis=1) * where
            sums[0] += mass.sum(axis=1)
            sums[1] += np.einsum("ij,ij->i", mass, ranking.quality)
        went_on = _clip(arrived, low, top)
    effort = rests if mode == "accelerator" else np.zeros_like(rests)
    (served, good), missed = passes + effort, rests[1] - effort[1]
    return Settled(good, served - good, missed, 1.0 - served - missed, passes[0], effort[0], drawn, loops)


def _within(size: int, last: Integers) -> Bools:
    """(P, n) whether a position is at most the row's last one."""
    return np.arange(1, size + 1) <= last[:, None]


def _clip(arrived: Floats, low: Integers, top: Integers) -> Floats:
    """H_j from F_j: keep the positions low < p <= top."""
    positions = np.arange(arrived.shape[1])
    inside = np.clip(positions, low[:, None], top[:, None])
    floor = np.take_along_axis(arrived, low[:, None], axis=1)
    return np.take_along_axis(arrived, inside, axis=1) - floor
