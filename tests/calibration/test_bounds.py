"""p-values: exact values, validity by simulation, and what each bound is good at."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from bonmini_guard.calibration import bounds


def test_binomial_is_the_exact_tail():
    assert bounds.binomial(np.array([9]), 30, 0.5)[0] == pytest.approx(binom.cdf(9, 30, 0.5))
    assert bounds.binomial(np.array([3.0 - 1e-12]), np.array([30]), 0.2)[0] == pytest.approx(binom.cdf(3, 30, 0.2))
    assert bounds.binomial(np.array([0]), np.array([0]), 0.2)[0] == 1.0


def test_upper_limit_is_clopper_pearson():
    limit = binomtest(3, 40, alternative="less").proportion_ci(0.9).high
    assert bounds.upper_limit(3, 40, 0.1) == pytest.approx(limit)
    assert bounds.upper_limit(40, 40, 0.1) == 1.0


def test_hoeffding_bentkus_formula():
    entropy = 0.02 * math.log(0.02 / 0.1) + 0.98 * math.log(0.98 / 0.9)
    expected = min(math.exp(-100 * entropy), math.e * binom.cdf(2, 100, 0.1))
    assert bounds.hoeffding_bentkus(np.array([0.02]), 100, 0.1)[0] == pytest.approx(expected)
    assert bounds.hoeffding_bentkus(np.array([0.1, 0.5]), 100, 0.1).tolist() == [1.0, 1.0]


def test_betting_is_the_reciprocal_of_the_largest_capital():
    losses = np.array([[0.0], [1.0], [0.0]])
    bets, seen = [], []
    for loss in losses[:, 0]:
        mean = [(0.2 + sum(seen[: i + 1])) / (i + 2) for i in range(len(seen))]
        variance = (0.16 + sum((x - m) ** 2 for x, m in zip(seen, mean, strict=True))) / (len(seen) + 1)
        bets.append(min(0.99 / 0.8, math.sqrt(2 * math.log(10) / (3 * variance))))
        seen.append(loss)
    capital = np.cumprod([1 + bet * (0.2 - loss) for bet, loss in zip(bets, seen, strict=True)])
    assert bounds.betting(losses, 0.2, 0.1)[0] == pytest.approx(1 / max(1.0, *capital))


@pytest.mark.parametrize("name", ["betting", "hoeffding_bentkus", "binomial"])
@pytest.mark.parametrize("level", [0.03, 0.2, 0.5])
def test_p_values_are_valid_at_the_level(name, level):
    generator = np.random.default_rng(3)
    repeats, units, delta = 4000, 120, 0.1
    losses = (generator.random((units, repeats)) < level).astype(float)
    if name == "betting":
        fractional = generator.beta(0.5 * level, 0.5 * (1 - level), size=losses.shape)
        for values in (losses, fractional):
            assert np.mean(bounds.betting(values, level, delta) <= delta) <= delta + 0.016
    elif name == "binomial":
        assert np.mean(bounds.binomial(losses.sum(axis=0), units, level) <= delta) <= delta + 0.016
    else:
        assert np.mean(bounds.hoeffding_bentkus(losses.mean(axis=0), units, level) <= delta) <= delta + 0.016


def test_betting_profits_from_small_variance():
    losses = np.full((200, 1), 0.04)
    assert bounds.betting(losses, 0.1, 0.1)[0] < 1e-4 < bounds.hoeffding_bentkus(np.array([0.04]), 200, 0.1)[0]
