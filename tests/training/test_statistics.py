"""What is told of choice rows before anybody trains on them."""

from bonmini_guard.training.choices import ChoiceRow
from bonmini_guard.training.data import describe
from bonmini_guard.training.data.statistics import show


def row(prompt="p", responses=("long answer", "short"), choice=0, count=1, offered=True):
    return ChoiceRow((("user", prompt),), responses, choice, count, offered)


def test_counts_by_hand():
    found = describe([row(), row(choice="none", count=3), row("q", ("a",), "none"), row("q", ("bb", "a"), 1, offered=False)])
    assert (found.rows, found.judgements, found.offered, found.none) == (4, 6, 5, 4)
    assert found.share_of_none == 0.8
    assert found.sizes == {2: 5, 1: 1}
    assert (found.compared, found.longer) == (2, 1)
    assert "4 rows, 6 judgements, 2 prompts, 4 distinct answers" in show(found)
    assert "25% of 4 repeated judgements" in show(found)


def warned(rows, held_out=()):
    return " ".join(describe(rows, held_out).warnings())


def test_each_warning_has_its_cause_and_is_silent_without_it():
    balanced = [row(f"p{n}", ("one", "two"), ["none", 0, 1][n % 3]) for n in range(120)]
    assert warned(balanced) == ""
    assert "never offered" in warned([row(f"p{n}", offered=False) for n in range(5)])
    assert "one-sided" in warned([row(f"p{n}", ("one", "two")) for n in range(5)])
    assert "repeat an earlier one" in warned([*balanced, *balanced[:10]])
    conflicts = [row(f"p{n}", ("one", "two"), choice) for n in range(60) for choice in (0, 1, "none")]
    # Three of three who disagree are what noise does, too: a figure, and no alarm.
    assert warned(conflicts) == ""
    assert "67% of 180 repeated judgements are not the most frequent one" in show(describe(conflicts))
    assert "learn length" in warned([*balanced, *(row(f"l{n}") for n in range(150))])
    assert "one text twice" in warned([*balanced, row("x", ("one", "one"))])
    assert "1 held-out prompts are trained on too" in warned(balanced, [row("P7 ", ("three",), 0), row("new")])


def test_the_order_of_answers_does_not_hide_a_contradiction():
    found = describe([row(responses=("a", "b"), choice=0), row(responses=("b", "a"), choice=0)])
    assert "50% of 2 repeated judgements" in show(found)
