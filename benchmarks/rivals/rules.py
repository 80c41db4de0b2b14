"""What a stopping rule is here: fitted on some prompts, it says for each order of a prompt's draws after how many it stops.

All rules serve the best-scored draw so far, as an accelerator does; they differ in when they stop. A knob trades draws for quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """Complete draws: (P, N) scores and labels, in the order drawn."""

    scores: Floats
    good: Bools

    def take(self, rows: npt.NDArray[Any]) -> Pool:
        """Some prompts."""
        return Pool(self.scores[rows], self.good[rows])

    def shuffled(self, random: np.random.Generator, times: int) -> Pool:
        """Each prompt in so many random orders of its draws."""
        scores, good = np.tile(self.scores, (times, 1)), np.tile(self.good, (times, 1))
        order = random.permuted(np.tile(np.arange(scores.shape[1]), (scores.shape[0], 1)), axis=1)
        return Pool(np.take_along_axis(scores, order, 1), np.take_along_axis(good, order, 1))


class Rule(Protocol):
    """A stopping rule.

    Attributes:
        source: where it is from.
    """

    source: str

    def fit(self, pool: Pool) -> None:
        """Learn what it learns from labelled draws of other prompts."""

    def knobs(self, pool: Pool) -> Sequence[float]:
        """Settings to try, any order."""

    def index(self, pool: Pool) -> Any:
        """What it works out once of a pool's scores, whatever the setting; a rule that looks at labels is a bound."""

    def stops(self, pool: Pool, index: Any, knob: float) -> Integers:
        """(P,) draws after which it stops."""

    def serves(self, pool: Pool) -> Floats:
        """(P, N) by what it picks the one to serve."""


class ByScore:
    """A rule that serves the best score."""

    def serves(self, pool: Pool) -> Floats:
        """The scores."""
        return pool.scores


class Plain(ByScore):
    """One that learns nothing, and works out nothing beforehand."""

    def fit(self, pool: Pool) -> None:
        """Nothing."""

    def index(self, pool: Pool) -> Any:
        """Nothing."""


def first(stopped: Bools, most: int) -> Integers:
    """The first of ``most`` steps at which it stops, from 1; all of them where it never does."""
    return np.where(stopped.any(1), stopped.argmax(1) + 1, most).astype(np.int64)


def best_so_far(scores: Floats) -> Floats:
    """(P, N) running maxima."""
    return np.maximum.accumulate(scores, axis=1)


def running(scores: Floats) -> tuple[Floats, Floats]:
    """(P, N) running means and sums of squared deviations."""
    count = np.arange(1, scores.shape[1] + 1)
    mean = scores.cumsum(1) / count
    return mean, np.maximum(0.0, (scores**2).cumsum(1) - count * mean**2)
