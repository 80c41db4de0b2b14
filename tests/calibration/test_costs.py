"""Tokens and seconds in place of draws."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from bonmini_guard.calibration.accelerator import calibrate_accelerator
from bonmini_guard.calibration.costs import expected_cost, loop_prices
from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence
from bonmini_guard.calibration.logs import load_log
from bonmini_guard.calibration.ranking import rank
from bonmini_guard.calibration.replay import replay
from bonmini_guard.errors import InputError
from tests.calibration.populations import Population

BASE = Population(size=8).log(300, 0)
LOG = replace(BASE, costs=np.random.default_rng(0).gamma(2.0, 50.0, BASE.scores.shape))


def test_prices_are_means_and_expected_maxima():
    tokens, seconds = (loop_prices(LOG, (2, 6), cost) for cost in ("tokens", "seconds"))
    assert tokens[0] == pytest.approx([2 * LOG.costs[0].mean(), 6 * LOG.costs[0].mean()])
    assert seconds[0, 0] == pytest.approx(np.mean([max(pair) for pair in combinations(LOG.costs[0], 2)]))
    with pytest.raises(InputError, match="was read without"):
        loop_prices(BASE, (2, 6), "tokens")


def test_a_price_of_one_a_draw_is_draws():
    schedule, thresholds = (2, 2, 4), (1.0, 0.5, 0.0)
    rankings = rank(LOG.scores, LOG.labels, LOG.counts)
    cost = expected_cost(rankings, schedule, thresholds, loop_prices(LOG, schedule, "draws"))
    np.testing.assert_allclose(cost, replay(LOG, "accelerator", schedule, thresholds).draws)


def test_the_accelerator_saves_what_it_is_asked_to():
    outcome = calibrate_accelerator(LOG, schedule=(4, 4), epsilon=0.1, cost="tokens", search=True)
    assert isinstance(outcome, Certificate)
    assert outcome.profile.evidence["mean_cost"] < outcome.profile.evidence["cost_of_best_of_n"]
    assert "tokens instead of" in outcome.sentence
    even = replace(BASE, costs=np.ones(BASE.scores.shape))  # every draw takes a second: one big loop is the fastest
    slow = calibrate_accelerator(even, schedule=(4, 4), epsilon=0.1, cost="seconds")
    assert isinstance(slow, NotEnoughEvidence)
    assert "no early exit saves any seconds" in slow.sentence


def test_costs_are_read_and_required(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"id": "a", "candidates": [{"score": 1.0, "tokens": 7}, {"score": null, "failed": true}]}\n')
    np.testing.assert_array_equal(load_log(path, cost="tokens").costs, [[7.0, 0.0]])
    with pytest.raises(InputError, match='"seconds" of candidate 1 is None'):
        load_log(path, cost="seconds")


def test_where_nothing_costs_anything_there_is_nothing_to_save():
    with pytest.raises(InputError, match="all tokens are 0, so that there is nothing to save"):
        calibrate_accelerator(replace(LOG, costs=0 * LOG.costs), schedule=(4, 4), epsilon=0.1, cost="tokens")
