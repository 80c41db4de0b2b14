"""What ``--search`` tries; and that choosing on the fit split keeps the promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from bonmini_guard.calibration.evidence import Certificate
from bonmini_guard.calibration.guardrail import calibrate_guardrail
from bonmini_guard.calibration.replay import replay
from bonmini_guard.calibration.search import floors, shapes, tilts
from tests.calibration.helpers import log_of
from tests.calibration.populations import Population


def test_shapes_have_the_budget():
    assert {(1,) * 8, (2,) * 4, (4, 4), (1, 7), (2, 6), (1, 1, 2, 4), (2, 2, 4)} == set(shapes(8))
    for budget in (2, 3, 7, 12, 32):
        assert all(sum(shape) == budget and min(shape) > 0 for shape in shapes(budget))


def test_offsets_and_floors_fit_the_schedule():
    log = Population(size=8).log(50, 0)
    assert all(len(tilt) == 3 and tilt[-1] == 0.0 for tilt in tilts(log, 3))
    assert all(floor[1:] == (-math.inf, -math.inf) for floor in floors(log, (2, 2, 4)))
    assert tilts(log, 1) == floors(log, (8,)) == []
    assert tilts(log_of([[1.0, 1.0]], [[1.0, 1.0]]), 2) == []


@pytest.mark.slow
def test_the_promise_is_kept_after_a_search():
    population, misses, repeats = Population(size=4), 0, 60
    truth = population.log(10_000, 999_999)
    for seed in range(repeats):
        outcome = calibrate_guardrail(population.log(120, seed), schedule=(2, 2), alpha=0.1, seed=seed, search=True)
        if isinstance(outcome, Certificate):
            profile = outcome.profile
            settled = replay(truth, "guardrail", profile.schedule, profile.thresholds, profile.hopeless)
            misses += float(np.mean(settled.served_bad)) > 0.1
    assert misses <= binom.ppf(0.999, repeats, 0.1)
