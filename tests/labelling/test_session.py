"""A session: what is recorded, what an undo does, what a restart finds, and that nothing acknowledged is lost."""

from __future__ import annotations

import errno
import json
import os

import pytest

from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.labelling import events
from bonmini_guard.labelling import session as session_module
from bonmini_guard.labelling.items import Plan, sides
from bonmini_guard.labelling.session import check_annotator
from tests.labelling.helpers import judge_all, row, say, session_of

ROWS = [row("a"), row("b"), row("c")]
ONE, TWO, THREE = (digit * 32 for digit in "123")


def lines(session):
    return [json.loads(line) for line in session.path.read_text().splitlines()]


def test_a_label_says_who_what_and_how_it_was_shown(tmp_path):
    session = session_of(tmp_path, ROWS)
    item = session.standing("ann").item
    session.label("ann", item.key, "b", ONE, 2.5)
    header, label = lines(session)
    assert header["plan"]["seed"] == 0
    assert header["log"]["rows"] == 3
    shown = list(sides(item, "ann", session.plan))
    assert {key: label[key] for key in ("annotator", "row", "candidates", "shown", "chosen", "seconds")} == {
        "annotator": "ann",
        "row": item.row.id,
        "candidates": [0, 1],
        "shown": shown,
        "chosen": shown[1],
        "seconds": 2.5,
    }


def test_the_same_event_is_recorded_once(tmp_path):
    session = session_of(tmp_path, ROWS)
    item = session.standing("ann").item
    for _ in range(3):
        session.label("ann", item.key, "a", ONE)
    assert len(lines(session)) == 2
    assert session.standing("ann").done == 1


def test_two_that_begin_at_once_do_not_take_each_others_file(tmp_path, monkeypatch):
    header = session_module._header

    def overtaken(*about):
        """While the one makes its first line, the other begins and labels."""
        monkeypatch.setattr(session_module, "_header", header)
        nonlocal first
        first = session_of(tmp_path, ROWS)
        say(first, "ann", first.standing("ann").item, 0)
        return header(*about)

    first = None
    monkeypatch.setattr(session_module, "_header", overtaken)
    with pytest.raises(InputError, match="is open in another 'bonmini-guard label'"):
        session_of(tmp_path, ROWS)
    say(first, "ann", first.standing("ann").item, 0)
    first.close()
    assert session_of(tmp_path, ROWS).standing("ann").done == 2
    assert {item.name for item in tmp_path.iterdir()} == {"out.jsonl", "log.jsonl"}


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch):
    def refused(*about):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    session = session_of(tmp_path, ROWS)
    say(session, "ann", session.standing("ann").item, 0)
    session.close()
    assert session_of(tmp_path, ROWS).standing("ann").done == 1
    assert {item.name for item in tmp_path.iterdir()} == {"out.jsonl", "log.jsonl"}


def test_a_file_that_cannot_be_begun_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        session_of(tmp_path, ROWS)
    assert {item.name for item in tmp_path.iterdir()} == {"log.jsonl"}


def test_a_file_whose_beginning_was_killed_is_begun(tmp_path):
    (tmp_path / "out.jsonl").touch()  # what a kill between opening and writing leaves
    session = session_of(tmp_path, ROWS)
    say(session, "ann", session.standing("ann").item, 0)
    session.close()
    assert session_of(tmp_path, ROWS).standing("ann").done == 1


def test_a_file_that_another_one_is_about_to_begin_is_theirs(tmp_path, monkeypatch):
    dumps = json.dumps

    def meanwhile(value, **how):
        if isinstance(value, dict) and value.get("kind") == events.KIND:
            monkeypatch.setattr(json, "dumps", dumps)
            with pytest.raises(InputError, match="is open in another 'bonmini-guard label'"):
                session_of(tmp_path, ROWS)
        return dumps(value, **how)

    monkeypatch.setattr(json, "dumps", meanwhile)
    assert session_of(tmp_path, ROWS).standing("ann").done == 0


def test_what_is_taken_in_twice_changes_nothing_even_if_somebody_judged_twice(tmp_path):
    session = session_of(tmp_path, ROWS)
    item = session.standing("ann").item
    twice = [("ann", item, 0), ("ann", item, "none")]
    assert [session.take_in(twice, "elsewhere") for _ in range(3)] == [1, 0, 0]
    assert session.ledger.labels("ann")[item.key]["chosen"] == "none"


def test_figures_are_made_of_a_snapshot(tmp_path):
    session = session_of(tmp_path, ROWS)
    snapshot = session.snapshot()
    say(session, "ann", session.standing("ann").item, 0)
    assert (snapshot.annotators, session.snapshot().annotators) == ([], ["ann"])


def test_undo_is_a_further_line_and_brings_the_item_back(tmp_path):
    session = session_of(tmp_path, ROWS)
    first = session.standing("ann").item
    say(session, "ann", first, 0)
    second = session.standing("ann").item
    session.put_off("ann", second.key, ONE)
    assert session.undo("ann", TWO).key == second.key
    assert session.undo("ann", THREE).key == first.key
    assert session.undo("ann", "4" * 32) is None
    standing = session.standing("ann")
    assert (standing.item.key, standing.done, standing.put_off, standing.undoable) == (first.key, 0, 0, False)
    assert [line["kind"] for line in lines(session)[1:]] == ["label", "skip", "undo", "undo"]


def test_items_put_off_come_again_at_the_end(tmp_path):
    session = session_of(tmp_path, ROWS)
    later = session.standing("ann").item
    session.put_off("ann", later.key, ONE)
    for _ in range(2):
        item = session.standing("ann").item
        assert item.key != later.key
        say(session, "ann", item, "none")
    assert session.standing("ann").item.key == later.key
    say(session, "ann", later, 1)
    assert session.standing("ann").item is None
    assert session.standing("ann").done == 3


def test_annotators_do_not_disturb_each_other(tmp_path):
    session = session_of(tmp_path, ROWS)
    judge_all(session, "ann", lambda item: 0)
    assert session.standing("bob").done == 0
    say(session, "bob", session.standing("bob").item, "none")
    session.undo("bob", ONE)
    assert session.standing("ann").done == 3


def test_a_restart_finds_everything_and_cuts_off_a_torn_line(tmp_path):
    session = session_of(tmp_path, ROWS, seed=3)
    say(session, "ann", session.standing("ann").item, 0)
    expected = session.standing("ann").item.key
    session.close()
    whole = session.path.read_bytes()
    session.path.write_bytes(whole + b'{"kind": "label", "event": "77')
    again = session_of(tmp_path, ROWS)
    assert (again.plan, session.path.read_bytes()) == (Plan(seed=3), whole)
    assert again.standing("ann").item.key == expected
    say(again, "ann", again.standing("ann").item, 0)
    assert len(lines(again)) == 3


def test_another_log_is_refused_and_the_file_left_alone(tmp_path):
    session = session_of(tmp_path, ROWS)
    session.close()
    before = session.path.read_bytes()
    with pytest.raises(InputError, match="was begun on another log"):
        session_of(tmp_path, [row("a"), row("b"), row("c", ("good", "worse"))])
    assert session.path.read_bytes() == before
    session_of(tmp_path, ROWS[::-1]).close()  # the order of rows is no part of what they are


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    for text in ("hello", '{"id": "a"}\n{"id": "b', "[]\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="is not a file of label events"):
            session_of(tmp_path, ROWS)
        assert path.read_text() == text


LABEL = '{"kind": "label", "event": "1", "annotator": "a", "item": "i", "row": "r", '


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nonsense", "not JSON"),
        ('{"kind": "label", "event": "1"}', "not a label event"),
        ('{"kind": "dance"}', "not a label event"),
        ('{"kind": "skip", "event": [], "annotator": "a", "item": "i"}', "not a label event"),
        (LABEL + '"candidates": [0, 1], "chosen": 2}', "not a label event"),
        (LABEL + '"candidates": [[]], "chosen": "none"}', "not a label event"),
        (LABEL + '"candidates": 5, "chosen": "none"}', "not a label event"),
        ('{"kind": "ask", "event": "1", "said": "", "items": [["r"]]}', "an item that the log does not give"),
        ('{"kind": "skip", "event": "1", "annotator": "a", "item": "unknown"}', "an item that the log does not give"),
    ],
)
def test_a_damaged_line_is_refused_by_number(tmp_path, line, problem):
    session = session_of(tmp_path, ROWS)
    session.close()
    with session.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=rf"out.jsonl:2: .*{problem}"):
        session_of(tmp_path, ROWS)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"format": 99}, "format 99"),
        ({"plan": None}, "out.jsonl:1: the session's plan cannot be read"),
        ({"plan": {"mode": "dance", "seed": 0, "pairs": 1}}, "out.jsonl:1: the session's plan cannot be read"),
        ({"plan": {"mode": "accept", "seed": 0, "pairs": 1, "thresholds": [0.5]}}, "begun with --first near-threshold"),
    ],
)
def test_a_newer_format_and_a_plan_that_is_none_are_refused(tmp_path, about, said):
    (tmp_path / "out.jsonl").write_text(json.dumps({"kind": events.KIND, "format": events.FORMAT} | about) + "\n")
    with pytest.raises(InputError, match=said):
        session_of(tmp_path, ROWS)


def test_answers_that_an_item_does_not_have_are_refused(tmp_path):
    session = session_of(tmp_path, [row("a"), row("b", ("x",))])
    keys = {len(item.candidates): item.key for item in session.items}
    for size, answer in ((2, "accept"), (1, "a"), (1, "b"), (2, ""), (2, None)):
        with pytest.raises(InputError, match="the answer to this item is one of"):
            session.label("ann", keys[size], answer, ONE)
    with pytest.raises(InputError, match="no such item"):
        session.label("ann", "0" * 16, "a", ONE)
    assert len(lines(session)) == 1


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\nb", None, 3])
def test_names_that_are_none(name):
    with pytest.raises(ConfigurationError, match="an annotator's name"):
        check_annotator(name)


def test_blanks_around_a_name_do_not_count():
    assert check_annotator(" Ann Ba ") == "Ann Ba"
