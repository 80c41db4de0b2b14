"""What ``--search`` tries, and what it takes for better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bonmini_guard.calibration.choose import calibrate_accelerator, calibrate_guardrail
from bonmini_guard.calibration.evidence import NotEnoughEvidence
from bonmini_guard.calibration.paths import exits, paths
from bonmini_guard.calibration.search import Pace, Worth, front, shapes, tilts
from bonmini_guard.errors import ConfigurationError, InputError
from tests.calibration.helpers import log_of
from tests.calibration.populations import Population


def test_shapes_have_the_budget():
    assert {(1,) * 8, (2,) * 4, (4, 4), (1, 7), (2, 6), (1, 1, 2, 4), (2, 2, 4)} == set(shapes(8))
    for budget in (2, 3, 7, 12, 32):
        assert all(sum(shape) == budget and min(shape) > 0 for shape in shapes(budget))


def test_offsets_fit_the_schedule():
    log = Population(size=8).log(50, 0)
    assert all(len(tilt) == 3 and tilt[-1] == 0.0 for tilt in tilts(log, 3))
    assert tilts(log, 1) == tilts(log_of([[1.0, 1.0]], [[1.0, 1.0]]), 2) == []
    # However close the scores lie, in their own deviation, which is 0.25 here.
    fine = np.array(tilts(log_of([[0.25, 0.75]], [[1.0, 1.0]]), 3)) / 0.25
    np.testing.assert_allclose(fine, [[-1, -0.5, 0], [-0.5, -0.25, 0], [0.5, 0.25, 0], [1, 0.5, 0]])


# What a shape is worth: draws, and waiting


def timed(rows, seed, size=16):
    """A log whose draws take a second each, with a coefficient of variation of 0.4."""
    log = replace(Population(), size=size).log(rows, seed)
    random = np.random.default_rng(seed)
    return replace(log, costs=np.exp(random.normal(0, 0.4, log.scores.shape)))


def waits_of(profile, log):
    """Seconds of each row of another log under a profile."""
    path = paths(log, profile.schedule, cost="seconds")
    ran = np.minimum(exits(path, profile.thresholds), path.draws.size - 1)
    return path.cost[np.arange(len(path)), ran]


def test_the_dearer_waiting_is_the_less_requests_wait():
    log, held_out, found = timed(2000, 6), timed(2000, 5), []
    for wait in (0.0, 1.0, 30.0):
        outcome = calibrate_accelerator(log, schedule=(4,) * 4, epsilon=0.05, search=True, wait=wait)
        found.append((outcome.profile.schedule, float(waits_of(outcome.profile, held_out).mean())))
    assert found[0][0] == (1,) * 16  # where waiting is free, one at a time
    assert found[2][1] < 0.5 * found[0][1]
    assert found[2][1] <= found[1][1] < found[0][1]


@pytest.mark.parametrize("most", [2.5, 4.0, 6.0])
@pytest.mark.parametrize("prices", [{"wait": 0.0}, {"wait": 0.5}, {"wait": 0.001, "price": 0.002}], ids=str)
def test_no_shape_is_chosen_whose_requests_wait_too_long_on_held_out_rows(most, prices):
    for seed in range(3):
        outcome = calibrate_guardrail(timed(1200, seed), schedule=(4,) * 4, alpha=0.15, search=True, max_p95=most, **prices)
        if isinstance(outcome, NotEnoughEvidence):
            assert "--max-p95" in outcome.sentence
            continue
        waited = np.quantile(waits_of(outcome.profile, timed(4000, 100 + seed)), 0.95)
        assert waited <= most * 1.02


def test_prices_in_money_choose_as_the_same_ones_in_draws():
    log = timed(1500, 7)
    draw = float(np.nanmean(log.costs))
    found = [
        calibrate_accelerator(log, schedule=(4,) * 4, epsilon=0.05, search=True, **prices).profile
        for prices in ({"wait": 2.0}, {"wait": 2.0 * 0.01 / draw, "price": 0.01}, {"wait": 0.0, "price": 0.01})
    ]
    assert found[0].schedule == found[1].schedule != found[2].schedule == (1,) * 16
    in_draws, in_money = (profile.evidence["front"][0]["price"] for profile in found[:2])
    assert in_money == pytest.approx(0.01 * in_draws, rel=0.02)
    assert found[1].evidence["priced"].startswith("money; 0.01 for each of its draws")
    with pytest.raises(ConfigurationError, match="waiting a second"):
        calibrate_accelerator(log, schedule=(4,) * 4, search=True, price=0.01)


def test_costs_that_the_log_was_not_read_with_are_refused():
    for read, cost in (("tokens", "seconds"), ("seconds", "tokens")):
        log = replace(timed(100, 1), costs_are=read)
        with pytest.raises(InputError, match=f'was read without "{cost}" of candidates; pass cost="{cost}" to load_log'):
            calibrate_accelerator(log, schedule=(4, 12), cost=cost)
    with pytest.raises(InputError, match='was read without "tokens"'):
        calibrate_accelerator(Population(size=16).log(100, 1), schedule=(4, 12), cost="tokens")


def test_what_cannot_be_kept_is_refused():
    outcome = calibrate_guardrail(timed(1200, 1), schedule=(4,) * 4, alpha=0.15, search=True, max_p95=0.5)
    assert isinstance(outcome, NotEnoughEvidence)
    assert "95 % of the requests wait up to" in outcome.sentence
    assert outcome.sentence.endswith("allow more, or draw fewer")  # labels are not what is lacking


def test_the_front_holds_what_nothing_beats():
    tried = [
        {"schedule": [8], "served": 0.5, "draws": 8.0, "p95": 1.0, "price": 9.0},
        {"schedule": [4, 4], "served": 0.5, "draws": 6.0, "p95": 2.0, "price": 8.0},
        {"schedule": [2, 6], "served": 0.4, "draws": 7.0, "p95": 2.0, "price": 8.5},
        {"schedule": [1] * 8, "served": 0.6, "draws": 4.0, "p95": 8.0, "price": 10.0},
    ]
    assert [each["schedule"] for each in front(tried)] == [[4, 4], [8], [1] * 8]


@pytest.mark.parametrize(
    ("served", "price", "slow", "better"),
    [
        (0.52, 20.0, False, True),
        (0.505, 9.9, False, False),
        (0.495, 9.7, False, True),
        (0.48, 1.0, False, False),
        (0.9, 1.0, True, False),
    ],
)
def test_a_shape_is_better_that_serves_more_or_as_many_for_less_and_never_one_that_is_slow(served, price, slow, better):
    pace = Pace(1.0, 1.0, 1.0, 1.0, 1.0)
    found = Worth(0.5, 10.0, pace, False)
    assert Worth(served, price, pace, slow).better(found) is better
    assert found.better(Worth(served, price, pace, True))


def test_pace_is_of_each_loops_slowest_draw():
    log = replace(log_of([[0.0, 1.0, 2.0, 3.0]] * 2, [[1.0] * 4] * 2), costs=np.array([[1.0, 3.0, 2.0, 5.0]] * 2))
    pace = Pace.of(log, (2, 2), "logged", 0, np.array([0, 1]))
    assert (pace.mean, pace.draws, pace.draw) == (5.5, 3.0, 2.75)
    assert np.isinf(pace.p95_limit)
    untimed = Pace.of(replace(log, costs=None), (2, 2), "logged", 0, np.array([0, 1]))
    assert (untimed.mean, untimed.draw) == (1.5, 1.0)
