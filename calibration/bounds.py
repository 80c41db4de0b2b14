"""p-values for "the mean of this [0, 1] variable is at least ``level``": small means evidence that the mean is lower.

Each is valid for independent, identically distributed units: under the hypothesis, P(p <= delta) <= delta for every delta.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonmini_guard.calibration.logs import Floats
from bonmini_guard.errors import MissingExtraError

try:
    from scipy.special import bdtr, xlogy
except ImportError as error:
    raise MissingExtraError("scipy", "calibration") from error

#: n * mean comes out of sums of floats; a count is what it rounds to up to this error.
_ROUNDING = 1e-9


def binomial(ones: NDArray[Any], units: NDArray[Any] | int, level: float) -> Floats:
    """Exact binomial p-value for 0/1 variables, the test that Clopper and Pearson (1934) invert.

    ``p = P(Bin(n, level) <= k)``.

    Args:
        ones: (m,) k, how many of the units are 1.
        units: n; a number or (m,). Where it is 0 there is no evidence and p = 1.
        level: the mean under the hypothesis, in (0, 1).
    """
    count = np.asarray(units, dtype=np.float64)
    p_values = np.where(count > 0, bdtr(np.floor(np.asarray(ones) + _ROUNDING), count.astype(int), level), 1.0)
    return np.minimum(p_values, 1.0)


def hoeffding_bentkus(means: NDArray[Any], units: int, level: float) -> Floats:
    """Hoeffding-Bentkus p-value (Bates et al., arXiv 2101.02703; Angelopoulos et al., arXiv 2110.01052, proposition 3).

    ``p = min( exp(-n h(min(mean, level), level)), e P(Bin(n, level) <= ceil(n mean)) )`` with
    ``h(a, b) = a log(a/b) + (1-a) log((1-a)/(1-b))``. It needs only the mean, and pays as if the variance were that of a
    0/1 variable.

    Args:
        means: (m,) sample means.
        units: n.
        level: the mean under the hypothesis, in (0, 1).
    """
    mean = np.minimum(np.asarray(means, dtype=np.float64), level)
    entropy = xlogy(mean, mean / level) + xlogy(1 - mean, (1 - mean) / (1 - level))
    bentkus = math.e * bdtr(np.minimum(np.ceil(units * np.asarray(means) - _ROUNDING), units), units, level)
    smaller: Floats = np.minimum(np.exp(-units * entropy), bentkus)
    return np.where(np.asarray(means) >= level, 1.0, np.minimum(smaller, 1.0))


def betting(losses: Floats, level: float, delta: float) -> Floats:
    """Betting p-value (Waudby-Smith and Ramdas, arXiv 2010.09686, section 4: predictable plug-in, one-sided).

    A gambler bets that the mean is below the level: ``K_t = prod_{i<=t} (1 + b_i (level - X_i))`` with ``b_i`` chosen from
    X_1..X_{i-1}. Under the hypothesis K is a supermartingale that starts at 1, so by Ville's inequality
    ``p = 1 / max_t K_t`` is valid for any delta; delta only tunes the bets,
    ``b_i = min( c, sqrt(2 log(1/delta) / (n s2_{i-1})) )`` with c just under ``1 / (1 - level)``, the largest bet that
    cannot lose everything, and s2 the running variance, begun at ``level (1 - level)``. It adapts to small variance.

    Args:
        losses: (n, m), one column a test; the rows must be in an order chosen without looking at the losses.
        level: the mean under the hypothesis, in (0, 1).
        delta: the significance at which the bets are strongest.
    """
    capital = log_capital(losses, level, delta)
    p_values: Floats = np.exp(-np.maximum(capital.max(axis=0), 0.0))
    return p_values


def log_capital(losses: Floats, level: float, delta: float) -> Floats:
    """(n, m) ``log K_t`` of :func:`betting`'s gambler after each unit: how strong the evidence is that the mean is lower."""
    units = losses.shape[0]
    before = np.arange(1, units + 1)[:, None]
    total = np.cumsum(losses, axis=0)
    mean = (level + total) / (before + 1)
    spread = np.cumsum((losses - mean) ** 2, axis=0)
    variance = np.empty_like(losses)
    variance[0] = level * (1 - level)
    variance[1:] = (level * (1 - level) + spread[:-1]) / (before[:-1] + 1)
    bets = np.minimum(0.99 / (1 - level), np.sqrt(2 * math.log(1 / delta) / (units * variance)))
    capital: Floats = np.cumsum(np.log1p(bets * (level - losses)), axis=0)
    return capital


def upper_limit(ones: int, units: int, delta: float) -> float:
    """Clopper-Pearson upper limit: the largest mean that k of n ones do not refute at level delta.

    ``beta.ppf(1 - delta, k + 1, n - k)``; 1 if k = n.
    """
    from scipy.special import betaincinv

    return 1.0 if ones >= units else float(betaincinv(ones + 1, units - ones, 1 - delta))
