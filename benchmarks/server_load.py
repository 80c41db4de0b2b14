"""The scoring server at twice its capacity, and killed while guards use it; each promise is checked, and a broken one exits 1.

Capacity is what as many clients as the server lets in get from it one after the other. Then requests arrive at twice that rate
whatever becomes of them: the excess must get 429 with Retry-After, those let in must take no longer than before, and the memory
of the process must stay where it was. Last, the server is killed with guardrail requests under way: none may be served.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import torch

from benchmarks.loopback import resident, started
from benchmarks.scoring.models import save_model, words
from benchmarks.tables import arguments, percentile, print_table, write_json
from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import RemoteRewardModel
from bonmini_guard.testing import FakeGenerator

#: Requests in the house, and MiB that the process may grow under load.
_HOUSE, _GROWTH = 16, 200
#: Seconds by which an answer is late at least whose second piece waits for the client to acknowledge the first: about 0.04.
_ACKNOWLEDGED = 0.02
#: Runs the command line without ever setting TCP_NODELAY.
_DELAYED = """
import socket, sys
from bonmini_guard.cli import main
set_option = socket.socket.setsockopt
socket.socket.setsockopt = lambda self, *given: None if given[1] == socket.TCP_NODELAY else set_option(self, *given)
sys.exit(main())
"""


@contextmanager
def server(folder: Path, delayed: bool = False) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its address; ``delayed`` leaves its sockets as the system makes them."""
    python = ["-c", _DELAYED] if delayed else ["-m", "bonmini_guard.cli"]
    command = [*python, "serve", "--reward-model", str(folder), "--port", "0", "--device", "cpu", "--max-requests", str(_HOUSE)]
    with tempfile.NamedTemporaryFile("w") as log, started(command, log) as running:
        yield running


def bodies(count: int) -> list[dict[str, Any]]:
    """Requests of 4 candidates of 32 tokens, to prompts of 128."""
    source = torch.Generator().manual_seed(0)
    answers = [words(32, source) for _ in range(4)]
    return [{"messages": [{"role": "user", "content": words(128, source)}], "candidates": answers} for _ in range(count)]


async def closed(client: httpx.AsyncClient, seconds: float) -> tuple[float, list[float]]:
    """Requests a second and the seconds of each, from as many clients as there is room for."""
    waiting, took = iter(bodies(100_000 // 64) * 64), []
    begun = perf_counter()

    async def one() -> None:
        while perf_counter() - begun < seconds:
            at = perf_counter()
            (await client.post("/score", json=next(waiting))).raise_for_status()
            took.append(perf_counter() - at)

    await asyncio.gather(*(one() for _ in range(_HOUSE)))
    return len(took) / (perf_counter() - begun), took


async def alone(clients: Sequence[httpx.AsyncClient], requests: int = 200) -> list[list[float]]:
    """Seconds of each request to ``/score`` of one client that keeps its connection, for each server, in turn."""
    source = torch.Generator().manual_seed(2)
    body = {"messages": [{"role": "user", "content": words(16, source)}], "candidates": [words(4, source)]}
    took: list[list[float]] = [[] for _ in clients]
    for _ in range(requests):
        for client, seconds in zip(clients, took, strict=True):
            at = perf_counter()
            (await client.post("/score", json=body)).raise_for_status()
            seconds.append(perf_counter() - at)
    return took


async def one_client(folder: Path) -> dict[str, Any]:
    """What an answer of a server costs by itself, as it is and without TCP_NODELAY."""
    with server(folder) as (_, url), server(folder, delayed=True) as (_, delayed):
        async with httpx.AsyncClient(base_url=url, timeout=60) as one, httpx.AsyncClient(base_url=delayed, timeout=60) as other:
            took = await alone([one, other])
    return {
        name: {
            "p25_ms": 1000 * percentile(seconds, 0.25),
            "p50_ms": 1000 * statistics.median(seconds),
            "per_second": len(seconds) / sum(seconds),
        }
        for name, seconds in zip(("with_nodelay", "without"), took, strict=True)
    }


async def opened(client: httpx.AsyncClient, rate: float, seconds: float, pid: int) -> dict[str, Any]:
    """Arrivals at a fixed rate: what became of them, the seconds of those let in, MiB of the process over time."""
    made, statuses, took, memory = bodies(256), Counter[str](), list[float](), list[float]()
    hints = 0
    begun = perf_counter()

    async def one(body: dict[str, Any]) -> None:
        nonlocal hints
        at = perf_counter()
        try:
            answer = await client.post("/score", json=body)
        except httpx.HTTPError as error:
            statuses[type(error).__name__] += 1
            return
        statuses[str(answer.status_code)] += 1
        hints += answer.status_code == 429 and answer.headers.get("retry-after", "").isdecimal()
        if answer.status_code == 200:
            took.append(perf_counter() - at)

    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + number / rate - perf_counter()))
        tasks.append(asyncio.create_task(one(made[number % len(made)])))
        if number % max(1, int(rate)) == 0:
            memory.append(resident(pid))
    await asyncio.gather(*tasks)
    return {"statuses": dict(statuses), "with_retry_after": hints, "took": took, "memory": memory}


async def killed(process: subprocess.Popen[str], url: str, requests: int) -> Counter[str]:
    """What guardrail requests end in when their server is killed under them; a threshold that everything passes."""
    scorer = RemoteRewardModel(url, kind="bonmini", has_zero=True, retries=1, timeout=20.0)
    source = torch.Generator().manual_seed(1)
    answers = [words(32, source) for _ in range(64)]
    guard = BestOfMiniN(
        generator=FakeGenerator(answers), reward_model=scorer, mode="guardrail", mini_n=64, threshold=-1e9, on_abstain="message"
    )
    tasks = [asyncio.create_task(guard.arun(words(512, source))) for _ in range(requests)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    process.kill()
    results = await asyncio.gather(*tasks)
    await scorer.aclose()
    return Counter(f"{result.decision} ({result.reason})" for result in results)


async def measure(folder: Path, seconds: float) -> dict[str, Any]:
    """All parts."""
    single = await one_client(folder)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    with server(folder) as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            await closed(client, 3)
            capacity, before = await closed(client, 10)
            load = await opened(client, 2 * capacity, seconds, process.pid)
            alive = process.poll() is None and (await client.get("/ready")).status_code == 200
        endings = await killed(process, url, 12)
    took, memory = load.pop("took"), load.pop("memory")
    return load | {
        "score_of_one_client": single,
        "capacity_per_second": capacity,
        "p50_at_capacity": statistics.median(before),
        "p99_at_capacity": percentile(before, 0.99),
        "p50_let_in": statistics.median(took),
        "p99_let_in": percentile(took, 0.99),
        "memory_first_mib": memory[0],
        "memory_most_mib": max(memory),
        "alive_after": alive,
        "guardrails_when_killed": dict(endings),
    }


def broken(found: dict[str, Any]) -> list[str]:
    """Promises that were not kept."""
    statuses, endings = found["statuses"], found["guardrails_when_killed"]
    single, wait = found["score_of_one_client"], 1000 * _ACKNOWLEDGED
    promises = {
        "only 200 and 429": set(statuses) <= {"200", "429"},
        "the excess gets 429 with Retry-After": statuses.get("429", 0) == found["with_retry_after"] > 0,
        "one client waits for no acknowledgement": single["with_nodelay"]["p25_ms"] < single["without"]["p25_ms"] - wait,
        "alive afterwards": found["alive_after"],
        "memory bounded": found["memory_most_mib"] - found["memory_first_mib"] < _GROWTH,
        "those let in take at most half as long again": found["p99_let_in"] < 1.5 * found["p99_at_capacity"],
        "guardrails under way when it was killed abstain": any(name.startswith("abstained (scorer_failed") for name in endings),
        "nothing else is served": all(name.startswith(("accepted (passed", "abstained (scorer_failed")) for name in endings),
    }
    return [name for name, kept in promises.items() if not kept]


def shown(value: Any) -> Any:
    """A figure for the table."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {shown(each)}" for name, each in value.items())
    return f"{value:.3f}" if isinstance(value, float) else value


def main() -> None:
    """Print what happened; write JSON with --json."""
    parser = arguments(__doc__, json=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), "tiny", "cpu")
        found = asyncio.run(measure(Path(folder), options.seconds))
    print_table(["", "measured"], [[name, shown(value)] for name, value in found.items()])
    failures = broken(found)
    write_json(options.json, {"seconds": options.seconds} | found | {"broken_promises": failures})
    if failures:
        sys.exit("not kept: " + "; ".join(failures))


if __name__ == "__main__":
    main()
