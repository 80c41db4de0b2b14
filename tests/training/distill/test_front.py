"""The reward/KL front on draws whose answers are known."""

import numpy as np
import pytest

from bonmini_guard.commands.distill import shown_front
from bonmini_guard.training.distill.front import Drawn, front


def test_records_by_hand():
    scores = np.array([[-3.0, -1.0, -2.0, -4.0, 1.0, 5.0, 2.0, 0.0], [0.5, np.nan, 0.25, 0.0, 9.0, 9.0, 9.0, 9.0]])
    after = np.array([[1.0, 3.0], [2.0, np.nan]])
    records = {r["name"]: r for r in front(Drawn(scores, scores - 1), Drawn(after, after), 0.7, [4, 8])}
    assert records["original, one draw"]["score"] == pytest.approx((np.mean(scores[0]) + np.nanmean(scores[1])) / 2)
    assert records["distilled, one draw"]["score"] == pytest.approx(2.0)
    assert records["distilled, one draw"]["kl"] == 0.7
    assert records["best-of-4"]["score"] == pytest.approx((-1.0 + 0.5) / 2)
    assert records["best-of-8"]["score"] == pytest.approx((5.0 + 9.0) / 2)
    assert records["best-of-8"]["utility"] == pytest.approx((4.0 + 8.0) / 2)
    mini = records["best of mini-4 in 2 loops, exit at 0"]
    # The first prompt needs both loops; the second passes in the first, and so keeps its best of four.
    assert (mini["draws"], mini["score"]) == (6.0, pytest.approx((5.0 + 0.5) / 2))
    assert 0 < mini["kl"] < records["best-of-8"]["kl"]
    line = next(line for line in shown_front(list(records.values()), None).splitlines() if line.startswith("distilled, one draw"))
    assert line.split()[-2:] == ["1.0", "0.70"]


def test_gains_are_differences_for_the_same_prompt():
    before = np.array([[0.0, 2.0], [10.0, 12.0], [-5.0, -5.0], [1.0, 1.0]])
    after = before + np.array([[0.5], [0.5], [1.5], [np.nan]])
    one, distilled, *_ = front(Drawn(before), Drawn(after), 0.1, [2])
    assert (one["score_gain"], one["score_gain_within"]) == (0.0, 0.0)
    assert distilled["score_gain"] == pytest.approx(2.5 / 3)
    # Prompts differ widely; what was gained does not.
    assert distilled["score_gain_within"] == pytest.approx(1.96 * np.std([0.5, 0.5, 1.5], ddof=1) / 3**0.5)
    assert distilled["score_within"] > 5
    assert "score above one draw" in shown_front([one, distilled], None)


def test_a_prompt_of_which_no_draw_can_be_scored_counts_in_no_figure_but_the_draws():
    scores = np.stack([np.arange(8.0) - 4, 1 - np.arange(8.0), np.full(8, np.nan)])
    (*_, all_of_them), (*_, some) = (front(Drawn(part), Drawn(part), 0.1, [8]) for part in (scores, scores[:2]))
    assert {name for name, value in all_of_them.items() if value != some[name]} == {"draws"}
