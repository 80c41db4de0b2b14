"""Every fault against both configurations, over real sockets: does a request end in time, and is anything bad ever accepted?

A generator server (TGI's protocol, OpenAI's) and a reward server run on the loopback. In each cell of the matrix one of them
fails in one way, for a third of its requests or for all. What an answer is truly worth is a function of its text, so that every
acceptance can be checked: wrongly accepted is an answer that was accepted and is worth less than the threshold, and, in a
guardrail, one that was served in any other way.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.hostile import foreign, outages
from benchmarks.named_faults import named
from benchmarks.tables import arguments, percentile, print_table, write_json
from bonmini_guard import BestOfMiniN, GuardResult
from bonmini_guard.adapters import OpenAICompatibleGenerator, RemoteRewardModel, TGIGenerator
from bonmini_guard.adapters.circuit import CircuitBreaker
from bonmini_guard.errors import BonMiniGuardError
from tests.adapters.loopback import FAULTS, STREAM_FAULTS, LoopbackServer, storm
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.reward_server import RewardServer
from tests.adapters.tgi_server import TGIServer, chat_chunks

#: Seconds: of a request, of a draw or a score with its retries, of one attempt.
TIMEOUT, CALL_TIMEOUT, ATTEMPT_TIMEOUT = 4.0, 3.0, 0.5
THRESHOLD = 0.0
AT_A_TIME = 8
SHARES = (0.33, 1.0)
MODES = ("guardrail", "accelerator")
STATUSES = (400, 404, 422, 424, 429, 500, 502, 503)
#: How a reward server can answer 200 and be wrong: a function from its true answer to what it says.
LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "score NaN": lambda said: said | {"scores": [float("nan")] * len(said["scores"])},
    "score null": lambda said: said | {"scores": [None] * len(said["scores"])},
    "score text": lambda said: said | {"scores": ["9.0"] * len(said["scores"])},
    "a score missing": lambda said: said | {"scores": said["scores"][1:]},
    "a score too many": lambda said: said | {"scores": [*said["scores"], 9.0]},
    "another model": lambda said: {"scores": [9.0] * len(said["scores"]), "fingerprint": "sha256:other", "has_zero": True},
}
ALWAYS = "refused"


def worth(text: str) -> float:
    """What an answer is truly worth, between -2 and 1: one in three passes."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32 * 3 - 2


@dataclass
class Cell:
    """The requests of one fault in one configuration."""

    side: str
    fault: str
    share: float
    mode: str
    tried: int = 0
    answered: int = 0
    abstained: int = 0
    typed_errors: int = 0
    other_errors: int = 0
    wrongly_accepted: int = 0
    hung: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def p99(self) -> float:
        """Seconds that 99 of 100 requests took at most."""
        return percentile(self.seconds, 0.99)

    def count(self, result: GuardResult) -> None:
        """Count one result."""
        self.answered += result.served
        self.abstained += not result.served
        self.reasons[result.reason] += 1
        self.wrongly_accepted += is_wrong(result)


def is_wrong(result: GuardResult) -> bool:
    """Whether a bad or unscored answer passed for a good one, or a guardrail served what it must not."""
    if result.message is None:
        return False
    bad = worth(str(result.message.content)) < THRESHOLD
    if result.decision == "accepted":
        return bad or result.score is None
    return result.mode == "guardrail"


def cells() -> Iterator[Cell]:
    """The matrix."""
    plain = [*map(str, STATUSES), "429 with Retry-After", *FAULTS]
    sides = {"tgi": [*plain, *STREAM_FAULTS], "openai": [*plain, *STREAM_FAULTS], "scorer": [*plain, *LIES]}
    for side, faults in sides.items():
        for mode in MODES:
            yield Cell(side, "none", 1.0, mode)
            yield Cell(side, ALWAYS, 1.0, mode)
        yield from (Cell(side, *rest) for rest in itertools.product(faults, SHARES, MODES))


class LyingRewardServer(RewardServer):
    """A reward server whose answers may be lies.

    Attributes:
        lie: from a true answer to what is said; None for the truth.
    """

    lie: Callable[[dict[str, Any]], Any] | None = None

    def reply(self, path: str, body: Any) -> Any:
        """The truth, or not."""
        said = super().reply(path, body)
        return said if self.lie is None else self.lie(said)


class StreamingTGIServer(TGIServer):
    """Streams that differ from seed to seed, as its other answers do."""

    def chunks(self, path: str, body: Any) -> Any:
        """The seed's answer, letter by letter."""
        return chat_chunks(f"answer {body['seed']}")


def generator_server(side: str) -> LoopbackServer:
    """A server whose answers are long enough to be cut off in the middle."""
    if side == "tgi":
        return StreamingTGIServer()
    server = OpenAIServer()
    server.text = lambda body, index: f"answer number {body.get('seed')}.{index} of so many that there may be"
    return server


def inject(server: Any, fault: str, share: float, source: random.Random) -> None:
    """From now on, a share of the server's requests meet the fault."""
    if fault in LIES:
        server.lie = lambda said: LIES[fault](said) if source.random() < share else said
        return
    (met,) = storm(1, "1") if fault == "429 with Retry-After" else [int(fault) if fault.isdecimal() else fault]
    server.faults = lambda path, body: met if source.random() < share else None


def parts(cell: Cell, url: str, reward_url: str) -> tuple[Any, RemoteRewardModel]:
    """The generator and the scorer of a cell."""
    patience: dict[str, Any] = {"timeout": CALL_TIMEOUT, "attempt_timeout": ATTEMPT_TIMEOUT, "retries": 2, "backoff": 0.02}
    settings = patience | {"stream": cell.fault in STREAM_FAULTS}
    generator: Any
    if cell.side == "tgi":
        generator = TGIGenerator(url, token="", max_concurrency=128, **settings)
    else:
        generator = OpenAICompatibleGenerator(url, model="tiny", api_key="none", **settings)
    circuit = CircuitBreaker(failures=5, cooldown=0.3)
    return generator, RemoteRewardModel(reward_url, kind="bonmini", has_zero=True, api_key="", circuit=circuit, **patience)


async def run(cell: Cell, requests: int) -> None:
    """Conduct the requests of a cell."""
    async with AsyncExitStack() as stack:
        server: Any = await stack.enter_async_context(generator_server(cell.side))
        rewards = await stack.enter_async_context(LyingRewardServer(lambda pair: worth(pair[1]["content"])))
        failing = rewards if cell.side == "scorer" else server
        nobody = "http://127.0.0.1:9"
        refused = cell.fault == ALWAYS
        generator, scorer = parts(
            cell, nobody if refused and failing is server else server.url, nobody if refused and failing is rewards else rewards.url
        )
        await stack.enter_async_context(generator)
        await stack.enter_async_context(scorer)
        arguments: dict[str, Any] = {"generator": generator, "reward_model": scorer, "mode": cell.mode}
        # Building a guard asks the reward server, which runs on this very loop.
        guard = await asyncio.to_thread(BestOfMiniN, schedule=[2, 2], threshold=THRESHOLD, timeout=TIMEOUT, **arguments)
        if not refused and cell.fault != "none":
            inject(failing, cell.fault, cell.share, random.Random(repr((cell.side, cell.fault, cell.share, cell.mode))))
        places = asyncio.Semaphore(AT_A_TIME)
        await asyncio.gather(*(one(cell, guard, places) for _ in range(requests)))


async def one(cell: Cell, guard: BestOfMiniN, places: asyncio.Semaphore) -> None:
    """Conduct one request and count how it ended."""
    async with places:
        cell.tried += 1
        begun = perf_counter()
        try:
            cell.count(await asyncio.wait_for(guard.arun("question"), 10 * TIMEOUT))
        except TimeoutError:
            cell.hung += 1
        except BonMiniGuardError as error:
            cell.typed_errors += 1
            cell.reasons[type(error).__name__] += 1
        except Exception as error:
            cell.other_errors += 1
            cell.reasons[type(error).__name__] += 1
        cell.seconds.append(perf_counter() - begun)


COUNTS = ("tried", "answered", "abstained", "typed_errors", "other_errors", "wrongly_accepted", "hung")


def table(matrix: list[Cell]) -> list[list[Any]]:
    """One row for each fault and configuration, both shares together."""
    rows = []
    key = lambda cell: (cell.side, cell.mode, cell.fault)  # noqa: E731
    for (side, mode, fault), group in itertools.groupby(sorted(matrix, key=key), key):
        same = list(group)
        counts = [sum(getattr(cell, name) for cell in same) for name in COUNTS]
        p99 = max(cell.p99() for cell in same)
        rows.append([side, mode, fault, *counts, f"{p99:.2f}", f"{p99 / TIMEOUT:.2f}"])
    return rows


def as_json(cell: Cell) -> dict[str, Any]:
    """A cell without its single times."""
    told = {name: value for name, value in vars(cell).items() if name not in ("seconds", "reasons")}
    return told | {"reasons": dict(cell.reasons), "p99": round(cell.p99(), 3)}


def report(matrix: list[Cell], path: Path | None, more: dict[str, Any]) -> dict[str, Any]:
    """Print the table, write the JSON, give the totals."""
    head = ["failing", "configuration", "fault", *(name.replace("_", " ") for name in COUNTS), "p99 (s)", "p99 / timeout"]
    print_table(head, table(matrix))
    totals: dict[str, Any] = {
        mode: {name: sum(getattr(cell, name) for cell in matrix if cell.mode == mode) for name in COUNTS} for mode in MODES
    }
    totals["slowest_p99_over_timeout"] = max(cell.p99() for cell in matrix) / TIMEOUT
    print(totals)
    rows = [as_json(cell) for cell in matrix]
    settings = {"timeout": TIMEOUT, "call_timeout": CALL_TIMEOUT, "attempt_timeout": ATTEMPT_TIMEOUT, "threshold": THRESHOLD}
    write_json(path, {"settings": settings, "totals": totals, **more, "cells": rows})
    return totals


async def others(requests: int, seed: int) -> dict[str, Any]:
    """What is no fault of a server's answer: single faults with a figure each, foreign code, and servers that are down."""
    more = {"named": await named(), "foreign": await foreign(requests, seed), "outages": await outages()}
    print_table(
        ["fault", ""], [[row["fault"], ", ".join(f"{name} {value}" for name, value in row.items())] for row in more["named"]]
    )
    print_table(["foreign code", ""], [[name.replace("_", " "), value] for name, value in more["foreign"].items()])
    print_table([name.replace("_", " ") for name in more["outages"][0]], [list(row.values()) for row in more["outages"]])
    return more


async def conduct(requests: int) -> list[Cell]:
    """The whole matrix, one cell after the other."""
    matrix = list(cells())
    for cell in matrix:
        await run(cell, requests)
    return matrix


def main() -> None:
    """Run the matrix; exit 1 if anything was wrongly accepted, hung, or failed without a type."""
    parser = arguments(__doc__, json=Path)
    parser.add_argument("--requests", type=int, default=50, help="of each cell")
    parser.add_argument("--foreign", type=int, default=20_000, help="requests whose parts misbehave by chance")
    parser.add_argument("--seed", type=int, default=0, help="of that chance")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    more = asyncio.run(others(options.foreign, options.seed))
    totals = report(asyncio.run(conduct(options.requests)), options.json, more)
    if more["foreign"]["wrongly_served"] or any(
        totals[mode][name] for mode in MODES for name in ("wrongly_accepted", "hung", "other_errors")
    ):
        raise SystemExit("a bad answer was accepted, a request hung, or an error had no type")


if __name__ == "__main__":
    main()
