"""Which question is asked when: items, their order and their sides. Pure, and the same on every machine and Python.

Nothing here uses a random number generator. Whatever must look random is ordered by SHA-256 of the session's seed and of what is
ordered, so that an order can be derived again after a restart and does not depend on a library's version.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bonmini_guard.calibration.rows import first_scores
from bonmini_guard.errors import InputError
from bonmini_guard.labelling.rows import LabelRow

Mode = Literal["choice", "accept"]
Sampling = Literal["random", "informative"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides which items a session has, and in which order.

    Attributes:
        mode: ``choice`` asks A, B or neither (accept or reject where a row has one distinct answer); ``accept`` asks about
            every answer by itself.
        seed: of every order.
        pairs: choice only: disjoint pairs of a row, at most.
        thresholds: scores; nonempty asks about the answers nearest to one of them first.
        transform: (a, b): the thresholds' score is a * raw score + b.
        random_share: with thresholds, the share of the rows that is drawn at random all the same.
    """

    mode: Mode = "choice"
    seed: int = 0
    pairs: int = 1
    thresholds: tuple[float, ...] = ()
    transform: tuple[float, float] = (1.0, 0.0)
    random_share: float = 0.3


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        key: names the item to a labeller's browser without telling the row or the order drawn.
        row: the log row.
        candidates: indices into the row's candidates, ascending: two are a choice, one is to be accepted or rejected.
        sampling: ``random`` rows are a uniform sample of the log; ``informative`` ones were picked by their scores.
    """

    key: str
    row: LabelRow
    candidates: tuple[int, ...]
    sampling: Sampling


def build_items(rows: Sequence[LabelRow], plan: Plan) -> list[Item]:
    """All items of a session, in the order in which they are asked.

    Rows drawn at random come whole, one after the other, and any first part of them is a uniform sample of the log. With
    thresholds, ``random_share`` of the rows (rounded up) are random ones; the answers of the others are asked about by their
    distance to the nearest threshold, and the two kinds take turns so that at any moment about that share of the items asked is
    random.

    Raises:
        InputError: answers are to be ordered by scores, and no row has any.
    """
    shuffled = sorted((row for row in rows if row.distinct), key=lambda row: rank(plan.seed, "row", row.id))
    kept = math.ceil(plan.random_share * len(shuffled)) if plan.thresholds else len(shuffled)
    random = [[_item(row, group, "random", plan) for group in _shuffled_groups(row, plan)] for row in shuffled[:kept]]
    informative = _by_distance(shuffled[kept:], plan)
    return list(_taking_turns(random, informative, plan.random_share))


def sides(item: Item, annotator: str, plan: Plan) -> tuple[int, ...]:
    """The item's candidates in the order shown (A, B), which is each annotator's own."""
    swapped = rank(plan.seed, "sides", annotator, item.key) % 2 == 1
    return item.candidates[::-1] if swapped else item.candidates


def rank(seed: int, *parts: str | int) -> int:
    """A number that orders things as if by chance: 64 bits of SHA-256."""
    return int(_hash(seed, *parts)[:16], 16)


def _hash(seed: int, *parts: str | int) -> str:
    return hashlib.sha256(json.dumps([seed, *parts]).encode()).hexdigest()


def _item(row: LabelRow, group: tuple[int, ...], sampling: Sampling, plan: Plan) -> Item:
    candidates = tuple(sorted(group))
    return Item(_hash(plan.seed, "item", row.id, *candidates)[:16], row, candidates, sampling)


def _shuffled_groups(row: LabelRow, plan: Plan) -> list[tuple[int, ...]]:
    order = sorted(row.distinct, key=lambda index: rank(plan.seed, "candidate", row.id, index))
    return _groups(order, plan)


def _groups(order: list[int], plan: Plan) -> list[tuple[int, ...]]:
    """Single answers, or disjoint pairs of neighbours."""
    if plan.mode == "accept" or len(order) == 1:
        return [(index,) for index in order]
    pairs = list(zip(order[::2], order[1::2], strict=False))[: plan.pairs]
    return [tuple(pair) for pair in pairs]


def _by_distance(rows: Sequence[LabelRow], plan: Plan) -> list[Item]:
    found: list[tuple[float, Item]] = []
    for row in rows:
        far = _distances(row, plan)
        groups = _groups(sorted(row.distinct, key=far.__getitem__), plan)
        found += [(max(far[index] for index in group), _item(row, group, "informative", plan)) for group in groups]
    if found and all(math.isinf(distance) for distance, _ in found):
        raise InputError(f"{rows[0].place}: no row has scores to be near a threshold; run 'bonmini-guard score'")
    return [item for _, item in sorted(found, key=lambda pair: (pair[0], pair[1].key))]


def _distances(row: LabelRow, plan: Plan) -> list[float]:
    """How far each candidate's score lies from the nearest threshold; infinity without a score."""
    a, b = plan.transform
    scores = first_scores(row.raw, row.place, len(row.texts)) or []
    return [math.inf if s is None else min(abs(a * s + b - threshold) for threshold in plan.thresholds) for s in scores]


def _taking_turns(random: list[list[Item]], informative: list[Item], share: float) -> Iterator[Item]:
    of_random = of_informative = 0
    for block in random:
        while of_informative < len(informative) and of_random > share * (of_random + of_informative):
            yield informative[of_informative]
            of_informative += 1
        yield from block
        of_random += len(block)
    yield from informative[of_informative:]
