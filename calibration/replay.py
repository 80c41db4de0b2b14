"""Exact replay: what a guard would have done on a log, in expectation over draw orders. No Monte Carlo.

Positions. The n candidates of a prompt are sorted from the lowest score to the highest, failed draws first. "The best so
far is at position p" (1..n) means that p is the largest position drawn; position 0 means that nothing was drawn. Tied
candidates are exchangeable, so their labels are replaced by the tie's mean and the order within the tie does not matter.

The draws of a request are a uniformly random ordered sample, without replacement, of N of the n candidates that the log
holds for the prompt. Write M_j for the position of the best candidate in blocks 1..j. The procedure goes on after loop j when
``low_j < M_j <= top_j``: the best score does not pass the threshold and is not under the floor. With ``G_j(x)`` the chance that
block j lies within positions 1..x, given that the blocks before do,

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
from bonmini_guard.policy.policy import Mode, check_mode, check_schedule, check_thresholds


@dataclass(frozen=True)
class Ranking:
    """P prompts with the same number n of candidates.

    Attributes:
        rows: (P,) row numbers in the log.
        scores: (P, n) ascending; -inf for failed draws.
        quality: (P, n) mean label (or any quality in [0, 1]) of the tie that the position belongs to; 0 for failed draws.
        failed: (P,) failed draws.
    """

    rows: Integers
    scores: Floats
    quality: Floats
    failed: Integers

    @property
    def size(self) -> int:
        """n, the number of candidates of each prompt."""
        return int(self.scores.shape[1])

    def below(self, threshold: float) -> Integers:
        """(P,) candidates that do not pass a threshold: those with a lower score, and all failed draws."""
        return np.maximum(self.under_floor(threshold), self.failed)

    def under_floor(self, floor: float) -> Integers:
        """(P,) the positions under a floor, failed draws included; 0 for the floor -inf, which gives nothing up."""
        return np.asarray(np.sum(self.scores < floor, axis=1, dtype=np.int64))


def rank(scores: Floats, quality: Floats, counts: Integers) -> list[Ranking]:
    """Sort every prompt's candidates, grouping prompts by their number of candidates.

    Scores are (R, W), NaN for failed draws and padding, where quality, in [0, 1], does not count; counts are (R,) candidates.
    """
    groups = [np.flatnonzero(counts == size) for size in np.unique(counts)]
    return [_rank(rows, scores[rows, : counts[rows[0]]], quality[rows, : counts[rows[0]]]) for rows in groups]


def _rank(rows: Integers, scores: Floats, quality: Floats) -> Ranking:
    lost = ~np.isfinite(scores)
    filled = np.where(lost, -np.inf, scores)
    order = np.argsort(filled, axis=1, kind="stable")
    filled = np.take_along_axis(filled, order, axis=1)
    worth = np.take_along_axis(np.where(lost, 0.0, quality), order, axis=1)
    starts = tie_starts(filled)
    if not starts.all():
        tie = np.cumsum(starts.ravel()) - 1
        worth = (np.bincount(tie, weights=worth.ravel()) / np.bincount(tie))[tie].reshape(worth.shape)
    return Ranking(rows, filled, worth, np.sum(lost, axis=1, dtype=np.int64))


def tie_starts(scores: Floats) -> Bools:
    """(P, n) whether a tie of equal scores begins at each position; the scores are sorted along each row."""
    starts = np.ones(scores.shape, dtype=bool)
    starts[:, 1:] = scores[:, 1:] != scores[:, :-1]
    return starts


def block_chances(size: int, schedule: Sequence[int]) -> Floats:
    """G[j, x], (L, n+1): the chance that block j lies within positions 1..x, given that all blocks before it do.

    Hypergeometric: block j takes k of the n - K candidates that are left, K being the draws before it, and x - K of those
    lie within: ``G_j(x) = (x - K)_k / (n - K)_k`` with falling factorials, and 0 for x < K + k. It does not depend on where
    within 1..x the earlier blocks lie, which is what makes the replay a short recursion.
    """
    positions = np.arange(size + 1, dtype=np.float64)
    chances = np.ones((len(schedule), size + 1))
    before = 0
    for block, draws in enumerate(schedule):
        for taken in range(before, before + draws):
            chances[block] *= (positions - taken) / (size - taken)
        chances[block, : before + draws] = 0.0
        before += draws
    return chances


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
        inside = np.clip(np.arange(ranking.size + 1), low[:, None], top[:, None])  # H_j from F_j: the positions low < p <= top
        went_on = np.take_along_axis(arrived, inside, axis=1) - np.take_along_axis(arrived, low[:, None], axis=1)
    effort = rests if mode == "accelerator" else np.zeros_like(rests)
    (served, good), missed = passes + effort, rests[1] - effort[1]
    return Settled(good, served - good, missed, 1.0 - served - missed, passes[0], effort[0], drawn, loops)


def _within(size: int, last: Integers) -> Bools:
    """(P, n) whether a position is at most the row's last one."""
    return np.arange(1, size + 1) <= last[:, None]
