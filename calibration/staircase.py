"""How each unit's expected loss changes as the threshold falls past every distinct score.

The loss of a prompt changes only at its own scores, so the losses under all thresholds of a log are a starting value and
one step for each candidate: totals over units for a million thresholds are one cumulative sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bonmini_guard.calibration.constant import constant_outcomes
from bonmini_guard.calibration.logs import Floats, Integers
from bonmini_guard.calibration.ranking import Ranking
from bonmini_guard.calibration.replay import Outcomes, replay_rankings

#: Subtracting an offset leaves equal breakpoints a rounding error apart: closer than this they are one.
BLUR = 1e-12

Measure = Callable[[Outcomes], Floats]


@dataclass(frozen=True)
class Shape:
    """What is fixed while one number, the threshold t, is searched.

    Attributes:
        schedule: draws of each loop.
        offsets: loop l exits at ``t + offsets[l]``; None for the same threshold in every loop.
        floors: hopeless floors, one for each loop, or None.
    """

    schedule: tuple[int, ...]
    offsets: tuple[float, ...] | None = None
    floors: tuple[float, ...] | None = None

    def thresholds(self, threshold: float) -> tuple[float, ...]:
        """The thresholds of all loops."""
        return tuple(threshold + offset for offset in self.offsets or (0.0,) * len(self.schedule))


@dataclass(frozen=True)
class Staircase:
    """Values of U units under falling thresholds.

    Column c holds for every threshold in ``(cuts[c+1], cuts[c]]``; above ``cuts[0]`` nothing passes.

    Attributes:
        cuts: (C,) distinct breakpoints, descending.
        start: (U,) value while nothing passes.
        column: (E,) columns at which a unit's value changes, ascending.
        unit: (E,) the unit.
        step: (E,) the change.
    """

    cuts: Floats
    start: Floats
    column: Integers
    unit: Integers
    step: Floats

    @property
    def units(self) -> int:
        """U."""
        return int(self.start.size)

    def totals(self) -> Floats:
        """(C,) sums over units."""
        steps = np.bincount(self.column, weights=self.step, minlength=self.cuts.size)
        return np.asarray(float(self.start.sum()) + np.cumsum(steps), dtype=np.float64)

    def block(self, begin: int, end: int) -> Floats:
        """(U, end - begin) values of the columns begin..end-1."""
        first, last = np.searchsorted(self.column, [begin, end])
        values = np.zeros((self.units, end - begin))
        values[:, 0] = self.start + np.bincount(self.unit[:first], weights=self.step[:first], minlength=self.units)
        cells = self.unit[first:last] * (end - begin) + self.column[first:last] - begin
        values += np.bincount(cells, weights=self.step[first:last], minlength=values.size).reshape(values.shape)
        return np.cumsum(values, axis=1)

    def column_of(self, threshold: float) -> int:
        """The column that a threshold belongs to; 0 for those above all cuts."""
        return max(0, int(np.searchsorted(-self.cuts, -threshold, side="right")) - 1)

    def inside(self, column: int) -> float:
        """A threshold of a column, as far from both its ends as may be: rounding in the last digits cannot leave it."""
        cut = float(self.cuts[column])
        if column + 1 < self.cuts.size:
            return (cut + float(self.cuts[column + 1])) / 2
        return cut - 1e-6 * max(1.0, abs(cut))


def staircase(rankings: Sequence[Ranking], shape: Shape, measure: Measure, units: Integers) -> Staircase:
    """The values of ``measure`` under every threshold.

    Args:
        rankings: P prompts.
        shape: schedule, offsets and floors.
        measure: elementwise function of outcomes, e.g. a risk's loss.
        units: (P,) unit number of each prompt (0..U-1), indexed by the rankings' rows; a unit's value is the mean over
            its prompts.
    """
    plain = shape.offsets is None and shape.floors is None
    ladder = _constant_ladder if plain else _general_ladder
    parts = [(ranking.rows, *ladder(ranking, shape, measure)) for ranking in rankings]
    weights = 1.0 / np.bincount(units)[units]
    return _assemble(parts, units, weights, blur=0.0 if plain else BLUR)


def _constant_ladder(ranking: Ranking, shape: Shape, measure: Measure) -> tuple[Floats, Floats]:
    values = measure(constant_outcomes(ranking, shape.schedule))
    return ranking.scores[:, ::-1], values[:, ::-1]


def _general_ladder(ranking: Ranking, shape: Shape, measure: Measure) -> tuple[Floats, Floats]:
    """Breakpoints (P, B) descending, and values (P, B+1): above all of them, then from each down to the next."""
    offsets = np.asarray(shape.thresholds(0.0))
    breaks = (ranking.scores[:, :, None] - offsets).reshape(len(ranking.rows), -1)
    breaks = np.sort(np.where(np.isnan(breaks), -np.inf, breaks), axis=1)[:, ::-1]
    ends = np.concatenate([breaks[:, 1:], breaks[:, -1:] - 1.0], axis=1)
    with np.errstate(invalid="ignore"):
        middles = np.where(np.isfinite(ends), (breaks + ends) / 2, breaks - 1.0)
    tests = np.concatenate([np.full((len(breaks), 1), np.inf), middles], axis=1)
    values = [measure(_outcomes_at(ranking, shape, tests[:, i], offsets)) for i in range(tests.shape[1])]
    return breaks, np.stack(values, axis=1)


def _outcomes_at(ranking: Ranking, shape: Shape, threshold: Floats, offsets: Floats) -> Outcomes:
    alone = Ranking(np.arange(len(ranking.rows)), ranking.scores, ranking.quality, ranking.failed)
    return replay_rankings([alone], shape.schedule, [threshold + offset for offset in offsets], shape.floors)


def _assemble(parts: Iterable[tuple[Integers, Floats, Floats]], units: Integers, weights: Floats, *, blur: float) -> Staircase:
    start = np.zeros(int(units.max()) + 1)
    scores, owners, steps = [], [], []
    for rows, breaks, values in parts:
        np.add.at(start, units[rows], weights[rows] * values[:, 0])
        real = np.isfinite(breaks)
        scores.append(breaks[real])
        owners.append(np.broadcast_to(units[rows][:, None], breaks.shape)[real])
        steps.append((np.diff(values, axis=1) * weights[rows][:, None])[real])
    return _sorted(start, np.concatenate(scores), np.concatenate(owners), np.concatenate(steps), blur=blur)


def _sorted(start: Floats, scores: Floats, owners: Integers, steps: Floats, *, blur: float) -> Staircase:
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    new = np.ones(scores.size, dtype=bool)
    new[1:] = scores[:-1] - scores[1:] > blur * np.maximum(1.0, np.abs(scores[1:]))
    return Staircase(scores[new], start, np.cumsum(new) - 1, owners[order], steps[order])
