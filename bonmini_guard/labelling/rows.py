"""What a labeller sees of a log row: the conversation and the answers, each as plain text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bonmini_guard.errors import InputError
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.logs.rows import Row
from bonmini_guard.unseen import tell_of


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One log row.

    Attributes:
        place: ``file:line``, for messages.
        turns: (role, text) of the conversation.
        texts: of the candidates in the order drawn; None for a failed draw.
        raw: the row as it was read.
    """

    id: str
    place: str
    turns: tuple[tuple[str, str], ...]
    texts: tuple[str | None, ...]
    raw: Mapping[str, Any]

    @property
    def distinct(self) -> list[int]:
        """Candidates to be judged: equal texts, and all blank ones, are judged once, as the first of them."""
        first: dict[str | None, int] = {}
        for index, text in enumerate(self.texts):
            if text is not None:
                first.setdefault(seen(text), index)
        return list(first.values())

    @property
    def prompt(self) -> str | list[dict[str, Any]]:
        """The conversation as a choice row holds it: a string stays one."""
        raw = self.raw["prompt"]
        return raw if isinstance(raw, str) else [turn.openai() for turn in Row(self.raw, self.place).prompt]

    def answer(self, index: int) -> str | dict[str, Any]:
        """A candidate as a choice row holds it: a text, or a message where there is more in it."""
        turn = Row(self.raw, self.place).candidates[index].turn
        return turn.text if turn.is_plain else turn.openai()


def seen(text: str | None) -> str | None:
    """What a labeller sees of a text: nothing but blanks is nothing."""
    return text if text is None or text.strip() else ""


def read_rows(paths: Iterable[str | os.PathLike[str]]) -> list[LabelRow]:
    """Read all rows of a log into memory.

    Raises:
        InputError: a file cannot be read, ids repeat, there is no row, or a row has no prompt or no text to show.
        MissingExtraError: a Parquet file without pyarrow.
    """
    rows: dict[str, LabelRow] = {}
    names = []
    for file in map(RowFile, paths):
        names.append(str(file.path))
        for place, raw in file:
            row = _row(raw, place)
            if row.id in rows:
                raise InputError(f"{place}: id {row.id!r} is already on {rows[row.id].place}; give each row its own id")
            rows[row.id] = row
    if not any(row.distinct for row in rows.values()):
        raise InputError(f"{', '.join(names)}: there is nothing to label; give rows with candidates that did not fail")
    return list(rows.values())


def fingerprint(rows: Iterable[LabelRow], scored: bool) -> str:
    """SHA-256 of what is labelled: ids, conversations and answers, whatever the order of the rows; the scores too if asked."""
    digests = sorted(_digest(row, scored) for row in rows)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest(row: LabelRow, scored: bool) -> str:
    scores = [(c.get("score"), c.get("raw_score")) for c in row.raw["candidates"]] if scored else []
    return hashlib.sha256(json.dumps([row.id, row.turns, row.texts, scores]).encode()).hexdigest()


def _row(raw: Mapping[str, Any], place: str) -> LabelRow:
    row = Row(raw, place)
    for kind in sorted({kind for turn in row.prompt for kind in turn.kinds}):
        tell_of(kind, "the page names it, and a labeller cannot see it")
    turns = tuple((turn.role, turn.plain(thoughts=True)) for turn in row.prompt)
    texts = tuple(None if one.failed else one.turn.plain(thoughts=True) for one in row.candidates)
    return LabelRow(row.id, place, turns, texts, raw)
