"""What labels become: choice rows for training, and log rows with labels for calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bonmini_guard.errors import InputError
from bonmini_guard.labelling.items import Item
from bonmini_guard.labelling.rows import LabelRow
from bonmini_guard.labelling.session import Session
from bonmini_guard.logs.rows import Row as LogRow
from bonmini_guard.training.choices import ChoiceRow, as_answer, as_record

Row = dict[str, Any]
Votes = Mapping[tuple[str, int], int]
NO_LABEL = "holds no label yet; label first"


def choice_rows(session: Session) -> list[Row]:
    """One row for each item and answer given to it; InputError if there is no label.

    An empty answer cannot be trained on: it is left out, and an item that had none but such is too.
    """
    if not (said := Counter((event["item"], event["chosen"]) for event in session.ledger.judgements())):
        raise InputError(f"{session.path}: {NO_LABEL}")
    given = ((item, chosen, said[item.key, chosen]) for item in session.items for chosen in (*item.candidates, "none"))
    return [row for item, chosen, count in given if count and (row := _choice_row(item, chosen, count)) is not None]


@dataclass(frozen=True)
class LabelledLog:
    """The log with what was labelled; rows that calibration may use (``random``), and items put off by someone, judged by nobody.

    ``unfinished`` are random rows of which some answer is not judged yet: their labels are withheld until they are whole.
    """

    rows: list[Row]
    labelled: int
    random: int
    unfinished: int
    put_off: int


def labelled_log(session: Session) -> LabelledLog:
    """The log's rows with ``acceptable`` and ``label_sampling`` as docs/labelling.md says; InputError if there is no label.

    An answer is acceptable if more annotators took it than refused it. Taken: accepted, or chosen from a pair; refused: rejected,
    or "neither" was said of its pair.
    """
    if not (votes := session.ledger.votes()):
        raise InputError(f"{session.path}: {NO_LABEL}")
    kinds = _kinds(session, votes)
    tally, untouched = Counter(kinds.values()), (None, "unfinished")
    rows = [dict(row.raw) if kinds.get(row.id) in untouched else _labelled(row, kinds[row.id], votes) for row in session.rows]
    labelled = len({name for name, _ in votes}) - tally["unfinished"]
    later = {key for name in session.ledger.everyone for key in session.ledger.put_off(name)}
    later -= {event["item"] for event in session.ledger.judgements()}
    return LabelledLog(rows, labelled, tally["random"], tally["unfinished"], len(later))


def _kinds(session: Session, votes: Votes) -> dict[str, str]:
    """The ``label_sampling`` of rows, ``unfinished`` for those that wait for the rest of their labels."""
    if session.plan.goal is not None:
        return dict.fromkeys(session.plan.goal.rows, "random")
    judged = {name: "informative" if session.plan.picked else "choices" for name, _ in votes}
    # Of pairs, one distinct answer is judged by itself, but on such a row all draws agree.
    if session.plan.picked or session.plan.mode == "choice":
        return judged
    whole = {row.id: all((row.id, index) in votes for index in row.distinct) for row in session.rows if row.id in judged}
    return {name: "random" if is_whole else "unfinished" for name, is_whole in whole.items()}


def _choice_row(item: Item, chosen: Any, count: int) -> Row | None:
    offered = [index for index in item.candidates if (item.row.texts[index] or "").strip()]
    if not offered or (chosen != "none" and chosen not in offered):
        return None
    row = LogRow(item.row.raw, item.row.place)
    answers = tuple(as_answer(row.candidates[index].turn) for index in offered)
    made = ChoiceRow(row.prompt, answers, chosen if chosen == "none" else offered.index(chosen))
    return {"id": item.row.id, **as_record(made), "count": count}


def _labelled(row: LabelRow, kind: str, votes: Votes) -> Row:
    candidates = []
    for candidate, first in zip(row.raw["candidates"], row.judged_as, strict=True):
        vote = votes.get((row.id, first))
        kept = {key: value for key, value in candidate.items() if key != "acceptable_by"}  # of the label that was there
        candidates.append({**kept, "acceptable": None if vote is None else vote > 0})
    return {**row.raw, "candidates": candidates, "label_sampling": kind}
