"""Planning: labels are simulated as the fit says, and the number of rows gives a certificate in four cases of five."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom

from bonmini_guard.calibration.choose import calibrate_accelerator, calibrate_guardrail
from bonmini_guard.calibration.evidence import Certificate
from bonmini_guard.calibration.on_demand import plan, request
from bonmini_guard.calibration.paths import Paths
from bonmini_guard.calibration.simulate import POWER, Labels, enough_rows
from tests.calibration.helpers import log_of_arrays
from tests.calibration.populations import Population

FOUR = (4,) * 4
WORLDS = {
    "clustered": Population(size=16),
    "half bad": Population(size=16, hopeless=0.5, middle=1.0),
    "failing": Population(size=16, middle=0.5, failing=0.5),
}
#: Level, rows of the log from which is planned, and of the log that is too small.
ASKED = {
    "served_and_bad": (0.05, 200, 30),
    "bad_among_served": (0.3, 200, 30),  # at 0.2 the second world takes ten times as many rows
    "false_acceptance": (0.2, 200, 30),
    "accelerator": (0.03, 200, 60),
}


def certified(log, what, level):
    if what == "accelerator":
        return calibrate_accelerator(log, schedule=FOUR, epsilon=level)
    return calibrate_guardrail(log, schedule=FOUR, risk=what, alpha=level)


def joined(one, other):
    return log_of_arrays(*(np.concatenate([getattr(log, name) for log in (one, other)]) for name in ("scores", "labels")))


def followed(best, holder=None):
    """Paths of (R, L) best scores, each from another answer."""
    holder = np.broadcast_to(np.arange(best.shape[1]), best.shape) if holder is None else holder
    return Paths(best, holder, np.full(best.shape, np.nan), np.ones(best.shape), np.arange(1, best.shape[1] + 1))


def test_simulated_labels_are_good_as_often_as_their_scores_say():
    scores = np.repeat([-2.0, -0.5, 0.0, 1.0], 20_000)[:, None]
    labels = Labels(0.5, 2.0, np.array([0.3, 1.5]), np.zeros((2, 2)), None)
    shares = labels.drawn(followed(scores), np.random.default_rng(1)).good.reshape(4, -1).mean(1)
    # Five deviations of a share of 20,000 are 0.018.
    np.testing.assert_allclose(shares, expit(0.3 + 1.5 * (np.array([-2.0, -0.5, 0.0, 1.0]) - 0.5) / 2.0), atol=0.018)


def test_simulated_labels_of_one_row_are_alike_and_those_of_one_answer_equal():
    labels = Labels(0.0, 1.0, np.array([0.0, 1.0]), np.zeros((2, 2)), None)
    good = labels.drawn(followed(np.zeros((20_000, 3)), np.tile([0, 0, 1], (20_000, 1))), np.random.default_rng(2)).good
    np.testing.assert_array_equal(good[:, 0], good[:, 1])
    # Normals with correlation 1/2 are both above their medians once in three.
    assert (good[:, 0] * good[:, 2]).mean() == pytest.approx(1 / 3, abs=0.018)


def test_however_high_the_score_some_simulated_answers_are_bad():
    labels = Labels(0.0, 1.0, np.array([0.0, 1.0]), np.zeros((2, 2)), (60, 0))
    shares = [labels.drawn(followed(np.full((500, 1), 50.0)), np.random.default_rng(seed)).good.mean() for seed in range(50)]
    # Beta(20, 61), of mean 0.247.
    assert np.mean(shares) == pytest.approx(20 / 81, abs=0.04)


def test_so_many_rows_are_enough_is_found_to_a_tenth():
    path = followed(np.zeros((40, 1)))
    rows, found = enough_rows(path, lambda part: len(part) if len(part) >= 100 else None)
    assert 100 <= rows <= 110
    assert set(found) == {rows}
    assert enough_rows(path, lambda part: None) is None


@pytest.mark.slow
@pytest.mark.parametrize("what", ASKED)
def test_what_a_plan_says_gives_a_certificate_four_times_of_five(what):
    """60 calibrations: were the chance only 0.5, this would fail 97 times of 100; at 0.8 it does once in 1,000."""
    level, rows, _ = ASKED[what]
    found = tried = 0
    for world in WORLDS.values():
        needed = plan(world.log(rows, 700), request(what, level, 0.1, FOUR)).rows
        logs = [world.log(needed, 5000 + number) for number in range(20)]
        found += sum(isinstance(certified(log, what, level), Certificate) for log in logs)
        tried += len(logs)
    assert found >= binom.ppf(0.001, tried, POWER)


@pytest.mark.slow
def test_so_many_further_rows_give_a_certificate_four_times_of_five():
    """27 refused logs, over risks and worlds: were the chance only 0.5, this would fail 9 times of 10; at 0.8 once in 1,000."""
    found = tried = 0
    for what in ("served_and_bad", "false_acceptance", "accelerator"):
        level, _, rows = ASKED[what]
        for world in WORLDS.values():
            logs = (world.log(rows, seed) for seed in range(200))
            outcomes = ((log, certified(log, what, level)) for log in logs)
            refused = ((log, outcome) for log, outcome in outcomes if not isinstance(outcome, Certificate))
            for number, (log, outcome) in zip(range(3), refused, strict=False):
                further = world.log(outcome.further, 9000 + number)
                found += isinstance(certified(joined(log, further), what, level), Certificate)
                tried += 1
    assert tried == 27
    assert found >= binom.ppf(0.001, tried, POWER)
