"""The wall-time benchmark: its thresholds on rows made by hand, its committed logs, and one small run."""

import json
import sys

import numpy as np
import pytest

from benchmarks.wall_time import __main__ as wall
from benchmarks.wall_time import log

#: The best is acceptable; so is what scores 1 or more. The last draw is the shortest.
ROWS = [{"scores": [-1.0, 1.0, 2.0], "acceptable": [0, 1, 1], "tokens": [9, 8, 1]} for _ in range(4)]


def test_an_outcome_follows_the_order_of_arrival():
    policy = wall.Policy("accelerator", (1, 1, 1), (0.5,) * 3, "rolling")
    assert wall.outcome(policy, ROWS[0], 1) == (1, 2)
    assert wall.outcome(policy, ROWS[0], 3) == (1, 1)


def test_a_threshold_is_the_lowest_that_keeps_what_best_of_n_has(monkeypatch):
    monkeypatch.setattr(wall, "best_of_n", lambda _: wall.Policy("accelerator", (3,), (np.inf,)))
    level = wall.threshold(ROWS, (1, 1, 1), "rolling", 1)
    assert -1.0 < level <= 1.0
    worse = [{**row, "acceptable": [0, 0, 1]} for row in ROWS]
    assert 1.0 < wall.threshold(worse, (1, 1, 1), "rolling", 1) <= 2.0


def test_an_interval_pairs_what_it_resamples():
    ours = [1.0, 2.0, 3.0, 4.0]
    found = wall.interval(ours, [2 * one for one in ours], lambda one, other: one.sum() / other.sum())
    assert found == pytest.approx([0.5, 0.5, 0.5])


@pytest.mark.parametrize(("regime", "least", "most"), [("ends", 0.4, 2.0), ("equal", 0.0, 0.1)])
def test_the_committed_logs_are_of_their_regimes(regime, least, most):
    rows = log.rows(regime)
    tokens = np.array([row["tokens"] for row in rows], dtype=float)
    assert tokens.shape == (log.ROWS, log.DRAWS)
    assert least <= tokens.std() / tokens.mean() <= most


def test_a_small_run_measures_every_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        wall,
        "ways_of",
        lambda rows, ways=wall.WAYS: (
            {wall.ALONE: None, wall.BEST: {"schedule": [4], "thresholds": [1e9]}}
            | {
                name: {"schedule": schedule[:2], "thresholds": [0.0] * 2, "exit": exit_, **told}
                for name, schedule, exit_, told in ways
            }
        ),
    )
    output = tmp_path / "wall.json"
    arguments = ["--json", str(output), "--regimes", "ends", "--idle", "1", "--saturated", "2x2x1"]
    monkeypatch.setattr(sys, "argv", ["wall_time", *arguments])
    monkeypatch.setattr(wall, "kept", lambda rows, way: {})
    wall.main()
    figures = json.loads(output.read_text())["regimes"]["ends"]["figures"]
    assert [row["way"] for row in figures] == [wall.ALONE, wall.BEST, *(name for name, *_ in wall.WAYS)]
    assert all(row["2 at once, requests/s"] > 0 for row in figures)
    assert "rolling, auto" in capsys.readouterr().out
