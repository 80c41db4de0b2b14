"""``drift``: it sees what changed, and without a change it stays silent at the stated rate."""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
import pytest
from scipy.stats import binom

from bonmini_guard.calibration.drift import FALSE_ALARM_RATE, find_drift, lower_limit
from bonmini_guard.calibration.evidence import Certificate
from bonmini_guard.calibration.guardrail import calibrate_guardrail
from bonmini_guard.calibration.martingale import conformal_p_values, jumper_capital
from bonmini_guard.calibration.traces import traces_of_rows
from bonmini_guard.commands import drift as command
from bonmini_guard.errors import ConfigurationError, InputError, ProfileError
from tests.calibration.populations import Population
from tests.calibration.watching import TRAFFIC, alarms, calibrated, guarded


def look(profile, log, **options):
    rows = ((f"test:{number}", row) for number, row in enumerate(guarded(profile, log, **options), start=1))
    return find_drift(profile, traces_of_rows(rows, profile))


def found(drift):
    return {finding.test for finding in drift.findings if finding.found}


def test_the_same_traffic_is_no_drift():
    drift = look(calibrated(), TRAFFIC.log(400, 12345))
    assert not drift.drift
    assert {finding.test for finding in drift.findings} == {
        "first_loop_scores",
        "first_loop_scores_over_time",
        "abstentions",
        "labels",
    }


def test_harder_traffic_is_found():
    drift = look(calibrated(), Population(size=4, middle=-1.0).log(400, 12345))
    assert {"first_loop_scores", "first_loop_scores_over_time", "abstentions"} <= found(drift)
    assert "calibrate anew" in drift.todo


def test_a_change_on_the_way_is_dated():
    profile = calibrated()
    rows = [*guarded(profile, TRAFFIC.log(500, 1)), *guarded(profile, Population(size=4, middle=-1.5).log(300, 2))]
    pairs = ((f"test:{i}", {**row, "id": str(i)}) for i, row in enumerate(rows))
    over_time = next(
        f for f in find_drift(profile, traces_of_rows(pairs, profile)).findings if f.test == "first_loop_scores_over_time"
    )
    assert over_time.found
    place = int(over_time.what.split("at trace ")[1].split()[0])
    assert 500 < place < 700


def test_a_scorer_that_is_fooled_is_found_by_its_labels():
    log = TRAFFIC.log(400, 3)
    fooled = TRAFFIC.log(400, 3)
    fooled.labels[:] = np.where(np.random.default_rng(0).random(log.labels.shape) < 0.5, 0.0, log.labels)
    assert not look(calibrated(), log).drift
    assert found(look(calibrated(), fooled)) == {"labels"}


@pytest.mark.parametrize("risk", ["bad_among_served", "false_acceptance"])
def test_labels_are_compared_for_the_risks_that_are_shares(risk):
    outcome = calibrate_guardrail(TRAFFIC.log(600, 0), schedule=(2, 2), risk=risk, alpha=0.25)
    assert isinstance(outcome, Certificate)
    wrong = TRAFFIC.log(400, 3)
    wrong.labels[:] = 0.0
    assert "labels" not in found(look(outcome.profile, TRAFFIC.log(400, 3)))
    assert "labels" in found(look(outcome.profile, wrong))


def test_other_parts_are_drift_without_a_test():
    profile = calibrated().model_copy(update={"fingerprints": {"reward_model": "a", "generator": "b"}})
    log = TRAFFIC.log(200, 12345)
    assert found(look(profile, log, scored_by="other", generated_by="b")) == {"fingerprints"}
    assert not look(profile, log, scored_by="a", generated_by="b").drift


def test_the_transform_is_applied_to_raw_scores():
    profile = calibrated()
    moved = profile.model_copy(update={"score_transform": profile.score_transform.model_copy(update={"b": -5.0})})
    assert "first_loop_scores" in found(look(moved, TRAFFIC.log(200, 12345)))


def test_what_cannot_be_compared_is_counted():
    profile = calibrated()
    row = next(guarded(profile, TRAFFIC.log(1, 0)))
    rows = [
        row,
        row,
        {**row, "id": "a", "group": "g"},
        {**row, "id": "b", "group": "g"},
        {**row, "id": "c", "candidates": row["candidates"][:1], "selected": 0},
        {**row, "id": "d", "candidates": [{"text": "x", "score": None}] * 2},
    ]
    traces = traces_of_rows([(f"test:{i}", row) for i, row in enumerate(rows)], profile)
    assert len(traces.traces) == 2
    assert traces.left_out == {"duplicate": 1, "same_group": 1, "unfinished": 1, "unscored": 1}


def test_what_is_wrong_is_refused(tmp_path):
    profile = calibrated()
    row = next(guarded(profile, TRAFFIC.log(1, 0)))
    with pytest.raises(InputError, match='"selected" is 7'):
        traces_of_rows([("test:1", {**row, "selected": 7, "decision": "accepted"})], profile)
    with pytest.raises(ProfileError, match="eager"):
        traces_of_rows([], profile.model_copy(update={"exit": "eager"}))
    with pytest.raises(ProfileError, match="no reference"):
        look(profile.model_copy(update={"reference": ()}), TRAFFIC.log(5, 0))
    with pytest.raises(ConfigurationError, match="false_alarm_rate"):
        find_drift(profile, traces_of_rows([("test:1", row)], profile), false_alarm_rate=0.0)


def test_the_command_exits_4_and_prints_what_to_do(tmp_path, capsys):
    profile = calibrated()
    profile.save(tmp_path / "profile.json")
    same, other = tmp_path / "same.jsonl", tmp_path / "other.jsonl"
    same.write_text("".join(json.dumps(row) + "\n" for row in guarded(profile, TRAFFIC.log(300, 9))))
    other.write_text("".join(json.dumps(row) + "\n" for row in guarded(profile, Population(size=4, middle=-1).log(300, 9))))

    def call(*arguments):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        return command.run(parser.parse_args([str(argument) for argument in arguments]))

    assert call(tmp_path / "profile.json", same) == 0
    assert "no drift found in 300 traces" in capsys.readouterr().out
    assert call(tmp_path / "profile.json", other) == 4
    said = capsys.readouterr().out
    assert "CHANGED" in said
    assert "what to do: " in said
    assert call(tmp_path / "profile.json", other, "--json") == 4
    assert json.loads(capsys.readouterr().out)["drift"] is True
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="no row has a whole"):
        call(tmp_path / "profile.json", tmp_path / "empty.jsonl")


def test_smoothed_ranks_are_uniform_with_ties():
    generator = np.random.default_rng(0)
    reference, scores = generator.integers(0, 3, 500).tolist(), generator.integers(0, 3, 2000).tolist()
    p_values = np.sort(conformal_p_values(reference, scores, generator))
    assert np.max(np.abs(p_values - np.arange(1, 2001) / 2000)) < 0.05


def test_the_capital_is_a_martingale():
    p_values = np.random.default_rng(0).random((4000, 5))
    capitals = [math.exp(jumper_capital(row)[-1]) for row in p_values]
    assert np.mean(capitals) == pytest.approx(1.0, abs=0.02)


def test_lower_limit_is_clopper_pearson():
    assert lower_limit(0, 10, 0.05) == 0.0
    assert lower_limit(10, 10, 0.05) == pytest.approx(0.05 ** (1 / 10))
    assert binom.sf(3 - 1, 20, lower_limit(3, 20, 0.05)) == pytest.approx(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("population", [TRAFFIC, Population(size=4, digits=0)], ids=["smooth", "ties"])
def test_the_stated_false_alarm_rate_is_kept(population):
    repeats = 250
    heard = alarms(population, population, repeats, (0.05, FALSE_ALARM_RATE))
    for rate, number in heard.items():
        assert number <= binom.ppf(0.999, repeats, rate)
