"""Items: what is asked, in which order, on which side, and that random ones are a fair sample."""

from __future__ import annotations

from collections import Counter

import pytest

from bonmini_guard.errors import InputError
from bonmini_guard.labelling.items import Plan, build_items, sides
from bonmini_guard.labelling.rows import fingerprint, read_rows
from tests.labelling.helpers import log_file, row

# What three rows of three answers give; see the test that uses them.
GOLDEN = [("2", (1, 2), "579f9fa6fdba69c7"), ("0", (0, 2), "4e5cb8d2ebfb883f"), ("1", (1, 2), "1bbb88953bf8bbf7")]
SIDES = [(2, 1), (0, 2), (1, 2)]


@pytest.fixture
def rows(tmp_path):
    def make(many):
        return read_rows([log_file(tmp_path / "log.jsonl", many)])

    return make


def test_a_pair_of_each_row_or_each_answer_by_itself(rows):
    log = rows([row("a", "vwxyz"), row("b", "x"), row("c", "xyx")])
    pairs = build_items(log, Plan())
    assert Counter(item.row.id for item in pairs) == {"a": 1, "b": 1, "c": 1}
    assert {len(item.candidates) for item in pairs if item.row.id != "b"} == {2}
    assert [item.candidates for item in pairs if item.row.id == "b"] == [(0,)]
    two = [item.candidates for item in build_items(log, Plan(pairs=2)) if item.row.id == "a"]
    assert len({index for pair in two for index in pair}) == 4
    single = build_items(log, Plan(mode="accept"))
    assert sorted((item.row.id, *item.candidates) for item in single) == [
        *(("a", index) for index in range(5)),
        ("b", 0),
        ("c", 0),
        ("c", 1),
    ]


def test_rows_come_whole_so_that_stopping_leaves_one_unfinished(rows):
    items = build_items(rows([row(str(i), "wxyz") for i in range(9)]), Plan(mode="accept"))
    order = [item.row.id for item in items]
    assert order == [name for name in dict.fromkeys(order) for _ in range(4)]
    assert list(dict.fromkeys(order)) != [str(i) for i in range(9)]


def test_failed_draws_are_not_asked_about(rows):
    log = row("a", "xyz")
    log["candidates"][1] = {"score": None, "failed": True}
    assert [item.candidates for item in build_items(rows([log]), Plan())] == [(0, 2)]


def test_the_order_depends_on_the_seed_and_not_on_the_order_of_rows(rows):
    many = [row(str(i), "xyz") for i in range(20)]
    plain = [item.key for item in build_items(rows(many), Plan())]
    assert [item.key for item in build_items(rows(many[::-1]), Plan())] == plain
    assert [item.row.id for item in build_items(rows(many), Plan())] != [
        item.row.id for item in build_items(rows(many), Plan(seed=1))
    ]


def test_the_order_is_the_same_on_every_machine(rows):
    # A session that was begun elsewhere must find its items again: these values must never change.
    items = build_items(rows([row(str(i), "xyz") for i in range(3)]), Plan())
    assert [(item.row.id, item.candidates, item.key) for item in items] == GOLDEN
    assert [sides(item, "ann", Plan()) for item in items] == SIDES


def test_sides_are_even_and_each_annotators_own(rows):
    items = build_items(rows([row(str(i)) for i in range(400)]), Plan())
    first = {name: [sides(item, name, Plan())[0] for item in items] for name in ("ann", "bob")}
    for drawn in first.values():
        assert 160 < sum(drawn) < 240  # 4 standard deviations around 200
    same = sum(a == b for a, b in zip(first["ann"], first["bob"], strict=True))
    assert 160 < same < 240


def test_the_fingerprint_is_of_what_is_labelled(rows):
    many = [row("a"), row("b")]
    plain = fingerprint(rows(many), scored=False)
    assert fingerprint(rows(many[::-1]), scored=False) == plain
    rescored = [row("a", scores=[9.0, 8.0]), row("b")]
    assert fingerprint(rows(rescored), scored=False) == plain
    assert fingerprint(rows(rescored), scored=True) != fingerprint(rows(many), scored=True)
    assert fingerprint(rows([row("a", ("good", "worse")), row("b")]), scored=False) != plain


def test_conversations_and_messages_are_shown_as_text(rows):
    call = {"content": "", "tool_calls": [{"name": "find", "args": {"q": 1}, "id": "1"}]}
    prompt = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}]},
    ]
    shown = rows([{"id": "a", "prompt": prompt, "candidates": [{"message": call}, {"message": {"content": "no"}}]}])[0]
    assert shown.turns == (("system", "be brief"), ("user", "look\n[image_url]"))
    assert shown.texts == ('[calls find {"q": 1}]', "no")


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"prompt": "p", "candidates": [{"text": "x"}]}, 'the row has no "id"'),
        ({"id": "a", "prompt": " ", "candidates": [{"text": "x"}]}, "the prompt is empty"),
        ({"id": "a", "prompt": "p", "candidates": ["x"]}, "candidate 1 is not an object"),
        ({"id": "a", "prompt": "p", "candidates": [{"score": 1.0}]}, r'candidate 1 has no "text"; .*trace_candidates'),
        ({"id": "a", "prompt": "p", "candidates": [{"failed": True}]}, "there is nothing to label"),
    ],
)
def test_bad_rows_are_refused_in_one_line(rows, bad, problem):
    with pytest.raises(InputError, match=problem) as caught:
        rows([bad])
    assert "log.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)
