"""What a labeller sees of a log row: the conversation and the answers, each as plain text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages

from bonmini_guard.calibration.files import RowFile
from bonmini_guard.calibration.rows import row_id
from bonmini_guard.conversation import as_messages
from bonmini_guard.errors import InputError

_ROLES = {"human": "user", "ai": "assistant"}


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One log row.

    Attributes:
        id: of the row.
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
        """Candidates to be judged: equal texts are judged once, as the first of them."""
        first: dict[str, int] = {}
        for index, text in enumerate(self.texts):
            if text is not None:
                first.setdefault(text, index)
        return list(first.values())

    @property
    def prompt(self) -> str | list[dict[str, str]]:
        """The conversation as a choice row holds it: a string stays one."""
        raw = self.raw["prompt"]
        return raw if isinstance(raw, str) else [{"role": role, "content": text} for role, text in self.turns]


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
    name = row_id(raw, place)
    try:
        turns = tuple((_ROLES.get(message.type, message.type), _shown(message)) for message in as_messages(raw.get("prompt")))
    except InputError as error:
        raise InputError(f'{place}: {error}; give "prompt" a text or a list of {{role, content}}') from error
    candidates = raw.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        raise InputError(f'{place}: the row has no "candidates"; list at least one {{"text": "..."}}')
    texts = tuple(_text(candidate, place, number) for number, candidate in enumerate(candidates, start=1))
    return LabelRow(name, place, turns, texts, raw)


def _text(candidate: Any, place: str, number: int) -> str | None:
    if not isinstance(candidate, Mapping):
        raise InputError(f'{place}: candidate {number} is not an object; write {{"text": "..."}}')
    if candidate.get("failed"):
        return None
    if isinstance(candidate.get("text"), str):
        return str(candidate["text"])
    if isinstance(candidate.get("message"), Mapping):
        try:
            return _shown(convert_to_messages([{"role": "assistant", **candidate["message"]}])[0])
        except Exception as error:  # whatever LangChain makes of a malformed one
            raise InputError(f"{place}: the message of candidate {number} cannot be read; give a text instead") from error
    raise InputError(
        f'{place}: candidate {number} has no "text" to show; log the texts (trace_candidates=True), '
        f'or mark a failed draw with "failed": true'
    )


def _shown(message: BaseMessage) -> str:
    """A message as plain text; what is no text is named, and calls of tools are written out."""
    content = message.content
    parts = [content] if isinstance(content, str) else [_part(block) for block in content]
    called = getattr(message, "tool_calls", None) or []
    calls = [f"[calls {call['name']} {json.dumps(call['args'], default=str)}]" for call in called]
    return "\n".join([part for part in parts if part] + calls)


def _part(block: Any) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block.get("text"), str):
        return str(block["text"])
    return f"[{block.get('type', 'no text')}]"
