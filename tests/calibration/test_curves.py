"""The curves of a report against enumeration of all orders."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

from bonmini_guard.calibration import sliding
from bonmini_guard.calibration.curves import (
    clairvoyant_draws,
    fixed_n,
    paired_difference,
    reliability,
    smallest_equal_n,
)
from bonmini_guard.calibration.figures import replay_log
from bonmini_guard.calibration.replay import rank, replay_rankings
from bonmini_guard.calibration.sliding import slider
from bonmini_guard.policy.profile import GuardProfile, ScoreTransform
from tests.calibration.helpers import log_of
from tests.calibration.populations import Population

NAN = math.nan
SMALL = log_of(
    [[0.0, 1.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 0.0, NAN], [NAN, NAN, NAN, NAN, 1.0], [2.0, 1.0, 0.0, -1.0, -2.0]],
    [[1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0, NAN], [NAN, NAN, NAN, NAN, 1.0], [0.0, 0.0, 1.0, 1.0, 1.0]],
)
RANKINGS = rank(SMALL.scores, np.nan_to_num(SMALL.labels), SMALL.counts)


def first_of_the_best(scores):
    finite = [score if math.isfinite(score) else -math.inf for score in scores]
    return max(range(len(finite)), key=finite.__getitem__)


def mean_over_orders(function, draws):
    rows = []
    for scores, labels in zip(SMALL.scores, SMALL.labels, strict=True):
        orders = list(permutations(range(5), draws))
        rows.append(np.mean([function([scores[i] for i in order], [labels[i] for i in order]) for order in orders]))
    return float(np.mean(rows))


@pytest.mark.parametrize("draws", [1, 2, 3, 5])
def test_fixed_n_is_the_mean_over_all_orders(draws):
    curve = fixed_n(RANKINGS, 5, 1.0)

    def good(scores, labels):
        return float(labels[first_of_the_best(scores)] == 1.0)

    def bad_and_passed(scores, labels):
        best = first_of_the_best(scores)
        return float(scores[best] >= 1.0 and labels[best] != 1.0)

    assert curve.quality[draws - 1] == pytest.approx(mean_over_orders(good, draws))
    assert curve.served_bad[draws - 1] == pytest.approx(mean_over_orders(bad_and_passed, draws))
    assert curve.served_good[draws - 1] + curve.served_bad[draws - 1] == pytest.approx(
        replay_rankings(RANKINGS, "guardrail", (draws,), (1.0,)).accepted.mean()
    )


@pytest.mark.parametrize("schedule", [(1, 1, 1, 1, 1), (2, 3), (2, 2), (4,)])
def test_the_accelerators_oracle_stops_where_the_best_first_appears(schedule):
    ends = np.cumsum(schedule)

    def cost(scores, labels):
        return float(ends[np.searchsorted(ends, first_of_the_best(scores) + 1)])

    profile = GuardProfile(mode="accelerator", schedule=schedule, thresholds=(0.0,) * len(schedule))
    assert clairvoyant_draws(RANKINGS, profile) == pytest.approx(mean_over_orders(cost, sum(schedule)))


def test_the_guardrails_oracle_gives_up_after_the_first_loop():
    def cost(scores, labels):
        passed = [end for end in (2, 4) if max(-9.0 if math.isnan(score) else score for score in scores[:end]) >= 2.0]
        return float(passed[0] if passed else 2)

    profile = GuardProfile(mode="guardrail", schedule=(2, 2), thresholds=(2.0, 2.0))
    assert clairvoyant_draws(RANKINGS, profile) == pytest.approx(mean_over_orders(cost, 4))


@pytest.mark.parametrize("transform", [ScoreTransform(), ScoreTransform(a=2.0, b=-1.0)])
@pytest.mark.parametrize("labelled", ["all", "part", "none"])
def test_every_position_of_the_slider_is_the_replay_of_its_thresholds(labelled, transform):
    log, chance = Population(size=8).log(300, 3), np.random.default_rng(0)
    if labelled != "all":
        log.labels[:] = np.where(chance.random(log.labels.shape) < (0.5 if labelled == "part" else 0.0), log.labels, NAN)
    profile = GuardProfile(mode="guardrail", schedule=(2, 2, 4), thresholds=(math.inf, 0.7, 0.4), score_transform=transform)
    found = slider(log, profile, replay_log(log, profile))
    thresholds, figures = found["thresholds"], found["figures"]
    assert thresholds[found["at"]] == profile.thresholds
    assert np.all(np.diff([each[1] for each in thresholds]) > 0)
    for position in range(0, len(thresholds), 9):
        moved = replay_log(log, profile.model_copy(update={"thresholds": thresholds[position]}))
        here = {key: column[position] for key, column in figures.items()}
        assert {key: moved[key] for key in here} == pytest.approx(here, abs=1e-12)
    assert figures["served"][-1] == 0
    assert max(figures["served"]) > 0.95 * figures["requests"][0]


def test_a_large_log_gets_fewer_positions_of_the_slider(monkeypatch):
    log, profile = Population(size=8).log(300, 3), GuardProfile(mode="guardrail", schedule=(2, 2, 4), thresholds=(0.5, 0.7, 0.4))
    counts = []
    for replays in (10, 40, 1e9):
        monkeypatch.setattr(sliding, "_WORK", replays * 300 * 8 * 3)
        counts.append(len(slider(log, profile, replay_log(log, profile))["thresholds"]))
    least, most = sliding.POSITIONS
    assert least <= counts[0] + 3 < 40 <= counts[1] + 3 <= 45 < counts[2] <= most + 1 == 102


def test_the_smallest_equal_n_is_the_first_that_reaches_the_guard():
    curve = fixed_n(RANKINGS, 5, -math.inf)
    profile = GuardProfile(mode="accelerator", schedule=(2, 3), thresholds=(0.0, 0.0))
    assert smallest_equal_n(curve, profile, curve.quality[1]) <= 2
    assert smallest_equal_n(curve, profile, 1.1) is None


def test_a_difference_of_two_n_is_that_of_their_qualities():
    curve = fixed_n(RANKINGS, 5, 0.0)
    difference, error = paired_difference(RANKINGS, 1, 4)
    assert difference == pytest.approx(curve.quality[3] - curve.quality[0])
    assert error > 0


def test_reliability_of_a_perfect_model_is_small_and_of_a_shifted_one_large():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(2000, 4))
    labels = (generator.random(scores.shape) < 1 / (1 + np.exp(-scores))).astype(float)
    good = reliability(log_of(scores.tolist(), labels.tolist()))
    bad = reliability(log_of((scores + 2.0).tolist(), labels.tolist()))
    assert good.error < 0.03
    assert bad.error > 0.2
    assert np.all((good.low <= good.observed) & (good.observed <= good.high))
    assert reliability(log_of([[1.0]], [[NAN]])) is None
    assert reliability(Population(size=2, digits=0).log(50, 0)).count.sum() == 100
