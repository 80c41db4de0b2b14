"""Guarded requests that share one scorer: in batches across requests, and one call after the other."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from time import perf_counter, process_time
from typing import Any

import torch
from langchain_core.messages import AIMessage, BaseMessage

from benchmarks.scoring.models import words
from benchmarks.tables import percentile, print_table
from bonmini_guard import BestOfMiniN, RewardModel
from bonmini_guard.engine.scorers import FunctionSession
from bonmini_guard.testing import FakeGenerator


class OneCallAtATime:
    """The same reward model, but a call is scored only after the one before: no batch holds two requests."""

    def __init__(self, model: RewardModel) -> None:
        self._model = model
        self._lock = asyncio.Lock()

    def session(self, messages: Sequence[BaseMessage]) -> FunctionSession:
        """A session that waits for its turn."""
        session = self._model.session(messages)

        async def score(candidates: Sequence[AIMessage]) -> list[float | None]:
            async with self._lock:
                return list(await session.score(candidates))

        return FunctionSession(score, [session])


def traffic(model: RewardModel, requests: int, rounds: int) -> dict[str, Any]:
    """Requests a second, and the median and 99th percentile of their seconds; both ways in turns.

    The median of the rounds; the processor's seconds are those of the whole run.
    """
    source = torch.Generator().manual_seed(2)
    lengths = torch.randint(64, 513, (requests,), generator=source).tolist()
    prompts = [words(length, source) for length in lengths]
    answers = [words(length, source) for length in torch.randint(32, 129, (8,), generator=source).tolist()]
    figures: dict[str, list[tuple[float, ...]]] = {"batches across requests": [], "one call at a time": []}
    for _ in range(rounds):
        for name, found in figures.items():
            scorer = model if name.startswith("batches") else OneCallAtATime(model)
            found.append(asyncio.run(_run(scorer, prompts, answers)))
    medians = {name: [statistics.median(part) for part in zip(*found, strict=True)] for name, found in figures.items()}
    print(f"\n{requests} guarded requests at once, 2 loops of 4 candidates each")
    heads = ["requests / s", "p50 (s)", "p99 (s)", "processor (s)"]
    print_table(["", *heads], [[name, *(f"{value:.3f}" for value in values)] for name, values in medians.items()])
    return {"requests": requests} | {name: dict(zip(heads, values, strict=True)) for name, values in medians.items()}


async def _run(scorer: Any, prompts: Sequence[str], answers: Sequence[str]) -> tuple[float, ...]:
    guard = BestOfMiniN(generator=FakeGenerator(answers), reward_model=scorer, mode="accelerator", schedule=[4, 4], threshold=1e9)

    async def one(prompt: str) -> float:
        begun = perf_counter()
        await guard.arun(prompt)
        return perf_counter() - begun

    begun, worked = perf_counter(), process_time()
    seconds = await asyncio.gather(*map(one, prompts))
    whole = perf_counter() - begun
    return len(prompts) / whole, statistics.median(seconds), percentile(seconds, 0.99), process_time() - worked
