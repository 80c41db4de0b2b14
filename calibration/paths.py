"""What a schedule does with each row on its one order, and the counts over rows under every threshold at once.

A row is served by the first loop l with ``best[l] >= t + offset[l]``; as t falls, its exit moves from no loop to ever earlier ones,
at its own scores only. So counts under all thresholds of a log are one sort and one cumulative sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bonmini_guard.calibration.logs import Bools, Floats, Integers, Log
from bonmini_guard.calibration.orders import Order, arrived, order_of, refuse_sorted
from bonmini_guard.policy.policy import Exit, Policy

Cost = Literal["draws", "tokens", "seconds"]
#: What a missing label means: the row is left out where the label is needed, or it counts against the promise.
Missing = Literal["left_out", "counts_as_bad"]


@dataclass(frozen=True)
class Paths:
    """What each of R rows has at the end of each of L loops, in its one order.

    The last one holds best-of-N's answer, the earliest drawn of equals; of an exit that decides in order of arrival, in which
    another one of them may come first, it is a further one in which nothing passes.

    Attributes:
        best: (R, L) best score so far; -inf while there is none.
        holder: (R, L) which candidate of the row holds it, by its place in the log.
        good: (R, L) the holder's label: 1, 0, or NaN where it is not labelled; 0 where there is no holder.
        cost: (R, L) what the draws up to here cost.
        draws: (L,) draws by the end of each loop.
        unpassed: which loop holds the answer that is selected where none passes.
    """

    best: Floats
    holder: Integers
    good: Floats
    cost: Floats
    draws: Integers
    unpassed: int = -1

    def __len__(self) -> int:
        return len(self.best)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Paths:
        """Those of some rows."""
        return Paths(self.best[rows], self.holder[rows], self.good[rows], self.cost[rows], self.draws, self.unpassed)

    def changes(self) -> Bools:
        """(R, L) where another answer becomes the best so far."""
        return np.asarray((np.diff(self.holder, axis=1, prepend=-1) != 0) & np.isfinite(self.best))


def labels_used(runs: Sequence[Paths]) -> int:
    """How many different candidates can be served or are best-of-N's in any of some runs of the same rows.

    They are the most labels that a certificate looks at.
    """
    width = 1 + max(int(run.holder.max(initial=0)) for run in runs)
    numbers = [(np.arange(len(run))[:, None] * width + run.holder)[run.changes()] for run in runs]
    return int(np.unique(np.concatenate(numbers)).size)


def paths(
    log: Log,
    schedule: Sequence[int],
    order: Order = "auto",
    exit: Exit = "loop",
    in_flight: int = 1,
    *,
    seed: int = 0,
    cost: Cost = "draws",
) -> Paths:
    """Run the drawing of a schedule on each row.

    Args:
        log: R rows with at least ``sum(schedule)`` candidates each, else InputError.
        schedule: draws of each loop.
        order: as :func:`bonmini_guard.calibration.orders.order_of`.
        exit: ``eager`` and ``rolling`` have a "loop" for each draw, in order of arrival.
        in_flight: draws that run at a time, for a rolling exit.
        seed: likewise.
        cost: ``draws``; ``tokens`` adds up the draws' own; ``seconds`` adds each loop's slowest draw, since they run at once.
    """
    log.require(sum(schedule))
    if order == "logged":
        refuse_sorted(log)
    draws = np.cumsum(schedule)
    ends = draws if exit == "loop" else np.arange(1, draws[-1] + 1)
    found, costs = [], list[Floats]()
    for part in log.parts():
        places = order_of(part, order, seed)[:, : ends[-1]]
        if exit != "loop":
            plain = _run(part, draws[-1:], places)
            places = arrived(part, places, schedule, in_flight if exit == "rolling" else None)
            found.append(tuple(map(np.hstack, zip(_run(part, ends, places), plain, strict=True))))
        else:
            found.append(_run(part, ends, places))
        costs += [] if cost == "draws" else [_costs(part, places, ends, cost)]
    best, holder, good = (np.concatenate(each) for each in zip(*found, strict=True))
    # An eager exit has launched the whole loop in which it serves.
    drawn = ends if exit == "loop" else np.append(np.repeat(draws, schedule) if exit == "eager" else ends, ends[-1])
    spent = np.concatenate(costs) if costs else np.broadcast_to(drawn.astype(np.float64), best.shape)
    return Paths(best, holder, good, spent, drawn, -2 if exit == "rolling" else -1)


def _run(log: Log, ends: Integers, places: Integers) -> tuple[Floats, Integers, Floats]:
    """(R, L) best scores so far, their holders, and the labels of these."""
    scores = np.take_along_axis(log.scores, places, axis=1)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    best = np.maximum.accumulate(scores, axis=1)
    rises = np.ones(best.shape, dtype=bool)
    rises[:, 1:] = best[:, 1:] > best[:, :-1]  # among equal scores the earliest drawn wins
    at = np.maximum.accumulate(np.where(rises, np.arange(best.shape[1]), 0), axis=1)[:, np.minimum(ends, best.shape[1]) - 1]
    holder, best = np.take_along_axis(places, at, axis=1), best[:, np.minimum(ends, best.shape[1]) - 1]
    good = np.take_along_axis(log.labels, holder, axis=1).astype(np.float64)
    return best, holder, np.where(np.isfinite(best), good, 0.0)


def _costs(log: Log, places: Integers, ends: Integers, cost: Cost) -> Floats:
    assert log.costs is not None
    each = np.nan_to_num(np.take_along_axis(log.costs, places, axis=1))
    starts = np.concatenate([[0], ends[:-1]])
    gather = np.add if cost == "tokens" else np.maximum
    return np.cumsum(gather.reduceat(each, starts, axis=1), axis=1)


@dataclass(frozen=True)
class Steps:
    """Counts over rows under every distinct threshold, strict to lax: (T,) arrays; entry c holds in ``(cuts[c + 1], cuts[c]]``.

    Attributes:
        cuts: descending.
        rows: rows that count: those whose labels needed here are there.
        served: of these, served.
        served_bad: ... and not acceptable.
        selected_bad: rows whose selected answer (served, or best so far) is not acceptable.
        lost: rows whose best-of-N answer is acceptable and whose served one is not.
        won: the opposite.
        draws: of all rows.
        cost: of all rows.
    """

    cuts: Floats
    rows: Floats
    served: Floats
    served_bad: Floats
    selected_bad: Floats
    lost: Floats
    won: Floats
    draws: Floats
    cost: Floats

    def threshold(self, cut: int) -> float:
        """A threshold of an entry, midway to the next lower score: rounding in the last digits flips no decision."""
        here = float(self.cuts[cut])
        if cut + 1 == self.cuts.size:
            return here - 1e-6 * max(1.0, abs(here))
        below = float(self.cuts[cut + 1])
        return max((here + below) / 2, math.nextafter(below, here))  # between neighbours there is no number


def outcomes(path: Paths, missing: Missing) -> Iterator[tuple[str, Floats]]:
    """For each count of :class:`Steps`, one after the other, (R, L + 1): a row's part of it if loop l serves it, last if none does.

    Without a label of its selected answer, a row is ``left_out`` (its label is missing by chance) or ``counts_as_bad`` (its label
    was not asked for, so that the worst is assumed). Rows that need best-of-N's label besides are not left out for lack of it, else
    they would be rarer among those that count than rows that need a single label: the worst is assumed of it.
    """
    good, holder = (np.column_stack([each, each[:, path.unpassed]]) for each in (path.good, path.holder))
    last, same = path.good[:, -1:], holder == path.holder[:, -1:]
    passed = np.arange(good.shape[1]) < path.draws.size
    bad = np.nan_to_num(1.0 - good, nan=1.0)
    counts = np.ones(good.shape, dtype=bool)
    if missing == "left_out":
        counts = ~np.isnan(good)
    if not counts.all():  # a row without an answer needs no label: it would be among those that count more often than the others
        counts[:, -1] &= np.isfinite(path.best[:, -1])
    yield "rows", counts.astype(np.float64)
    yield "served", (counts & passed).astype(np.float64)
    yield "served_bad", np.where(counts & passed, bad, 0.0)
    yield "selected_bad", np.where(passed, bad, np.nan_to_num(1.0 - good, nan=0.0)) * counts
    yield "lost", np.where(counts & ~same, np.nan_to_num(last, nan=1.0) * bad, 0.0)
    yield "won", np.where(counts & ~same, np.nan_to_num((1.0 - last) * good, nan=0.0), 0.0)
    yield "draws", np.broadcast_to(np.append(path.draws, path.draws[-1]).astype(np.float64), good.shape)
    yield "cost", np.column_stack([path.cost, path.cost[:, -1]])


def steps(path: Paths, offsets: Sequence[float] | None = None, missing: Missing = "left_out") -> Steps:
    """The counts under all thresholds at once; loop l exits at ``t + offsets[l]``.

    With offsets, scores that only rounding keeps apart (0.5 - 0.1 and 0.6 - 0.2) are one cut: no threshold tells them apart.
    """
    shifted, near = path.best, 0.0
    if offsets is not None:
        shifted = path.best - np.asarray(offsets)
        largest = max(np.max(np.abs(each), initial=0.0, where=np.isfinite(each)) for each in (path.best, shifted))
        near = float(4 * np.spacing(largest))
    running = np.maximum.accumulate(shifted, axis=1)
    opens = np.isfinite(shifted)
    opens[:, 1:] &= shifted[:, 1:] > running[:, :-1]
    row, loop = np.nonzero(opens)
    before = np.append(np.where(row[1:] == row[:-1], loop[1:], path.draws.size), path.draws.size) if row.size else loop
    down = np.argsort(-shifted[row, loop], kind="stable")
    cut = shifted[row, loop][down]
    ends = np.flatnonzero(np.append(cut[1:] < cut[:-1] - near, True)) if cut.size else np.zeros(0, dtype=np.int64)
    totals = {}
    for name, part in outcomes(path, missing):
        change = part[row, loop] - part[row, before]
        totals[name] = float(part[:, -1].sum()) + np.cumsum(change[down])[ends]
    return Steps(cut[ends], **totals)


def counts_at(path: Paths, at: Integers, missing: Missing) -> Steps:
    """The counts, as one entry, if loop ``at`` (R,) serves each row; see :func:`exits`."""
    rows = np.arange(len(path))
    return Steps(np.zeros(1), **{name: np.array([part[rows, at].sum()]) for name, part in outcomes(path, missing)})


def wished(path: Paths, at: Integers) -> Paths:
    """As if every label still missing were what a promise would wish, if loop ``at`` (R,) serves: served good, the others bad."""
    here = path.holder == np.take_along_axis(path.holder, np.minimum(at, path.draws.size - 1)[:, None], axis=1)
    return replace(path, good=np.where(np.isnan(path.good), here & (at < path.draws.size)[:, None], path.good))


def counts_to_refute(log: Log, policy: Policy, missing: Missing, in_flight: int = 1) -> Steps:
    """The counts, as one entry, under a policy's thresholds, a piece of the log at a time; no missing label counts against it."""
    found, thresholds = [], np.asarray(policy.at(in_flight).thresholds)
    failed = log.left_out.get("failed", 0)  # requests that served nothing bad, which the log does not tell from unlabelled ones
    if policy.exit == "eager":  # each draw of a loop has the loop's
        thresholds = np.repeat(thresholds, policy.schedule)
    for part in log.parts():
        path = paths(part, policy.schedule, "auto", policy.exit, in_flight)
        at = exits(path, thresholds)
        chance = missing == "left_out" and policy.mode == "guardrail"
        found.append(counts_at(path if chance else wished(path, at), at, missing))
        if chance and np.isnan(path.good).any():  # then rows without an answer do not count, and here all of them are to
            failed += int(np.sum(~np.isfinite(path.best[:, -1])))
    counts = Steps(*(np.sum([getattr(part, each.name) for part in found], axis=0) for each in fields(Steps)))
    return replace(counts, rows=counts.rows + failed, selected_bad=counts.selected_bad + failed)


def exits(path: Paths, thresholds: Sequence[float] | Floats | float) -> Integers:
    """(R,) the loop that serves each row under these thresholds, or one for all loops; L where none does."""
    best = path.best[:, : np.size(thresholds)] if np.ndim(thresholds) else path.best
    passed = np.isfinite(best) & (best >= np.asarray(thresholds))
    return np.where(passed.any(axis=1), passed.argmax(axis=1), path.draws.size)
