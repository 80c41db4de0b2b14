"""The experiment's own arithmetic, by hand on small cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.imdb.choices import simulate
from benchmarks.imdb.evaluate import accept_reject
from benchmarks.imdb.figures import Drawn, figures, replay
from benchmarks.imdb.reviews import clean, read_split
from benchmarks.imdb.sentiment import SentimentTruth
from benchmarks.imdb.thresholds import accelerator_threshold, guard_thresholds, schedule
from bonmini_guard.policy.policy import accelerator, best_of_n, guardrail

DRAWN = Drawn(
    scores=np.array([[-1.0, 2.0, 1.0, 3.0], [-2.0, -1.0, 0.5, -3.0], [-1.0, -2.0, -3.0, -4.0]]),
    acceptable=np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]),
    utility=np.array([[-1.0, 2.0, -1.0, -2.0], [-1.0, -1.0, -3.0, -1.0], [0.5, -1.0, -1.0, -1.0]]),
    tokens=np.full((3, 4), 10.0),
)


def test_replay_follows_the_policy_through_the_draws_in_order():
    outcomes = replay(guardrail([2, 2], 0.0), DRAWN)
    assert outcomes.served.tolist() == [1.0, 1.0, 0.0]
    assert outcomes.acceptable.tolist() == [1.0, 0.0, 1.0]
    assert outcomes.draws.tolist() == [2.0, 4.0, 4.0]
    assert outcomes.tokens.tolist() == [20.0, 40.0, 40.0]
    assert outcomes.best_acceptable.tolist() == [0.0, 0.0, 1.0]


def test_figures_are_the_definitions():
    values = {name: value[0] for name, value in figures(replay(guardrail([2, 2], 0.0), DRAWN)).items()}
    assert values["false acceptances"] == pytest.approx(1.0)
    assert values["false-acceptance rate"] == 1.0  # one unacceptable selection, served
    assert values["served-and-bad rate"] == pytest.approx(1 / 3)
    assert values["precision"] == 0.5
    assert values["recall"] == 0.5
    assert values["recall vs best-of-N"] == 1.0
    assert values["mean true reward"] == pytest.approx((2.0 - 3.0) / 2)
    assert values["draws"] == pytest.approx(10 / 3)


def test_best_of_n_at_zero_withholds_below_zero():
    assert replay(best_of_n(4), DRAWN, 0.0).served.tolist() == [1.0, 1.0, 0.0]
    assert replay(accelerator([4], math.inf), DRAWN).served.tolist() == [1.0, 1.0, 1.0]


def test_intervals_hold_the_value():
    for value, low, high in figures(replay(accelerator([2, 2], 0.0), DRAWN)).values():
        assert math.isnan(value) or low <= value <= high


def test_thresholds_keep_what_they_promise_where_they_were_chosen():
    random = np.random.default_rng(0)
    utility = random.normal(size=(300, 32)) + random.normal(size=(300, 1))
    drawn = Drawn(utility + random.normal(size=utility.shape), (utility > 1).astype(float), utility, np.ones_like(utility))
    strict = replay(guardrail(schedule(32), guard_thresholds(drawn, 32, 32)), drawn)
    loose = replay(best_of_n(32), drawn, 0.0)

    def rate(o):
        return (o.served * (1 - o.acceptable)).sum() / (1 - o.acceptable).sum()

    assert 0 < rate(strict) <= 0.25 * rate(loose)
    fast = replay(accelerator(schedule(32), accelerator_threshold(drawn, 32)), drawn)
    assert fast.acceptable.mean() >= replay(best_of_n(32), drawn).acceptable.mean() - 0.005
    assert fast.draws.mean() < 32


def test_accept_reject_of_a_perfect_and_of_a_shifted_model():
    utility = np.linspace(-1, 1, 40).reshape(4, 10)
    perfect = accept_reject(Drawn(utility, (utility > 0).astype(float), utility, utility))
    shifted = accept_reject(Drawn(utility + 5, (utility > 0).astype(float), utility, utility))
    assert perfect == {"accuracy at 0": 1.0, "balanced accuracy at 0": 1.0, "AUC": 1.0}
    assert shifted == {"accuracy at 0": 0.5, "balanced accuracy at 0": 0.5, "AUC": 1.0}


def test_simulated_choices_follow_the_multinomial_logit():
    utilities, labellers = np.array([1.0, -0.5]), 200_000
    counts = simulate(utilities, labellers, np.random.default_rng(0))
    weights = np.exp([1.0, -0.5, 0.0])
    for choice, share in zip((0, 1, "none"), weights / weights.sum(), strict=True):
        assert counts[choice] / labellers == pytest.approx(share, abs=0.005)


def test_the_truth_survives_saving(tmp_path):
    truth = SentimentTruth(
        {"good": 0, "bad": 1}, np.array([1.0, 2.0], np.float32), np.array([1.5, -1.5], np.float32), 0.25, 2.0, 0.5
    )
    truth.save(tmp_path)
    again = SentimentTruth.load(tmp_path)
    assert again.log_odds(["good", "bad", "good bad", "unknown"]).tolist() == pytest.approx(
        [1.75, -1.25, 0.25 + (1.5 - 3.0) / math.sqrt(5), 0.25], abs=1e-6
    )
    assert again.utilities(["good"])[0] == pytest.approx(2.5)


def test_reviews_are_read_from_the_original_folders_too(tmp_path):
    for split, label, name, text in (
        ("train", "pos", "1_9.txt", "Fine<br /><br />film"),
        ("train", "neg", "2_1.txt", "Bad &amp; long"),
    ):
        folder = tmp_path / split / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    assert {(review.text, review.label) for review in read_split(tmp_path, "train")} == {("Fine film", 1), ("Bad & long", 0)}
    with pytest.raises(FileNotFoundError, match="pass its folder as --data"):
        read_split(tmp_path / "nowhere", "test")
    assert clean("a <br/>\n b") == "a b"
