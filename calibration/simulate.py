"""Rows like those at hand, with labels like theirs: what a number of further rows would bring is found by calibrating on such rows.

Chances are logistic in scores. Two answers to one prompt are alike: their labels come from normals with correlation :data:`ALIKE`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy.special import expit, ndtr

from bonmini_guard.calibration.logs import Floats
from bonmini_guard.calibration.paths import Paths

T = TypeVar("T")

ALIKE = 0.5
#: Of so many calibrations on simulated rows such a share must succeed; the least and the largest number of rows tried.
REPEATS, POWER = 60, 0.8
LEAST_ROWS, MOST_ROWS = 16, 1 << 15
#: How much larger a number may be than the smallest that would do.
_FINE = 1.1


@dataclass(frozen=True)
class Labels:
    """Chances of being acceptable, fitted to the labels of best-so-far answers.

    On scores of mean 0 and deviation 1, the prior of shift and slope is normal around the model's own word, sigmoid(score), with
    deviations of 2. The posterior's mode is climbed to by steps that a bound of the curvature keeps from overshooting (Boehning
    and Lindsay 1988), and around it the posterior is taken for normal. However high the score, some bad answers fool the scorer:
    their share has a posterior of its own, Beta(bad + 1, good + 20) from the tenth of the answers with the highest scores.

    Attributes:
        middle, spread: mean and deviation of the scores.
        weights: (2,) shift and slope.
        root: (2, 2) a square root of their covariance; zeros where there is no label, so that the model is taken at its word.
        highest: bad and good answers among those with the highest scores; None where there is no label.
    """

    middle: float
    spread: float
    weights: Floats
    root: Floats
    highest: tuple[int, int] | None

    @classmethod
    def fitted(cls, path: Paths) -> Labels:
        """To the labels of R rows."""
        best = np.where(np.isfinite(path.best), path.best, np.nan)
        middle, spread = float(np.nanmean(best)), float(np.nanstd(best)) or 1.0
        known = path.changes() & np.isfinite(path.good)
        terms = np.column_stack([np.ones(int(known.sum())), (path.best[known] - middle) / spread])
        prior = weights = np.array([middle, spread])
        good = path.good[known]
        bound = np.linalg.inv(terms.T @ terms / 4 + np.eye(2) / 4)
        for _ in range(200):
            weights = weights + bound @ (terms.T @ (good - expit(terms @ weights)) - (weights - prior) / 4)
        if not known.any():
            return cls(middle, spread, weights, np.zeros((2, 2)), None)
        chance = expit(terms @ weights)
        curvature = (terms.T * (chance * (1 - chance))) @ terms + np.eye(2) / 4
        top = good[np.argsort(-terms[:, 1], kind="stable")[: 1 + good.size // 10]]
        return cls(middle, spread, weights, np.linalg.cholesky(np.linalg.inv(curvature)), (int(np.sum(top == 0)), int(np.sum(top))))

    def chances(self, best: Floats, weights: Floats | None = None) -> Floats:
        """Of answers by their scores; 0 where there is none."""
        shift, slope = self.weights if weights is None else weights
        standard = (np.where(np.isfinite(best), best, self.middle) - self.middle) / self.spread
        return np.where(np.isfinite(best), expit(shift + slope * standard), 0.0)

    def drawn(self, path: Paths, generator: np.random.Generator) -> Paths:
        """The paths with simulated labels only."""
        chances = self.chances(path.best, self.weights + self.root @ generator.normal(size=2))
        if self.highest is not None:
            chances = chances * generator.beta(self.highest[1] + 20, self.highest[0] + 1)
        first = np.maximum.accumulate(np.where(path.changes(), np.arange(path.best.shape[1]), 0), axis=1)
        own = np.take_along_axis(generator.normal(size=path.best.shape), first, axis=1)
        shared = generator.normal(size=(len(path), 1))
        chances = np.take_along_axis(chances, first, axis=1)
        good = ndtr(np.sqrt(ALIKE) * shared + np.sqrt(1 - ALIKE) * own) < chances
        return replace(path, good=good.astype(np.float64))


def enough_rows(path: Paths, calibrate: Callable[[Paths], T | None], above: int = 0) -> tuple[int, list[T]] | None:
    """The smallest number of rows like these for which calibrations succeed in 80 %; None if 32,768 are too few.

    It is larger than ``above``, and comes with what calibrations on so many rows found; ``calibrate`` gives None where it fails.
    """
    labels, generator = Labels.fitted(path), np.random.default_rng(0)

    def tried(rows: int) -> list[T] | None:
        found: list[T] = []
        for repeat in range(REPEATS):
            result = calibrate(labels.drawn(path.take(generator.integers(0, len(path), rows)), generator))
            found += [] if result is None else [result]
            if len(found) + REPEATS - 1 - repeat < POWER * REPEATS:
                return None
        return found

    low, high = above, max(LEAST_ROWS, above + 1)
    while (best := tried(high)) is None:
        low, high = high, 2 * high
        if high > MOST_ROWS:
            return None
    while high > _FINE * low and high - low > 1:
        middle = (low + high) // 2
        now = tried(middle)
        low, high, best = (middle, high, best) if now is None else (low, middle, now)
    return high, best


def least_rows(level: float, delta: float) -> int:
    """What even a spotless record needs: ``log(delta) / log(1 - level)``."""
    return int(np.ceil(np.log(delta) / np.log1p(-level)))
