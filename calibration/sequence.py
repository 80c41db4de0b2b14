"""Learn-then-test along one sequence of hypotheses, from safe to bold (arXiv 2110.01052, fixed-sequence testing).

Hypotheses are tested in order until the first that cannot be rejected at delta; everything before it is certified. The
family-wise error is delta, because the sequence can only run past the first true hypothesis by rejecting it.

Thresholds need one more thought: the cuts between columns are this very sample's scores. Fix instead the population: let t* be
the first threshold, coming from the strict side, whose risk exceeds alpha. Whatever the sample, t* lies in (or at the edge of)
one column, and that column's p-value is the p-value at t*. Certifying anything beyond t* needs that p-value <= delta: chance
delta at most. This is why every column is tested, and why a grid that skips columns would not do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bonmini_guard.calibration import bounds
from bonmini_guard.calibration.logs import Floats
from bonmini_guard.calibration.staircase import Staircase
from bonmini_guard.errors import ConfigurationError

Bound = Literal["auto", "betting", "hoeffding_bentkus", "binomial"]
BOUNDS: tuple[Bound, ...] = ("auto", "betting", "hoeffding_bentkus", "binomial")

#: Numbers in one block of losses; 2 MB, which stays in the cache.
BLOCK = 1 << 18
#: Above this many losses the betting test would take minutes, and its gain over Hoeffding-Bentkus is small.
MOST_LOSSES = 400_000_000


@dataclass(frozen=True)
class Run:
    """Where a sequence of tests ended.

    Attributes:
        last: the last column certified; None if the first test failed.
        p_value: of the last column certified, or of the first test if that failed.
        tested: how many hypotheses were tested.
    """

    last: int | None
    p_value: float
    tested: int


def choose_bound(bound: Bound, steps: Staircase, zero_one: bool) -> Bound:
    """The bound to use.

    Args:
        bound: the user's wish; "auto" takes the exact binomial for 0/1 losses, else betting, and Hoeffding-Bentkus for logs too
            large for that.
        steps: the losses.
        zero_one: whether numerator and denominator of the risk are 0 or 1 for every unit.

    Raises:
        ConfigurationError: "binomial" for losses between 0 and 1, or an unknown name.
    """
    if bound not in BOUNDS:
        raise ConfigurationError(f"unknown bound {bound!r}: use one of {', '.join(BOUNDS)}")
    if bound == "binomial" and not zero_one:
        raise ConfigurationError("the binomial bound needs losses of 0 or 1, and these are expectations between; use 'betting'")
    if bound != "auto":
        return bound
    if zero_one:
        return "binomial"
    return "betting" if steps.units * steps.cuts.size <= MOST_LOSSES else "hoeffding_bentkus"


def run_totals(p_values: Floats, start: int, delta: float) -> Run:
    """A sequence whose p-values are all known: column ``start`` first, then one by one to the laxest."""
    failed = np.flatnonzero(p_values[start:] > delta)
    passed = int(failed[0]) if failed.size else p_values.size - start
    if passed == 0:
        return Run(None, float(p_values[start]), 1)
    return Run(start + passed - 1, float(p_values[start + passed - 1]), passed + bool(failed.size))


def run_blocks(p_values_of: Callable[[int, int], Floats], columns: int, start: int, delta: float, width: int) -> Run:
    """The same with p-values computed block by block, as far as they are needed.

    Args:
        p_values_of: gives the p-values of the columns begin..end-1.
        columns: how many there are.
        start: the first to test.
        delta: the level.
        width: columns in one block.
    """
    last, p_last, tested = None, 1.0, 0
    for begin in range(start, columns, width):
        run = run_totals(p_values_of(begin, min(begin + width, columns)), 0, delta)
        tested += run.tested
        if run.last is None:
            return Run(last, run.p_value if last is None else p_last, tested)
        last, p_last = begin + run.last, run.p_value
        if last + 1 < min(begin + width, columns):
            break
    return Run(last, p_last, tested)


def betting_run(steps: Staircase, start: int, level: float, delta: float) -> Run:
    """The sequence under the betting test."""
    width = max(1, BLOCK // steps.units)

    def p_values(begin: int, end: int) -> Floats:
        return bounds.betting(np.clip(steps.block(begin, end), 0.0, 1.0), level, delta)

    return run_blocks(p_values, steps.cuts.size, start, delta, width)
