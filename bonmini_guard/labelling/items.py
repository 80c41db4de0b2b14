"""Which question is asked when: items, their order and their sides. Pure, and the same on every machine and Python.

Nothing here uses a random number generator. Whatever must look random is ordered by SHA-256 of the session's seed and of what is
ordered, so that an order can be derived again after a restart and does not depend on a library's version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bonmini_guard.labelling.rows import LabelRow

Mode = Literal["choice", "accept"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What labels on demand are for: a risk by name, or ``accelerator``; alpha or epsilon (``level``); delta; draws of each loop.

    ``rows`` are the ids of those that count, fixed before the first label.
    """

    what: str
    level: float
    delta: float
    schedule: tuple[int, ...]
    rows: tuple[str, ...]


#: From the votes so far (:meth:`bonmini_guard.labelling.events.Ledger.votes`) to what is asked next, (row id, candidate) each, and
#: what the labels so far certify.
Asking = Callable[[Mapping[tuple[str, int], int]], tuple[list[tuple[str, int]], str]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides which items a session has, and in which order.

    Attributes:
        mode: ``choice`` asks A, B or neither (accept or reject where a row has one distinct answer); ``accept`` asks about
            every answer by itself.
        seed: of every order.
        pairs: choice only: disjoint pairs of a row, at most.
        goal: accept only: ask on demand, about what this needs; None: about everything.
        picked: only rows named by hand are asked about: their labels say nothing of other rows, and none is calibrated on.
    """

    mode: Mode = "choice"
    seed: int = 0
    pairs: int = 1
    goal: Goal | None = None
    picked: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """One question; its key names it to a labeller's browser without telling the row or the order drawn.

    ``candidates`` are indices into the row's, ascending: two are a choice, one is to be accepted or rejected.
    """

    key: str
    row: LabelRow
    candidates: tuple[int, ...]


def build_items(rows: Sequence[LabelRow], plan: Plan) -> list[Item]:
    """All items of a session, in the order in which they are asked: rows whole, one after the other.

    Any first part of the rows is a uniform sample of the log.
    """
    shuffled = sorted((row for row in rows if row.distinct), key=lambda row: rank(plan.seed, "row", row.id))
    return [item_of(row, group, plan) for row in shuffled for group in _shuffled_groups(row, plan)]


def item_of(row: LabelRow, group: Sequence[int], plan: Plan) -> Item:
    """The question about some candidates of a row."""
    candidates = tuple(sorted(group))
    return Item(_hash(plan.seed, "item", row.id, *candidates)[:16], row, candidates)


def sides(item: Item, annotator: str, plan: Plan) -> tuple[int, ...]:
    """The item's candidates in the order shown (A, B), which is each annotator's own."""
    swapped = rank(plan.seed, "sides", annotator, item.key) % 2 == 1
    return item.candidates[::-1] if swapped else item.candidates


def rank(seed: int, *parts: str | int) -> int:
    """A number that orders things as if by chance: 64 bits of SHA-256."""
    return int(_hash(seed, *parts)[:16], 16)


def _hash(seed: int, *parts: str | int) -> str:
    return hashlib.sha256(json.dumps([seed, *parts]).encode()).hexdigest()


def _shuffled_groups(row: LabelRow, plan: Plan) -> list[tuple[int, ...]]:
    """Single answers, or disjoint pairs of neighbours."""
    order = sorted(row.distinct, key=lambda index: rank(plan.seed, "candidate", row.id, index))
    if plan.mode == "accept" or len(order) == 1:
        return [(index,) for index in order]
    return [tuple(pair) for pair in zip(order[::2], order[1::2], strict=False)][: plan.pairs]
