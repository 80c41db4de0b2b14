"""``bonmini-guard calibrate``: exit codes, sentences, and that nothing is written without a certificate."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from functools import partial

import pytest

from bonmini_guard.calibration.evidence import profile_fingerprints
from bonmini_guard.calibration.figures import replay_log
from bonmini_guard.calibration.logs import load_log
from bonmini_guard.commands import calibrate as command
from bonmini_guard.errors import BonMiniGuardError
from bonmini_guard.policy.profile import GuardProfile
from tests.calibration.helpers import called, rows_of, written
from tests.calibration.populations import Population

call = partial(called, command)


def write(path, log, **extra):
    return written(path, (row | extra for row in rows_of(log)))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write(tmp_path_factory.mktemp("logs") / "log.jsonl", Population().log(400, 1), scored_by="rm-1", generated_by="lm-1")


@pytest.mark.parametrize("risk", ["served_and_bad", "bad_among_served", "false_acceptance"])
def test_guardrail_writes_a_profile_that_replays(log, tmp_path, capsys, risk):
    output = tmp_path / "profile.json"
    assert call(log, "--mode", "guardrail", "--risk", risk, "--alpha", "0.15", "-o", output) == 0
    profile = GuardProfile.load(output)
    said = capsys.readouterr().out
    assert said.startswith("Of 10,000 requests like these you would serve about")
    assert "15 %" in said or "1,500" in said
    assert (profile.risk, profile.alpha, profile.delta, profile.schedule) == (risk, 0.15, 0.1, (4, 4))
    assert profile.fingerprints == {"reward_model": "rm-1", "generator": "lm-1"}
    assert 0 < len(profile.reference) <= 1000
    assert profile.evidence["rows"] == 400
    assert profile.created_at is not None
    rate = {"served_and_bad": "served_and_bad_rate", "bad_among_served": "bad_among_served_rate"}.get(risk, "false_acceptance_rate")
    assert replay_log(load_log(log), profile)[rate] < 0.15


def test_accelerator_writes_a_profile_that_saves_draws(log, tmp_path, capsys):
    output = tmp_path / "profile.json"
    assert call(log, "--mode", "accelerator", "--epsilon", "0.05", "--mini-n", "2", "--max-loops", "4", "-o", output) == 0
    profile = GuardProfile.load(output)
    figures = replay_log(load_log(log), profile)
    assert figures["mean_draws"] < 7.5
    assert figures["acceptable_rate"] > figures["best_of_n"]["acceptable_rate"] - 0.05
    assert profile.evidence["lost"] - profile.evidence["won"] <= 0.05 * 400
    assert "fewer" in capsys.readouterr().out


def test_a_search_that_was_not_made_is_said(log, tmp_path, capsys):
    assert call(log, "--mode", "guardrail", "--alpha", "0.2", "--search", "-o", tmp_path / "profile.json") == 0
    assert "The search was not made: 400 units are fewer than 1000" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["guardrail", "--alpha", "0.2"], ["accelerator", "--epsilon", "0.1"]])
def test_search_keeps_the_budget_and_certifies_on_the_rest(tmp_path, flags, capsys):
    log = write(tmp_path / "log.jsonl", Population().log(1000, 1))
    searched = tmp_path / "searched.json"
    assert call(log, "--mode", *flags, "--schedule", "4,4", "--search", "-o", searched) == 0
    second = GuardProfile.load(searched)
    assert sum(second.schedule) == 8
    assert second.evidence["certify_rows"] == 750
    assert second.evidence["fit_rows"] == 250
    assert second.evidence["mean_draws"] < 8
    assert list(second.evidence["front"][0]) == ["schedule", "served", "draws", "wait", "p95", "price"]
    assert "shape    " in capsys.readouterr().out


def test_search_within_a_bound_on_waiting_reads_the_logs_seconds(tmp_path, capsys):
    rows = list(rows_of(Population().log(1000, 1)))
    log = write(tmp_path / "log.jsonl", Population().log(1000, 1))
    flags = ["--mode", "accelerator", "--epsilon", "0.1", "--schedule", "4,4", "--search", "-o", tmp_path / "p.json"]
    with pytest.raises(BonMiniGuardError, match="seconds"):
        call(log, *flags, "--max-p95", 2)
    for row in rows:
        row["candidates"] = [{**one, "seconds": 1.0} for one in row["candidates"]]
    written(log, rows)
    assert call(log, *flags, "--max-p95", 2, "--wait-price", 0) == 0
    assert len(GuardProfile.load(tmp_path / "p.json").schedule) == 2
    assert call(log, *flags, "--cost", "draws=0.002", "--wait-price", 0.001) == 0
    assert "in money; 0.002 for each of its draws, 0.001 for each second" in capsys.readouterr().out
    with pytest.raises(BonMiniGuardError, match="--wait-price"):
        call(log, *flags, "--cost", "draws=0.002")
    with pytest.raises(SystemExit):
        call(log, *flags, "--cost", "draws=", "--wait-price", 1)
    with pytest.raises(BonMiniGuardError, match="is a search's"):
        call(log, "--mode", "guardrail", "--max-p95", 2, "-o", tmp_path / "q.json")


def test_too_little_evidence_is_exit_3_and_writes_nothing(tmp_path, capsys):
    few = write(tmp_path / "few.jsonl", Population().log(20, 1))
    for flags in (["guardrail", "--alpha", "0.05"], ["accelerator"], ["guardrail", "--risk", "false_acceptance"]):
        assert call(few, "--mode", *flags, "--mini-n", 2, "-o", tmp_path / "none.json") == 3
        said = capsys.readouterr()
        assert "not enough evidence" in said.err
        assert len(said.err.splitlines()) == 1
        assert said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["few.jsonl"]


def test_fingerprints_are_what_a_guard_compares():
    log = Population().log(2, 0)
    marks = {"scored_by": {"reward_model": "sha256:1"}, "generated_by": {"id": "lm", "temperature": 1.0}}
    assert profile_fingerprints(replace(log, fingerprints=marks)) == {
        "reward_model": "sha256:1",
        "generator": '{"id": "lm", "temperature": 1.0}',
    }
    assert profile_fingerprints(log) == {}


@pytest.mark.parametrize(
    "flags",
    [
        ["--alpha", "0"],
        ["--alpha", "1.5"],
        ["--alpha", "nan"],
        ["--delta", "1"],
        ["--epsilon", "0.1"],
        ["--calibrations", "0"],
        ["--seed", "3"],
        ["--schedule", "4,4", "--mini-n", "4"],
        ["--schedule", "4,28"],
        ["--mini-n", "0"],
        ["--max-loops", "-1"],
        *([name, f"1{'0' * 23}"] for name in ("--mini-n", "--max-loops", "--max-draws", "--calibrations", "--schedule")),
        ["--seed", "-1"],
        ["--plan"],
        ["--relax", "--schedule", "4,4"],
        ["--relax"],
        ["-o", "no/such/folder/profile.json"],
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(log, tmp_path, flags):
    with pytest.raises(BonMiniGuardError) as caught:
        call(log, "--mode", "guardrail", "-o", tmp_path / "profile.json", *flags)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_accelerator_refuses_guardrail_options_and_a_single_loop(log, tmp_path):
    for flags in (["--alpha", "0.1"], ["--risk", "served_and_bad"], ["--schedule", "8"]):
        with pytest.raises(BonMiniGuardError):
            call(log, "--mode", "accelerator", "-o", tmp_path / "profile.json", *flags)


def test_malformed_schedules_are_refused():
    for text in ("", "4,x", "0,4"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no schedule"):
            command.schedule_of(text)


@pytest.mark.parametrize(("candidates", "expected"), [(64, (4,) * 8), (10, (4, 4)), (3, (3,))])
def test_default_schedule_is_the_largest_that_the_log_supports(candidates, expected):
    assert command.choose_schedule(Population(size=candidates).log(3, 0), None) == expected


def test_a_seed_is_one_of_several_tries_and_they_are_said(log, tmp_path, capsys):
    flags = ("--mode", "guardrail", "--alpha", "0.15", "--seed", "3", "--calibrations", "5", "-o", tmp_path / "profile.json")
    assert call(log, *flags) == 0
    assert "one of 5 calibrations" in capsys.readouterr().out


def test_the_command_plans_both_modes_without_writing(log, tmp_path, capsys):
    assert call(log, "--mode", "guardrail", "--plan", "--alpha", 0.3) == 0
    assert "rows at the very least" in capsys.readouterr().out
    assert call(log, "--mode", "accelerator", "--plan", "--epsilon", 0.1, "--schedule", "4,4") == 0
    assert "labels" in capsys.readouterr().out
    flags = ("--plan", "--alpha", 0.3, "--schedule", "4,4")
    rows = []
    for further in ((), ("--calibrations", 50), ("--calibrations", 50, "--seed", 3, "--order", "logged")):
        assert call(log, "--mode", "guardrail", *flags, *further) == 0
        said = " ".join(capsys.readouterr().out.split())
        rows.append([int(number) for number in re.findall(r"(\d+) rows", said)])
    assert rows[0][0] == 7  # log(0.1) / log(0.7), rounded up
    assert rows[1][0] == rows[2][0] == 18  # log(0.1 / 50) / log(0.7)
    assert rows[1][1] > rows[0][1]
    for further in ("--search", "--cost=tokens"):
        with pytest.raises(BonMiniGuardError, match="and --plan do not go together"):
            call(log, "--mode", "accelerator", "--plan", further)


def test_repeated_prompts_are_said(tmp_path, capsys):
    rows = [row | {"prompt": "the same"} for row in rows_of(Population().log(60, 1))]
    twice = written(tmp_path / "twice.jsonl", rows)
    assert call(twice, "--mode", "guardrail", "-o", tmp_path / "none.json") == 3
    assert "59 row(s) repeat a prompt" in capsys.readouterr().err


def test_it_says_when_fewer_draws_serve_more(tmp_path, capsys):
    # Each row has three good draws that score alike; where one that fools the scorer is among them, it wins once it is drawn.
    rows = []
    for index in range(60):
        fooling = {"text": "x", "score": 5.0 - index / 100, "acceptable": index % 3 == 0}
        plain = [{"text": "y", "score": 1.0 + draw / 100, "acceptable": True} for draw in range(3)]
        rows.append({"id": str(index), "prompt": f"p{index}", "candidates": [*plain, fooling]})
    log = written(tmp_path / "log.jsonl", rows)
    arguments = (log, "--mode", "accelerator", "--epsilon", "0.9", "--schedule", "2,2", "-o", tmp_path / "profile.json")
    assert call(*arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    # With one draw a fooling one is served to a quarter of the requests, with four to all; a third of them are good.
    assert "over-optimised: N = 1 serves more acceptable answers than N = 4 here, 83.3 % of requests against 33.3 %" in said
    written(log, (row | {"candidates": row["candidates"][:3]} for row in rows))
    assert call(log, "--mode", "accelerator", "--epsilon", "0.9", "--schedule", "1,2", "-o", tmp_path / "profile.json") == 0
    assert "over-optimised" not in capsys.readouterr().out
