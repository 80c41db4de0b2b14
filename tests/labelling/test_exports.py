"""What labels become: choice rows that train reads, log rows that calibrate reads, and what calibration must not use."""

from __future__ import annotations

import json
import math

import pytest

from bonmini_guard.calibration.logs import load_log, log_of_rows
from bonmini_guard.errors import InputError
from bonmini_guard.labelling.exports import choice_rows, labelled_log
from bonmini_guard.logs.rows import Row
from bonmini_guard.training import read_choices
from tests.labelling.helpers import judge_all, log_file, row, run, say, session_of


def test_choice_rows_are_what_train_reads(tmp_path):
    rows = [row("a"), row("b"), row("c", ("only",)), {**row("d"), "prompt": [{"role": "user", "content": "hi"}]}]
    session = session_of(tmp_path, rows)
    verdicts = {"a": 0, "b": "none", "c": 0, "d": 1}
    for name in ("ann", "bob"):
        judge_all(session, name, lambda item: verdicts[item.row.id])
    judge_all(session, "cem", lambda item: "none")
    written = log_file(tmp_path / "choices.jsonl", choice_rows(session))
    found = {(row.prompt[0].text, row.responses, row.choice): row.count for row in read_choices(written)}
    assert found == {
        ("question a", ("good", "bad"), 0): 2,
        ("question a", ("good", "bad"), "none"): 1,
        ("question b", ("good", "bad"), "none"): 3,
        ("question c", ("only",), 0): 2,
        ("question c", ("only",), "none"): 1,
        ("hi", ("good", "bad"), 1): 2,
        ("hi", ("good", "bad"), "none"): 1,
    }


def test_an_empty_answer_is_left_out_of_choice_rows(tmp_path):
    session = session_of(tmp_path, [row("a", ("good", "")), row("b", (" \n", "good")), row("c", ("",))])
    judge_all(session, "ann", lambda item: {"a": 0, "b": 0, "c": "none"}[item.row.id])
    assert [(one["responses"], one["choice"]) for one in choice_rows(session)] == [(["good"], 0)]


def accept_session(tmp_path, rows, **plan):
    return session_of(tmp_path, rows, mode="accept", **plan)


def test_labelled_rows_are_what_calibrate_reads(tmp_path):
    session = accept_session(tmp_path, [row("a", ("good", "bad", "good"), tier="free"), row("b")])
    judge_all(session, "ann", lambda item: item.candidates[0] if item.row.texts[item.candidates[0]] == "good" else "none")
    exported = labelled_log(session)
    assert (exported.labelled, exported.random, exported.unfinished) == (2, 2, 0)
    first = exported.rows[0]
    assert [candidate["acceptable"] for candidate in first["candidates"]] == [True, False, True]
    assert (first["label_sampling"], first["tier"], first["candidates"][0]["by"]) == ("random", "free", "model-x")
    log = load_log(log_file(tmp_path / "labelled.jsonl", exported.rows)).require_labels()
    assert log.labels[0].tolist() == [1.0, 0.0, 1.0]


def test_a_label_of_people_is_not_said_to_be_a_judges(tmp_path):
    judged = row("a", ("x", "y"))
    judged["candidates"] = [one | {"acceptable": True, "acceptable_by": "a judge"} for one in judged["candidates"]]
    session = accept_session(tmp_path, [judged])
    judge_all(session, "ann", lambda item: "none")
    (labelled,) = labelled_log(session).rows
    assert [(one["acceptable"], one.get("acceptable_by")) for one in labelled["candidates"]] == [(False, None)] * 2


def test_the_majority_decides_and_a_tie_is_not_acceptable(tmp_path):
    session = accept_session(tmp_path, [row("a", "xyz")])
    verdicts = {"ann": (0, 1, "none"), "bob": (0, "none", "none"), "cem": ("none", "none", 2), "dee": ("none", 1, 2)}
    for name, chosen in verdicts.items():
        judge_all(session, name, lambda item, chosen=chosen: chosen[item.candidates[0]])
    assert [candidate["acceptable"] for candidate in labelled_log(session).rows[0]["candidates"]] == [False, False, False]
    judge_all(session, "eve", lambda item: item.candidates[0])
    assert [candidate["acceptable"] for candidate in labelled_log(session).rows[0]["candidates"]] == [True, True, True]


def test_a_random_row_gets_its_labels_when_it_is_whole(tmp_path):
    session = accept_session(tmp_path, [row("a", "xyz"), row("b", "xyz")])
    for _ in range(4):
        item = session.standing("ann").item
        say(session, "ann", item, "none")
    exported = labelled_log(session)
    assert (exported.labelled, exported.unfinished) == (1, 1)
    log = log_of_rows(exported.rows).require_labels()
    assert len(log) == 1
    assert log.left_out["unlabelled"] == 1


def test_items_put_off_are_counted(tmp_path):
    session = accept_session(tmp_path, [row("a", "xyz")])
    session.put_off("ann", session.standing("ann").item.key, "1" * 32)
    say(session, "ann", session.standing("ann").item, "none")
    assert labelled_log(session).put_off == 1


def informative():
    """10 rows, 3 of them random; the others, picked elsewhere by their scores, are all called unacceptable."""
    rows = [row(str(i), ("x", "y"), [0.1 * i, -0.1 * i]) for i in range(10)]
    for number, one in enumerate(rows):
        one["label_sampling"] = "random" if number < 3 else "informative"
        for candidate in one["candidates"]:
            candidate["acceptable"] = number < 3
    return rows


def test_calibration_uses_no_label_that_was_picked_by_its_score():
    log = log_of_rows(informative())
    assert len(log) == 10  # the rows stay: their scores are as good as any
    assert log.left_out["not_random"] == 7
    usable = log.require_labels()
    assert len(usable) == 3
    assert usable.labels.min() == 1.0
    assert "unlabelled" not in usable.left_out


def test_the_calibrate_and_replay_commands_say_what_they_left_out(tmp_path, capsys):
    from bonmini_guard.cli import main

    path = log_file(tmp_path / "labelled.jsonl", informative())
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"mode": "guardrail", "schedule": [1, 1], "thresholds": [0.0, 0.0]}))
    assert main(["replay", str(path), "--profile", str(profile), "--json"]) == 0
    told = capsys.readouterr()
    assert "rows left out: 7 not_random (picked for labelling" in told.err
    assert json.loads(told.out)["requests"] == 3


def test_a_log_with_informative_labels_only_is_refused_by_calibration():
    picked = {"id": "a", "prompt": "p", "candidates": [{"score": 1.0, "acceptable": True}], "label_sampling": "informative"}
    with pytest.raises(InputError, match="not drawn at random"):
        log_of_rows([picked]).require_labels()
    assert math.isnan(Row(picked, "rows:1").labels[0])  # nor do they tell drift anything
    with pytest.raises(InputError, match='rows:1: "label_sampling" is 3'):
        log_of_rows([{**picked, "label_sampling": 3}])


def test_pairs_label_what_they_say_and_calibration_does_not_use_it(tmp_path):
    session = session_of(tmp_path, [row("a"), row("b"), row("c", ("same", "same"))])
    judge_all(session, "ann", lambda item: {"a": 1, "b": "none", "c": 0}[item.row.id])
    rows = labelled_log(session).rows
    assert [[c["acceptable"] for c in one["candidates"]] for one in rows] == [[None, True], [False, False], [True, True]]
    # All draws agree on the one of one distinct answer: it is an easy one, and no random sample either.
    assert {one["label_sampling"] for one in rows} == {"choices"}
    with pytest.raises(InputError, match=r"not drawn at random.* 'bonmini-guard label --mode accept', or with --for"):
        log_of_rows(rows).require_labels()


def test_exports_of_the_command(tmp_path, capsys):
    session = accept_session(tmp_path, [row("a"), row("b")])
    judge_all(session, "ann", lambda item: item.candidates[0])
    session.close()
    choices, labelled = tmp_path / "choices.jsonl", tmp_path / "labelled.jsonl"
    arguments = [tmp_path / "log.jsonl", "-o", session.path, "--export", f"choices={choices}", "--export", f"log={labelled}"]
    assert run(*arguments) == 0
    assert len(read_choices(choices)) == 4
    assert load_log(labelled).labels.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert "2 of 2 rows labelled, 2 of them for calibration" in capsys.readouterr().out


def test_without_a_label_there_is_nothing_to_export(tmp_path, capsys):
    session = session_of(tmp_path, [row("a")])
    session.close()
    for kind in ("choices", "log"):
        assert run(tmp_path / "log.jsonl", "-o", session.path, "--export", f"{kind}={tmp_path / 'x'}") == 2
        assert "holds no label yet" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
