"""What is asked of a calibration, and the sequences of tests that answer it on some rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from bonmini_guard.calibration.certify import Found, first_threshold, in_sequence, p_values
from bonmini_guard.calibration.logs import Integers, Log
from bonmini_guard.calibration.orders import Order, split
from bonmini_guard.calibration.paths import Cost, Missing, Paths, Steps, labels_used, paths, steps
from bonmini_guard.calibration.simulate import enough_rows
from bonmini_guard.policy.policy import Exit, Mode

#: A certificate must rest on at least this many served answers: one that serves next to nothing is no success.
LEAST_SERVED = 5
#: Rows that say where ``bad_among_served`` begins.
START_SHARE = 0.2


@dataclass(frozen=True)
class Request:
    """What is asked for: a mode, its risk (None: an accelerator's loss of quality), level, chance of missing it, and the shape.

    A rolling exit is certified for each of ``in_flight`` with a threshold of its own, all at once: a request may take any, by
    whatever tells nothing of it. The others are those of :class:`bonmini_guard.calibration.choose.Asked`.
    """

    mode: Mode
    risk: str | None
    level: float
    delta: float
    schedule: tuple[int, ...]
    offsets: tuple[float, ...] | None = None
    order: Order = "auto"
    cost: Cost = "draws"
    seed: int = 0
    calibrations: int = 1
    start: float | None = None
    exit: Exit = "loop"
    in_flight: tuple[int, ...] = (1,)
    wait: float | None = None
    price: float | None = None
    max_p95: float | None = None

    @property
    def share(self) -> float:
        """The part of delta that each sequence of tests may use: none of them fails with more than the whole (Bonferroni)."""
        return self.delta / self.calibrations / len(self.in_flight)

    @property
    def begins_later(self) -> bool:
        """Whether the first threshold comes from rows that are not tested."""
        return self.start is None and self.risk == "bad_among_served"

    def thresholds(self, threshold: float) -> tuple[float, ...]:
        """Those of all loops."""
        return tuple(threshold + offset for offset in self.offsets or (0.0,) * len(self.schedule))

    def __str__(self) -> str:
        sure = f"with confidence {1 - self.delta:g}"
        what = f"{self.risk} <= {self.level:g}" if self.risk else f"a quality within {self.level:g} of best-of-N"
        return f"{what} {sure}"


@dataclass(frozen=True)
class Rung:
    """One way to run the rows (of a rolling exit with so many draws in flight): counts under every threshold, and what passed.

    ``start`` is the first threshold tested; infinity is the strictest that serves anything.
    """

    in_flight: int
    path: Paths
    steps: Steps
    found: Found
    start: float = math.inf

    @property
    def threshold(self) -> float:
        """The laxest certified; infinity where none is."""
        return math.inf if self.found.cut is None else min(self.steps.threshold(self.found.cut), self.start)

    @property
    def served(self) -> float:
        """Rows that it serves."""
        return 0.0 if self.found.cut is None else float(self.steps.served[self.found.cut])


@dataclass(frozen=True)
class Evidence:
    """Rows that are tested, the ways to run them that were certified (the first one, where none was), and the labels looked at."""

    log: Log
    rungs: tuple[Rung, ...]
    labels: int


def aside(part: Log, asked: Request) -> tuple[Integers, Integers]:
    """Row numbers: those that only say where ``bad_among_served`` begins, and those that are tested."""
    return split(part, START_SHARE, asked.seed * 2 + 2)


def test(part: Log, asked: Request, missing: Missing) -> Evidence:
    """Run the rows and the sequence of tests on them."""
    if not asked.begins_later:
        return _tested(part, _run(part, asked), (), asked, missing)
    other, rest = (part.take(rows) for rows in aside(part, asked))
    return _tested(rest, _run(rest, asked), _run(other, asked), asked, missing)


def _run(part: Log, asked: Request) -> tuple[Paths, ...]:
    shape = asked.schedule, asked.order, asked.exit
    return tuple(paths(part, *shape, width, seed=asked.seed, cost=asked.cost) for width in asked.in_flight)


def _tested(log: Log, runs: tuple[Paths, ...], others: tuple[Paths, ...], asked: Request, missing: Missing) -> Evidence:
    """The sequences of tests on some rows; ``others`` say where each begins."""
    rungs = []
    for width, run, other in zip_longest(asked.in_flight[: len(runs)], runs, others):
        counts, start = steps(run, asked.offsets, missing), math.inf if asked.start is None else asked.start
        if other is not None:
            many = len(run) / max(1, len(other))
            start = first_threshold(steps(other, asked.offsets, missing), many, asked.level, asked.share)
        first = max(0, int(np.searchsorted(-counts.cuts, -start, side="right")) - 1)  # infinity: the strictest that serves anything
        found = in_sequence(p_values(counts, asked.risk, asked.level, asked.share), first, asked.share)
        if other is not None and first < counts.cuts.size:
            start = float(counts.cuts[first])
        rungs.append(Rung(width, run, counts, found, start))
    certified = [rung for rung in rungs if suffices(rung, asked)] or rungs[:1]
    return Evidence(log, tuple(certified), labels_used(runs) + (labels_used(others) if others else 0))


def rows_needed(part: Log, asked: Request, above: int = 0) -> tuple[int, list[Evidence]] | None:
    """How many rows like these, more than ``above``, give a certificate in four cases of five, and what is then found.

    None if too many. The labels of these rows, one a unit, say how labels depend on scores; without any, sigmoid(score) does.
    """

    def calibrate(path: Paths) -> Evidence | None:
        first = round(START_SHARE * len(path)) if asked.begins_later else 0
        others = (path.take(np.arange(first)),) if asked.begins_later else ()
        tested = _tested(part, (path.take(np.arange(first, len(path))),), others, asked, "left_out")
        return tested if suffices(tested.rungs[0], asked) else None

    return enough_rows(_run(part, asked)[0], calibrate, above)


def suffices(rung: Rung, asked: Request) -> bool:
    """Whether it serves enough to be certified."""
    return rung.served >= (LEAST_SERVED if asked.risk else 1)
