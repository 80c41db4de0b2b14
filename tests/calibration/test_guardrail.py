"""The guardrail's choice of thresholds: what is certified, and what is refused with which sentence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bonmini_guard.calibration.enough import further_prompts
from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence, split_units
from bonmini_guard.calibration.guardrail import calibrate_guardrail
from bonmini_guard.calibration.replay import replay
from bonmini_guard.calibration.sequence import run_blocks, run_totals
from bonmini_guard.errors import ConfigurationError, InputError
from tests.calibration.helpers import log_of
from tests.calibration.populations import Population


def perfect(prompts, candidates=2):
    """Scores -n..n, acceptable exactly above 0."""
    scores = np.arange(prompts * candidates).reshape(prompts, candidates) - prompts + 0.25
    return log_of(scores.tolist(), (scores > 0).astype(float).tolist())


def test_the_threshold_is_the_midpoint_below_the_laxest_certified_score():
    log = log_of([[float(i)] for i in range(100)], [[float(i >= 50)] for i in range(100)])
    outcome = calibrate_guardrail(log, schedule=(1,), alpha=0.1, delta=0.1)
    assert isinstance(outcome, Certificate)
    # P(Bin(100, 0.1) <= 5) = 0.058, <= 6 = 0.117: five bad answers may pass
    assert outcome.profile.thresholds == (44.5,)
    assert outcome.profile.evidence["bound"] == "binomial"


def test_a_log_where_everything_is_good_is_served_whole():
    outcome = calibrate_guardrail(log_of([[1.0, 2.0]] * 100, [[1.0, 1.0]] * 100), schedule=(1, 1))
    assert isinstance(outcome, Certificate)
    assert outcome.profile.evidence["served"] == pytest.approx(100)
    assert outcome.profile.thresholds[0] < 1.0


def test_groups_are_the_units():
    base = Population(size=1).log(200, 0)
    doubled = log_of(
        np.repeat(base.scores, 50, axis=0).tolist(), np.repeat(base.labels, 50, axis=0).tolist(), np.repeat(np.arange(200), 50)
    )
    alone = calibrate_guardrail(base, schedule=(1,), alpha=0.1, bound="betting")
    groups = calibrate_guardrail(doubled, schedule=(1,), alpha=0.1, bound="betting")
    assert isinstance(alone, Certificate)
    assert isinstance(groups, Certificate)
    assert groups.profile.evidence["units"] == 200
    assert groups.profile.thresholds == pytest.approx(alone.profile.thresholds)


def grouped(groups=300, turns=4):
    """Conversations whose first turn is easy and whose further ones are hard: bad answers with high scores."""
    generator = np.random.default_rng(0)
    codes = np.repeat(np.arange(groups), turns)
    hard = np.tile(np.arange(turns) > 0, groups)
    labels = (generator.random((codes.size, 2)) > 0.2 * hard[:, None]).astype(float)
    return log_of((generator.random((codes.size, 2)) - 0.6 * hard[:, None]).tolist(), labels.tolist(), codes.tolist())


def test_with_groups_the_sentence_and_the_reference_of_drift_are_those_of_groups():
    log = grouped()
    certificate = calibrate_guardrail(log, schedule=(1, 1), alpha=0.03)
    assert "Of 10,000 requests like these, each from another group, you would serve" in certificate.sentence
    first = certificate.profile.evidence["first_of_groups"]
    settled = replay(log, "guardrail", (1, 1), certificate.profile.thresholds)
    assert first["requests"] == 300
    assert first["abstained"] == pytest.approx((1 - settled.served)[::4].sum())
    assert first["abstained"] / 300 < certificate.profile.evidence["abstained"] / 1200 - 0.1
    alone = calibrate_guardrail(log_of(log.scores.tolist(), log.labels.tolist()), schedule=(1, 1), alpha=0.03)
    assert "another group" not in alone.sentence


def test_a_random_request_of_a_group_is_what_is_promised():
    """Long conversations are worse; each still counts once."""
    sizes = np.repeat([1, 9], 100)
    codes, bad = np.repeat(np.arange(200), sizes), np.repeat(sizes == 9, sizes)
    bad &= np.arange(codes.size) % 2 == 0
    log = log_of([[1.0]] * codes.size, [[float(not one)] for one in bad], codes.tolist())
    sentence = calibrate_guardrail(log, schedule=(1,), alpha=0.4).sentence
    assert "(2,500 at the rates of this log)" in sentence  # not the 4,500 of all rows


def test_what_more_is_needed_is_told_in_groups():
    refused = calibrate_guardrail(grouped(groups=20), schedule=(1, 1), alpha=0.05)
    assert "the test saw 20 labelled groups of prompts; about" in refused.sentence


def test_what_more_is_needed_counts_what_a_search_spends(monkeypatch):
    monkeypatch.setattr("bonmini_guard.calibration.guardrail.further_prompts", lambda *_: 30)
    options = {"schedule": (1, 1), "alpha": 0.05}
    found = [calibrate_guardrail(grouped(turns=1, groups=20), **options, search=search).further for search in (False, True)]
    assert found == [30, 50]  # two fifths of further prompts, as of these, go into the search


def test_whole_groups_go_to_one_side_of_the_split():
    groups = np.repeat(np.arange(20), 3)
    fit, certify = split_units(groups, 0.4, np.random.default_rng(0))
    assert len(fit) == 24
    assert not set(groups[fit]) & set(groups[certify])
    assert sorted([*fit, *certify]) == list(range(60))


def test_offsets_and_floors_reach_the_profile():
    outcome = calibrate_guardrail(
        Population(size=4).log(200, 1), schedule=(2, 2), alpha=0.1, offsets=(0.5, 0.0), floors=(-1.0, -math.inf)
    )
    assert isinstance(outcome, Certificate)
    first, second = outcome.profile.thresholds
    assert first - second == pytest.approx(0.5)
    assert outcome.profile.hopeless == (-1.0, -math.inf)


def test_the_seed_repeats_the_result():
    log = Population(size=4).log(300, 1)
    first, second = (calibrate_guardrail(log, schedule=(2, 2), risk="bad_among_served", alpha=0.2, seed=7) for _ in range(2))
    assert isinstance(first, Certificate)
    assert isinstance(second, Certificate)
    assert first.profile.thresholds == second.profile.thresholds


def test_too_few_prompts_names_a_number_that_suffices():
    few = calibrate_guardrail(perfect(20), schedule=(2,), alpha=0.05)
    assert isinstance(few, NotEnoughEvidence)
    assert few.further is not None
    assert f"about {few.further} further" in few.sentence
    assert isinstance(calibrate_guardrail(perfect(20 + few.further), schedule=(2,), alpha=0.05), Certificate)


def test_a_hopeless_scorer_is_told_that_no_number_would_do():
    log = log_of([[1.0]] * 200, [[0.0]] * 200)
    for risk in ("served_and_bad", "bad_among_served", "false_acceptance"):
        outcome = calibrate_guardrail(log, schedule=(1,), risk=risk, alpha=0.1)
        assert isinstance(outcome, NotEnoughEvidence)
        assert outcome.further is None
        assert "100 % of" in outcome.sentence
        assert "\n" not in outcome.sentence


def test_a_certificate_must_rest_on_some_served_answers():
    scores = [[0.0]] * 198 + [[1.0]] * 2
    outcome = calibrate_guardrail(log_of(scores, [[0.0]] * 198 + [[1.0]] * 2), schedule=(1,), alpha=0.05)
    assert isinstance(outcome, NotEnoughEvidence)
    assert outcome.further == 300
    assert "serves 2.0 of the 200 prompts" in outcome.sentence


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0.0},
        {"alpha": math.nan},
        {"delta": 1.0},
        {"risk": "none"},
        {"bound": "none"},
        {"bound": "binomial"},
        {"schedule": ()},
        {"offsets": (0.0,)},
    ],
)
def test_wrong_arguments_are_refused(changes):
    with pytest.raises(ConfigurationError):
        calibrate_guardrail(Population(size=4).log(30, 0), **{"schedule": (1, 1), **changes})


def test_labels_and_budget_are_required():
    with pytest.raises(InputError, match="no candidate is labelled"):
        calibrate_guardrail(log_of([[1.0]], [[math.nan]]), schedule=(1,))
    with pytest.raises(InputError, match="fewer than the budget"):
        calibrate_guardrail(perfect(20), schedule=(3,))


def test_a_log_of_failed_draws_is_refused():
    lost = log_of([[math.nan]] * 60, [[math.nan]] * 60)
    for risk in ("served_and_bad", "bad_among_served"):
        with pytest.raises(InputError, match="every draw failed"):
            calibrate_guardrail(lost, schedule=(1,), risk=risk)


def test_a_sequence_stops_at_its_first_failure():
    p_values = np.array([0.5, 0.01, 0.02, 0.3, 0.01])
    assert run_totals(p_values, 1, 0.1).last == 2
    assert run_totals(p_values, 0, 0.1).last is None
    for width in (1, 2, 3, 10):
        run = run_blocks(lambda begin, end: p_values[begin:end], 5, 1, 0.1, width)
        assert (run.last, run.p_value, run.tested) == (2, 0.02, 3)
        assert run_blocks(lambda begin, end: p_values[begin:end], 5, 0, 0.1, width).last is None
        assert run_blocks(lambda begin, end: p_values[begin:end], 5, 4, 0.1, width).last == 4


@pytest.mark.parametrize("bound", ["betting", "hoeffding_bentkus"])
def test_further_prompts_is_enough_and_not_far_too_much(bound):
    losses = np.zeros(10)
    assert further_prompts(losses, 0.05, 0.1, bound) == pytest.approx(36, abs=3)  # log(0.1) / log(0.95) = 44.9
    assert further_prompts(np.full(10, 0.06), 0.05, 0.1, bound) is None
