"""Stopping rules of other works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm, t

from benchmarks.rivals.ours import FixedN
from benchmarks.rivals.rules import Floats, Integers, Pool, Stopping, acceptance_curve, best_so_far, first, running


class Pandora(Stopping):
    """Stop when the best one's acceptance rate exceeds a target; the tail of exp(reward) is a shifted exponential.

    The authors' warm-up of 20 draws is too long for 32; the shortest here, 4, favours it.
    """

    source = "Kalayci, Raman, Dughmi, arXiv 2510.01394, target mode"

    def __init__(self, least: int = 4, delta: float = 0.05, divide: float = 3.0) -> None:
        self._least, self._delta, self._divide = least, delta, divide

    def knobs(self, pool: Pool) -> Sequence[float]:
        """Target acceptance rates."""
        return [float(rate) for rate in np.linspace(0.02, 0.98, 97)]

    def index(self, pool: Pool) -> Floats:
        """(P, N) acceptance rate of the best so far; 0 during the warm-up."""
        value = np.exp(pool.scores - np.median(pool.scores))
        best, most, rates = best_so_far(value), value.shape[1], np.zeros_like(value)
        for drawn in range(self._least, most + 1):
            seen = value[:, :drawn]
            median = np.median(seen, axis=1)
            above = seen >= median[:, None]
            tail = (seen * above).sum(1) / above.sum(1) - median
            wide = np.sqrt(np.log(drawn) * np.log(1 / self._delta) / drawn)
            largest = median + np.log(most / self._divide) * tail * (1 + wide)
            rates[:, drawn - 1] = best[:, drawn - 1] / (best[:, drawn - 1] + largest)
        return rates

    def stops(self, pool: Pool, index: Any, knob: float) -> Integers:
        """At the target."""
        return first(index > knob, pool.scores.shape[1])


class Beacon(Stopping):
    """Expected improvement under a Normal law with unknown mean and variance, against the price of a draw (myopic bound)."""

    source = "Wan et al., arXiv 2510.15945, Jeffreys prior, three first draws"

    def knobs(self, pool: Pool) -> Sequence[float]:
        """Prices of a draw."""
        return [float(price) for price in pool.scores.std() * np.geomspace(1e-4, 2, 120)]

    def index(self, pool: Pool) -> Floats:
        """(P, N) expected improvement of one more draw; infinite before the third."""
        mean, squares = running(pool.scores)
        best, gains = best_so_far(pool.scores), np.full_like(mean, np.inf)
        for drawn in range(3, mean.shape[1] + 1):
            scale = np.sqrt(squares[:, drawn - 1] * (drawn + 1) / (drawn * (drawn - 1))) + 1e-12
            z, df = (best[:, drawn - 1] - mean[:, drawn - 1]) / scale, drawn - 1
            gains[:, drawn - 1] = scale * ((df + z**2) / (df - 1) * t.pdf(z, df) - z * t.sf(z, df))
        return gains

    def stops(self, pool: Pool, index: Any, knob: float) -> Integers:
        """Where it no longer pays."""
        return first(index <= knob, pool.scores.shape[1])


class OptScale(Stopping):
    """Look at a few scores, fit a law, and draw the smallest N whose best reaches a target with probability 1 - q."""

    source = "OptScale, arXiv 2506.22376, maximum likelihood, F(target)^N <= q"

    def __init__(self, peek: int = 5, q: float = 0.05) -> None:
        self._peek, self._q = peek, q

    def knobs(self, pool: Pool) -> Sequence[float]:
        """Targets."""
        return [float(target) for target in np.quantile(pool.scores, np.linspace(0.2, 1, 120))]

    def stops(self, pool: Pool, index: Any, knob: float) -> Integers:
        """The smallest N."""
        seen, most = pool.scores[:, : self._peek], pool.scores.shape[1]
        below = norm.cdf(knob, seen.mean(1), seen.std(1) + 1e-9)
        with np.errstate(divide="ignore"):
            wanted = np.ceil(np.log(self._q) / np.log(np.clip(below, 1e-300, 1 - 1e-12)))
        return np.clip(wanted, self._peek, most).astype(np.int64)


class AdaBoN(Stopping):
    """Explore three quarters of a batch's budget evenly, then give each further draw to the prompt that gains most by it."""

    source = "Raman, Asi, Kale, arXiv 2505.12050, batches of 50 prompts"

    def __init__(self, batch: int = 50, explore: float = 0.75) -> None:
        self._batch, self._explore = batch, explore

    def knobs(self, pool: Pool) -> Sequence[float]:
        """Draws a prompt, on average."""
        return [float(budget) for budget in range(2, pool.scores.shape[1] + 1, 2)]

    def stops(self, pool: Pool, index: Any, knob: float) -> Integers:
        """Batch by batch."""
        parts = np.array_split(np.arange(pool.scores.shape[0]), max(1, pool.scores.shape[0] // self._batch))
        return np.concatenate([self._allocated(pool.scores[part], int(knob)) for part in parts])

    def _allocated(self, scores: Floats, budget: int) -> Integers:
        rows, most = scores.shape
        first_ones = max(2, round(self._explore * budget))
        gains = self._marginal(scores[:, :first_ones], most - first_ones)
        left = (budget - first_ones) * rows
        taken = np.full(rows, first_ones)
        if gains.size and left > 0:
            # The gains fall along a row, so taking the largest of all is the greedy allocation.
            chosen = np.argsort(-gains, axis=None, kind="stable")[:left]
            taken = taken + np.bincount(chosen // gains.shape[1], minlength=rows)
        return taken.astype(np.int64)

    def _marginal(self, seen: Floats, more: int) -> Floats:
        """(P, more) gain of the j-th further draw: E max(best, j draws), from a kernel density with Scott's width."""
        spread = seen.std(1, ddof=1) * seen.shape[1] ** -0.2 + 1e-9
        best = seen.max(1)
        low, high = best, best + 6 * (spread + seen.std(1, ddof=1))
        grid = low[:, None] + np.linspace(0, 1, 60) * (high - low)[:, None]
        below = norm.cdf((grid[:, :, None] - seen[:, None, :]) / spread[:, None, None]).mean(2)
        expected = np.stack([np.trapezoid(1 - below**j, grid, axis=1) for j in range(more + 1)], axis=1)
        return np.diff(expected, axis=1)


class Weitzman(Stopping):
    """A bound: the prompt's own law of P(acceptable) is known, so its reservation value is."""

    source = "Weitzman 1979, with the empirical law of the prompt's draws"

    def knobs(self, pool: Pool) -> Sequence[float]:
        """Prices of a draw, of a gain of one in P(acceptable)."""
        return [float(price) for price in np.geomspace(1e-4, 0.5, 120)]

    def fit(self, pool: Pool) -> None:
        """P(acceptable | score)."""
        self._curve = acceptance_curve(pool)

    def index(self, pool: Pool) -> tuple[Floats, Floats]:
        """Values, and their running maxima."""
        value = self._curve.predict(pool.scores.ravel()).reshape(pool.scores.shape)
        return value, best_so_far(value)

    def stops(self, pool: Pool, index: Any, knob: float) -> Integers:
        """At the reservation value; at once where nothing is worth its price."""
        value, best = index
        ordered = np.sort(value, axis=1)[:, ::-1]
        # E (v - r)+ = price, r between two of the values
        count = np.arange(1, value.shape[1] + 1)
        reserve = (ordered.cumsum(1) - knob * value.shape[1]) / count
        return first(best >= reserve.max(1)[:, None] - 1e-12, value.shape[1])


class PerfectReward(FixedN):
    """A bound: acceptability is seen, the future is not; stop at the first acceptable draw, or at a budget."""

    source = "labels in place of scores"

    def stops(self, pool: Pool, index: Any, knob: float) -> Integers:
        """At the first acceptable one."""
        return np.minimum(first(pool.good, pool.scores.shape[1]), int(knob))

    def serves(self, pool: Pool) -> Floats:
        """The labels."""
        return pool.good.astype(np.float64)
