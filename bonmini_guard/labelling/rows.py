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
    """One log row: (role, text) of the turns, texts of the candidates in the order drawn (None: a failed draw), what was read."""

    id: str
    place: str
    turns: tuple[tuple[str, str], ...]
    texts: tuple[str | None, ...]
    raw: Mapping[str, Any]

    @property
    def judged_as(self) -> list[int]:
        """As which candidate each is judged: the first of equal texts, or of blank ones; -1 for a failed draw."""
        first: dict[str, int] = {}
        texts = enumerate(self.texts)
        return [-1 if text is None else first.setdefault(text if text.strip() else "", index) for index, text in texts]

    @property
    def distinct(self) -> list[int]:
        """Candidates to be judged."""
        return sorted(set(self.judged_as) - {-1})


def read_rows(paths: Iterable[str | os.PathLike[str]]) -> list[LabelRow]:
    """Read all rows of a log into memory.

    Raises:
        InputError: a file cannot be read, ids repeat, there is no row, or a row has no prompt or no text to show.
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
