"""Wall time against a vLLM server: 32 answers of one call, loops, and a rolling exit.

``python -m benchmarks.wall_time.served URL --json FILE`` asks a server of SmolLM2 for the desk's messages, in every way before the
next request, all at the threshold of the desk's accelerator. Tokens are those that the server counts, cancelled draws included.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from langchain_core.messages.utils import convert_to_messages

from benchmarks.tables import arguments, print_table, with_interval, write_json
from benchmarks.wall_time.__main__ import BEST, interval, rotated
from bonmini_guard import BestOfMiniN, GuardProfile, RewardModel
from bonmini_guard.adapters import OpenAICompatibleGenerator
from bonmini_guard.demo import desk, room
from bonmini_guard.demo.check import verdict
from bonmini_guard.demo.run import MODELS

#: Where the answers of a loop come from, and the guard's options.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    BEST: ("server", {"mini_n": 32, "max_loops": 1}),
    "[4] x 8": ("server", {"mini_n": 4, "max_loops": 8}),
    "[8, 24]": ("server", {"schedule": [8, 24]}),
    "rolling, auto": ("separate", {"exit": "rolling", "max_draws": 32}),
}


def counted(url: str, name: str) -> float:
    """One of the server's counters."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


async def at_rest(url: str) -> float:
    """The tokens that the server has drawn so far, once it draws none."""
    while await asyncio.to_thread(counted, url, "vllm:num_requests_running") > 0:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.05)
    return await asyncio.to_thread(counted, url, "vllm:generation_tokens_total")


async def asked(guard: BestOfMiniN, url: str, note: desk.Note, prompt: Sequence[Any]) -> dict[str, float]:
    """Seconds, draws, tokens and whether a right message was served, of one request."""
    before, begun = await at_rest(url), time.perf_counter()
    result = await guard.arun(list(prompt))
    seconds = time.perf_counter() - begun
    assert result.message is not None
    right = verdict(note, result.message.text) is None
    return {"seconds": seconds, "draws": result.draws_started, "tokens": await at_rest(url) - before, "right": float(right)}


async def measure(url: str, requests: int) -> dict[str, dict[str, Any]]:
    """The figures of every way."""
    level = max(GuardProfile.load(MODELS / "accelerator.json").thresholds)
    scorer = RewardModel.load(str(MODELS / "desk-reward"), base=str(room.language_model()))
    drawing = {
        choices: OpenAICompatibleGenerator(url, choices=choices, temperature=0.65, max_tokens=64, timeout=1800)
        for choices in ("server", "separate")
    }
    guards = {
        name: BestOfMiniN(
            generator=drawing[choices],
            reward_model=scorer,
            mode="accelerator",
            threshold=1e9 if name == BEST else level,
            seed=1,
            timeout=1800,
            **told,
        )
        for name, (choices, told) in WAYS.items()
    }
    done: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    some = desk.prompts("evaluate")[:requests]
    for number, (seed, note) in enumerate([some[-1], *some]):
        prompt = convert_to_messages(desk.messages(note, seed))
        for _, name in rotated([("", name) for name in WAYS], number):
            done[name].append(await asked(guards[name], url, note, prompt))
    for generator in drawing.values():
        await generator.aclose()
    # The first one pays for what is set up once.
    best = done[BEST][1:]
    return {name: figures(every[1:], best) for name, every in done.items()}


def figures(every: Sequence[dict[str, float]], best: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Of one way: means, and its seconds as ratios to best-of-32 of the same requests."""
    row: dict[str, Any] = {key: float(np.mean([each[key] for each in every])) for key in every[0]}
    row["tokens / best-of-32"] = row["tokens"] / float(np.mean([each["tokens"] for each in best]))
    ours, theirs = ([each["seconds"] for each in some] for some in (every, best))
    for name, share in (("p50", 50), ("p95", 95)):
        row[name] = interval(ours, theirs, lambda one, other, share=share: np.percentile(one, share) / np.percentile(other, share))
    return row


def show(found: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    cells = [
        [
            name,
            *(with_interval(row[key], 2) for key in ("p50", "p95")),
            *(f"{row[key]:.2f}" for key in ("tokens / best-of-32", "seconds", "tokens", "draws", "right")),
        ]
        for name, row in found.items()
    ]
    print_table(["way", "p50", "p95", "tokens", "seconds", "tokens a request", "draws", "right"], cells)


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, requests=12, json=Path)
    parser.add_argument("url", help="of a vLLM server of SmolLM2, without /v1")
    options = parser.parse_args()
    found = asyncio.run(measure(options.url, options.requests))
    write_json(options.json, {"requests": options.requests, "ways": found})
    show(found)


if __name__ == "__main__":
    main()
