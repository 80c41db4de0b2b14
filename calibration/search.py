"""Which schedules, offsets and floors are worth trying: candidates for a choice that is made on the fit split only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bonmini_guard.calibration.logs import Log

#: Where loops exit, against the searched threshold, in standard deviations of the scores: first loop to last.
TILTS = (-1.0, -0.5, 0.5, 1.0)
#: Shares of first-loop best scores below which a hopeless exit is tried.
HOPELESS_SHARES = (0.1, 0.25, 0.5)


def shapes(budget: int) -> list[tuple[int, ...]]:
    """Schedules with that budget: equal loops, one small loop and the rest, and loops that double.

    Of 8: (1,) * 8, (2, 2, 2, 2), (4, 4), (1, 7), (2, 6), (1, 1, 2, 4), (2, 2, 4), and so on for powers of two.
    """
    sizes = [1 << power for power in range(budget.bit_length()) if (1 << power) < budget]
    found = [(size,) * (budget // size) for size in sizes if budget % size == 0]
    found += [(size, budget - size) for size in sizes]
    found += [_doubling(size, budget) for size in sizes]
    return list(dict.fromkeys(found))


def _doubling(first: int, budget: int) -> tuple[int, ...]:
    loops = [first]
    while sum(loops) < budget:
        loops.append(min(sum(loops), budget - sum(loops)))
    return tuple(loops)


def tilts(log: Log, loops: int) -> list[tuple[float, ...]]:
    """Offsets that rise or fall evenly from the first loop to the last, whose own is 0."""
    spread = float(np.nanstd(log.scores))
    if loops < 2 or not spread > 0:
        return []
    steps = np.linspace(1.0, 0.0, loops)
    return [tuple(float(tilt * spread * step) for step in steps) for tilt in TILTS]


def floors(log: Log, schedule: Sequence[int]) -> list[tuple[float, ...]]:
    """Floors at quantiles of the first loop's best scores, for the first loop only: that is where giving up saves most."""
    if len(schedule) < 2:
        return []
    first = np.where(np.isnan(log.scores), -np.inf, log.scores)[:, : schedule[0]].max(axis=1)
    first = first[np.isfinite(first)]
    rest = (-math.inf,) * (len(schedule) - 1)
    if not first.size:
        return []
    return [(float(cut), *rest) for cut in np.unique(np.quantile(first, HOPELESS_SHARES))]
