"""The censoring trap: early-exited traces, replayed as if they were complete, promise far too much.

The first test shows that the trap is real; the others that nobody falls into it without writing ``"complete": true`` on such rows.
"""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from bonmini_guard import BestOfMiniN
from bonmini_guard.calibration.choose import calibrate_guardrail
from bonmini_guard.calibration.figures import replay_log
from bonmini_guard.calibration.logs import load_log, log_of_rows
from bonmini_guard.commands import calibrate, replay, report
from bonmini_guard.errors import InputError
from bonmini_guard.policy.profile import GuardProfile
from bonmini_guard.testing import FakeGenerator, FakeRewardModel
from tests.calibration.helpers import called, rows_of, written
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


@pytest.mark.parametrize("command", [calibrate, replay, report])
@pytest.mark.parametrize("complete", [False, None], ids=["complete false", "complete not said"])
def test_traces_are_refused_by_everything_that_calibrates(tmp_path, command, complete):
    rows = (
        {key: value for key, value in {**row, "complete": complete}.items() if value is not None} for row in labelled_traces(50)
    )
    log = written(tmp_path / "traces.jsonl", rows)
    LIVE.save(tmp_path / "profile.json")
    flags = {
        calibrate: ["--mode", "guardrail", "-o", str(tmp_path / "new.json")],
        replay: ["--profile", str(tmp_path / "profile.json")],
        report: ["--profile", str(tmp_path / "profile.json"), "-o", str(tmp_path / "report.html")],
    }
    with pytest.raises(InputError, match=r"all 50 rows are incomplete .* explore=0.02"):
        called(command, log, *flags[command])
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


HARD = Population(size=16, middle=-1.0, shared=0.3, noise=1.0)


def drawn(request):
    """One draw of a prompt of ``HARD``, as "score acceptable"."""
    prompt = int(request.messages[0].content)
    middle, shared = np.random.default_rng([1, prompt]).normal(size=2) * [HARD.prompt, HARD.shared] + [HARD.middle, 0.0]
    own, noise = np.random.default_rng([2, prompt, request.seed]).normal(size=2)
    utility = middle + HARD.own * own
    return f"{utility + shared + HARD.noise * noise} {int(utility > 0)}"


async def traced(path, prompts):
    """The traces of a guard that exits early and explores, labelled."""
    random.seed(5)  # which requests are explored
    guard = BestOfMiniN(
        generator=FakeGenerator(drawn),
        reward_model=FakeRewardModel(lambda text: float(text.split()[0])),
        schedule=[4] * 4,
        threshold=0.0,
        explore=0.3,
        trace_to=path,
    )
    for prompt in range(prompts):
        await guard.arun(str(prompt), seed=prompt)
        await guard.afinish()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for candidate in (candidate for row in rows for candidate in row["candidates"]):
        candidate["acceptable"] = candidate["text"].endswith("1")
    written(path, rows)
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:uncalibrated")
async def test_from_a_guards_traces_to_a_promise_that_holds(tmp_path):
    rows = await traced(tmp_path / "traces.jsonl", 1500)
    log = load_log(tmp_path / "traces.jsonl")
    assert len(rows) == 1500
    assert 350 < len(log) < 550
    assert log.left_out["incomplete"] == 1500 - len(log)
    assert log.fingerprints == {"scored_by": "fake-reward-model", "generated_by": "fake-generator"}

    truth = HARD.log(20_000, 9)
    wanted = {"schedule": (4,) * 4, "alpha": 0.1, "delta": 0.1}
    fair = calibrate_guardrail(log, **wanted)
    assert replay_log(truth, fair.profile)["served_and_bad_rate"] <= 0.1

    lost = {"text": "", "score": None, "failed": True}
    forced = log_of_rows({**row, "complete": True, "candidates": (row["candidates"] + [lost] * 16)[:16]} for row in rows)
    believed = calibrate_guardrail(forced, **wanted)
    assert replay_log(truth, believed.profile)["served_and_bad_rate"] > 0.12
