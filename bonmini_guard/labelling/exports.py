"""What labels become: choice rows for training, and log rows with labels for calibration."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bonmini_guard.errors import InputError
from bonmini_guard.labelling.items import Item
from bonmini_guard.labelling.rows import LabelRow
from bonmini_guard.labelling.session import Session

Row = dict[str, Any]


def choice_rows(session: Session) -> list[Row]:
    """One row for each item and answer given to it, with ``count`` saying by how many annotators.

    An empty answer cannot be trained on: it is left out, and an item that had none but such is too.

    Raises:
        InputError: there is no label.
    """
    said = Counter((event["item"], event["chosen"]) for event in session.ledger.judgements())
    _require(session, bool(said))
    rows = (_choice_row(item, chosen, said[item.key, chosen]) for item, chosen in _answers(session, said))
    return [row for row in rows if row is not None]


@dataclass(frozen=True)
class LabelledLog:
    """The log with what was labelled.

    Attributes:
        rows: all rows of the log.
        labelled: rows that got labels.
        random: of those, rows that calibration may use.
        unfinished: random rows of which some answer is not judged yet: their labels are withheld until they are whole.
        put_off: items put off by someone and judged by nobody.
    """

    rows: list[Row]
    labelled: int
    random: int
    unfinished: int
    put_off: int


def labelled_log(session: Session) -> LabelledLog:
    """The log's rows with ``acceptable`` filled in and ``label_sampling`` saying how the labels came about.

    An answer is acceptable if more annotators took it than refused it. Taken: accepted, or chosen from a pair; refused: rejected,
    or "neither" was said of its pair. ``label_sampling`` is ``random`` for rows drawn at random of which *every* answer is judged
    by itself, the only ones that calibration uses; ``informative`` for rows picked by their scores; ``choices`` for all rows of a
    session of pairs: of these the answer that was not chosen stays unlabelled, and which one that is depends on the labels.

    Raises:
        InputError: there is no label.
    """
    votes, kinds = _votes(session)
    _require(session, bool(votes))
    rows, tally = [], Counter[str]()
    for row in session.rows:
        kind = kinds.get(row.id)
        whole = kind != "random" or all((row.id, index) in votes for index in row.distinct)
        tally[kind or "untouched"] += whole
        tally["unfinished"] += not whole
        rows.append(_labelled(row, kind, votes) if kind and whole else dict(row.raw))
    labelled = sum(tally[kind] for kind in ("random", "informative", "choices"))
    return LabelledLog(rows, labelled, tally["random"], tally["unfinished"], len(_only_put_off(session)))


def _require(session: Session, labelled: bool) -> None:
    if not labelled:
        raise InputError(f"{session.path}: holds no label yet; label first")


def _answers(session: Session, said: Counter[tuple[str, Any]]) -> Iterator[tuple[Item, Any]]:
    for item in session.items:
        for chosen in (*item.candidates, "none"):
            if (item.key, chosen) in said:
                yield item, chosen


def _choice_row(item: Item, chosen: Any, count: int) -> Row | None:
    offered = [index for index in item.candidates if item.row.texts[index]]
    if not offered or (chosen != "none" and chosen not in offered):
        return None
    return {
        "id": item.row.id,
        "prompt": item.row.prompt,
        "responses": [item.row.texts[index] for index in offered],
        "choice": chosen if chosen == "none" else offered.index(chosen),
        "count": count,
        "sampling": item.sampling,
    }


def _votes(session: Session) -> tuple[dict[tuple[str, int], int], dict[str, str]]:
    """(row, candidate) to those who took it less those who refused it; and each judged row's ``label_sampling``."""
    votes: defaultdict[tuple[str, int], int] = defaultdict(int)
    kinds: dict[str, str] = {}
    for event in session.ledger.judgements():
        item, chosen = session.item(event["item"]), event["chosen"]
        # In a session of pairs, rows with one distinct answer are judged by themselves; they are those on which all draws agree.
        kinds[item.row.id] = item.sampling if session.plan.mode == "accept" else "choices"
        for index in item.candidates if chosen == "none" else (chosen,):
            votes[item.row.id, index] += -1 if chosen == "none" else 1
    return votes, kinds


def _labelled(row: LabelRow, kind: str, votes: dict[tuple[str, int], int]) -> Row:
    first = {text: index for index, text in reversed(list(enumerate(row.texts)))}
    candidates = []
    for candidate, text in zip(row.raw["candidates"], row.texts, strict=True):
        vote = None if text is None else votes.get((row.id, first[text]))
        candidates.append({**candidate, "acceptable": None if vote is None else vote > 0})
    return {**row.raw, "candidates": candidates, "label_sampling": kind}


def _only_put_off(session: Session) -> set[str]:
    later = {key for name in session.ledger.everyone for key in session.ledger.put_off(name)}
    return later - {event["item"] for event in session.ledger.judgements()}
