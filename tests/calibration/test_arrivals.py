"""Certificates of exits that decide in order of arrival: the order, the ladder, and what ends in the profile."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonmini_guard import BestOfMiniN
from bonmini_guard.calibration.choose import calibrate_accelerator, calibrate_guardrail
from bonmini_guard.calibration.evidence import Certificate, seal_holds
from bonmini_guard.calibration.logs import load_log, load_timed
from bonmini_guard.calibration.orders import arrived, order_of
from bonmini_guard.calibration.paths import counts_at, exits, labels_used, paths
from bonmini_guard.calibration.refutation import order_refuted, refutation, standing
from bonmini_guard.cli import main
from bonmini_guard.engine.load import LADDER
from bonmini_guard.errors import ConfigurationError, ProfileError
from bonmini_guard.policy.policy import Policy, arrival_order, run
from bonmini_guard.policy.profile import GuardProfile
from bonmini_guard.testing import FakeGenerator, FakeRewardModel
from tests.calibration.helpers import log_of, rows_of, written
from tests.calibration.populations import Population

HASTY = Population(size=8, haste=0.6)
#: Short answers come first, are worse, and score as if they were not.
FLATTERED = Population(size=8, middle=0.5, haste=0.6, flattery=1.0)


def timed(rows, draws, seed=0):
    """A log of random scores and durations, all labelled."""
    source = np.random.default_rng(seed)
    log = log_of(source.normal(size=(rows, draws)).tolist(), (source.random((rows, draws)) < 0.6).astype(float).tolist())
    return dataclasses.replace(log, costs=np.round(source.uniform(1, 5, (rows, draws)), 1), costs_are="seconds")


@given(st.lists(st.tuples(st.integers(0, 4).map(float), st.booleans()), min_size=1, max_size=9), st.integers(1, 12))
def test_arrays_have_draws_arrive_as_the_policy_does(draws, in_flight):
    seconds, failed = zip(*draws, strict=True)
    log = log_of([[np.nan if each else 0.0 for each in failed]], [[1.0] * len(draws)])
    order = arrived(
        dataclasses.replace(log, costs=np.array([seconds])), np.arange(len(draws))[None, :], (1,) * len(draws), in_flight
    )
    assert order[0].tolist() == arrival_order(seconds, in_flight, np.flatnonzero(failed))


def test_of_draws_whose_seconds_no_double_adds_up_each_arrives_once():
    log = dataclasses.replace(timed(1, 6), costs=np.array([[1e308] * 4 + [1.0] * 2]))
    assert sorted(arrived(log, np.arange(6)[None, :], (1,) * 6, 2)[0].tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("exit_", "schedule", "width"),
    [("rolling", (1,) * 8, 1), ("rolling", (1,) * 8, 3), ("rolling", (1,) * 8, 8), ("eager", (2, 3, 3), 1)],
)
def test_arrays_over_a_log_exit_where_run_does(exit_, schedule, width):
    log, threshold = timed(60, 8), 0.7
    path, order = paths(log, schedule, "auto", exit_, width), order_of(log)
    policy = Policy("guardrail", schedule, (threshold,) * len(schedule), exit_)
    passed = exits(path, [threshold] * 8)
    for row, places in enumerate(order):
        ran = run(policy, log.scores[row, places].tolist(), log.costs[row, places].tolist(), in_flight=width)
        if not ran.decision.accepted:
            assert passed[row] == path.draws.size
            continue
        assert path.holder[row, passed[row]] == places[ran.decision.index]
        assert path.draws[passed[row]] == ran.draws


@pytest.mark.parametrize(
    ("exit_", "schedule", "width"),
    [("rolling", (1,) * 8, 1), ("rolling", (1,) * 8, 4), ("rolling", (1,) * 8, 8), ("eager", (4, 4), 1)],
)
@pytest.mark.parametrize("threshold", [1.0, 3.0])
def test_an_accelerator_is_held_against_the_earliest_drawn_of_the_best_among_equal_scores(exit_, schedule, width, threshold):
    # it was held against the earliest to arrive: where short answers are worse, it lost 12 % where at most 5 % were promised
    log = timed(200, 8)
    log = dataclasses.replace(log, scores=np.round(log.scores))
    policy, path = Policy("accelerator", schedule, (threshold,) * len(schedule), exit_), paths(log, schedule, "auto", exit_, width)
    counts, lost = counts_at(path, exits(path, [threshold] * 8), "left_out"), np.zeros(2)
    for row, places in enumerate(order_of(log)):
        scores, labels = log.scores[row, places].tolist(), log.labels[row, places]
        ran = run(policy, scores, log.costs[row, places].tolist(), in_flight=width)
        best, served = (labels[index] for index in (scores.index(max(scores)), ran.decision.index))
        lost += best > served, best < served
    assert (counts.lost[0], counts.won[0]) == tuple(lost)


def test_without_times_draws_arrive_as_launched():
    log = dataclasses.replace(timed(30, 8), costs=None, costs_are=None)
    every = [paths(log, (1,) * 8, "auto", "rolling", width).holder for width in LADDER[:4]]
    assert all((holder == every[0]).all() for holder in every)
    outcome = calibrate_guardrail(log, schedule=(1,) * 8, alpha=0.6, exit="rolling")
    assert outcome.profile.evidence["arrivals"] == "launch order"


def test_labels_are_those_of_any_rung():
    log = timed(50, 8)
    runs = [paths(log, (1,) * 8, "auto", "rolling", width) for width in (1, 8)]
    served = {(row, int(holder)) for run_ in runs for row, holders in enumerate(run_.holder) for holder in holders}
    assert labels_used(runs) == len(served)
    assert labels_used(runs[:1]) < len(served)


def test_each_width_has_the_threshold_that_its_part_of_delta_certifies():
    log, widths = HASTY.log(600, 0), (1, 2, 4, 8)
    outcome = calibrate_guardrail(log, schedule=(1,) * 8, alpha=0.1, exit="rolling")
    assert isinstance(outcome, Certificate)
    profile, policy = outcome.profile, outcome.profile.policy()
    for width in widths:
        alone = calibrate_guardrail(log, schedule=(1,) * 8, alpha=0.1, delta=0.1 / 4, exit="rolling", in_flight=(width,)).profile
        assert policy.at(width).thresholds == alone.thresholds
        assert alone.in_flight_thresholds is None
    assert (profile.exit, profile.in_flight, profile.max_draws) == ("rolling", widths, 8)
    assert profile.thresholds == (max(profile.in_flight_thresholds),) * 8
    assert profile.evidence["arrivals"] == "seconds"
    assert "with 1 and" in outcome.sentence
    assert "with 8 in flight started)." in outcome.sentence
    means = profile.evidence["in_flight"]
    assert means["1"]["mean_draws"] == means["1"]["mean_started"]
    assert 8 >= means["8"]["mean_started"] > means["2"]["mean_started"] > means["1"]["mean_started"]


def test_a_ladder_is_sealed_and_read_again(tmp_path):
    profile = calibrate_guardrail(HASTY.log(600, 0), schedule=(1,) * 8, alpha=0.1, exit="rolling").profile
    profile.save(path := tmp_path / "profile.json")
    assert GuardProfile.load(path) == profile
    assert seal_holds(profile) is True
    assert seal_holds(profile.model_copy(update={"in_flight": (1, 2, 4, 8, 16)})) is False
    assert seal_holds(profile.model_copy(update={"in_flight_thresholds": (0.0,) * 4})) is False
    assert seal_holds(profile.model_copy(update={"in_flight_thresholds": None})) is False


def test_few_in_flight_have_a_lower_threshold_where_short_answers_are_overscored():
    profile = calibrate_guardrail(FLATTERED.log(2000, 0), schedule=(1,) * 8, alpha=0.1, exit="rolling").profile
    few, *_, many = profile.in_flight_thresholds
    assert few < many - 0.05
    # With the threshold of many for all, as without a ladder, one at a time would serve fewer.
    log = FLATTERED.log(2000, 1)
    path = paths(log, (1,) * 8, "auto", "rolling", 1)
    served = [int((exits(path, (level,) * 8) < 8).sum()) for level in (few, many)]
    assert served[0] > served[1]


def test_widths_that_nothing_is_certified_for_are_left_out():
    asked = {"schedule": (1,) * 8, "risk": "bad_among_served", "alpha": 0.1, "exit": "rolling"}
    profile = calibrate_guardrail(dataclasses.replace(FLATTERED, flattery=1.5).log(1000, 0), **asked).profile
    assert 0 < len(profile.in_flight) < 4
    assert len(profile.in_flight_thresholds or profile.in_flight) == len(profile.in_flight)
    assert list(profile.evidence["in_flight"]) == list(map(str, profile.in_flight))


def test_an_accelerator_rolls_too():
    outcome = calibrate_accelerator(HASTY.log(600, 1), schedule=(1,) * 8, epsilon=0.05, exit="rolling")
    assert outcome.profile.policy().exit == "rolling"
    assert outcome.profile.evidence["mean_draws"] < 8


@pytest.mark.parametrize(
    ("wrong", "cure"),
    [
        ({"schedule": (2, 2)}, "schedule of ones"),
        ({"in_flight": (4, 2)}, "ascending"),
        ({"search": True}, "a search is for loops"),
        ({"offsets": (0.0,) * 4}, "offsets and other costs"),
    ],
)
def test_what_goes_with_loops_alone_is_refused(wrong, cure):
    with pytest.raises(ConfigurationError, match=cure):
        calibrate_guardrail(timed(20, 4), **{"schedule": (1,) * 4, "exit": "rolling"} | wrong)


def test_a_failed_draw_took_as_long_as_it_says(tmp_path):
    # beside draws with seconds, one that says when it started and finished had taken none
    failed = {"text": "", "score": None, "failed": True, "started": 1.0, "finished": 31.0}
    row = {"id": "r", "prompt": "p", "candidates": [{"text": "x", "score": 1.0, "seconds": 2.0}, failed]}
    assert load_timed([written(tmp_path / "log.jsonl", [row])]).costs.tolist() == [[2.0, 30.0]]


# The command


def rows_with(*keys):
    """Rows whose draws tell some of how long they took."""
    source = np.random.default_rng(0)
    for row in rows_of(Population(size=8, middle=0.5).log(120, 0)):
        for one in row["candidates"]:
            began, took = source.random(2)
            every = {"seconds": 1 + took, "tokens": int(source.integers(5, 51)), "started": began, "finished": began + 1 + took}
            one |= {key: every[key] for key in keys}
        yield row


@pytest.mark.parametrize(
    ("keys", "told"),
    [(["seconds", "tokens"], "seconds"), (["started", "finished"], "seconds"), (["tokens"], "tokens"), ([], None)],
)
def test_times_come_first_then_tokens_then_the_order_of_launch(tmp_path, keys, told):
    path = written(tmp_path / "log.jsonl", rows_with(*keys))
    log = load_timed([path])
    assert log.costs_are == told
    if keys == ["started", "finished"]:
        assert (log.costs >= 1.0).all()
    assert (load_log([path]).scores == log.scores).all()


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_the_command_writes_a_profile_that_a_guard_rolls_by(tmp_path, capsys):
    log, profile = written(tmp_path / "log.jsonl", rows_with("seconds")), tmp_path / "profile.json"
    common = ["calibrate", str(log), "--mode", "guardrail", "--alpha", "0.1", "-o", str(profile)]
    assert main([*common, "--max-draws", "8"]) == 0
    found = GuardProfile.load(profile)
    assert (found.exit, found.in_flight, found.max_draws, found.schedule) == ("rolling", (1, 2, 4, 8), 8, (1,) * 8)
    guard = BestOfMiniN(generator=FakeGenerator(["-9", "9"]), reward_model=FakeRewardModel(float), profile=profile)
    assert guard.run("q").score == 9.0
    assert main([*common, "--max-draws", "8", "--in-flight", "4"]) == 0
    assert GuardProfile.load(profile).in_flight == (4,)
    capsys.readouterr()
    assert main([*common, "--exit", "eager", "--schedule", "4,4"]) == 0
    assert GuardProfile.load(profile).exit == "eager"
    assert "next: " not in capsys.readouterr().out  # it was a report, which is refused
    for wrong in (
        ["--schedule", "4,4", "--max-draws", "8"],
        ["--max-draws", "8", "--search"],
        ["--exit", "eager", "--in-flight", "2"],
    ):
        assert main([*common, *wrong]) == 2


def test_a_log_refutes_a_promise_for_the_number_in_flight_for_which_it_fails():
    alone = calibrate_guardrail(FLATTERED.log(2000, 0), schedule=(1,) * 8, alpha=0.1, exit="rolling", in_flight=(1,)).profile
    other = FLATTERED.log(4000, 1)
    assert refutation(other, alone) is None
    assert "With 8 draws in flight" in refutation(other, alone.model_copy(update={"in_flight": (1, 8)}))
    every = calibrate_guardrail(FLATTERED.log(2000, 0), schedule=(1,) * 8, alpha=0.1, exit="rolling").profile
    assert refutation(other, every) is None


def test_a_log_with_times_refutes_that_draws_arrive_as_launched():
    hasty = Population(size=8, middle=0.5, haste=0.6)
    bare = dataclasses.replace(hasty.log(600, 0), costs=None, costs_are=None)
    profile = calibrate_guardrail(bare, schedule=(1,) * 8, alpha=0.1, exit="rolling").profile
    later = hasty.log(300, 1)
    assert standing(later, profile)[1]
    later.scores[0] = np.nan  # every draw failed
    assert "longer answers score higher" in order_refuted(later, profile)
    assert order_refuted(bare, profile) is None, "it has no times"
    for one_at_a_time in ({"exit": "rolling", "in_flight": (1,)}, {"exit": "eager"}):
        alone = calibrate_guardrail(bare, schedule=(1,) * 8, alpha=0.1, **one_at_a_time).profile
        assert order_refuted(hasty.log(300, 1), alone) is None, "one at a time they do"
    told = calibrate_guardrail(hasty.log(600, 0), schedule=(1,) * 8, alpha=0.1, exit="rolling").profile
    assert order_refuted(hasty.log(300, 1), told) is None
    fair = [order_refuted(timed(200, 8, seed), profile) for seed in range(100)]
    assert sum(said is not None for said in fair) <= 12


def test_the_commands_look_at_times(tmp_path, capsys):
    log, profile = written(tmp_path / "log.jsonl", rows_with("seconds")), tmp_path / "profile.json"
    assert main(["calibrate", str(log), "--mode", "guardrail", "--alpha", "0.1", "--max-draws", "8", "-o", str(profile)]) == 0
    capsys.readouterr()
    assert main(["replay", str(log), "--profile", str(profile), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"] == 8
    assert main(["report", str(log), "--profile", str(profile), "-o", str(tmp_path / "report.html")]) == 0
    assert "next: " not in capsys.readouterr().out  # it was drift, which refuses a rolling profile


def test_a_report_looks_at_times_for_the_other_profile_too(tmp_path):
    hasty = Population(size=8, middle=0.5, haste=0.6)
    bare, later = dataclasses.replace(hasty.log(600, 0), costs=None, costs_are=None), hasty.log(300, 1)
    calibrate_guardrail(bare, schedule=(1,) * 8, alpha=0.1, exit="rolling").profile.save(tmp_path / "rolling.json")
    GuardProfile(mode="guardrail", schedule=(4, 4), thresholds=(1.0, 1.0)).save(tmp_path / "loops.json")
    rows = list(rows_of(later))
    for row, took in zip(rows, later.costs.tolist(), strict=True):
        row["candidates"] = [one | {"seconds": each} for one, each in zip(row["candidates"], took, strict=True)]
    log, page = written(tmp_path / "log.jsonl", rows), tmp_path / "report.html"
    profiles = ["--profile", str(tmp_path / "loops.json"), "--against", str(tmp_path / "rolling.json")]
    assert main(["report", str(log), *profiles, "-o", str(page)]) == 0
    assert "REFUTED by this log" in page.read_text("utf-8")


def test_drift_refuses_what_cuts_first_loops_short():
    from bonmini_guard.calibration.traces import traces_of_rows

    profile = GuardProfile(mode="guardrail", schedule=(1, 1), thresholds=(0.0, 0.0), exit="rolling")
    with pytest.raises(ProfileError, match="'rolling'"):
        traces_of_rows([], profile)
