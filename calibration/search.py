"""Which schedules and offsets are worth trying, and what one is worth: for a choice that is made on the fit split only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import bdtrik

from bonmini_guard.calibration.logs import Integers, Log
from bonmini_guard.calibration.orders import Order
from bonmini_guard.calibration.paths import Missing, exits, paths
from bonmini_guard.calibration.sequence import Evidence, Request, test
from bonmini_guard.errors import InputError

#: Where loops exit, against the searched threshold, in standard deviations of the scores: first loop to last.
TILTS = (-1.0, -0.5, 0.5, 1.0)


def shapes(budget: int) -> list[tuple[int, ...]]:
    """Schedules with that budget: equal loops, one small loop and the rest, and loops that double.

    Of 8: (1,) * 8, (2, 2, 2, 2), (4, 4), (1, 7), (2, 6), (1, 1, 2, 4), (2, 2, 4), and so on for powers of two.
    """
    sizes = [1 << power for power in range(budget.bit_length()) if (1 << power) < budget]
    found = [(size,) * (budget // size) for size in sizes if budget % size == 0]
    found += [(size, budget - size) for size in sizes]
    found += [_doubling(size, budget) for size in sizes]
    return list(dict.fromkeys(found))


def _doubling(first: int, budget: int) -> tuple[int, ...]:
    loops = [first]
    while sum(loops) < budget:
        loops.append(min(sum(loops), budget - sum(loops)))
    return tuple(loops)


def tilts(log: Log, loops: int) -> list[tuple[float, ...]]:
    """Offsets that rise or fall evenly from the first loop to the last, whose own is 0."""
    spread = float(np.nanstd(log.scores))
    if loops < 2 or not spread > 0:
        return []
    steps = np.linspace(1.0, 0.0, loops)
    return [tuple(float(tilt * spread * step) for step in steps) for tilt in TILTS]


@dataclass(frozen=True)
class Pace:
    """How long requests wait: of each loop that they run its slowest draw. Without times in the log every draw takes 1.

    Attributes:
        mean, p95: over the rows.
        p95_limit: what the rows' 95th percentile does not exceed, with 95 % confidence (an order statistic); infinite for few rows.
        draw: the mean time of a draw; ``draws`` is their mean number.
    """

    mean: float
    p95: float
    p95_limit: float
    draw: float
    draws: float

    @classmethod
    def of(cls, log: Log, schedule: Sequence[int], order: Order, seed: int, ran: Integers) -> Pace:
        """Of rows that end with the loop ``ran``, (R,) from 0."""
        ends, rows = np.cumsum(schedule), np.arange(len(log))
        if log.costs is None:
            waits, draw = ran + 1.0, 1.0
        else:
            waits = paths(log, schedule, order, seed=seed, cost="seconds").cost[rows, ran]
            draw = float(np.nanmean(log.costs)) or 1.0
        place = int(np.ceil(bdtrik(0.95, len(log), 0.95)))
        limit = float(np.sort(waits)[place]) if place < len(log) else np.inf
        return cls(float(waits.mean()), float(np.quantile(waits, 0.95)), limit, draw, float(ends[ran].mean()))


@dataclass(frozen=True)
class Worth:
    """What a shape would certify: the share of requests served (1 for an accelerator), what one costs, and how long they wait.

    ``slow`` says whether more than 5 % of them may wait too long.
    """

    served: float
    price: float
    pace: Pace
    slow: bool

    def better(self, other: Worth) -> bool:
        """Whether this one is to be taken in the other's place."""
        if self.slow or other.slow:
            return other.slow and not self.slow
        return self.served > other.served + 0.01 or (self.served > other.served - 0.01 and self.price < 0.98 * other.price)


def front(tried: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of those that were tried, the ones that no other one beats in served, draws and 95th percentile together; cheapest first."""
    keys = {"served": -1, "draws": 1, "p95": 1}

    def beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        pairs = [(sign * one[key], sign * other[key]) for key, sign in keys.items()]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    kept = [dict(each) for each in tried if not any(beats(one, each) for one in tried)]
    rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in each.items()} for each in kept]
    return sorted({str(each["schedule"]): each for each in rounded}.values(), key=lambda each: float(each["price"]))


def table_of(evidence: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows of a profile's front, as text; None for a profile that was not searched."""
    if not (found := evidence.get("front")):
        return None
    keys = ["price", "draws", "wait", "p95", "served"]
    try:
        rows = [[",".join(map(str, each["schedule"])), *(f"{each[key]:.3g}" for key in keys)] for each in found]
    except (TypeError, KeyError, ValueError):  # edited by hand
        raise InputError("the profile's evidence.front is not as 'calibrate' wrote it: calibrate again") from None
    return ["shape", *keys], rows


def searched(fit: Log, asked: Request, missing: Missing) -> tuple[Request, list[dict[str, Any]]]:
    """The request with the best shape, then offsets, judged by what they would certify on the fit split; and the shapes' front.

    Better is: serves at least 1 % of the requests more, or as many (within 1 %) at a lower price: what the draws cost, and the
    waiting for each loop's slowest one. A shape under which over 5 % of the requests may wait longer than ``max_p95`` is none.
    """
    best, worth = asked, _worth(fit, asked, missing)
    tried = [(asked, worth)]

    def wishes() -> Iterator[Request]:
        yield from (replace(asked, schedule=shape) for shape in shapes(sum(asked.schedule)))
        shape = best
        yield from (replace(shape, offsets=offsets) for offsets in tilts(fit, len(shape.schedule)))

    for wish in wishes():
        now = _worth(fit, wish, missing)
        tried += [(wish, now)] if wish.offsets is asked.offsets else []
        if now.better(worth):
            best, worth = wish, replace(now, served=max(now.served, worth.served))
    told = [(list(wish.schedule), each.served, each.pace.draws, each.pace.mean, each.pace.p95, each.price) for wish, each in tried]
    keys = ("schedule", "served", "draws", "wait", "p95", "price")
    return best, front([dict(zip(keys, each, strict=True)) for each in told])


def priced(asked: Request, times: str | None) -> str:
    """What a search's prices are in."""
    if asked.price is None:
        return f"draws; waiting as long as one takes costs {1.0 if asked.wait is None else asked.wait:g}"
    waited = {"seconds": "second", "tokens": "token of a loop's longest answer"}.get(str(times), "loop")
    return f"money; {asked.price:g} for each of its {asked.cost}, {asked.wait:g} for each {waited} that it waits"


def _worth(fit: Log, asked: Request, missing: Missing) -> Worth:
    """What would be certified if the fit split were the whole log."""
    tested = test(fit, asked, missing)
    rung, pace = tested.rungs[0], pace_of(tested, asked)
    cut = rung.found.cut
    cost = float(rung.path.cost[:, -1].mean()) if cut is None else float(rung.steps.cost[cut]) / len(tested.log)
    served = 1.0 if not asked.risk else 0.0 if cut is None else rung.served / max(1.0, rung.steps.rows[cut])
    wait = 1.0 if asked.wait is None else asked.wait
    price = cost / (1.0 if asked.cost == "draws" else pace.draw) + wait * pace.mean / pace.draw  # in draws
    if asked.price is not None:  # in money, as waiting is
        price = asked.price * cost + wait * pace.mean
    return Worth(served, price, pace, asked.max_p95 is not None and pace.p95_limit > asked.max_p95)


def pace_of(tested: Evidence, asked: Request) -> Pace:
    """How long requests take under what the rows certify; to their end where they certify nothing."""
    rung = tested.rungs[0]
    ran = np.minimum(exits(rung.path, asked.thresholds(rung.threshold)), rung.path.draws.size - 1)
    return Pace.of(tested.log, asked.schedule, asked.order, asked.seed, ran)
