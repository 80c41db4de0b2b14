"""Choice rows: what labellers said when asked "which of these answers, or none of them?"."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from bonmini_guard.errors import InputError

ROLES = ("user", "assistant", "system", "tool")

_Shared = TypeVar("_Shared")

#: One turn of a conversation: its role (one of ROLES) and its text.
Turn = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """One judgement among the answers to one prompt, or "none" of them.

    Attributes:
        prompt: the conversation as (role, text) turns; a plain string prompt is one user turn.
        responses: one or more answers; one answer makes an accept/reject label.
        choice: index into ``responses``, or "none".
        count: how many labellers chose so; the row's weight.
        none_offered: whether the labeller could have said "none". If not, the row compares the answers and says nothing
            about zero: the choice is the best of them, perhaps the least bad.
    """

    prompt: tuple[Turn, ...]
    responses: tuple[str, ...]
    choice: int | Literal["none"]
    count: int = 1
    none_offered: bool = True

    @property
    def target(self) -> int:
        """The chosen index; ``len(responses)`` stands for "none"."""
        return len(self.responses) if self.choice == "none" else self.choice

    @property
    def messages(self) -> list[BaseMessage]:
        """The prompt as LangChain messages."""
        return to_messages(self.prompt)


def choice_row(value: Mapping[str, Any]) -> ChoiceRow:
    """A choice row from its JSON object, checked as those of a file are.

    Raises:
        InputError: it is malformed; the message says what is wrong and the cure, without a place.
    """
    try:
        return _row(dict(value), {})
    except _ProblemError as problem:
        raise InputError(str(problem)) from problem


def as_record(row: ChoiceRow) -> dict[str, Any]:
    """The JSON object of a choice row; defaults are left out, and a single user turn is a plain text."""
    plain = len(row.prompt) == 1 and row.prompt[0][0] == "user" and row.prompt[0][1] != ""
    prompt: Any = row.prompt[0][1] if plain else [{"role": role, "content": text} for role, text in row.prompt]
    record: dict[str, Any] = {"prompt": prompt, "responses": list(row.responses), "choice": row.choice}
    if row.count != 1:
        record["count"] = row.count
    if not row.none_offered:
        record["none_offered"] = False
    return record


def to_messages(turns: tuple[Turn, ...]) -> list[BaseMessage]:
    """LangChain messages of (role, text) turns."""
    return [_message(role, text) for role, text in turns]


def prompt_digest(turns: Iterable[Turn]) -> str:
    """64 bits of BLAKE2b over a conversation, in hex; white space and case make no difference."""
    said = json.dumps([[role, " ".join(text.casefold().split())] for role, text in turns])
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def read_choices(path: str | PathLike[str]) -> list[ChoiceRow]:
    """Read choice rows from JSON lines, gzipped if the name ends in ``.gz``.

    Rows are read one by one; equal texts, prompts and response lists are kept once, so that many judgements of few
    texts stay small. Unknown keys and blank lines are passed over.

    Raises:
        InputError: the file cannot be read, is empty, or a row is malformed; one line that names file, line and cure.
    """
    shared: dict[Any, Any] = {}
    rows = []
    for number, line in _lines(Path(path)):
        try:
            rows.append(_row(_parse(line), shared))
        except _ProblemError as problem:
            raise InputError(f"{path}:{number}: {problem}") from problem
    if not rows:
        raise InputError(f"{path}: no rows; give JSON lines like {_EXAMPLE}")
    return rows


_EXAMPLE = '{"prompt": "...", "responses": ["...", "..."], "choice": 0} (or "choice": "none")'


class _ProblemError(ValueError):
    """What is wrong with a row, and its cure."""


def _message(role: str, text: str) -> BaseMessage:
    if role == "tool":
        return ToolMessage(text, tool_call_id="")
    kinds: dict[str, type[BaseMessage]] = {"user": HumanMessage, "assistant": AIMessage, "system": SystemMessage}
    return kinds[role](content=text)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); give a file of JSON lines, gzipped only if named .gz") from error


def _row(value: dict[str, Any], shared: dict[Any, Any]) -> ChoiceRow:
    prompt = _prompt(value, shared)
    responses = _responses(value, shared)
    choice = _choice(value, len(responses))
    return ChoiceRow(prompt, responses, choice, _count(value), _none_offered(value, choice, len(responses)))


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _ProblemError(f"not JSON ({_brief(error)}); write one JSON object on each line") from error
    if not isinstance(value, dict):
        raise _ProblemError(f"not an object; write {_EXAMPLE}")
    return value


def _brief(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__


def _prompt(value: dict[str, Any], shared: dict[Any, Any]) -> tuple[Turn, ...]:
    prompt = value.get("prompt")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}] if prompt else None
    if not isinstance(prompt, list) or not prompt:
        raise _ProblemError("prompt is missing or empty; give a text or a list of {role, content}")
    turns = tuple(_turn(turn, shared) for turn in prompt)
    return _once(turns, shared)


def _turn(turn: Any, shared: dict[Any, Any]) -> Turn:
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
        raise _ProblemError("a turn of the prompt is not {role, content} with a text as content; give every turn both")
    role = turn.get("role")
    if role not in ROLES:
        raise _ProblemError(f"unknown role {_shown(role)}; use one of {', '.join(ROLES)}")
    return role, _once(turn["content"], shared)


def _responses(value: dict[str, Any], shared: dict[Any, Any]) -> tuple[str, ...]:
    responses = value.get("responses")
    if not isinstance(responses, list) or not responses:
        raise _ProblemError("responses is missing or empty; list one or more answers")
    for index, text in enumerate(responses):
        if not isinstance(text, str) or not text:
            raise _ProblemError(f"response {index} is empty or no text; leave it out and renumber choice")
    return _once(tuple(_once(text, shared) for text in responses), shared)


def _choice(value: dict[str, Any], responses: int) -> int | Literal["none"]:
    choice = value.get("choice")
    if choice == "none":
        return "none"
    if not isinstance(choice, int) or isinstance(choice, bool):
        raise _ProblemError(f'unknown choice {_shown(choice)}; use the index of a response, from 0, or "none"')
    if not 0 <= choice < responses:
        raise _ProblemError(
            f'choice {_shown(choice)} is out of range for {responses} responses; use 0 to {responses - 1}, or "none"'
        )
    return choice


def _count(value: dict[str, Any]) -> int:
    count = value.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count < 2**53:
        raise _ProblemError(f"count {_shown(count)} is not a positive integer; give the number of labellers, or leave it out")
    return count


def _none_offered(value: dict[str, Any], choice: int | str, responses: int) -> bool:
    offered = value.get("none_offered", True)
    if not isinstance(offered, bool):
        raise _ProblemError(f"none_offered {_shown(offered)} is not true or false; say whether the labeller could choose none")
    if not offered and choice == "none":
        raise _ProblemError('choice is "none" where none_offered is false; mend one of them')
    if not offered and responses == 1:
        raise _ProblemError("a single response without none_offered is no judgement; leave the row out")
    return offered


def _shown(value: Any) -> str:
    # Values may be long or hold answers: a message shows only their beginning.
    text = json.dumps(value)
    return text if len(text) <= 20 else text[:20] + "..."


def _once(value: _Shared, shared: dict[Any, Any]) -> _Shared:
    kept: _Shared = shared.setdefault(value, value)
    return kept
