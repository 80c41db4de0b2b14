"""A guardrail for conversations, calibrated by conversation.

The turns of a conversation are alike: a hundred turns of ten conversations are not a hundred independent requests. A ``group``
on each row says which belong together, and the promise is then on average over conversations. Offline: a simulated log and
fakes. The log is 600 conversations of three turns; in yours, people have labelled the candidates.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage

from bonmini_guard import BestOfMiniN, GuardProfile, NoAcceptableResponse, cli
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

TURNS = ("Hello, my parcel is late.", "It is number 7.", "Can I get my money back?")
PARTS = {"scored_by": "fake-reward-model", "generated_by": "fake-generator"}


def rows(conversations: int, seed: int) -> Iterator[dict[str, Any]]:
    """A labelled log. Turns of one conversation share its difficulty."""
    chance = random.Random(seed)
    for number in range(conversations):
        difficulty = chance.gauss(0.5, 1.0)
        for turn in range(len(TURNS)):
            utilities = [difficulty + chance.gauss(0.0, 0.7) for _ in range(8)]
            yield {
                "id": f"{number}-{turn}",
                "group": f"conversation {number}",
                "prompt": [{"role": "user", "content": text} for text in TURNS[: turn + 1]],
                "candidates": [{"text": "...", "score": u + chance.gauss(0.0, 0.5), "acceptable": u > 0} for u in utilities],
                **PARTS,
            }


def calibrated(folder: Path) -> GuardProfile:
    """``bonmini-guard calibrate log.jsonl --mode guardrail --alpha 0.1 --mini-n 2 --max-loops 4 -o guardrail.json``."""
    log, profile = folder / "log.jsonl", folder / "guardrail.json"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows(600, seed=1)), encoding="utf-8")
    arguments = [str(log), "--mode", "guardrail", "--alpha", "0.1", "--mini-n", "2", "--max-loops", "4", "-o", str(profile)]
    if cli.main(["calibrate", *arguments]):
        sys.exit("the log does not support the promise")
    return GuardProfile.load(profile)


def talk(guard: BestOfMiniN) -> list[BaseMessage]:
    """A conversation; only what was served becomes part of it."""
    history: list[BaseMessage] = []
    for text in TURNS:
        history.append(HumanMessage(text))
        try:
            history.append(guard.invoke(history))
        except NoAcceptableResponse:
            print(f"> {text}\n  (a person takes over)")
            break
        print(f"> {text}\n  {history[-1].text}")
    return history


def main() -> None:
    """Calibrate by conversation, then talk."""
    with tempfile.TemporaryDirectory() as folder:
        profile = calibrated(Path(folder))
    scores = {"I am sorry to hear that. What is its number?": 3.0, "Number 7 is in the depot.": 3.0, "Maybe. Who knows.": -2.0}
    answers = dict(zip(TURNS, scores, strict=True))
    guard = BestOfMiniN(
        generator=FakeGenerator(lambda messages, index: answers[messages[-1].text]),
        reward_model=FakeRewardModel(scores),
        profile=profile,
    )
    talk(guard)


if __name__ == "__main__":
    main()
