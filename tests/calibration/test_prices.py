"""From costs to a threshold: the cheapest one is chosen, and what is said of it holds as often as it says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from bonmini_guard.calibration.choose import FIT_SHARE
from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence
from bonmini_guard.calibration.figures import replay_log
from bonmini_guard.calibration.orders import split
from bonmini_guard.calibration.paths import exits, paths, steps
from bonmini_guard.calibration.prices import Prices, calibrate_costs
from bonmini_guard.commands import calibrate as command
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.policy.profile import GuardProfile
from tests.calibration.helpers import called, rows_of, written
from tests.calibration.populations import Population
from tests.sizes import most, worlds

WORLD, SCHEDULE, PRICES = Population(), (4, 4), Prices(bad=5.0, abstain=1.0, draw=0.01)
TRIALS = worlds(500)


def served_and_bad(log, threshold):
    path = paths(log, SCHEDULE)
    at = exits(path, [threshold] * 2)
    served = at < 2
    return float(np.mean(served & (path.good[np.arange(len(path)), np.minimum(at, 1)] == 0)))


def test_the_bound_is_missed_no_more_often_than_it_says():
    truth = WORLD.log(40_000, 10_000)
    missed = 0
    for seed in range(TRIALS):
        found = calibrate_costs(WORLD.log(200, seed), schedule=SCHEDULE, prices=PRICES)
        assert isinstance(found, Certificate)
        missed += served_and_bad(truth, found.profile.thresholds[0]) > found.profile.alpha
    # A bound that is the rate itself would be missed in about half of the cases.
    assert missed <= most(TRIALS, 0.1)


def test_what_is_chosen_is_cheap_on_new_requests():
    truth = WORLD.log(20_000, 2)
    all_of_them = steps(paths(truth, SCHEDULE))
    costs, chosen = PRICES.of(all_of_them, len(truth)), []
    for seed in range(1, 11):
        found = calibrate_costs(WORLD.log(2000, seed), schedule=SCHEDULE, prices=PRICES)
        chosen.append(costs[np.searchsorted(-all_of_them.cuts, -found.profile.thresholds[0])])
        said = found.profile.evidence["expected_cost"]
        assert said["guardrail"] < said["best_of_n"] < said["one_draw"]
        assert said["guardrail"] == pytest.approx(chosen[-1], abs=0.1)
    assert np.mean(chosen) < costs.min() + 0.02


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e7])
def test_the_threshold_that_was_counted_is_written_whatever_the_scale_of_scores(scale):
    log = WORLD.log(400, 3)
    log = replace(log, scores=log.scores * scale)
    found = calibrate_costs(log, schedule=SCHEDULE, prices=PRICES).profile
    rest = log.take(split(log, FIT_SHARE, 3)[1])
    path, seen = paths(rest, SCHEDULE), found.evidence
    served = exits(path, found.thresholds) < 2
    assert (served.sum(), len(rest)) == (seen["served"], seen["certify_rows"])


def test_a_single_draw_is_the_first_of_the_order_asked_for():
    log = WORLD.log(200, 3)
    first = [
        calibrate_costs(log, schedule=SCHEDULE, prices=PRICES, **more).profile for more in ({}, {"seed": 1, "calibrations": 2})
    ]
    for seed, found in enumerate(first):
        rest = log.take(split(log, FIT_SHARE, seed * 2 + 3)[1])
        path = paths(rest, (1,), seed=seed)
        assert found.evidence["expected_cost"]["one_draw"] == pytest.approx(PRICES.bad * np.mean(path.good == 0) + PRICES.draw)


def test_dearer_bad_answers_are_served_less():
    log = WORLD.log(1500, 3)
    thresholds = [calibrate_costs(log, schedule=SCHEDULE, prices=Prices(bad, 1.0, 0.0)).profile.thresholds[0] for bad in (2, 8, 40)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] < thresholds[-1]


def test_where_nothing_is_worth_serving_and_where_there_is_too_little():
    nothing = calibrate_costs(WORLD.log(400, 4), schedule=SCHEDULE, prices=Prices(1.0, 0.0, 0.0))
    assert isinstance(nothing, NotEnoughEvidence)
    assert "serve nothing" in nothing.why
    few = calibrate_costs(WORLD.log(35, 4), schedule=SCHEDULE, prices=PRICES)
    assert isinstance(few, NotEnoughEvidence)
    assert "too few" in few.why


@pytest.mark.parametrize("prices", [(1, 1, 0), (-1, 0, 0), (float("nan"), 0, 0), (1, 2, 0)])
def test_prices_that_say_nothing_are_refused(prices):
    with pytest.raises(ConfigurationError, match=r"price|costs"):
        Prices(*prices)


# The command


call = partial(called, command)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return written(tmp_path_factory.mktemp("logs") / "log.jsonl", rows_of(WORLD.log(600, 5)))


def test_the_command_writes_a_profile_and_says_what_a_request_costs(log, tmp_path, capsys):
    output = tmp_path / "p.json"
    assert call(log, "--mode", "guardrail", "--cost-bad", 5, "--cost-draw", 0.01, "-o", output) == 0
    profile, said = GuardProfile.load(output), capsys.readouterr().out
    assert profile.risk == "served_and_bad"
    assert profile.evidence["prices"] == {"bad": 5.0, "abstain": 1.0, "draw": 0.01}
    assert "A request costs" in said
    assert "less than best-of-8" in said
    from bonmini_guard.calibration.logs import load_log

    assert replay_log(load_log(log), profile)["served_and_bad_rate"] < profile.alpha


def test_an_accuracy_is_another_way_to_say_a_risk(log, tmp_path):
    outputs = [tmp_path / "a.json", tmp_path / "b.json"]
    call(log, "--mode", "guardrail", "--target-accuracy", 0.8, "-o", outputs[0])
    call(log, "--mode", "guardrail", "--risk", "bad_among_served", "--alpha", 0.2, "-o", outputs[1])
    first, second = map(GuardProfile.load, outputs)
    assert (first.risk, first.alpha, first.thresholds) == (second.risk, second.alpha, second.thresholds)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cost-draw", 1),
        ("--cost-bad", 5, "--alpha", 0.1),
        ("--cost-bad", 5, "--search"),
        ("--target-accuracy", 0.9, "--cost-bad", 5),
        ("--target-accuracy", 0.9, "--alpha", 0.1),
    ],
)
def test_two_ways_at_once_are_refused(log, tmp_path, arguments):
    with pytest.raises(ConfigurationError, match=r"leave out|give --cost-bad"):
        call(log, "--mode", "guardrail", *arguments, "-o", tmp_path / "p.json")


def test_tries_are_said():
    found = calibrate_costs(WORLD.log(400, 6), schedule=SCHEDULE, prices=PRICES, calibrations=4, seed=2)
    assert (found.profile.evidence["calibrations"], found.profile.evidence["seed"]) == (4, 2)
    assert "(one of 4 calibrations)" in found.sentence


@pytest.mark.parametrize("served", [0, 4, 5])
def test_what_serves_next_to_nothing_is_no_success(served):
    log = WORLD.log(400, 6)
    scores, labels = log.scores - 50.0, np.zeros_like(log.labels)
    fit, rest = split(log, FIT_SHARE, 3)
    good = np.concatenate([fit[:5], rest[:served]])
    scores[good, 0], labels[good, 0] = 50.0, 1.0
    found = calibrate_costs(replace(log, scores=scores, labels=labels), schedule=SCHEDULE, prices=PRICES)
    assert isinstance(found, Certificate if served == 5 else NotEnoughEvidence)
    if served < 5:
        assert f"{served} of 300 are served, and a certificate takes 5" in found.why
