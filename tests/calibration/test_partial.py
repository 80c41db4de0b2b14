"""Partial labels become estimates that say so; scores without a zero get an average one, with the spread around it."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from bonmini_guard.calibration.figures import replay_log
from bonmini_guard.calibration.partial import average_zero, with_expected_labels
from bonmini_guard.calibration.replay import replay
from bonmini_guard.commands import calibrate as command
from bonmini_guard.commands import replay as replay_command
from bonmini_guard.commands import report as report_command
from bonmini_guard.errors import InputError
from bonmini_guard.profile import GuardProfile
from tests.calibration.helpers import log_of, rows_of
from tests.calibration.populations import Population

TRUTH = Population(size=4).log(600, 0)


def some_labels(share, seed=0):
    labels = np.where(np.random.default_rng(seed).random(TRUTH.labels.shape) < share, TRUTH.labels, np.nan)
    return log_of(TRUTH.scores.tolist(), labels.tolist())


def test_expected_labels_are_close_to_the_truth_and_keep_what_is_known():
    partial = some_labels(0.3)
    estimated = with_expected_labels(partial)
    known = np.isfinite(partial.labels)
    assert np.array_equal(estimated.log.labels[known], TRUTH.labels[known])
    assert (estimated.labelled, estimated.labelled + estimated.modelled) == (known.sum(), TRUTH.labels.size)
    assert np.all((estimated.log.labels >= 0) & (estimated.log.labels <= 1))
    truth, guess = (replay(log, "guardrail", (2, 2), (0.5, 0.5)).served_bad.mean() for log in (TRUTH, estimated.log))
    assert guess == pytest.approx(truth, abs=0.02)
    assert "nothing is promised" in estimated.sentence


def test_a_label_does_not_explain_its_own_prompt():
    partial = some_labels(0.5)
    before = with_expected_labels(partial).log.labels[0]
    flipped = partial.labels.copy()
    flipped[0] = 1.0 - flipped[0]
    after = with_expected_labels(log_of(partial.scores.tolist(), flipped.tolist())).log.labels[0]
    missing = np.isnan(partial.labels[0])
    np.testing.assert_array_equal(before[missing], after[missing])


def test_too_few_labels_are_refused():
    for log in (some_labels(0.001), log_of([[1.0]] * 50, [[1.0]] * 50)):
        with pytest.raises(InputError, match="too few to model"):
            with_expected_labels(log)
    with pytest.raises(InputError, match="higher scores are not more often acceptable"):
        average_zero(log_of((-TRUTH.scores).tolist(), TRUTH.labels.tolist()))


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_the_average_zero_and_the_spread_of_the_offsets_are_found(spread):
    generator = np.random.default_rng(0)
    utility = 2.0 * generator.normal(size=(1500, 8))
    offsets = spread * generator.normal(size=(1500, 1))
    labels = (generator.random(utility.shape) < 1 / (1 + np.exp(-utility - offsets))).astype(float)
    zero = average_zero(log_of((10 * utility + 40).tolist(), labels.tolist()))
    assert -zero.transform.b / zero.transform.a == pytest.approx(40.0, abs=1.5)
    assert zero.offsets == pytest.approx(spread, abs=0.35)
    assert "for most prompts, not 50 %" in zero.sentence


def call(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(["--mode", "guardrail", *map(str, arguments)]))


def test_the_command_promises_nothing_on_estimates_and_writes_the_transform(tmp_path, capsys):
    log, output = tmp_path / "log.jsonl", tmp_path / "profile.json"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows_of(some_labels(0.5))))
    with pytest.raises(InputError, match="only some candidates are labelled"):
        call(log, "-o", output, "--alpha", 0.2)
    assert call(log, "-o", output, "--alpha", 0.2, "--estimate-labels") == 0
    said = capsys.readouterr().out
    assert said.startswith("An estimate, not a promise")
    assert "confidence" not in said
    profile = GuardProfile.load(output)
    assert profile.delta is None
    assert "estimate" in profile.evidence["estimated"]
    whole = tmp_path / "whole.jsonl"
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows_of(TRUTH)))
    assert call(whole, "-o", output, "--alpha", 0.2) == 0
    plain = GuardProfile.load(output)
    assert call(whole, "-o", output, "--alpha", 0.2, "--fit-zero") == 0
    fitted = GuardProfile.load(output)
    assert "average zero" in capsys.readouterr().out
    assert fitted.score_transform(plain.thresholds[0]) == pytest.approx(fitted.thresholds[0])
    assert fitted.delta == 0.1


def told(which, *arguments):
    parser = argparse.ArgumentParser()
    which.add_arguments(parser)
    return which.run(parser.parse_args([str(argument) for argument in arguments]))


def test_replay_and_report_say_that_modelled_labels_are_estimates(tmp_path, capsys):
    log, profile = tmp_path / "log.jsonl", tmp_path / "profile.json"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows_of(some_labels(0.5))))
    GuardProfile(mode="guardrail", schedule=(2, 2), thresholds=(0.5, 0.5)).save(profile)
    with pytest.raises(InputError, match="only some candidates are labelled"):
        told(replay_command, log, "--profile", profile)
    assert told(replay_command, log, "--profile", profile, "--json", "--estimate-labels") == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert "nothing is promised" in figures["estimated"]
    assert "estimate" in said.err
    truth = replay_log(TRUTH, GuardProfile.load(profile))
    assert figures["served"] == pytest.approx(truth["served"])  # what needs no label is exact
    assert figures["served_and_bad_rate"] == pytest.approx(truth["served_and_bad_rate"], abs=0.05)
    page = tmp_path / "report.html"
    assert told(report_command, log, "--profile", profile, "-o", page, "--estimate-labels") == 0
    text = page.read_text()
    assert "as estimated from partial labels" in text
    assert "nothing is promised" in text
    labelled = int(np.isfinite(some_labels(0.5).labels).sum())
    assert f"over {labelled:,} labelled candidates" in text  # reliability is judged on real labels alone
    whole = tmp_path / "whole.jsonl"
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows_of(TRUTH)))
    capsys.readouterr()
    assert told(replay_command, whole, "--profile", profile, "--json", "--estimate-labels") == 0
    assert json.loads(capsys.readouterr().out)["estimated"] is None


def test_labels_of_a_single_prompt_model_no_other():
    labels = np.full(TRUTH.labels.shape, np.nan)
    labels[:20] = TRUTH.labels[:20]
    groups = np.where(np.arange(len(TRUTH)) < 20, 0, np.arange(len(TRUTH)))
    with pytest.raises(InputError, match="all labels are of the same few prompts"):
        with_expected_labels(log_of(TRUTH.scores.tolist(), labels.tolist(), groups.tolist()))
