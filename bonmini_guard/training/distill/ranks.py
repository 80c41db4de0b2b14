"""Rewards as ranks among the original generator's own draws: the estimate of log F that variational best-of-N maximises.

F(r) is the probability that a draw of the original generator for the same prompt scores below r. Best-of-N cares about nothing
else: it is the law of the draw with the highest rank, so it does not change when rewards are stretched (arXiv 2407.06057).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence


class ReferenceRewards:
    """The scores of M reference draws for one prompt.

    Args:
        scores: finite, one or more.
    """

    def __init__(self, scores: Sequence[float]) -> None:
        if not scores or not all(math.isfinite(score) for score in scores):
            raise ValueError("reference scores must be finite, and one or more")
        self._sorted = sorted(scores)

    def log_f(self, score: float) -> float:
        """Log of (1 + number of reference scores below ``score``) / (1 + M); the 1 keeps it finite."""
        return math.log((1 + bisect_left(self._sorted, score)) / (1 + len(self._sorted)))


def best_of_n_divergence(n: int) -> float:
    """KL(best-of-N, one draw) = log N - (N - 1) / N where scores have no ties; an upper bound otherwise (arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def mini_n_divergence(below: float, size: int, loops: int) -> float:
    """KL(accelerated best of mini-N, one draw) for one prompt, where scores have no ties.

    In ranks u = F(score), the served answer has density n u^(n-1) (1 + q^n + ... + q^(n(L-1))) above the threshold's
    rank q, since a loop is entered only if all loops before it stayed below; and N u^(N-1) under it, the best of all.

    Args:
        below: q, the share of draws below the threshold.
        size: n, draws in a loop.
        loops: L.
    """
    total = size * loops
    again = sum(below ** (size * loop) for loop in range(loops))
    return _term(size, size * again, below, 1.0) + _term(total, total, 0.0, below)


def _term(power: int, weight: float, low: float, high: float) -> float:
    """The integral of g log g from ``low`` to ``high`` for g(u) = weight * u^(power - 1)."""

    def primitive(u: float) -> float:
        if u == 0:
            return 0.0
        mass = weight * u**power / power
        return mass * (math.log(weight) + (power - 1) * (math.log(u) - 1 / power))

    return primitive(high) - primitive(low)
