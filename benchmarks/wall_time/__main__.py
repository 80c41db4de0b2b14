"""Wall time of ways to spend 32 draws: one batch, loops, lookahead, rolling; idle and saturated, beside earlier revisions.

``python -m benchmarks.wall_time --json FILE [--against REVISION ...]`` measures all ways in turns on the regimes of ``log.py``:
answers that end with their sentence, answers of one length, the first on easier prompts, and the demo's messages to customers by
its own models. Each version runs in a process of its own, with one thread for torch; its generator draws and its reward model
scores. Thresholds are the lowest with which a way is acceptable at most one point of the log's fitted rows less often than
best-of-32; where load decides the width, each width has its own. Every figure is a ratio to best-of-32 of the same turns, with a
95 % interval from resampled requests (idle) or rounds (saturated).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.imdb.models import MODELS
from benchmarks.tables import print_table, with_interval, write_json
from benchmarks.versions import source_of
from benchmarks.wall_time import log, worker
from bonmini_guard.engine.load import LADDER
from bonmini_guard.policy.policy import Exit, Policy, best_of_n, run

ROOT = Path(__file__).parents[2]
MARGIN = 0.01
#: Name, and whose draws; the easier one has those prompts alone of which a logged draw is acceptable.
REGIMES = {"ends": "ends", "equal": "equal", "easier": "ends", "desk": worker.DESK}
#: Requests at once up to which draws that nobody scores are measured, too.
FEW = 12
#: Name, schedule, exit and what the engine is told of each way but best-of-32.
WAYS: tuple[tuple[str, tuple[int, ...], Exit, dict[str, Any]], ...] = (
    ("[4] x 8", (4,) * 8, "loop", {}),
    ("[8, 24]", (8, 24), "loop", {}),
    ("[4] x 8, lookahead 12", (4,) * 8, "loop", {"lookahead": 12}),
    ("rolling, 8 in flight", (1,) * 32, "rolling", {"in_flight": (8,)}),
    ("rolling, 32 in flight", (1,) * 32, "rolling", {"in_flight": (32,)}),
    ("rolling, auto", (1,) * 32, "rolling", {"in_flight": LADDER}),
)
BEST, ALONE = "best-of-32", "32 draws, not scored"


def outcome(policy: Policy, row: Mapping[str, Any], in_flight: int) -> tuple[float, int]:
    """Whether what is served is acceptable, and the draws, by the log's order; a draw takes as long as it has tokens."""
    done = run(policy, row["scores"], row["tokens"], in_flight=in_flight)
    return row["acceptable"][done.decision.index or 0], done.draws


def threshold(rows: Sequence[Mapping[str, Any]], schedule: tuple[int, ...], exit_: Exit, in_flight: int) -> float:
    """The lowest from which on no higher one is acceptable more than ``MARGIN`` less often than best-of-32."""
    wanted = np.mean([outcome(best_of_n(32), row, 1)[0] for row in rows]) - MARGIN
    found = float("inf")
    for level in sorted(np.quantile(np.concatenate([row["scores"] for row in rows]), np.linspace(0, 1, 81)), reverse=True):
        policy = Policy("accelerator", schedule, (float(level),) * len(schedule), exit_)
        if np.mean([outcome(policy, row, in_flight)[0] for row in rows]) < wanted:
            break
        found = float(level)
    return found


def ways_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any] | None]:
    """What a worker is told of each way; None is 32 draws that nobody scores."""
    ways: dict[str, dict[str, Any] | None] = {ALONE: None, BEST: {"schedule": [32], "thresholds": [1e9]}}
    for name, schedule, exit_, told in WAYS:
        widths = told.get("in_flight", (1,))
        levels = [min(threshold(rows, schedule, exit_, width), 1e9) for width in widths]
        ways[name] = {"schedule": schedule, "thresholds": [max(levels)] * len(schedule), "exit": exit_, **told}
        if len(widths) > 1:
            ways[name]["ladder"] = list(zip(widths, levels, strict=True))
    return ways


def kept(rows: Sequence[Mapping[str, Any]], way: Mapping[str, Any]) -> dict[str, Any]:
    """On rows that set no threshold: acceptable, beside best-of-32, and draws decided on, for each width that the way may have."""
    shape = tuple(way["schedule"]), tuple(way["thresholds"]), way.get("exit", "loop")
    policy = Policy("accelerator", *shape, ladder=tuple(way.get("ladder", ())))
    done = [[outcome(policy, row, width) for row in rows] for width in way.get("in_flight", (1,))]
    shares = [float(np.mean([acceptable for acceptable, _ in each])) for each in done]
    return {"acceptable": min(shares), "draws": [float(np.mean([draws for _, draws in each])) for each in done]}


class Process:
    """A worker of one version of the package."""

    def __init__(self, source: Path) -> None:
        command = [sys.executable, str(Path(worker.__file__)), str(MODELS)]
        self._process = subprocess.Popen(
            command,
            cwd=source,
            env={**os.environ, "PYTHONPATH": str(source)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **told: Any) -> dict[str, Any]:
        """Have requests conducted.

        Raises:
            RuntimeError: the worker has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self._process.wait()}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        with self._process:  # closes its pipes, and waits
            pass


@contextlib.contextmanager
def processes(against: Sequence[str]) -> Iterator[dict[str, Process]]:
    """A worker of this version, named "", and of each other one."""
    with contextlib.ExitStack() as stack:
        started = {"": Process(ROOT)}
        for version in against:
            started[Path(version).name] = Process(stack.enter_context(source_of(version)))
        try:
            yield started
        finally:
            for process in started.values():
                process.close()


class Regime:
    """The figures of a regime, stage by stage.

    Args:
        name: of the regime.
        workers: that are asked, by version.
        only: ways beside best-of-32; none for all.
    """

    def __init__(self, name: str, workers: Mapping[str, Process], only: Sequence[str]) -> None:
        drawn = REGIMES[name]
        fitted, self._others = ([row for row in part if name == drawn or any(row["acceptable"])] for part in log.parts(drawn))
        self._name, self._workers = drawn, workers
        self._tokens = np.array([row["tokens"] for row in [*fitted, *self._others]], dtype=float)
        self._ways = {name: way for name, way in ways_of(fitted).items() if not only or name in (BEST, *only)}
        self._prompts = [row["prompt"] for row in self._others]
        # Earlier versions have no desk.
        older = () if drawn == worker.DESK else (BEST, ALONE)
        self._asked = [(version, way) for version in workers for way in self._ways if not version or way in older]
        self._idle: dict[tuple[str, str], list[float]] = {each: [] for each in self._asked}
        self._draws: dict[tuple[str, str], list[int]] = {each: [] for each in self._asked}
        self._full: dict[int, dict[tuple[str, str], list[float]]] = {}
        for each in self._asked:  # what the first call pays once
            self._ask(each, self._prompts[:1], 0, 1)

    def idle(self, requests: int) -> None:
        """One request at a time, each in every way before the next."""
        for number in range(requests):
            for each in rotated(self._asked, number):
                done = self._ask(each, [self._prompts[number % len(self._prompts)]], 1000 + number, 1)
                self._idle[each] += done["latencies"]
                self._draws[each] += done["draws"]

    def saturated(self, size: int, count: int, rounds: int) -> None:
        """``size`` requests at once, ``count`` of them in each round and way."""
        asked = [each for each in self._asked if size <= FEW or each[1] != ALONE]
        times = self._full[size] = {each: [] for each in asked}
        for number in range(rounds):
            some = [self._prompts[(number * count + at) % len(self._prompts)] for at in range(count)]
            for each in rotated(asked, number):
                times[each].append(self._ask(each, some, 5000 + 100 * number, size)["seconds"] / count)

    def result(self) -> dict[str, Any]:
        """All that has been measured."""
        levels = {name: way.get("ladder", way["thresholds"][0]) for name, way in self._ways.items() if way is not None}
        figures = [row_of(each, self._idle, self._draws, self._full) | self._kept(*each) for each in self._asked]
        variation = float(self._tokens.std() / self._tokens.mean())
        about = {"tokens": float(self._tokens.mean()), "coefficient of variation": variation}
        return about | {"requests idle": len(self._idle[self._asked[0]]), "thresholds": levels, "figures": figures}

    def _kept(self, version: str, name: str) -> dict[str, Any]:
        way = self._ways[name]
        return {} if version or way is None else kept(self._others, way)

    def _ask(self, each: tuple[str, str], some: Sequence[Any], seed: int, together: int) -> dict[str, Any]:
        told = {"regime": self._name, "way": self._ways[each[1]], "prompts": some, "seed": seed, "together": together}
        return self._workers[each[0]].ask(**told)


def rotated(asked: Sequence[tuple[str, str]], number: int) -> list[tuple[str, str]]:
    """The same in another order each time, so that no way always follows the same one."""
    at = number * 5 % len(asked)
    return [*asked[at:], *asked[:at]]


Times = Mapping[tuple[str, str], Sequence[float]]


def row_of(
    each: tuple[str, str],
    idle: Times,
    draws: Mapping[tuple[str, str], Sequence[int]],
    full: Mapping[int, Times],
) -> dict[str, Any]:
    """A way's seconds, and its ratios to the same of each version's best-of-32 (or bare draws).

    Of seconds less are better, of requests a second more.
    """
    row: dict[str, Any] = {"version": each[0] or "this one", "way": each[1], "draws idle": float(np.mean(draws[each]))}
    beside = [(version, ALONE if each[1] == ALONE else BEST) for version, name in idle if name == BEST]
    for name, share in (("p50", 50), ("p95", 95)):
        row[f"idle {name} s"] = float(np.percentile(idle[each], share))
        for other in beside:
            row[f"idle {name} / {other[0] or 'this'}"] = interval(
                idle[each], idle[other], lambda ours, theirs, share=share: np.percentile(ours, share) / np.percentile(theirs, share)
            )
    for size, times in full.items():
        if each not in times:
            continue
        row[f"{size} at once, requests/s"] = float(1 / np.mean(times[each]))
        for other in beside:
            row[f"{size} at once / {other[0] or 'this'}"] = interval(
                times[each], times[other], lambda ours, theirs: np.sum(theirs) / np.sum(ours)
            )
    return row


def interval(ours: Sequence[float], theirs: Sequence[float], figure: Callable[[Any, Any], float]) -> list[float]:
    """A ratio and its 95 % interval, pairs resampled."""
    one, other = np.array(ours), np.array(theirs)
    draws = np.random.default_rng(0).integers(len(one), size=(2000, len(one)))
    low, high = np.percentile([figure(one[at], other[at]) for at in draws], [2.5, 97.5])
    return [float(figure(one, other)), float(low), float(high)]


def show(regime: str, result: Mapping[str, Any]) -> None:
    """Print a regime's table."""
    print(f"\n{regime}: {result['tokens']:.1f} tokens an answer, coefficient of variation {result['coefficient of variation']:.2f}")
    figures = result["figures"]
    head = [key for key in figures[-1] if " / " in key]
    cells = []
    for row in figures:
        ratios = (with_interval(row.get(key), 2) for key in head)
        acceptable = f"{row['acceptable']:.3f}" if "acceptable" in row else "-"
        cells.append([row["version"], row["way"], *ratios, f"{row['draws idle']:.1f}", acceptable])
    print_table(["version", "way", *head, "draws idle", "acceptable"], cells)


def crowded(text: str) -> tuple[int, int, int]:
    """Requests at once, requests of a round, rounds: as in 12x24x3."""
    size, count, rounds = text.split("x")
    return int(size), int(count), int(rounds)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--against", nargs="*", default=[], help="revisions of this repository, or folders of their source")
    parser.add_argument("--regimes", nargs="*", default=[*REGIMES][:3], choices=list(REGIMES), help="(default: all but desk)")
    parser.add_argument("--ways", nargs="*", default=[], help="beside best-of-32, e.g. 'rolling, auto' (default: all)")
    parser.add_argument("--idle", type=int, default=16, help="requests, one at a time")
    parser.add_argument(
        "--saturated",
        type=crowded,
        nargs="*",
        default=[(12, 24, 3), (64, 64, 2)],
        help="requests at once x requests of a round x rounds (default: 12x24x3 64x64x2)",
    )
    options = parser.parse_args()
    with processes(options.against) as workers:
        regimes = {name: Regime(name, workers, options.ways) for name in options.regimes}
        stages = [lambda regime: regime.idle(options.idle)]
        stages += [lambda regime, crowd=crowd: regime.saturated(*crowd) for crowd in options.saturated]
        for stage in stages:
            for regime in regimes.values():
                stage(regime)
            # After each: a run that is cut short leaves what it has.
            results = {name: regime.result() for name, regime in regimes.items()}
            write_json(options.json, {"against": [Path(version).name for version in options.against], "regimes": results})
        for name, result in results.items():
            show(name, result)


if __name__ == "__main__":
    main()
