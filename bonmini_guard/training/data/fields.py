"""Where foreign records keep prompts, answers, ratings and labels. Every InputError says what is missing and the cure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError
from bonmini_guard.logs.sources.draws import first, yes_or_no
from bonmini_guard.logs.sources.messages import PROMPT_KEYS, TEXT_KEYS, prompt_under
from bonmini_guard.training.choices import Answer, as_answer

Record = Mapping[str, Any]

SYSTEM_KEYS = ("system", "system_prompt")
LIST_KEYS = ("candidates", "completions", "responses", "answers")
RATING_KEYS = ("rating", "score", "overall_score", "helpfulness")
LABEL_KEYS = ("acceptable", "label", "accepted", "feedback", "rating", "thumbs")

_TRANSCRIPT = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def prompt_of(record: Record, turns: list[Any] | None = None) -> Any:
    """The prompt, behind a system text if there is one: a text, or a list of ``{role, content}``; all ``turns`` but the last."""
    value = prompt_under(record) if turns is None else turns[:-1]
    if value is None:
        raise InputError(f"no prompt; give one under {_either(PROMPT_KEYS)}")
    if isinstance(value, Mapping) and "messages" in value:
        value = value["messages"]
    if isinstance(value, str) and value.lstrip().startswith("Human:") and value.rstrip().endswith("\n\nAssistant:"):
        value = _turns_of(value)[:-1]
    elif isinstance(value, list):
        value = [Turn.of(turn).openai() for turn in value]
    system = next((record[key] for key in SYSTEM_KEYS if record.get(key)), None)
    if not system or not isinstance(system, str) or (isinstance(value, list) and value and value[0]["role"] == "system"):
        return value
    return [Turn("system", system).openai(), *([Turn("user", value).openai()] if isinstance(value, str) else value)]


def asked(record: Record, said: Any) -> Any:
    """The prompt, and the turns of what was said before its last; these may begin with (a part of) the prompt once more."""
    prompt = prompt_of(record)
    if not (isinstance(said, list) and len(said) > 1 and all(isinstance(turn, Mapping) for turn in said)):
        return prompt
    own, earlier = prompt_of({"messages": [prompt] if isinstance(prompt, str) else prompt}), prompt_of({}, said)
    role = earlier[0]["role"]
    again = int(own[0]["role"] == "system" != role) if role in ("system", "user") else len(own)
    whole = [*own[: own.index(earlier[0]) if earlier[0] in own else again], *earlier]
    return prompt if whole == own else whole


def answer_of(value: Any, name: str) -> Answer:
    """The answer in a value: a text, an object with a text, a message, or a conversation whose last turn it is."""
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping) and not value.keys().isdisjoint(("role", "from", "tool_calls")):
        value = Turn.of(value, "assistant")
    elif isinstance(value, Mapping):
        value = next((value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)), None)
    if not isinstance(value, str | Turn) or value in ("", Turn("assistant"), Turn("user")):
        raise InputError(f"{name} is empty or no text; remove the record, or give a text under {_either(TEXT_KEYS)}")
    if isinstance(value, Turn) and value.role != "assistant":
        raise InputError(f"{name} ends with a turn of the {value.role}; remove the record, or that turn")
    return as_answer(value)


def answers_of(value: Any, name: str) -> list[Answer]:
    """The answers in a value: those of a list of texts or of conversations, else the one that :func:`answer_of` finds."""
    several = isinstance(value, list) and value and all(isinstance(one, str | list) for one in value)
    return [answer_of(one, name) for one in (value if several else [value])]


def listed(record: Record) -> list[Any]:
    """The list of answers of a record; a record of a single answer is a list of itself."""
    for key in LIST_KEYS:
        if isinstance(record.get(key), list) and record[key]:
            return list(record[key])
    if any(isinstance(record.get(key), str) for key in TEXT_KEYS):
        return [record]
    raise InputError(f"no answers; list them under {_either(LIST_KEYS)}, or give a single one under {_either(TEXT_KEYS)}")


def prompt_and_answer(record: Record) -> tuple[Any, Answer]:
    """A prompt and the one answer to it, as TRL, chat logs and plain tables keep them."""
    said = next((record[key] for key in TEXT_KEYS if isinstance(record.get(key), str | list) and record[key]), None)
    turns = record.get("messages")
    if said is None and isinstance(turns, list) and len(turns) > 1:
        return prompt_of(record, turns), answer_of(turns[-1], "the last turn")
    return asked(record, said), answer_of(record if said is None else said, "the answer")


def verdict_of(record: Record) -> bool:
    """Whether an answer is acceptable: true or false, or a word for it, under the first of ``LABEL_KEYS`` that is there.

    Numbers are refused, because sets have several kinds of them.
    """
    said = yes_or_no(next((record[key] for key in LABEL_KEYS if record.get(key) is not None), None))
    if said is None:
        raise InputError('no label; write true or false (or thumbs_up, thumbs_down) under "label" or "acceptable"')
    return said


def number_of(record: Any, key: str | None) -> float | None:
    """The rating in a record, under ``key`` (dots go deeper) or under the first of ``RATING_KEYS``; None if there is none."""
    value = first(record, *(RATING_KEYS if key is None else (key,))) if isinstance(record, Mapping) else None
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
    """A "Human: ... Assistant: ..." transcript as the turns before its last answer, and that answer."""
    turns = _turns_of(text)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise InputError('no prompt, and no transcript of "Human:" and "Assistant:" turns; give a prompt')
    return turns[:-1], turns[-1]["content"]


def _turns_of(text: str) -> list[dict[str, Any]]:
    parts = _TRANSCRIPT.split(text)
    if parts[0].strip():
        return []
    said = zip(parts[1::2], parts[2::2], strict=True)
    return [Turn.of({"from": role.lower(), "value": content.strip()}).openai() for role, content in said]


def _either(names: Iterable[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)
