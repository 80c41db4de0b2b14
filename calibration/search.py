"""Which schedules and offsets are worth trying: candidates for a choice that is made on the fit split only."""

from __future__ import annotations

import numpy as np

from bonmini_guard.calibration.logs import Log

#: Where loops exit, against the searched threshold, in standard deviations of the scores: first loop to last.
TILTS = (-1.0, -0.5, 0.5, 1.0)


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
