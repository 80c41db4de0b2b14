"""The Student t predictive against scipy and against quadrature."""

from __future__ import annotations

import numpy as np
import pytest

from bonmini_guard import _student

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("freedom", [2, 3, 10, 63])
@pytest.mark.parametrize("z", [-30.0, -2.5, -0.1, 0.0, 0.7, 4.0, 50.0])
def test_cumulative_is_scipys(z, freedom):
    assert _student.cumulative(z, freedom) == pytest.approx(stats.t.cdf(z, freedom), abs=1e-13)


def test_expected_improvement_is_the_integral():
    scores, best = [0.3, -1.2, 0.8, 1.1, -0.4], 0.9
    mean, scale = np.mean(scores), np.std(scores, ddof=1) * np.sqrt(1 + 1 / 5)
    grid = np.linspace(best, best + 2000, 4_000_001)
    integral = np.trapezoid((grid - best) * stats.t.pdf((grid - mean) / scale, 4) / scale, grid)
    assert _student.expected_improvement(scores, best) == pytest.approx(integral, rel=1e-4)


def test_chance_of_reaching_grows_with_the_draws():
    scores = [0.0, 1.0, -1.0, 0.5]
    one, many = _student.chance_of_reaching(scores, 2.0, 1), _student.chance_of_reaching(scores, 2.0, 20)
    assert 0 < one < many < 1
    assert many == pytest.approx(1 - (1 - one) ** 20)
    assert _student.chance_of_reaching([1.0, 1.0, 1.0], 2.0, 5) == 0.0
    assert _student.expected_improvement([1.0, 1.0, 1.0], 0.5) == 0.5
