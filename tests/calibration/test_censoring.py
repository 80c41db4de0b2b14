"""The censoring trap: early-exited traces, replayed as if they were complete, promise far too much.

The first test shows that the trap is real; the others that nobody falls into it without writing ``"complete": true`` on such rows.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from bonmini_guard.calibration.figures import replay_log
from bonmini_guard.calibration.logs import log_of_rows
from bonmini_guard.commands import calibrate, replay, report
from bonmini_guard.errors import InputError
from bonmini_guard.profile import GuardProfile
from tests.calibration.helpers import rows_of
from tests.calibration.populations import Population
from tests.calibration.test_drift import guarded

TRAFFIC = Population(size=16, shared=0.3, noise=1.0)
LIVE = GuardProfile(mode="guardrail", schedule=(4,) * 4, thresholds=(0.5,) * 4)


def labelled_traces(number):
    log = TRAFFIC.log(number, 1)
    for row, labels in zip(guarded(LIVE, log), log.labels, strict=True):
        for candidate, good in zip(row["candidates"], labels, strict=False):
            candidate["acceptable"] = bool(good)
        yield row


def test_the_trap_is_real():
    log = TRAFFIC.log(3000, 1)
    # the tempting mistake: a trace's own draws, short rows filled with failures, replayed at another threshold
    scores, labels = np.full(log.scores.shape, np.nan), np.full(log.scores.shape, np.nan)
    for i, row in enumerate(guarded(LIVE, log)):
        drawn = len(row["candidates"])
        scores[i, :drawn], labels[i, :drawn] = log.scores[i, :drawn], log.labels[i, :drawn]
    censored = log_of_rows(
        {
            "id": str(i),
            "candidates": [
                {"score": float(s), "acceptable": bool(g)} if np.isfinite(s) else {"score": None, "failed": True}
                for s, g in zip(scores[i], labels[i], strict=True)
            ],
        }
        for i in range(len(log))
    )
    # a stricter guard would have gone on drawing where the live one stopped, and have been fooled more often than the traces show
    stricter = LIVE.model_copy(update={"thresholds": (2.0,) * 4})
    truth, believed = replay_log(log, stricter), replay_log(censored, stricter)
    assert believed["false_acceptance_rate"] < 0.8 * truth["false_acceptance_rate"]
    assert believed["served_and_bad_rate"] < 0.8 * truth["served_and_bad_rate"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("command", [calibrate, replay, report])
@pytest.mark.parametrize("complete", [False, None], ids=["complete false", "complete not said"])
def test_traces_are_refused_by_everything_that_calibrates(tmp_path, command, complete):
    rows = (
        {key: value for key, value in {**row, "complete": complete}.items() if value is not None} for row in labelled_traces(50)
    )
    log = write(tmp_path / "traces.jsonl", rows)
    LIVE.save(tmp_path / "profile.json")
    flags = {
        calibrate: ["--mode", "guardrail", "-o", str(tmp_path / "new.json")],
        replay: ["--profile", str(tmp_path / "profile.json")],
        report: ["--profile", str(tmp_path / "profile.json"), "-o", str(tmp_path / "report.html")],
    }
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(InputError, match=r"all 50 rows are incomplete .* explore=0.02"):
        command.run(parser.parse_args([log, *flags[command]]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile.json", "traces.jsonl"]


def test_mixed_logs_use_the_complete_rows_only():
    whole = [{**row, "id": f"w{row['id']}", "complete": True, "decision": "accepted"} for row in rows_of(TRAFFIC.log(20, 2))]
    log = log_of_rows([*labelled_traces(50), *whole])
    assert len(log) == 20
    assert log.left_out["incomplete"] == 50


def test_even_rows_that_claim_to_be_complete_need_the_whole_budget():
    lying = ({**row, "complete": True} for row in labelled_traces(50))
    with pytest.raises(InputError, match="fewer than the budget of 16 draws"):
        replay_log(log_of_rows(lying), LIVE)
