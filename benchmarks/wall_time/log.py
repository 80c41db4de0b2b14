"""What thresholds come from: draws of both regimes, scored and judged, kept without their texts.

``python -m benchmarks.wall_time.log`` has the language model write prompts of 48 tokens behind a few openings (no reviews can be
in this repository), draws 32 answers to each, scores them with the reward model and judges them by the truth, both of
``tests/models``. Rows before ``FITTED`` set the thresholds, the others are asked in the measurement and say what those keep.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import torch
from langchain_core.messages import AIMessage, HumanMessage
from rich.progress import track

from benchmarks.desk.label import log_rows
from benchmarks.imdb.models import MODELS
from benchmarks.imdb.sentiment import SentimentTruth
from benchmarks.tables import keep_rows, read_rows
from benchmarks.wall_time.worker import DESK, LIMITS, Worker
from bonmini_guard.engine.protocols import DrawRequest

HERE = Path(__file__).parent
OPENINGS = (
    "This film",
    "I watched this movie",
    "The director",
    "When it came out,",
    "My wife and I",
    "The plot",
    "It is a story",
    "A",
)
ROWS, FITTED, DRAWS = 240, 160, 32


def log_of(regime: str) -> Path:
    """The committed log of a regime."""
    return HERE / f"{regime}.jsonl.gz"


def rows(regime: str) -> list[dict[str, Any]]:
    """Its rows: ``prompt``, and of each draw ``scores``, ``acceptable`` (0 or 1) and ``tokens``."""
    return read_rows(log_of(regime))


def parts(regime: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows that set thresholds, and others; the desk's are those of its own log, whose roles they are."""
    if regime != DESK:
        every = rows(regime)
        return every[:FITTED], every[FITTED:]
    return _desk_rows("calibrate"), _desk_rows("evaluate")


def _desk_rows(role: str) -> list[dict[str, Any]]:
    found = []
    for row in log_rows(role):
        drawn = row["candidates"][:DRAWS]
        scores = [-1e9 if draw["score"] is None else draw["score"] for draw in drawn]
        told = {"acceptable": [int(draw["acceptable"]) for draw in drawn], "tokens": [draw["tokens"] for draw in drawn]}
        found.append({"prompt": row["prompt"], "scores": scores, **told})
    return found


async def _drawn(generator: Any, prompt: str, seed: int, count: int, **options: Any) -> list[AIMessage]:
    asked = [DrawRequest([HumanMessage(prompt)], 1000 * seed + number, number, options) for number in range(count)]
    found = {place: answer async for place, answer in generator.draw_group(asked)}
    return [found[place] for place in range(count)]


async def _prompts(worker: Worker) -> list[str]:
    each = ROWS // len(OPENINGS)
    drawn = [await _drawn(worker.generator("equal"), text, 10**6 + at, each, max_tokens=44) for at, text in enumerate(OPENINGS)]
    return [OPENINGS[at % len(OPENINGS)] + drawn[at % len(OPENINGS)][at // len(OPENINGS)].text for at in range(ROWS)]


async def _row(worker: Worker, truth: SentimentTruth, regime: str, prompt: str, seed: int) -> dict[str, Any]:
    answers = await _drawn(worker.generator(regime), prompt, seed, DRAWS)
    scores = worker.reward(regime).score([HumanMessage(prompt)], answers)
    judged = [int(utility > 0) for utility in truth.utilities([prompt + answer.text for answer in answers])]
    tokens = [answer.usage_metadata["output_tokens"] for answer in answers if answer.usage_metadata]
    return {"prompt": prompt, "scores": [round(score or 0.0, 4) for score in scores], "acceptable": judged, "tokens": tokens}


async def _write(worker: Worker) -> None:
    truth, prompts = SentimentTruth.load(MODELS / "truth"), await _prompts(worker)
    for regime in LIMITS:
        made = [await _row(worker, truth, regime, prompt, at) for at, prompt in enumerate(track(prompts, description=regime))]
        keep_rows(log_of(regime), made)


def main() -> None:
    """Write both logs."""
    torch.set_num_threads(1)
    asyncio.run(_write(Worker(MODELS)))


if __name__ == "__main__":
    main()
