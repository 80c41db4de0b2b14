"""How many more rows a certificate would take: a number that gives one in four cases of five, found by doing it."""

from __future__ import annotations

import numpy as np

from bonmini_guard.calibration.certify import Risk, binomial
from bonmini_guard.calibration.logs import Floats
from bonmini_guard.calibration.paths import Steps

#: The chance of success that a number must give; the largest number tried.
POWER, MOST_ROWS = 0.8, 1 << 22
#: Thresholds looked at for the cheapest certificate: where to look is a choice, not a claim.
MOST_LOOKED_AT = 25


def power(units: int, rate: float, level: float, delta: float) -> float:
    """The chance that the exact test of ``units`` with true rate ``rate`` refutes ``level`` at ``delta``."""
    counts = np.arange(min(units, int(level * units) + 1) + 1, dtype=np.float64)
    enough = np.flatnonzero(binomial(counts, np.asarray(float(units)), level) <= delta)
    return float(binomial(counts[enough[-1:]], np.asarray(float(units)), rate)[0]) if enough.size else 0.0


def least_rows(level: float, delta: float) -> int:
    """What even a spotless record needs: ``log(delta) / log(1 - level)``."""
    return int(np.ceil(np.log(delta) / np.log1p(-level)))


def units_for(rate: float, level: float, delta: float) -> int | None:
    """The smallest number of units with :data:`POWER` (to 1 %); None if the rate is not below the level, or too many to label."""
    if rate >= level:
        return None
    low, high = 0, least_rows(level, delta)
    while power(high, rate, level, delta) < POWER:
        low, high = high, 2 * high
        if high > MOST_ROWS:
            return None
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, rate, level, delta) >= POWER else (middle, high)
    return high


def further_rows(counts: Steps, rows: int, risk: Risk | None, level: float, delta: float) -> int | None:
    """About how many further rows like these would certify some threshold, with :data:`POWER`.

    The rate at a threshold is its posterior mean under a uniform prior, ``(bad + 1) / (among + 2)``: a record of few units is not
    taken at its word, which would promise too much. Only thresholds with enough units to say anything (5) are looked at.

    Returns:
        The number; None if at no threshold the rate is below the level.
    """
    bad, among = (counts.lost, counts.rows) if risk is None else (risk.bad(counts), risk.among(counts))
    if risk is not None:
        use = counts.served >= 5
        bad, among = bad[use], among[use]
    rates: Floats = (bad + 1.0) / (among + 2.0)
    best: int | None = None
    for at in np.unique(np.linspace(0, rates.size - 1, MOST_LOOKED_AT).astype(int)) if rates.size else []:
        units = units_for(float(rates[at]), level, delta) if rates[at] < level else None
        if units is not None:
            needed = max(1, int(np.ceil(units * rows / among[at])) - rows)
            best = needed if best is None else min(best, needed)
    return best
