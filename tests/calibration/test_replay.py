"""Exact replay against the real policy on every draw order."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonmini_guard.calibration.logs import load_log
from bonmini_guard.calibration.paths import paths
from bonmini_guard.calibration.replay import block_chances, replay
from bonmini_guard.errors import InputError
from bonmini_guard.policy.policy import BelowFloor, Policy
from tests.calibration.helpers import KEYS, enumerate_orders, log_of, written

SCORES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, math.nan])
THRESHOLDS = st.sampled_from([-math.inf, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, math.inf])
FLOORS = st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 0.5, 0.7, 2.0])


@st.composite
def cases(draw):
    schedule = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda s: sum(s) <= 5)))
    size = draw(st.integers(sum(schedule), 6))
    scores = draw(st.lists(SCORES, min_size=size, max_size=size))
    labels = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size))
    thresholds = tuple(draw(THRESHOLDS) for _ in schedule)
    floors = tuple(draw(FLOORS) for _ in schedule) if draw(st.booleans()) else None
    return draw(st.sampled_from(["guardrail", "accelerator"])), schedule, scores, labels, thresholds, floors


@settings(max_examples=300, deadline=None)
@given(cases())
def test_equals_the_policy_over_all_orders(case):
    mode, schedule, scores, labels, thresholds, floors = case
    policy = Policy(mode, schedule, thresholds, **({"stop": BelowFloor(floors)} if floors else {}))
    truth = enumerate_orders(policy, scores, labels)
    exact = replay(log_of([scores], [labels]), mode, schedule, thresholds, floors)
    for key in KEYS:
        assert getattr(exact, key)[0] == pytest.approx(truth[key], abs=1e-12), key


def test_rows_of_different_length_keep_their_order():
    scores = [[1.0, 2.0, 3.0], [0.0, 1.0], [5.0, 6.0, 7.0], [9.0, 9.0]]
    exact = replay(log_of(scores, [[1.0] * len(row) for row in scores]), "guardrail", (1, 1), (2.5, 2.5))
    assert exact.accepted.tolist() == pytest.approx([2 / 3, 0.0, 1.0, 1.0])


@pytest.mark.parametrize("thresholds", [(1.0,), (1.0, 1.0, 1.0), (1.0, math.nan)])
def test_each_loop_has_a_threshold(thresholds):
    with pytest.raises(ValueError, match="threshold"):
        replay(log_of([[1.0, 0.0]], [[1.0, 0.0]]), "guardrail", (1, 1), thresholds)


def test_tied_candidates_share_their_labels():
    exact = replay(log_of([[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]), "accelerator", (3,), (math.inf,))
    assert exact.served_good[0] == pytest.approx(0.5)


def test_failed_draws_never_pass_and_count_as_drawn():
    exact = replay(log_of([[math.nan, math.nan]], [[math.nan, math.nan]]), "accelerator", (1, 1), (-math.inf, -math.inf))
    assert (exact.accepted[0] + exact.best_effort[0], exact.draws[0], exact.abstained_bad[0]) == (0.0, 2.0, 1.0)


def test_block_chances_are_hypergeometric():
    chances = block_chances(5, (2, 2))
    assert chances[0].tolist() == pytest.approx([0, 0, 1 / 10, 3 / 10, 6 / 10, 1])
    assert chances[1].tolist() == pytest.approx([0, 0, 0, 0, 1 / 3, 1])


def test_too_few_candidates_are_refused():
    with pytest.raises(InputError, match="test:1: 2 candidates, fewer than the budget of 3"):
        replay(log_of([[1.0, 2.0]], [[1.0, 1.0]]), "guardrail", (3,), (0.0,))


def test_labels_missing_in_part_are_refused():
    with pytest.raises(InputError, match="only some candidates are labelled"):
        replay(log_of([[1.0, 2.0]], [[1.0, math.nan]]), "guardrail", (2,), (0.0,))


@pytest.mark.parametrize(("cost", "spent"), [("draws", [1, 3]), ("tokens", [5, 10]), ("seconds", [2.0, 6.0])])
def test_what_loops_cost(tmp_path, cost, spent):
    told = {"tokens": [5, 2, 3], "seconds": [2.0, 4.0, 1.0]}
    drawn = [{"text": str(n), "score": 0.0, **{key: each[n] for key, each in told.items()}} for n in range(3)]
    file = written(tmp_path / "log.jsonl", [{"id": "1", "prompt": "q", "candidates": drawn}])
    log = load_log(file, cost=None if cost == "draws" else cost)
    assert paths(log, [1, 2], "logged", cost=cost).cost.tolist() == [spent]
