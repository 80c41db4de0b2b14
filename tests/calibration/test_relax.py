"""Relaxing a guard on its own traces: what they say of laxer thresholds, and that the promise is kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from bonmini_guard.calibration.blocks import RAN_UNDER
from bonmini_guard.calibration.choose import calibrate_guardrail
from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence
from bonmini_guard.calibration.logs import log_of_rows
from bonmini_guard.calibration.paths import exits, paths, steps
from bonmini_guard.calibration.relax import relax_guardrail
from bonmini_guard.cli import main
from bonmini_guard.errors import InputError
from bonmini_guard.logs.rows import Regime
from tests.calibration.helpers import written
from tests.calibration.recalibrations import CLUSTERED, risk_of, truth
from tests.sizes import most, worlds

FOUR = (4, 4, 4, 4)


def cut_short(log, thresholds, explored=0.0, seed=0):
    """What a guard with these thresholds would have traced of the log: draws in the order logged, up to the exit."""
    traced = replace(log, traced=np.ones(len(log), dtype=bool))
    at = np.minimum(exits(paths(traced, FOUR), thresholds), 3)
    whole = np.random.default_rng(seed).random(len(log)) < explored
    draws = np.where(whole, 16, 4 * (at + 1))
    beyond = np.arange(16) >= draws[:, None]
    return replace(
        traced,
        scores=np.where(beyond, math.nan, log.scores),
        labels=np.where(beyond, math.nan, log.labels).astype(np.float32),
        counts=draws,
        complete=whole,
        extra={RAN_UNDER: (Regime(FOUR, tuple(thresholds), "loop"),) * len(log)},
    )


def test_cut_rows_say_of_laxer_thresholds_what_whole_rows_say():
    log = CLUSTERED.log(200, 1)
    whole = steps(paths(replace(log, traced=np.ones(200, dtype=bool)), FOUR))
    cut = steps(paths(cut_short(log, (1.5,) * 4), FOUR))
    for threshold in (1.5, 1.2, 0.4, -0.7):
        here, there = (max(0, int(np.searchsorted(-each.cuts, -threshold, side="right")) - 1) for each in (whole, cut))
        for name in ("served", "served_bad", "selected_bad", "draws"):
            assert getattr(whole, name)[here] == getattr(cut, name)[there], name


def test_a_strict_guard_relaxes_on_its_traces_to_what_whole_rows_certify():
    log = replace(CLUSTERED.log(500, 2), traced=np.ones(500, dtype=bool))
    relaxed = relax_guardrail(cut_short(log, (3.0,) * 4, explored=0.02)).profile
    complete = calibrate_guardrail(log, schedule=FOUR).profile
    assert relaxed.thresholds == pytest.approx(complete.thresholds)
    assert relaxed.evidence["relaxed_from"] == [3.0] * 4
    assert relaxed.evidence["cut_rows"] > 400


def test_rows_that_nobody_labelled_are_left_out_as_such():
    # they were "not among the rows that were fixed for labelling", and nobody had fixed any
    log = cut_short(CLUSTERED.log(500, 2), (3.0,) * 4)
    labels = np.where(np.arange(500)[:, None] < 100, math.nan, log.labels).astype(np.float32)
    left_out = relax_guardrail(replace(log, labels=labels)).profile.evidence["left_out"]
    assert {reason for reason, number in left_out.items() if number} == {"unlabelled"}


@pytest.mark.parametrize("risk", ["served_and_bad", "bad_among_served", "false_acceptance"])
def test_labels_of_what_was_selected_alone_relax_nothing_that_labels_of_all_answers_do_not(risk):
    # Answers that only laxer thresholds serve have no label: rows that changed were left out, and the others had passed before.
    traces = cut_short(CLUSTERED.log(1000, 2), (1.5,) * 4)
    holder = paths(traces, FOUR).holder[:, -1:]
    selected = replace(traces, labels=np.where(np.arange(16) == holder, traces.labels, np.nan))
    some, all_of_them = (relax_guardrail(each, risk=risk, alpha=0.2) for each in (selected, traces))
    assert some.profile.thresholds[0] >= all_of_them.profile.thresholds[0]


def test_rising_thresholds_keep_their_steps_and_their_transform():
    traces = cut_short(CLUSTERED.log(500, 3), (2.0, 2.2, 2.4, 2.6))
    ran_under = replace(traces.extra[RAN_UNDER][0], transform=(2.0, 1.0))
    traces = replace(traces, scores=(traces.scores - 1.0) / 2.0, extra={RAN_UNDER: (ran_under,) * 500})
    profile = relax_guardrail(traces).profile
    assert np.diff(profile.thresholds) == pytest.approx([0.2] * 3)
    assert profile.thresholds[-1] <= 2.6
    assert (profile.score_transform.a, profile.score_transform.b) == (2.0, 1.0)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.9), (-0.9, 0.3), (-1.0, 0.2), (0.9, 0.3)])
def test_what_scores_as_much_as_a_threshold_in_force_is_counted_where_thresholds_differ(low, high):
    # -1 - (-1 - 0.2) is less than 0.2 in the last digits: 200 bad answers of 400 were served, and a promise of 10 % certified
    scores = np.full((400, 16), -3.0)
    scores[:, 0] = np.where(np.arange(400) % 2, 1.0, low)
    log = replace(CLUSTERED.log(400, 4), scores=scores, labels=np.where(scores == 1.0, 1.0, 0.0))
    outcome = relax_guardrail(cut_short(log, (low, low, low, high)), alpha=0.1)
    assert isinstance(outcome, NotEnoughEvidence)


def test_thresholds_in_force_that_are_too_lax_are_not_certified():
    outcome = relax_guardrail(cut_short(CLUSTERED.log(500, 4), (-3.0,) * 4))
    assert isinstance(outcome, NotEnoughEvidence)
    assert outcome.sentence.startswith("the thresholds in force are not certified")


def test_rows_of_several_guards_or_of_none_are_refused():
    log = CLUSTERED.log(60, 5)
    with pytest.raises(InputError, match="which thresholds it ran under"):
        relax_guardrail(log)
    traces = cut_short(log, (1.0,) * 4)
    one = traces.extra[RAN_UNDER][0]
    two = replace(traces, extra={RAN_UNDER: (one, replace(one, thresholds=(2.0,) * 4)) * 30})
    with pytest.raises(InputError, match="2 different sets"):
        relax_guardrail(two)


def test_traces_are_read_with_what_they_ran_under():
    candidates = [{"text": "x", "score": 2.0, "acceptable": True}, {"text": "y", "score": 0.0}]
    row = {"prompt": "", "candidates": candidates, "decision": "accepted", "reason": "passed", "complete": False, "loops": 1}
    rows = [{**row, "id": str(i), "schedule": [2, 2], "thresholds": [1.0, None], "exit": "loop"} for i in range(80)]
    profile = relax_guardrail(log_of_rows(json.loads(json.dumps(rows)), cut=True)).profile
    assert profile.thresholds[1] == math.inf
    assert profile.evidence["served"] == 80


@pytest.mark.parametrize("reason", ["deadline", "scorer_failed", "generator_failed"])
def test_what_a_deadline_or_an_outage_ended_counts_as_far_as_it_was_decided(reason):
    # Left out, they made what nothing passes in early, and is served wrongly under laxer thresholds, too rare.
    first = [{"text": "x", "score": 0.5, "acceptable": False}, {"text": "y", "score": 0.0, "acceptable": True}]
    late = {"text": "z", "score": 3.0, "acceptable": True}
    cut = {"text": "", "score": None, "failed": True, "unfinished": reason == "deadline"}
    ran = {"schedule": [2, 2, 2], "thresholds": [1.0, 1.0, 1.0], "exit": "loop", "complete": False, "prompt": ""}
    passed = {"id": "a", "candidates": [late, cut | {"unfinished": False}], "decision": "accepted", "reason": "passed"}
    ended = {"id": "b", "candidates": [*first, late, cut], "decision": "abstained", "reason": reason}
    log = log_of_rows([each | ran for each in (passed, ended)], cut=True)
    path = paths(log, (2, 2, 2))
    assert (exits(path, (1.0,) * 3).tolist(), exits(path, (0.4,) * 3).tolist()) == ([0, 3], [0, 0])
    assert (log.left_out["incomplete"], path.good[1].tolist()) == (0, [0.0] * 3)


def test_the_next_command_is_one_that_reads_such_traces(tmp_path, capsys):
    profile = tmp_path / "relaxed.json"
    row = {"candidates": [{"score": 2.0, "acceptable": True}], "decision": "accepted", "reason": "passed", "exit": "loop"}
    rows = [{**row, "id": str(i), "prompt": str(i), "schedule": [1, 2], "thresholds": [1.5, 1.5]} for i in range(80)]
    log = written(tmp_path / "traces.jsonl", rows)
    assert main(["calibrate", str(log), "--mode", "guardrail", "--relax", "-o", str(profile)]) == 0
    assert f"next: bonmini-guard drift {profile} TRACES --follow" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("risk", ["served_and_bad", "bad_among_served", "false_acceptance"])
def test_relaxing_keeps_the_promise(risk):
    alpha = {"served_and_bad": 0.05, "bad_among_served": 0.1, "false_acceptance": 0.2}[risk]
    misses = 0
    for number in range(worlds(200)):
        outcome = relax_guardrail(cut_short(CLUSTERED.log(400, number), (2.0,) * 4), risk=risk, alpha=alpha)
        if isinstance(outcome, Certificate):
            misses += risk_of(truth(CLUSTERED, outcome.profile), risk) > alpha
    assert misses <= most(worlds(200), 0.1)
