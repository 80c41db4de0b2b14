"""Single faults of the fault matrix, each with the figure that it is about: seconds after the deadline, or memory of an answer."""

from __future__ import annotations

import asyncio
import tempfile
import tracemalloc
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import perf_counter
from typing import Any

from langchain_core.messages import AIMessage

from benchmarks.scoring.models import save_model
from benchmarks.server_load import one_client
from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import OpenAICompatibleGenerator, bodies
from bonmini_guard.errors import BonMiniGuardError
from bonmini_guard.testing import FakeGenerator
from tests.adapters.test_bodies import Serving, bomb

#: Seconds of a request, and those that foreign code would take.
TIMEOUT, LONG = 0.5, 8.0
#: Megabytes of a long answer; a packed one has a thousandth of the second on the wire.
ANSWER, PACKED = 200, 500


async def _deaf() -> None:
    """Goes on through every cancellation, as code with a bare ``except:`` does."""
    end = perf_counter() + LONG
    while (left := end - perf_counter()) > 0:
        try:
            await asyncio.sleep(left)
        except BaseException:
            continue


async def _bare_except(messages: Any, candidates: Any) -> list[float]:
    await _deaf()
    return [1.0] * len(candidates)


class _Stubborn:
    async def draw(self, request: Any) -> AIMessage:
        await _deaf()
        return AIMessage("late")


class _Hanging:
    """A scorer whose session does not close."""

    has_zero = True

    def session(self, messages: Any) -> _Hanging:
        return self

    async def score(self, candidates: Any) -> list[float]:
        return [1.0] * len(candidates)

    async def aclose(self) -> None:
        await asyncio.sleep(LONG)


async def _slow(result: Any) -> str:
    await asyncio.sleep(LONG)
    return "late"


def _good(messages: Any, candidates: Any) -> list[float]:
    return [1.0] * len(candidates)


def _bad(messages: Any, candidates: Any) -> list[float]:
    return [-1.0] * len(candidates)


#: What the guard is made of, but for good parts.
CASES: dict[str, dict[str, Any]] = {
    "a scorer with a bare except": {"reward_model": _bare_except},
    "a session whose aclose hangs": {"reward_model": _Hanging()},
    "draws that ignore cancellation": {"generator": _Stubborn()},
    "a slow on_abstain": {"reward_model": _bad, "on_abstain": _slow},
}


async def named() -> list[dict[str, Any]]:
    """One row for each: fault, outcome, seconds of the request, and what it is about."""
    rows = [await _timed(fault, parts) for fault, parts in CASES.items()]
    rows.append(await _answer(f"an answer of {ANSWER} MB", {}, [b" " * 2**16] * (ANSWER * 16)))
    packed = bomb(PACKED)
    rows.append(await _answer(f"{len(packed) / 1e6:.1f} MB that inflate to {PACKED} MB", {"content-encoding": "gzip"}, [packed]))
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), "tiny", "cpu")
        single = await one_client(Path(folder))
    rows.append(
        {"fault": "serve: /score of one client", "p50_ms": {name: round(each["p50_ms"], 1) for name, each in single.items()}}
    )
    return rows


async def _timed(fault: str, parts: dict[str, Any]) -> dict[str, Any]:
    arguments = {"generator": FakeGenerator(["good"]), "reward_model": _good, "schedule": [2], "threshold": 0.0, "timeout": TIMEOUT}
    guard = BestOfMiniN(**(arguments | parts))  # type: ignore[arg-type]
    outcome, seconds = await _outcome(
        guard.ainvoke("question"), lambda message: message.response_metadata["bonmini_guard"]["decision"]
    )
    return {"fault": fault, "outcome": outcome, "seconds": round(seconds, 3), "after_deadline_s": round(seconds - TIMEOUT, 3)}


async def _answer(fault: str, headers: dict[str, str], chunks: list[bytes]) -> dict[str, Any]:
    """Asked twice: for the time, and for the memory, whose tracing takes time."""
    with Serving((headers, chunks)) as url:
        async with OpenAICompatibleGenerator(url, model="m", api_key="", retries=0) as generator:
            guard = BestOfMiniN(generator=generator, reward_model=_good, schedule=[1], threshold=0.0, timeout=60.0)
            outcome, seconds = await _outcome(guard.arun("question"), lambda result: result.decision)
            tracemalloc.start()
            await _outcome(guard.arun("question"), lambda result: result.decision)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    caps = round(peak / bodies.LONGEST_ANSWER, 2)
    return {
        "fault": fault,
        "outcome": outcome,
        "seconds": round(seconds, 3),
        "peak_mib": round(peak / 2**20),
        "peak_over_cap": caps,
    }


async def _outcome(request: Coroutine[Any, Any, Any], of: Callable[[Any], str]) -> tuple[str, float]:
    begun = perf_counter()
    try:
        outcome = of(await request)
    except BonMiniGuardError as error:
        outcome = type(error).__name__
    return outcome, perf_counter() - begun
