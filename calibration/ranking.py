"""Candidates sorted by score, prompt by prompt: what every exact formula works on.

Positions. The n candidates of a prompt are sorted from the lowest score to the highest, failed draws first. "The best so
far is at position p" (1..n) means that p is the largest position drawn; position 0 means that nothing was drawn. Tied
candidates are exchangeable, so their labels are replaced by the tie's mean and the order within the tie does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bonmini_guard.calibration.logs import Bools, Floats, Integers


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
