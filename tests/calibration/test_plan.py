"""``calibrate --plan``: the number it names suffices, and it names what it assumes."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from bonmini_guard.calibration.evidence import Certificate
from bonmini_guard.calibration.guardrail import calibrate_guardrail
from bonmini_guard.calibration.plan import POWER, plan_from_log, plan_from_shares
from bonmini_guard.commands import calibrate as command
from bonmini_guard.errors import ConfigurationError
from tests.calibration.helpers import log_of, rows_of
from tests.calibration.populations import Population


def two_scores(prompts, served, bad, seed):
    """Score 1 for a share ``served``, of which a share ``bad`` is not acceptable; score 0 and not acceptable for the rest."""
    generator = np.random.default_rng(seed)
    scores = (generator.random((prompts, 1)) < served).astype(float)
    labels = scores * (generator.random((prompts, 1)) >= bad)
    return log_of(scores.tolist(), labels.tolist())


@pytest.mark.parametrize(("risk", "alpha"), [("served_and_bad", 0.05), ("bad_among_served", 0.1), ("false_acceptance", 0.1)])
def test_the_number_from_shares_suffices_about_as_often_as_it_says(risk, alpha):
    plan = plan_from_shares(0.5, 0.04, risk=risk, alpha=alpha)
    outcomes = [
        calibrate_guardrail(two_scores(plan.prompts, 0.5, 0.04, seed), schedule=(1,), risk=risk, alpha=alpha) for seed in range(60)
    ]
    done = [isinstance(outcome, Certificate) for outcome in outcomes]
    assert np.mean(done) > POWER - 0.2
    assert plan.prompts < 2000


def test_nothing_bad_needs_45_labels():
    assert plan_from_shares(0.999, 1e-9).prompts == 45  # log(0.1) / log(0.95) = 44.9


def test_a_risk_above_alpha_is_told_so():
    plan = plan_from_shares(0.5, 0.2, alpha=0.05)
    assert plan.prompts is None
    assert "the risk itself is 10 %" in plan.sentence
    with pytest.raises(ConfigurationError):
        plan_from_shares(0.5, 1.2)


def test_the_number_from_a_log_names_its_pseudo_labels():
    log = Population(size=4).log(400, 0)
    blank = log_of((3 * log.scores).tolist(), np.full(log.scores.shape, np.nan).tolist())
    plan = plan_from_log(blank, schedule=(2, 2), alpha=0.2)
    assert 20 < plan.prompts < 1000
    assert "pseudo-labels from sigmoid(score)" in plan.sentence
    assert "this log's labels" in plan_from_log(log, schedule=(2, 2), alpha=0.2).sentence


def call(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(["--mode", "guardrail", *map(str, arguments)]))


def test_the_command_plans_without_writing(tmp_path, capsys):
    assert call("--plan", "--assume-served", 0.6, "--assume-bad", 0.02) == 0
    assert "labelled prompts for served_and_bad <= 0.05 with confidence 0.9" in capsys.readouterr().out
    assert call("--plan", "--assume-served", 0.6, "--assume-bad", 0.5) == 3
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows_of(Population(size=4).log(100, 0))))
    assert call(log, "--plan", "--alpha", 0.3) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--plan"],
        ["--plan", "--assume-served", 0.5],
        ["log", "--plan", "--assume-served", 0.5, "--assume-bad", 0.5],
        ["log", "--plan", "-o", "x.json"],
        ["log", "-o", "x.json", "--assume-bad", 0.5],
        ["-o", "x.json"],
        ["log"],
    ],
)
def test_what_does_not_fit_together_is_refused(flags):
    with pytest.raises(ConfigurationError):
        call(*flags)
