"""Two parts of the fault matrix: foreign code that misbehaves, and servers that are down, in figures."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from benchmarks.loopback import resident
from bonmini_guard.adapters import OpenAICompatibleGenerator
from bonmini_guard.engine.held import BEAT
from bonmini_guard.errors import BonMiniGuardError
from tests.adapters.drawing import guard_of
from tests.adapters.openai_server import OpenAIServer
from tests.hostile import TIMEOUT, Ending, one

#: Seconds beyond the timeout that make a request late.
LATE = 0.25
#: The share of requests that is timed, so many at a time; the rest, which shows what stays behind, is more at a time.
TIMED, FEW, MANY = 0.1, 4, 48
#: Requests after which memory is measured first: by then all code has run.
WARM = 0.2
#: Callers in a loop against a dead server, and seconds that they keep at it.
CALLERS, PATIENCE = 100, 15.0


async def foreign(requests: int, seed: int) -> dict[str, Any]:
    """Requests whose generator, scorer, session and ``on_abstain`` do what chance says."""
    endings, memory = list[Ending](), list[float]()
    sockets, threads = _open_files(), threading.active_count()

    async def request(number: int, places: asyncio.Semaphore) -> None:
        async with places:
            endings.append(await one(random.Random(f"{seed}.{number}")))
            if len(endings) % max(1, requests // 20) == 0:
                gc.collect()
                memory.append(resident(os.getpid()))

    first, places = int(TIMED * requests), [asyncio.Semaphore(FEW), asyncio.Semaphore(MANY)]
    with _timers() as alone:
        await asyncio.gather(*(request(number, places[0]) for number in range(first)))
    late = sorted(ending.seconds - TIMEOUT for ending in endings)
    await asyncio.gather(*(request(number, places[1]) for number in range(first, requests)))
    left = asyncio.all_tasks() - {asyncio.current_task()}
    still = len((await asyncio.wait(left, timeout=5))[1]) if left else 0
    await asyncio.sleep(4 * BEAT)  # until nobody looks at this loop any more
    gc.collect()
    kinds = Counter(f"{part}: {kind}" for ending in endings for part, kind in ending.injected)
    warm = memory[int(WARM * len(memory))]
    return {
        "requests": len(endings),
        "timed": first,
        "faults_injected": sum(kinds.values()),
        "kinds": len(kinds),
        "wrongly_served": sum(ending.wrong for ending in endings),
        f"later_than_deadline_and_{LATE}_s": sum(seconds > LATE for seconds in late),
        "latest_after_deadline_s": round(late[-1], 3),
        "timers_alone": len(alone),
        f"timers_alone_later_than_{LATE}_s": sum(seconds > LATE for seconds in alone),
        "latest_timer_alone_s": round(max(alone), 3),
        "tasks_left": still,
        "sockets_and_files_left": _open_files() - sockets,
        # The event loop's own pool stays for as long as the loop.
        "threads_left": sum(not each.name.startswith("asyncio_") for each in threading.enumerate()) - threads,
        "memory_growth": round(memory[-1] / warm - 1, 4),
        "wrong": [(ending.kind, ending.injected) for ending in endings if ending.wrong],
        "endings": dict(Counter(ending.kind for ending in endings)),
    }


@contextmanager
def _timers() -> Iterator[list[float]]:
    """How late bare timers are, as many at a time as requests, on an event loop of their own: what the machine adds by itself."""
    late, ended = list[float](), threading.Event()

    async def timer() -> None:
        while not ended.is_set():
            at = monotonic()
            await asyncio.sleep(TIMEOUT)
            late.append(monotonic() - at - TIMEOUT)

    async def several() -> None:
        await asyncio.gather(*(timer() for _ in range(FEW)))

    thread = threading.Thread(target=lambda: asyncio.run(several()))
    thread.start()
    try:
        yield late
    finally:
        ended.set()
        thread.join()


async def outages() -> list[dict[str, Any]]:
    """HTTP requests of one request, and of a hundred callers in a loop, to a server that always fails in one way."""
    return [await _outage(status) for status in (503, 429, 500, 401)]


async def _outage(status: int) -> dict[str, Any]:
    async with OpenAIServer() as server, _generator(server) as generator:
        server.faults = lambda path, body: status
        said = ""
        try:
            await guard_of(generator, _good, max_loops=8).arun("question")
        except BonMiniGuardError as error:
            said = str(error)
        single = len(server.requests)
    async with OpenAIServer() as server, _generator(server) as generator:
        arrived, opened, begun = list[float](), list[float](), monotonic()

        def fail(path: str, body: Any) -> int:
            arrived.append(monotonic())
            return status

        server.faults = fail
        guard = guard_of(generator, _good, max_loops=8)

        async def ask() -> None:
            while monotonic() < begun + PATIENCE:
                await asyncio.gather(guard.arun("question"), return_exceptions=True)
                if not opened and generator.circuit.times_opened:
                    opened.append(monotonic())
                await asyncio.sleep(0.05)

        await asyncio.gather(*(ask() for _ in range(CALLERS)))
    after = [at for at in arrived if opened and at > opened[0]]
    return {
        "status": status,
        "http_requests_of_one_request": single,
        "first_line": said.splitlines()[0] if said else "",
        "before_the_circuit_opens": len(arrived) - len(after) if opened else None,
        "most_in_a_second_after_it": max((sum(at <= each < at + 1 for each in after) for at in after), default=0)
        if opened
        else None,
    }


def _generator(server: OpenAIServer) -> OpenAICompatibleGenerator:
    return OpenAICompatibleGenerator(server.url, model="tiny", api_key="", timeout=20.0)


def _good(text: str) -> float:
    return 1.0


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
