"""What a rule is here: fitted on some prompts, it says for each order of a prompt's draws what it pays for and which it serves.

Stopping rules serve the best-scored draw so far, as an accelerator does, and differ in when they stop; selection rules draw a fixed
number and differ in what they serve. A knob trades draws for quality.
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
    """Complete draws in the order drawn.

    Attributes:
        scores, good: (P, N) scores and labels.
        alike: (P, N, N) similarities of a prompt's draws, where texts are at hand.
        partial: (P, N, S) scores of draws cut off after each of :data:`CUTS`, where they were made.
    """

    scores: Floats
    good: Bools
    alike: Floats | None = None
    partial: Floats | None = None

    def take(self, rows: npt.NDArray[Any]) -> Pool:
        """Some prompts."""
        parts = (self.scores, self.good, self.alike, self.partial)
        return Pool(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]

    def shuffled(self, random: np.random.Generator, times: int) -> Pool:
        """Each prompt in so many random orders of its draws."""
        rows = np.tile(np.arange(self.scores.shape[0]), times)
        order = random.permuted(np.tile(np.arange(self.scores.shape[1]), (rows.size, 1)), axis=1)
        at = rows[:, None], order
        alike = None if self.alike is None else self.alike[rows[:, None, None], order[:, :, None], order[:, None, :]]
        return Pool(self.scores[at], self.good[at], alike, None if self.partial is None else self.partial[at])


#: The shares of a whole answer after which partial scores are made.
CUTS = (0.25, 0.5)


class Rule(Protocol):
    """A rule.

    Attributes:
        source: where it is from.
        needs: what a pool must have beside scores and labels: "alike", "partial" or nothing.
    """

    source: str
    needs: str

    def fit(self, pool: Pool) -> None:
        """Learn what it learns from labelled draws of other prompts."""

    def knobs(self, pool: Pool) -> Sequence[Any]:
        """Settings to try, any order."""

    def index(self, pool: Pool) -> Any:
        """What it works out once of a pool, whatever the setting; a rule that looks at labels is a bound."""

    def run(self, pool: Pool, index: Any, knob: Any) -> tuple[Floats, Integers]:
        """(P,) draws paid for, and (P,) which one is served."""


class Plain:
    """A rule that learns nothing, and works out nothing beforehand."""

    needs = ""

    def fit(self, pool: Pool) -> None:
        """Nothing."""

    def index(self, pool: Pool) -> Any:
        """Nothing."""


class Stopping(Plain):
    """A rule that stops after some draws, and serves the best of them."""

    def stops(self, pool: Pool, index: Any, knob: Any) -> Integers:
        """(P,) draws after which it stops."""
        raise NotImplementedError

    def serves(self, pool: Pool) -> Floats:
        """(P, N) by what it picks the one to serve."""
        return pool.scores

    def run(self, pool: Pool, index: Any, knob: Any) -> tuple[Floats, Integers]:
        """The best so far where it stops."""
        stops, by = self.stops(pool, index, knob), self.serves(pool)
        hidden = np.where(np.arange(by.shape[1]) < stops[:, None], by, -np.inf)
        return stops.astype(np.float64), hidden.argmax(1)


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


def acceptance_curve(pool: Pool) -> Any:
    """P(acceptable | score), isotonic."""
    from sklearn.isotonic import IsotonicRegression

    curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    return curve.fit(pool.scores.ravel(), pool.good.ravel().astype(float))
