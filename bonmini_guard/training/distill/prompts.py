"""Prompts to distil on: those of log rows, with the scored candidates that a log already holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage

from bonmini_guard.conversation import as_messages
from bonmini_guard.errors import InputError


@dataclass(frozen=True)
class DistillPrompt:
    """One prompt.

    Attributes:
        messages: the conversation.
        texts: logged draws of the generator to be distilled; may be empty.
        scores: their scores, None where the log has none.
        scored_by: fingerprint of the reward model that gave the scores.
    """

    messages: tuple[BaseMessage, ...]
    texts: tuple[str, ...] = ()
    scores: tuple[float | None, ...] = ()
    scored_by: str | None = None


def read_prompts(paths: Iterable[str | os.PathLike[str]]) -> list[DistillPrompt]:
    """The distinct prompts of log rows, in order; only complete rows give their candidates.

    Raises:
        InputError: a file cannot be read, a row is malformed, or there are fewer than five prompts.
    """
    from bonmini_guard.calibration.files import RowFile
    from bonmini_guard.calibration.rows import is_complete

    found: dict[str, DistillPrompt] = {}
    first = ""
    for path in paths:
        first = first or str(path)
        for place, row in RowFile(path):
            try:
                messages = tuple(as_messages(row.get("prompt")))
            except InputError as error:
                raise InputError(f"{place}: {error}") from error
            texts, scores = _candidates(row, place) if is_complete(row, place) else ((), ())
            key = repr([(message.type, message.content) for message in messages])
            found.setdefault(key, DistillPrompt(messages, texts, scores, row.get("scored_by")))
    if len(found) < 5:
        raise InputError(f"{first}: {len(found)} distinct prompts; give 5 or more, some are held out")
    return list(found.values())


def _candidates(row: dict[str, Any], place: str) -> tuple[tuple[str, ...], tuple[float | None, ...]]:
    candidates = row.get("candidates") or []
    if not isinstance(candidates, list) or not all(isinstance(candidate, dict) for candidate in candidates):
        raise InputError(f'{place}: "candidates" is not a list of objects; mend it, or leave it out')
    drawn = [one for one in candidates if isinstance(one.get("text"), str) and not one.get("failed")]
    return tuple(one["text"] for one in drawn), tuple(_score(one, place) for one in drawn)


def _score(candidate: dict[str, Any], place: str) -> float | None:
    from bonmini_guard.calibration.rows import raw_or_score

    score: float | None = raw_or_score(candidate)
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise InputError(f"{place}: the score {score!r} is no number; mend it, or run 'bonmini-guard score'")
    return score
