"""What the guard and its adapters cost under load: 256 requests at once, 8 draws each, over the loopback.

Next to each adapter runs a bare loop that makes the same HTTP calls with the same client library and the same number in
flight, and does nothing else with the answers. The server is a process of its own. Rows of one server are measured in turns,
and ratios are those of their medians: of wall-clock time, and of the processor time of the client's process.
"""

from __future__ import annotations

import asyncio
import statistics
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import AsyncInferenceClient, constants

from benchmarks.loopback import in_process
from benchmarks.overhead import InstantScorer, Request, Taken, in_turns
from benchmarks.tables import arguments, print_table, write_json
from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import OpenAICompatibleGenerator, TGIGenerator

PROMPT = "Write a toast for a friend who has moved to the sea."
TURNS = [{"role": "user", "content": PROMPT}]
SETTINGS: dict[str, Any] = {"temperature": 1.0, "max_tokens": 512}
#: Ours may take this much longer than the bare loop.
ALLOWED = 1.5
#: What each round took, by row.
Times = dict[str, list[Taken]]


def guarded(generator: Any, requests: int, draws: int) -> Request:
    """One round of guarded requests, all at once; nothing passes, so that every draw is made and scored."""
    guard = BestOfMiniN(
        generator=generator, reward_model=InstantScorer(), mode="accelerator", schedule=[draws], threshold=0.0, timeout=300.0
    )

    async def run() -> None:
        results = await asyncio.gather(*(guard.arun(PROMPT) for _ in range(requests)))
        failed = sum(candidate.message is None for result in results for candidate in result.candidates)
        if failed:
            raise RuntimeError(f"{failed} draws failed: the rounds do not compare")

    return run


def bare(call: Callable[[int], Awaitable[Any]], calls: int, in_flight: int) -> Request:
    """One round of the same HTTP calls without a guard."""

    async def run() -> None:
        places = asyncio.Semaphore(in_flight)

        async def one(seed: int) -> None:
            async with places:
                await call(seed)

        await asyncio.gather(*(one(seed) for seed in range(1, calls + 1)))

    return run


async def tgi(url: str, requests: int, draws: int, in_flight: int, rounds: int) -> Times:
    """Seconds of each round through the TGI adapter, and through huggingface_hub's client alone."""
    # The bare client would refuse to work offline, even on the loopback; the adapter's session does not ask.
    constants.HF_HUB_OFFLINE = False
    client = AsyncInferenceClient(base_url=url, token="none", timeout=None)
    async with TGIGenerator(url, token="", max_concurrency=in_flight) as generator, client:
        alone = bare(lambda seed: client.chat_completion(TURNS, seed=seed, **SETTINGS), requests * draws, in_flight)
        return await in_turns({"bare": alone, "guard": guarded(generator, requests, draws)}, rounds)


async def openai(url: str, requests: int, draws: int, in_flight: int, rounds: int) -> Times:
    """Seconds of each round through the OpenAI adapter, and through httpx alone."""
    generator = OpenAICompatibleGenerator(url, model="tiny", api_key="none", max_concurrency=in_flight)
    async with generator, httpx.AsyncClient(base_url=f"{url}/v1", timeout=None) as client:

        async def create(seed: int) -> Any:
            body = {"model": "tiny", "messages": TURNS, "seed": seed, **SETTINGS}
            return (await client.post("/chat/completions", json=body)).json()

        alone = bare(create, requests * draws, in_flight)
        return await in_turns({"bare": alone, "guard": guarded(generator, requests, draws)}, rounds)


def main() -> None:
    """Print the table; write JSON with --json; exit 1 where a ratio is above what is allowed."""
    parser = arguments(__doc__, json=Path, requests=256, draws=8, rounds=5)
    parser.add_argument("--in-flight", type=int, default=128, help="HTTP requests at a time")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    calls, results, rows = options.requests * options.draws, {}, []
    for name, measure in {"tgi": tgi, "openai": openai}.items():
        with in_process(name) as url:
            found = asyncio.run(measure(url, options.requests, options.draws, options.in_flight, options.rounds))
        times = {clock: {row: [getattr(one, clock) for one in taken] for row, taken in found.items()} for clock in Taken._fields}
        seconds = {clock: {row: statistics.median(each) for row, each in by_row.items()} for clock, by_row in times.items()}
        ratio = {clock: median["guard"] / median["bare"] for clock, median in seconds.items()}
        rate = {row: calls / wall for row, wall in seconds["wall"].items()}
        results[name] = {"seconds": times, "calls_per_second": rate, "ratio": ratio}
        rows.append([name, *(f"{rate[row]:.0f}" for row in ("bare", "guard")), *(f"{ratio[clock]:.2f}" for clock in Taken._fields)])
    print(f"{options.requests} requests x {options.draws} draws, {options.in_flight} in flight, median of {options.rounds} rounds")
    print_table(["adapter", "bare client, calls/s", "guard, calls/s", "wall guard / bare", "processor guard / bare"], rows)
    shape = {name: getattr(options, name) for name in ("requests", "draws", "in_flight", "rounds")}
    write_json(options.json, shape | {"allowed_ratio": ALLOWED, "adapters": results})
    if any(result["ratio"]["wall"] > ALLOWED for result in results.values()):
        raise SystemExit(f"slower than {ALLOWED} times the bare client")


if __name__ == "__main__":
    main()
