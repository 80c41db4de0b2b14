"""A judge's verdicts stand beside people's labels, and are held against them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bonmini_guard.calibration import judging
from bonmini_guard.cli import main
from tests.calibration.helpers import written


def rows(prompts, wrong, seed=0, draws=4):
    """Scores follow utility; people label its sign; words say what the judge will find: "good" unless it errs."""
    random = np.random.default_rng(seed)
    for number in range(prompts):
        utility = random.normal(0, 1, draws)
        said = [bool(u > 0) ^ bool(random.random() < wrong) for u in utility]
        yield {
            "id": str(number),
            "prompt": f"prompt {number}",
            "topic": "a" if number % 2 else "b",
            "candidates": [
                {"text": ("good" if yes else "poor") + " x" * int(1 + k), "score": float(u), "acceptable": bool(u > 0)}
                for k, (u, yes) in enumerate(zip(utility, said, strict=True))
            ],
        }


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"kind": "check", "check": {"type": "regex", "pattern": "good"}, "has_zero": True}))
    return path


def told(arguments, capsys):
    assert main(["judge", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_verdicts_stand_beside_labels_and_nothing_else_changes(spec, tmp_path, capsys):
    log, out = written(tmp_path / "log.jsonl", rows(50, 0.1)), tmp_path / "judged.jsonl"
    found = told([log, "--judge", spec, "-o", out], capsys)
    before, after = ([json.loads(line) for line in path.read_text().splitlines()] for path in (log, out))
    for old, new in zip(before, after, strict=True):
        assert [{k: v for k, v in one.items() if k != "verdicts"} for one in new["candidates"]] == old["candidates"]
        assert [one["verdicts"]["words"] for one in new["candidates"]] == ["good" in one["text"] for one in old["candidates"]]
        assert set(new["judged_by"]) == {"words"}
    assert found["answers"] == 200
    again = tmp_path / "again.jsonl"
    assert main(["judge", str(out), "--judge", str(spec), "-o", str(again)]) == 0
    assert again.read_text() == out.read_text()
    assert "never in their place" in capsys.readouterr().out


def test_verdicts_of_another_judge_of_the_same_name_are_replaced(spec, tmp_path):
    log, out, other = written(tmp_path / "log.jsonl", rows(20, 0.1)), tmp_path / "judged.jsonl", tmp_path / "other.jsonl"
    assert main(["judge", str(log), "--judge", str(spec), "-o", str(out)]) == 0
    spec.write_text(spec.read_text().replace('"good"', '"poor"'))
    assert main(["judge", str(out), "--judge", str(spec), "-o", str(other)]) == 0
    for row in map(json.loads, other.read_text().splitlines()):
        assert [one["verdicts"]["words"] for one in row["candidates"]] == ["poor" in one["text"] for one in row["candidates"]]


def test_figures_are_those_of_the_errors(spec, tmp_path, capsys):
    some = list(rows(400, 0.15))
    some[0]["topic"] = None
    log = written(tmp_path / "log.jsonl", some)
    found = told([log, "--judge", spec, "-o", tmp_path / "out.jsonl", "--slice", "topic"], capsys)["figures"]
    for name in ("bad answers that it accepts", "good answers that it refuses"):
        value, low, high = found[name]
        assert low < 0.15 < high
        assert low < value < high
        assert high - low < 0.12
    assert found["kappa"][0] == pytest.approx(0.7, abs=0.08)
    assert {"kappa, a", "kappa, b", "leaning, longer half", "leaning, later draws"} <= set(found)
    assert "kappa, None" not in found
    assert main(["judge", str(log), "--judge", str(spec), "-o", str(tmp_path / "out.jsonl"), "--slice", "topics"]) == 0
    assert 'no labelled row has the key "topics": give --slice a key of the rows\n' in capsys.readouterr().err


def test_a_judge_that_likes_length_is_seen(spec, tmp_path, capsys):
    some = list(rows(300, 0.0))
    for row in some:
        for place, one in enumerate(row["candidates"]):
            if place >= 2:
                one["text"] = one["text"].replace("poor", "good")
    found = told([written(tmp_path / "log.jsonl", some), "--judge", spec, "-o", tmp_path / "out.jsonl"], capsys)["figures"]
    assert found["leaning, longer half"][1] > 0.3
    assert found["leaning, shorter half"][2] < 0.05


def test_a_prompt_that_comes_again_counts_once_in_what_its_verdicts_certify(spec, tmp_path, capsys):
    # 40 prompts are too few for alpha = 0.05, however often each was asked: ten rows of each passed for 400 prompts
    some = [{**row, "id": f"{row['id']}-{time}"} for row in rows(40, 0.0) for time in range(10)]
    found = told([written(tmp_path / "log.jsonl", some), "--judge", spec, "-o", tmp_path / "out.jsonl"], capsys)
    assert found["prompts"] == 40
    assert found["certificate"]["threshold"] is None


def test_what_its_errors_do_to_a_certificate(spec, tmp_path, capsys):
    true = told([written(tmp_path / "a.jsonl", rows(500, 0.0)), "--judge", spec, "-o", tmp_path / "1.jsonl"], capsys)["certificate"]
    assert true["by_judge"] == true["by_people"] <= 0.05
    some = list(rows(500, 0.0))
    for row in some:  # a judge that takes what is nearly acceptable
        for one in row["candidates"]:
            if one["score"] > -1.0:
                one["text"] = one["text"].replace("poor", "good")
    log = written(tmp_path / "b.jsonl", some)
    lenient = told([log, "--judge", spec, "-o", tmp_path / "2.jsonl"], capsys)["certificate"]
    assert lenient["by_judge"] <= 0.05
    assert lenient["by_people"] > 0.05


def test_kappa():
    people, judge = np.array([True, True, False, False]), np.array([True, False, False, False])
    assert judging.kappa(people, judge) == pytest.approx(0.5)
    assert np.isnan(judging.kappa(np.array([True]), np.array([True])))


@pytest.mark.parametrize("key", ["judged_by", "verdicts"])
def test_keys_that_hold_something_else_than_judges_are_told(spec, tmp_path, capsys, key):
    [row] = rows(1, 0.0)
    (row if key == "judged_by" else row["candidates"][2])[key] = "alice"  # AttributeError, or TypeError, before
    log = written(tmp_path / "log.jsonl", [row])
    assert main(["judge", str(log), "--judge", str(spec), "-o", str(tmp_path / "out.jsonl")]) == 2
    assert f"log.jsonl:1: \"{key}\" is 'alice', and is to hold an entry for each judge" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "says"), [({"has_zero": False}, "only rank"), ({}, "no answer is labelled")])
def test_what_cannot_be_judged(spec, tmp_path, capsys, change, says):
    spec.write_text(json.dumps(json.loads(spec.read_text()) | change))
    row = {"id": "1", "prompt": "p", "candidates": [{"text": "good", "score": 1.0, "acceptable": True if change else None}]}
    log = written(tmp_path / "log.jsonl", [row])
    assert main(["judge", str(log), "--judge", str(spec), "-o", str(tmp_path / "out.jsonl")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()  # a judge may cost money


def test_what_is_undefined_is_null(spec, tmp_path, capsys):
    some = list(rows(20, 0.0))
    for row in some:  # all is good, and the judge says so
        row["candidates"] = [{**one, "text": "good", "acceptable": True} for one in row["candidates"]]
    log = written(tmp_path / "log.jsonl", some)
    found = told([log, "--judge", spec, "-o", tmp_path / "out.jsonl"], capsys)["figures"]
    assert found["kappa"] == found["bad answers that it accepts"] == [None, None, None]
    assert found["agreement"] == [1.0, 1.0, 1.0]
    assert main(["judge", str(log), "--judge", str(spec), "-o", str(tmp_path / "out.jsonl")]) == 0
    assert "nan" not in capsys.readouterr().out


def test_nothing_is_judged_for_a_level_that_is_none_or_over_the_log(spec, tmp_path, capsys):
    log = written(tmp_path / "log.jsonl", rows(5, 0.1))
    assert main(["judge", str(log), "--judge", str(spec), "-o", str(tmp_path / "out.jsonl"), "--alpha", "5"]) == 2
    assert main(["judge", str(log), "--judge", str(spec), "-o", str(log)]) == 2
    assert "is what is to be read" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "words.json"]


def test_it_says_how_far_it_is(spec, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("bonmini_guard.commands.terminal.Progress.say", lambda self, what: said.append(what))
    assert (
        main(["judge", str(written(tmp_path / "log.jsonl", rows(5, 0.1))), "--judge", str(spec), "-o", str(tmp_path / "o.jsonl")])
        == 0
    )
    assert said[-1] == "5 rows judged"
