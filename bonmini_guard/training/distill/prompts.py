"""Prompts to distil on: those of log rows, with the scored candidates that a log already holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from langchain_core.messages import BaseMessage

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError
from bonmini_guard.logs.rows import Row, rows_in


@dataclass(frozen=True)
class DistillPrompt:
    """One conversation, perhaps with logged draws of the generator to be distilled, and the scores that ``scored_by`` gave them."""

    messages: tuple[BaseMessage, ...]
    answers: tuple[BaseMessage | str, ...] = ()
    scores: tuple[float | None, ...] = ()
    scored_by: str | None = None


def read_prompts(paths: Iterable[str | os.PathLike[str]]) -> list[DistillPrompt]:
    """The distinct prompts of log rows, in order, each with the most candidates of a complete row; InputError for under five."""
    found: dict[tuple[Turn, ...], DistillPrompt] = {}
    files = list(paths)
    for row in rows_in(*files):
        new = _prompt(row)
        found[row.prompt] = max(found.get(row.prompt, new), new, key=lambda one: len(one.answers))
    if len(found) < 5:
        raise InputError(f"{files[0]!s}: {len(found)} distinct prompts; give 5 or more, some are held out")
    return list(found.values())


def _prompt(row: Row) -> DistillPrompt:
    candidates = row.candidates if row.is_complete and row.value.get("candidates") else []
    drawn = [one for one in candidates if not one.failed and not one.value.get("redacted")]
    scores = tuple(None if one.said is None else one.score for one in drawn)
    messages = tuple(turn.message() for turn in row.prompt)
    return DistillPrompt(messages, tuple(one.turn.message() for one in drawn), scores, row.value.get("scored_by"))
