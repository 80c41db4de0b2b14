"""Functions as reward models: what their scores mean, and what a score is."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from langchain_core.messages import AIMessage, HumanMessage

from bonmini_guard import BestOfMiniN, reward_function
from bonmini_guard.engine.scorers import CallableScorer, as_scores
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.reward.declared import as_scorer
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

quiet = pytest.mark.filterwarnings("ignore:uncalibrated")


def guard(reward_model, **options):
    return BestOfMiniN(generator=FakeGenerator(["one", "two"]), reward_model=reward_model, **{"schedule": [2], **options})


def high(messages, candidates):
    return [21.0] * len(candidates)


# A zero is there only if somebody says so


def test_a_function_that_says_nothing_runs_and_gives_no_probability():
    with pytest.warns(UserWarning, match="uncalibrated: threshold 0 .* is a guess .*calibrate.*has_zero=True"):
        made = guard(high)
    result = made.run("q")
    assert (result.decision, result.score, result.acceptance_probability) == ("accepted", 21.0, None)


def test_a_threshold_of_ones_own_is_no_guess():
    with pytest.warns(UserWarning, match="uncalibrated: threshold 3 promises nothing") as caught:
        made = guard(high, threshold=3.0)
    assert "guess" not in str(caught[0].message)
    assert made.run("q").acceptance_probability is None


@quiet
@pytest.mark.parametrize("how", ["decorator", "attribute"])
def test_a_function_with_a_zero(how):
    def judge(messages, candidates):
        return [0.0 for _ in candidates]

    if how == "attribute":
        judge.has_zero = True
    made = guard(reward_function(has_zero=True)(judge) if how == "decorator" else judge, threshold=-1.0)
    assert made.run("q").acceptance_probability == pytest.approx(0.5)


def test_a_function_that_only_ranks_does_not_guard():
    with pytest.raises(ConfigurationError, match="Bradley-Terry"):
        guard(reward_function(has_zero=False)(high))


@quiet
def test_a_scorer_object_that_says_nothing_has_no_zero():
    silent = SimpleNamespace(session=FakeRewardModel(lambda text: 2.0).session)
    assert guard(silent).run("q").acceptance_probability is None


def test_a_decorated_function_is_still_called_as_one():
    assert reward_function(has_zero=True)(high)([HumanMessage("q")], [AIMessage("a")]) == [21.0]


# Probabilities


@quiet
def test_probabilities_become_their_log_odds():
    @reward_function(has_zero=True, scale="probability")
    def judge(messages, candidates):
        return [{"one": 0.2, "two": 0.9}[candidate.text] for candidate in candidates]

    result = guard(judge).run("q")
    assert (result.message.text, result.acceptance_probability) == ("two", pytest.approx(0.9))
    assert result.candidates[0].score == pytest.approx(math.log(0.2 / 0.8))


@quiet
@pytest.mark.parametrize(("score", "limit"), [(0.0, -17), (1.0, 17)])
def test_certain_probabilities_are_finite(score, limit):
    result = guard(reward_function(scale="probability")(lambda m, c: [score] * len(c)), mode="accelerator").run("q")
    assert abs(result.score) < abs(limit)
    assert result.score * limit > 0


@quiet
def test_what_was_declared_a_probability_and_is_none_fails_the_scorer():
    result = guard(reward_function(scale="probability")(lambda m, c: [1.5] * len(c))).run("q")
    assert (result.decision, result.reason) == ("abstained", "scorer_failed")


def test_an_unknown_scale():
    with pytest.raises(ConfigurationError, match="use 'raw' or 'probability'"):
        reward_function(scale="percent")(high)


@quiet
def test_scores_that_look_like_probabilities_are_told_once():
    made = guard(lambda m, c: [0.1, 0.2][: len(c)])
    with pytest.warns(UserWarning, match="scale='probability'"):
        made.run("q")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.run("q")


@quiet
@pytest.mark.parametrize(
    ("scorer", "options"),
    [
        (lambda m, c: [0.1, -0.2][: len(c)], {}),
        (lambda m, c: [0.1] * len(c), {"threshold": 0.5}),
        (reward_function(scale="raw")(lambda m, c: [0.1] * len(c)), {}),
        (reward_function(scale="probability")(lambda m, c: [0.6] * len(c)), {}),
    ],
)
def test_nobody_is_warned_of_other_scores(scorer, options):
    made = guard(scorer, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.run("q")


# What a score is


@pytest.mark.parametrize("given", [[1.5, -2.0], (1.5, -2), np.array([1.5, -2.0], dtype=np.float32), iter([1.5, -2.0])])
def test_scores_are_floats_in_order(given):
    scores = as_scores(given, 2)
    assert (scores, {type(score) for score in scores}) == ([1.5, -2.0], {float})


def test_a_missing_score_stays_missing():
    assert as_scores([None, 1.0], 2) == [None, 1.0]


@quiet
@pytest.mark.parametrize(
    "given",
    [
        [False, False],
        np.array([True, True]),
        [np.bool_(True)] * 2,
        {0: 1.0, 1: 2.0},
        {1.0, 2.0},
        "11",
        b"11",
        ["1.0", "1.0"],
        [1j, 1j],
        [[1.0], [1.0]],
        np.array([[1.0], [1.0]]),
        [10**400, 10**400],
        [1.0],
        [1.0, 1.0, 1.0],
        None,
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_no_list_of_floats_fails_the_scorer(given, is_async):
    async def later(messages, candidates):
        return given

    scorer = later if is_async else (lambda messages, candidates: given)
    result = guard(scorer, threshold=-10.0).run("q")
    assert (result.decision, result.reason) == ("abstained", "scorer_failed")


def test_as_scorer_takes_what_scores():
    assert isinstance(as_scorer(high), CallableScorer)
    scorer = as_scorer(high)
    assert as_scorer(scorer) is scorer
    with pytest.raises(ConfigurationError, match="callable"):
        as_scorer(3)
