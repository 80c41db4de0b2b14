"""A Student t predictive for the next score, in plain Python (the policy imports nothing but the standard library).

With k scores of mean m and sample deviation s, and Jeffreys' prior on both parameters, the next score is distributed as
m + s * sqrt(1 + 1/k) * T with k - 1 degrees of freedom.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_TINY = 1e-300


def expected_improvement(scores: Sequence[float], best: float) -> float:
    """E[max(next - best, 0)]; closed form of arXiv 2510.15945 (EI of a t predictive).

    Args:
        scores: three or more scores, so that the mean of the predictive exists.
        best: the score to improve on.
    """
    mean, scale, freedom = _predictive(scores)
    if scale == 0.0:
        return max(mean - best, 0.0)
    z = (best - mean) / scale
    density = math.exp(_log_density(z, freedom))
    return scale * ((freedom + z * z) / (freedom - 1) * density - z * (1.0 - cumulative(z, freedom)))


def chance_of_reaching(scores: Sequence[float], target: float, draws: int) -> float:
    """The probability that at least one of ``draws`` more scores is at or above ``target``."""
    mean, scale, freedom = _predictive(scores)
    if math.isinf(target) or scale == 0.0:
        return 1.0 if mean >= target else 0.0
    miss = cumulative((target - mean) / scale, freedom)
    return -math.expm1(draws * math.log(max(miss, _TINY)))


def cumulative(z: float, freedom: int) -> float:
    """P(T <= z) for a Student t with ``freedom`` degrees of freedom."""
    tail = 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + z * z))
    return 1.0 - tail if z > 0 else tail


def _predictive(scores: Sequence[float]) -> tuple[float, float, int]:
    count = len(scores)
    return statistics.fmean(scores), statistics.stdev(scores) * math.sqrt(1 + 1 / count), count - 1


def _log_density(z: float, freedom: int) -> float:
    constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    return constant - (freedom + 1) / 2 * math.log1p(z * z / freedom)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta I_x(a, b) by Lentz's continued fraction (DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a * _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1.0 / _away(1.0 + term * d), _away(1.0 + term / c)
            value *= d * c
        if abs(d * c - 1.0) < 1e-14:
            break
    return value


def _away(value: float) -> float:
    """Keep a denominator off zero, as Lentz's method asks."""
    return value if abs(value) > _TINY else _TINY
