"""Our own time in a request: the processor's microseconds with instant fakes and nothing passing, next to a bare asyncio queue.

A second table shows what sync calls, the chat model and the agent middleware add to eight model calls, a third what watching costs.

All rows of one schedule are measured in turns in one process, so that noise of the machine hits them alike; each figure is the
least over rounds, since others on the machine only ever add.

``--against VERSION`` (a revision, or a folder with its source) times another version and this one in turns as well, each with its
own benchmarks in processes of its own: processor time, since a busy machine stretches every other; ratios with 95 % intervals.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage
from scipy.special import stdtrit

from benchmarks.tables import arguments, print_table, write_json
from benchmarks.versions import HERE, run, source_of
from bonmini_guard import BestOfMiniN
from bonmini_guard.engine.protocols import DrawRequest

SCHEDULES = ([8], [4, 4], [16], [64], [16, 16, 16, 16])
Request = Callable[[], Awaitable[Any]]


class Taken(NamedTuple):
    """Seconds on the wall clock, and of the processor in all threads: a busy machine lengthens only the first much."""

    wall: float
    processor: float


class InstantGenerator:
    """Answers at once. Answers differ, so that every candidate is scored. Like adapters of servers it hands them over."""

    hands_over = True
    answers = tuple(AIMessage(f"answer {index}") for index in range(64))

    async def draw(self, request: DrawRequest) -> AIMessage:
        """The answer of this index."""
        return self.answers[request.index]


class KeepingGenerator(InstantGenerator):
    """Does not say that it hands its answers over, as LangChain's models do not: they are copied."""

    hands_over = False


class InstantScorer:
    """Scores -1 at once: nothing passes. Like a ``RewardModel`` it says that it changes no answer; others are given copies."""

    only_reads = True

    def session(self, messages: Sequence[BaseMessage]) -> InstantScorer:
        """Itself."""
        return self

    async def score(self, candidates: Sequence[AIMessage]) -> list[float]:
        """-1 for each."""
        return [-1.0] * len(candidates)

    async def aclose(self) -> None:
        """Nothing is held."""


async def queue_floor(draws: int) -> None:
    """The least any concurrent engine does: a task for each draw, and one queue."""
    finished: asyncio.Queue[AIMessage] = asyncio.Queue()

    async def draw(index: int) -> None:
        finished.put_nowait(InstantGenerator.answers[index])

    tasks = [asyncio.create_task(draw(index)) for index in range(draws)]
    for _ in range(draws):
        await finished.get()
    for task in tasks:
        await task


def contenders(schedule: list[int]) -> dict[str, Request]:
    """What is measured for one schedule."""
    common: dict[str, Any] = {"generator": InstantGenerator(), "reward_model": InstantScorer(), "mode": "accelerator"}
    common |= {"threshold": 0.0, "max_concurrency": 64, "timeout": 60.0}
    guard = BestOfMiniN(schedule=schedule, **common)
    copying = BestOfMiniN(schedule=schedule, **common | {"generator": KeepingGenerator()})
    rolling = BestOfMiniN(max_draws=sum(schedule), in_flight=schedule[0], **common)
    rows: dict[str, Request] = {
        "queue floor": lambda: queue_floor(sum(schedule)),
        "arun": lambda: guard.arun("prompt"),
        "arun, copied": lambda: copying.arun("prompt"),
        "ainvoke": lambda: guard.ainvoke("prompt"),
        "arun, rolling": lambda: rolling.arun("prompt"),
    }
    return rows | rival(sum(schedule))


def rival(draws: int) -> dict[str, Request]:
    """its_hub's best-of-N on like fakes, where it is installed: with its default limit, and with none."""
    try:
        from its_hub.api import AbstractLanguageModel, AbstractOutcomeRewardModel
        from its_hub.core.algorithms.bon import BestOfN
        from its_hub.core.orchestrator import LMOrchestrator
    except ImportError:
        return {}
    numbers = itertools.count()

    class Model(AbstractLanguageModel):
        async def agenerate(self, messages: Any, stop: Any = None, **options: Any) -> Any:
            return await self.agenerate_single(messages, stop, **options)

        async def agenerate_single(self, messages: Any, stop: Any = None, **options: Any) -> Any:
            # Answers differ, since equal ones are not scored there.
            return {"role": "assistant", "content": f"answer {next(numbers)}"}

    class Reward(AbstractOutcomeRewardModel):
        def score(self, messages: Any, **options: Any) -> Any:
            return [-1.0] * len(messages)

        async def ascore(self, messages: Any, orchestrator: Any = None, **options: Any) -> Any:
            return [-1.0] * len(messages)

    model, limited, free = Model(), BestOfN(Reward()), BestOfN(Reward(), LMOrchestrator(max_concurrency=-1))
    return {
        "its_hub": lambda: limited.ainfer(model, "prompt", budget=draws),
        "its_hub, no limit": lambda: free.ainfer(model, "prompt", budget=draws),
    }


#: The least microseconds of the processor that a request to each face of the version that is imported took, as JSON.
CHILD = """
import asyncio, json, sys, time, warnings
warnings.simplefilter("ignore")
from benchmarks.overhead import contenders
from benchmarks.overhead_faces import pairs
rows = {f"arun {shape}": contenders(shape)["arun"] for shape in ([8], [4, 4], [64])}
rows |= {name: face for name, (_, face) in pairs().items()}
async def taken(request, requests):
    begun = time.process_time()
    for _ in range(requests):
        await request()
    return (time.process_time() - begun) / requests * 1e6
async def main():
    return [{name: await taken(request, 10) for name, request in rows.items()} for _ in range(int(sys.argv[1]))][2:]
turns = asyncio.run(main())
print(json.dumps({name: min(turn[name] for turn in turns) for name in rows}))
"""


def compare(other: Path, turns: int) -> dict[str, dict[str, float]]:
    """For each face: both versions' microseconds, and this one's over the other's, with an interval over turns."""
    taken: dict[str, list[tuple[float, float]]] = {}
    for turn in range(turns):
        order = (other, HERE) if turn % 2 else (HERE, other)
        found = {source: run(source, CHILD, "32") for source in order}
        for name in found[HERE]:
            taken.setdefault(name, []).append((found[other][name], found[HERE][name]))
    return {name: _ratio(pairs) for name, pairs in taken.items()}


def _ratio(pairs: list[tuple[float, float]]) -> dict[str, float]:
    logs = [math.log(mine / theirs) for theirs, mine in pairs]
    middle, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    reach = float(stdtrit(len(logs) - 1, 0.975)) * error
    theirs, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio, low, high = map(math.exp, (middle, middle - reach, middle + reach))
    return {"other": theirs, "this": mine, "ratio": ratio, "low": low, "high": high}


async def timed(request: Request) -> Taken:
    """What a request takes."""
    wall, processor = perf_counter(), process_time()
    await request()
    return Taken(perf_counter() - wall, process_time() - processor)


async def in_turns(rows: Mapping[Any, Request], rounds: int, warm: int = 1) -> dict[Any, list[Taken]]:
    """What each request takes in each round, one of each in turn; the first rounds warm up."""
    times: dict[Any, list[Taken]] = {name: [] for name in rows}
    for _ in range(warm + rounds):
        for name, request in rows.items():
            times[name].append(await timed(request))
    return {name: taken[warm:] for name, taken in times.items()}


async def several(request: Request, count: int) -> None:
    """So many requests, one after the other."""
    for _ in range(count):
        await request()


async def measure(schedule: list[int], rounds: int, requests: int) -> dict[str, float]:
    """The least microseconds of the processor, a request of each contender, measured in turns."""
    times = await in_turns({name: partial(several, one, requests) for name, one in contenders(schedule).items()}, rounds)
    return {name: min(each.processor for each in taken) / requests * 1e6 for name, taken in times.items()}


def main() -> None:
    """Print the table; write JSON with --json."""
    parser = arguments(__doc__, json=Path, rounds=15, requests=100)
    parser.add_argument("--against", metavar="VERSION", help="a revision, or a folder with the source of another version")
    parser.add_argument("--turns", type=int, default=9, help="of both versions, with --against")
    parser.add_argument("--watched", action="store_true", help="only what OpenTelemetry, a handler and traces cost")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    # Here, because they measure with the fakes of this module.
    from benchmarks import overhead_faces, overhead_watched

    if options.watched:
        write_json(options.json, {"watched": overhead_watched.report(options.rounds * options.requests)})
        return
    results = {str(schedule): asyncio.run(measure(schedule, options.rounds, options.requests)) for schedule in SCHEDULES}
    names = list(results[str(SCHEDULES[0])])
    rows = [
        [schedule, *(f"{times[name]:.0f}" for name in names), f"{times['arun'] / times['queue floor']:.2f}"]
        for schedule, times in results.items()
    ]
    print_table(["schedule", *(f"{name} (us)" for name in names), "arun / floor"], rows)
    for one, many in (("[8]", "[4, 4]"), ("[64]", "[16, 16, 16, 16]")):
        print(f"{many} costs {results[many]['arun'] - results[one]['arun']:.0f} us more than {one} in arun")
    print()
    faces = overhead_faces.report(options.rounds * 20)
    print()
    watched = overhead_watched.report(options.rounds * 20)
    more = {"processor_microseconds": against(options.against, options.turns)} if options.against else {}
    write_json(options.json, {"microseconds": results, "faces": faces, "watched": watched, **more})


def against(version: str, turns: int) -> dict[str, dict[str, float]]:
    """Measure another version and this one in turns, print the table, and give the figures."""
    with source_of(version) as other:
        compared = compare(other, turns)
    head = ["face", "other (us)", "this (us)", "this / other", "95 %"]
    rows = [
        [name, f"{row['other']:.0f}", f"{row['this']:.0f}", f"{row['ratio']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
        for name, row in compared.items()
    ]
    print()
    print_table(head, rows)
    return compared


if __name__ == "__main__":
    main()
