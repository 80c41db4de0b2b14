"""From shadow mode to a calibrated guardrail: watch, label, calibrate, guard.

1. In shadow the model answers as before. The guard scores each answer, draws the full budget for a share of requests, and writes
   traces.
2. People label what was drawn (``bonmini-guard label traces.jsonl``).
3. ``bonmini-guard calibrate`` turns the labelled traces into a profile with a promise.
4. The guard goes live with that profile.

Offline: the fake model's drafts carry their quality in the text; the judge reads it with an error, the labeller without one.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage

from bonmini_guard import BestOfMiniN, NoAcceptableResponse, ShadowBestOfMiniN, cli
from bonmini_guard.testing import FakeChatModel, FakeRewardModel

SHAPE: dict[str, Any] = {"mini_n": 2, "max_loops": 3}


def quality(text: str) -> float:
    """What a draft is worth; acceptable if positive."""
    return float(re.findall(r"[-+]\d+\.\d+", text)[0])


def speaker(seed: int) -> Callable[[list[BaseMessage]], str]:
    """A model whose drafts differ, and differ more from question to question."""
    chance = random.Random(seed)

    def speak(messages: list[BaseMessage]) -> str:
        difficulty = random.Random(messages[-1].text).gauss(0.4, 1.0)
        return f"a draft of quality {difficulty + chance.gauss(0.0, 0.7):+.4f}"

    return speak


def judge(text: str) -> float:
    """The reward model: right on average."""
    return quality(text) + random.Random(text).gauss(0.0, 0.4)


async def watch(traces: Path, requests: int) -> ShadowBestOfMiniN:
    """Step 1: serve as before, and trace. Everything is explored here; on real traffic a few per cent are."""
    guard = BestOfMiniN(
        generator=FakeChatModel(speaker(1)), reward_model=FakeRewardModel(judge), explore=1.0, trace_to=traces, **SHAPE
    )
    shadow = ShadowBestOfMiniN(guard)
    for number in range(requests):
        await shadow.ainvoke(f"question {number}")
        if number % 4 == 3:  # few are explored at a time, so that the model's other users do not wait; others would be left out
            await shadow.afinish()
    await shadow.afinish()
    return shadow


def label(traces: Path, labelled: Path) -> None:
    """Step 2: people say of every draft whether they would take it."""
    with labelled.open("w", encoding="utf-8") as file:
        for line in traces.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for candidate in row["candidates"]:
                candidate["acceptable"] = quality(candidate["text"]) > 0
            file.write(json.dumps(row) + "\n")


def certify(labelled: Path, profile: Path) -> None:
    """Step 3: ``bonmini-guard calibrate labelled.jsonl --mode guardrail --alpha 0.1 --mini-n 2 --max-loops 3 -o PROFILE``."""
    arguments = [str(labelled), "--mode", "guardrail", "--alpha", "0.1", "--mini-n", "2", "--max-loops", "3", "-o", str(profile)]
    if cli.main(["calibrate", *arguments]):
        sys.exit("the traces do not support the promise: go on watching and labelling")


def serve(profile: Path, requests: int) -> dict[str, int]:
    """Step 4: live, on new questions."""
    guard = BestOfMiniN(generator=FakeChatModel(speaker(2)), reward_model=FakeRewardModel(judge), profile=profile)
    counts = {"served": 0, "bad": 0, "refused": 0}
    for number in range(requests):
        try:
            answer = guard.invoke(f"new question {number}")
        except NoAcceptableResponse:
            counts["refused"] += 1
            continue
        counts["served"] += 1
        counts["bad"] += quality(answer.text) <= 0
    return counts


def main() -> None:
    """All four steps."""
    warnings.filterwarnings("ignore", message="uncalibrated")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shadow = asyncio.run(watch(folder / "traces.jsonl", 300))
        print(f"In shadow: {shadow.summary}.")
        label(folder / "traces.jsonl", folder / "labelled.jsonl")
        certify(folder / "labelled.jsonl", folder / "guardrail.json")
        counts = serve(folder / "guardrail.json", 200)
        print(f"Live, of 200 requests: {counts['served']} served, {counts['bad']} of them bad, {counts['refused']} refused.")


if __name__ == "__main__":
    main()
