"""Ranks and divergences against simulation and known values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonmini_guard.training.distill.front import log_f, mini_n_divergence


def test_log_f_counts_reference_draws_below():
    found = [math.exp(log_f([1.0, 2.0, 3.0], score)) for score in (0.0, 1.0, 1.5, 9.0)]
    assert found == pytest.approx([1 / 4, 1 / 4, 2 / 4, 4 / 4])


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=30), st.integers(-60, 60))
def test_log_f_does_not_change_when_rewards_are_stretched(scores, score):
    plain = log_f(sorted(map(float, scores)), float(score))
    assert plain == log_f(sorted(math.exp(one / 10) for one in scores), math.exp(score / 10))


def test_one_loop_is_best_of_n_and_a_threshold_that_always_passes_too():
    for below, size, loops, n in (
        (0.0, 16, 1, 16),
        (0.5, 4, 1, 4),
        (1.0, 4, 1, 4),
        (0.0, 4, 8, 4),
        (1.0, 4, 8, 32),
        (0.0, 1, 1, 1),
    ):
        assert mini_n_divergence(below, size, loops) == pytest.approx(math.log(n) - (n - 1) / n)


@pytest.mark.parametrize("below", [0.3, 0.8, 0.95])
def test_mini_n_divergence_is_that_of_the_simulated_procedure(below):
    random = np.random.default_rng(0)
    size, loops = 2, 3
    draws = random.random((400_000, loops, size)).max(2)
    served = np.where(draws[:, 0] >= below, draws[:, 0], np.where(draws[:, :2].max(1) >= below, draws[:, :2].max(1), draws.max(1)))
    share, _ = np.histogram(served, bins=200, range=(0, 1))
    density = share / share.sum() * 200
    estimate = float((density * np.log(np.where(density > 0, density, 1))).mean())
    assert mini_n_divergence(below, size, loops) == pytest.approx(estimate, abs=0.02)
