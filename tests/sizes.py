"""How large statistical tests are: a quarter in ``make test``, whole in ``make validity``."""

from __future__ import annotations

import os

from scipy.stats import binom

WHOLE = bool(os.environ.get("BONMINI_GUARD_VALIDITY"))


def worlds(whole: int) -> int:
    """How many of so many simulated worlds are made now."""
    return whole if WHOLE else max(25, whole // 4)


def most(number: int, rate: float) -> int:
    """More than so many misses in so many worlds come about by chance once in a thousand times, where the rate is kept."""
    return int(binom.ppf(0.999, number, rate))
