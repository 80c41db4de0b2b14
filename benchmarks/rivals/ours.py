"""Fixed N, and ours: loops with a threshold, one draw at a time or several, and a posterior with the outside option's value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm

from benchmarks.rivals.rules import Floats, Integers, Pool, Stopping, acceptance_curve, best_so_far, first


class FixedN(Stopping):
    """Best-of-n."""

    source = "best-of-n"

    def knobs(self, pool: Pool) -> Sequence[float]:
        """Every n."""
        return [float(n) for n in range(1, pool.scores.shape[1] + 1)]

    def stops(self, pool: Pool, index: Any, knob: float) -> Integers:
        """That one."""
        return np.full(pool.scores.shape[0], int(knob))


class Loops(Stopping):
    """Loops of k draws; stop after the first whose best passes the threshold (arXiv 2510.04087)."""

    source = "arXiv 2510.04087, this package"

    def __init__(self, size: int) -> None:
        self._size = size

    def index(self, pool: Pool) -> Floats:
        """The best so far."""
        return best_so_far(pool.scores)

    def knobs(self, pool: Pool) -> Sequence[float]:
        """Thresholds."""
        return [float(t) for t in np.quantile(pool.scores, np.linspace(0.3, 1, 150))]

    def stops(self, pool: Pool, index: Any, knob: float) -> Integers:
        """At a loop's end."""
        passed = index >= knob
        passed[:, np.arange(1, passed.shape[1] + 1) % self._size != 0] = False
        return first(passed, passed.shape[1])


class Posterior(Stopping):
    """Scores of a prompt are Normal around a mean with a Normal prior over prompts; P(acceptable | score) is isotonic.

    The value of stopping is the best draw's P(acceptable), never below the outside option's 0. Draw on while one more draw, or all
    that are left at their price, is expected to gain more than it costs.
    """

    source = "this benchmark"

    def __init__(self) -> None:
        self._grid: Floats = np.zeros(1)

    def fit(self, pool: Pool) -> None:
        """Four numbers and a curve."""
        scores = pool.scores
        self._within = float(scores.var(axis=1, ddof=1).mean())
        self._mean = float(scores.mean())
        self._between = max(1e-6, float(scores.mean(1).var(ddof=1) - self._within / scores.shape[1]))
        low, high = float(scores.min()), float(scores.max()) + 2 * self._within**0.5
        self._grid = np.linspace(low, high, 200)
        self._value = np.asarray(acceptance_curve(pool).predict(self._grid))
        self._steps = np.diff(self._value, prepend=0.0)

    def knobs(self, pool: Pool) -> Sequence[float]:
        """Prices of a draw."""
        return [float(price) for price in np.geomspace(1e-5, 0.3, 120)]

    def index(self, pool: Pool) -> Floats:
        """(P, N) the price at which it would stop after each draw: the larger of one more draw's gain and the rest's, a draw."""
        rows, most = pool.scores.shape
        at, sums = np.zeros((rows, most)), pool.scores.cumsum(1)
        best = best_so_far(pool.scores)
        for drawn in range(1, most):
            weight = drawn / self._within + 1 / self._between
            mean = (sums[:, drawn - 1] / self._within + self._mean / self._between) / weight
            spread = np.sqrt(self._within + 1 / weight)
            below = norm.cdf((self._grid[None, :] - mean[:, None]) / spread)
            new = self._grid[None, :] > best[:, drawn - 1 : drawn]
            left = most - drawn
            one = ((1 - below) * self._steps * new).sum(1)
            rest = ((1 - below**left) * self._steps * new).sum(1) / left
            at[:, drawn - 1] = np.maximum(one, rest)
        return at

    def stops(self, pool: Pool, index: Any, knob: float) -> Integers:
        """Where the gain no longer pays."""
        return first(index < knob, pool.scores.shape[1])
