"""Where foreign records keep prompts, answers, ratings and labels. Every refusal says what is missing and the cure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError
from bonmini_guard.training.choices import Answer, as_answer

Record = Mapping[str, Any]

PROMPT_KEYS = ("prompt", "messages", "instruction", "question", "conversation")
LIST_KEYS = ("candidates", "completions", "responses")
TEXT_KEYS = ("text", "response", "completion", "content", "answer", "value")
RATING_KEYS = ("rating", "score", "overall_score", "helpfulness")

_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")


def prompt_of(record: Record) -> Any:
    """The prompt: a text, or a list of ``{role, content}``; under whichever of ``PROMPT_KEYS`` is there.

    Raises:
        InputError: there is none.
    """
    value = next((record[key] for key in PROMPT_KEYS if record.get(key) is not None), None)
    if value is None:
        raise InputError(f"no prompt; give one under {_either(PROMPT_KEYS)}")
    return [Turn.of(turn).openai() for turn in value] if isinstance(value, list) else value


def answer_of(value: Any, name: str) -> Answer:
    """The answer in a value: a text, an object with a text, a message, or a conversation whose last turn it is.

    Raises:
        InputError: there is no text in it, or it is empty.
    """
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping) and not value.keys().isdisjoint(("role", "from", "tool_calls")):
        value = Turn.of(value, "assistant")
    elif isinstance(value, Mapping):
        value = next((value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)), None)
    if not isinstance(value, str | Turn) or value in ("", Turn("assistant"), Turn("user")):
        raise InputError(f"{name} is empty or no text; remove the record, or give a text under {_either(TEXT_KEYS)}")
    return as_answer(value)


def listed(record: Record) -> list[Any]:
    """The list of answers of a record; a record of a single answer is a list of itself.

    Raises:
        InputError: it is missing or empty.
    """
    for key in LIST_KEYS:
        if isinstance(record.get(key), list) and record[key]:
            return list(record[key])
    if any(isinstance(record.get(key), str) for key in TEXT_KEYS):
        return [record]
    raise InputError(f"no answers; list them under {_either(LIST_KEYS)}, or give a single one under {_either(TEXT_KEYS)}")


def number_of(record: Any, key: str | None) -> float | None:
    """The rating in a record, under ``key`` (dots go deeper) or under the first of ``RATING_KEYS``; None if there is none.

    Raises:
        InputError: it is not a finite number.
    """
    value: Any = record
    if key is None:
        value = next((record[name] for name in RATING_KEYS if record.get(name) is not None), None)
    else:
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        return None
    try:
        rating = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        rating = math.nan
    if not math.isfinite(rating):
        raise InputError(f"rating {str(value)[:20]!r} is not a number; mend it, or remove the answer")
    return rating


def transcript(text: str) -> tuple[list[dict[str, Any]], str]:
    """A "Human: ... Assistant: ..." transcript as the turns before its last answer, and that answer.

    Raises:
        InputError: it is not such a transcript, or does not end with an answer.
    """
    parts = _TRANSCRIPT.split(text)
    turns = [
        Turn.of({"from": role.lower(), "value": content.strip()}).openai()
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if parts[0].strip() or len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise InputError('no prompt, and no transcript of "Human:" and "Assistant:" turns; give a prompt')
    return turns[:-1], turns[-1]["content"]


def _either(names: Iterable[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)
