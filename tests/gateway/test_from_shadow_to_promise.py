"""From a fresh gateway in shadow mode to a certified guardrail, by what docs/gateway.md says, with a real client."""

from __future__ import annotations

import json
import random

import pytest

from bonmini_guard.cli import main
from tests.gateway.conftest import REJECTED, alternating, patiently

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

REQUESTS = 60


def ask(house, number):
    asked = {"model": "support", "messages": [{"role": "user", "content": f"question {number}"}]}
    return house.client.chat.completions.create(**asked, max_tokens=50 + number)  # a profile vouches for one generator alone


def labelled(row):
    """As ``label --export log`` writes it, by somebody who knows."""
    candidates = [{**one, "acceptable": REJECTED not in one["text"]} for one in row["candidates"]]
    return {**row, "candidates": candidates, "label_sampling": "random"}


def test_from_shadow_to_a_promise(house, capsys, monkeypatch):
    # Seeds, for what is drawn decides what is certified.
    monkeypatch.setattr("bonmini_guard.runnables.shadow.random", random.Random(0))
    house.upstream.text = alternating
    traces, log, profile = (house.folder / name for name in ("traces.jsonl", "labelled.jsonl", "guardrail.json"))
    with house.open({"support": 'schedule = [2, 2]\nshadow = 1.0\nexplore = 1.0\ntrace_to = "traces.jsonl"'}):
        client = house.client  # one client, and so one connection
        for number in range(REQUESTS):
            asked = [{"role": "user", "content": f"question {number}"}]
            answer = client.chat.completions.create(model="support", messages=asked, temperature=number / REQUESTS, seed=number)
            assert answer.bonmini_guard["decision"] == "shadow"
    rows = [json.loads(line) for line in traces.read_text().splitlines()]
    complete = [row for row in rows if row["complete"]]
    assert len(rows) == REQUESTS
    assert len(complete) > REQUESTS * 0.8
    log.write_text("".join(json.dumps(labelled(row)) + "\n" for row in complete))
    asked = ["calibrate", str(log), "--mode", "guardrail", "--risk", "served_and_bad", "--alpha", "0.2", "--delta", "0.2"]
    assert main([*asked, "--schedule", "2,2", "-o", str(profile)]) == 0, capsys.readouterr()
    with house.open({"support": 'profile = "guardrail.json"\nreload = true\ntrace_to = "traces.jsonl"'}):
        answers = [ask(house, number) for number in range(20)]
    with house.open({"support": 'profile = "guardrail.json"\nreload = true\ntrace_to = "traces.jsonl"'}):
        patiently(lambda: 'bonmini_guard_drift_p_value{guard="support",what="first_loop_scores' in house.metrics())
    (state,) = house.folder.glob("traces.*.drift")
    assert json.loads(state.read_text())["traces"] == len(answers)  # and not those of the trial, which other thresholds decided
    assert {answer.bonmini_guard["profile"] for answer in answers} == {"guardrail.json"}
    assert {answer.bonmini_guard["decision"] for answer in answers} <= {"accepted", "abstained"}
    assert not any(REJECTED in answer.model_dump_json() for answer in answers)
    assert sum(answer.bonmini_guard["decision"] == "accepted" for answer in answers) > 10
