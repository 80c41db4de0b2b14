"""The benchmark of speculative decoding: assisted answers are the plain ones, for fewer calls of the model."""

from __future__ import annotations

from benchmarks.speculative import measure


def test_assisted_answers_are_the_plain_ones():
    rows = measure(draws=2, tokens=10, ahead=3, rounds=1)
    assert all(row["same_answers"] for row in rows)
    calls = [row["model_calls_a_draw"] for row in rows]
    # One batch, one by one, drafts of 1 and 2 layers, and the model as its own draft, which always agrees.
    assert calls[:2] == [5, 10]
    assert calls[4] <= min(calls[2:4]) < 10
