"""The one order of a row's draws, and the splits of a log: by digest, so that neither a seed nor an export's sorting decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bonmini_guard.calibration.logs import Bools, Floats, Integers, Log
from bonmini_guard.errors import InputError, needing

with needing("calibration"):
    from scipy.special import bdtrc

Order = Literal["auto", "logged"]
Digests = NDArray[np.uint64]

#: A log whose best draws stand at one end more often than this chance allows was sorted, not drawn, in its order.
SORTED = 1e-6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(values: Digests, salt: int) -> Digests:
    """Another 64-bit digest of each value (the finaliser of splitmix64, Steele et al. 2014), equal for equal salt."""
    with np.errstate(over="ignore"):
        found = values + np.uint64(salt % (1 << 64)) * _GOLDEN + _GOLDEN
        found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return found ^ (found >> np.uint64(31))


def order_of(log: Log, order: Order = "auto", seed: int = 0) -> Integers:
    """(R, W) positions of each row's candidates in the row's one order; places beyond a row's count come last.

    Args:
        log: R rows.
        order: ``auto`` reads a guard's traces as logged and all other rows by digest of the row's id and the candidate's place;
            ``logged`` reads all rows as logged (:func:`refuse_sorted` first).
        seed: another digest order; 0 is the one of no seed.
    """
    width = log.scores.shape[1]
    logged = np.broadcast_to(np.arange(width), log.scores.shape)
    if order == "logged":
        return logged
    keys = np.stack([mixed(log.keys, seed * width + place + 1) >> np.uint64(1) for place in range(width)], axis=1)
    keys = np.where(logged < log.counts[:, None], keys.astype(np.int64), np.iinfo(np.int64).max)
    return np.argsort(np.where(log.traced[:, None], logged, keys), axis=1, kind="stable")


def arrived(log: Log, places: Integers, blocks: Sequence[int], in_flight: int | None) -> Integers:
    """(R, N) the positions in the order in which draws launched in the order of ``places`` arrive; ties as launched.

    Args:
        log: with the time that each draw took in ``costs``: seconds, or tokens in their stead; without, draws arrive as launched.
        places: (R, N).
        blocks: draws launched together, for ``in_flight`` None: each block when the one before is there (an eager exit).
        in_flight: draws that run at a time, each that arrives making room for the next one (a rolling exit).
    """
    if log.costs is None or in_flight == 1:
        return places
    took = np.minimum(np.nan_to_num(np.take_along_axis(log.costs, places, axis=1)), 1e300)  # so that no sum is infinite
    if in_flight is None:
        block = np.repeat(np.arange(len(blocks)), blocks)
        order = np.lexsort((took, np.broadcast_to(block, took.shape)), axis=1)
    else:
        order = _in_flight(took, ~np.take_along_axis(log.drawn, places, axis=1), in_flight)
    return np.take_along_axis(places, order, axis=1)


def _in_flight(took: Floats, failed: Bools, most: int) -> Integers:
    """(R, N) :func:`bonmini_guard.policy.policy.arrival_order` of each row."""
    (rows, draws), every = took.shape, np.arange(len(took))
    ends, order = np.where(np.arange(draws) < most, took, np.inf), np.empty(took.shape, dtype=np.int64)
    launched, failing = np.full(rows, most), np.zeros(rows, dtype=np.int64)
    for place in range(draws):
        order[:, place] = first = ends[:, : place + most].argmin(axis=1)
        now, ends[every, first] = ends[every, first], np.inf
        failing = np.where(failed[every, first], failing + 1, 0)
        until = np.where((failing < most) | (launched == place + 1), place + 1 + most, launched)
        room = slice(place + 1, place + 1 + most)
        numbers = np.arange(draws)[room]
        fresh = (numbers >= launched[:, None]) & (numbers < until[:, None])
        np.copyto(ends[:, room], now[:, None] + took[:, room], where=fresh)
        launched = until
    return order


def refuse_sorted(log: Log) -> None:
    """Refuse a log whose order its scores decided, by an InputError.

    Among n exchangeable draws the best is first (or last) with chance 1/n. Over rows of different n the number of such rows is a
    sum of unlike indicators, whose upper tail beyond its mean is at most the binomial's of the mean chance (Hoeffding 1956).
    """
    scores = np.where(np.isnan(log.scores), -np.inf, log.scores)
    best = scores.max(axis=1, keepdims=True)
    alone = (np.sum(scores == best, axis=1) == 1) & (log.counts > 1)
    if not alone.any():
        return
    place, last = scores[alone].argmax(axis=1), log.counts[alone] - 1
    chance, rows = float(np.mean(1.0 / log.counts[alone])), int(alone.sum())
    for name, hits in (("first", int(np.sum(place == 0))), ("last", int(np.sum(place == last)))):
        if hits > rows * chance + 1 and bdtrc(hits - 1, rows, chance) < SORTED / 2:
            raise InputError(
                f"{log.source}: the best candidate stands {name} in {hits:,} of {rows:,} rows, so that this is no drawing order; "
                f"leave out --order logged, and an order by digest is used"
            )


def one_a_unit(log: Log) -> Log:
    """The log with one row of each unit, the one with the least digest, so that each unit counts once."""
    order = np.lexsort((mixed(log.keys, -1), log.groups))
    first = np.ones(order.size, dtype=bool)
    first[1:] = log.groups[order][1:] != log.groups[order][:-1]
    return log if first.all() else log.take(np.sort(order[first]))


def labelled_units(log: Log) -> tuple[Log, Log, Literal["left_out", "counts_as_bad"]]:
    """:meth:`~bonmini_guard.calibration.logs.Log.labelled_set`: its rows, one row of each unit, and what a missing label means.

    Where single answers are labelled, a row of more answers has a label more often. Units of such rows would count more often than
    others, so that each unit's row is chosen before labels are looked at.
    """
    labelled, missing = log.labelled_set()
    if missing == "counts_as_bad" or labelled.labelled.all():
        return labelled, one_a_unit(labelled), missing
    return labelled, labelled.take(np.isin(labelled.keys, one_a_unit(log).keys)), missing


def split(log: Log, share: float, salt: int) -> tuple[Integers, Integers]:
    """Row numbers of two parts of a log whose rows are its units: the ``share`` of rows with the least digests, and the others.

    The salt, 1 or more, names the split; a seed given by hand goes in here too.
    """
    # No digest that :func:`order_of` goes by: else in one part a logged place would come sooner than by chance, in the other later.
    order = np.argsort(mixed(log.keys, -2 - salt), kind="stable")
    cut = round(share * len(log))
    return np.sort(order[:cut]), np.sort(order[cut:])
