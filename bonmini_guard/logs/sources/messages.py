"""Prompts and answers as tools log them: texts, turns, bodies of chat APIs, LangChain's generations, and JSON of these."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby
from typing import Any

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError

#: Where records keep a prompt, and where an answer.
PROMPT_KEYS = ("prompt", "messages", "instruction", "question", "conversation", "context", "query", "input")
TEXT_KEYS = ("text", "response", "completion", "content", "answer", "output", "value")

_ROLES = ("role", "from", "lc")
_INPUTS = (*PROMPT_KEYS, "prompts", "text", "contents", "inputs")
_OUTPUTS = ("generations", "choices", "message", "messages", *TEXT_KEYS, "outputs")
_BODIES = ("messages", "message", "choices", "generations", "prompts")
#: Items of the Responses API that are no messages: thoughts, calls (also of what runs on its side), and what these gave.
_ITEM = re.compile(r"reasoning|mcp_\w+|\w+_call(_output)?")
_NO_PROMPT = "no prompt in its input; log inputs, or name its column with --map COLUMN=prompt"
_NO_ANSWER = "no answer in its output; log outputs, or name its column with --map COLUMN=text"


def unpacked(value: Any) -> Any:
    """JSON in a text is read; any other text is a text."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def prompt_under(record: Mapping[str, Any]) -> Any:
    """What stands under the first of ``PROMPT_KEYS``; an instruction of Alpaca's form goes on in its input."""
    value = next((record[key] for key in PROMPT_KEYS if record.get(key) is not None), None)
    more = record.get("input")
    return f"{value}\n{more}" if value and value is record.get("instruction") and more and isinstance(more, str) else value


def prompt_in(value: Any) -> str | list[dict[str, Any]]:
    """The prompt in what was logged as input; InputError if there is none."""
    read = _structured(value)
    if isinstance(read, str) and read.strip():
        return read
    if isinstance(read, int | float):
        return str(read)
    if _is_turn(read):
        read = [read]
    if isinstance(read, list) and read:
        if _are_turns(read):
            return [turn.openai() for turn in turns_among(read)]
        if len(read) == 1:
            return prompt_in(read[0])  # LangChain logs batches of one
    inner = next((read[key] for key in _INPUTS if read.get(key)), None) if isinstance(read, Mapping) else None
    if inner is None:
        raise InputError(_NO_PROMPT)
    found, before = prompt_in(inner), read.get("system") or read.get("instructions")  # of Anthropic's API, of the Responses API
    if not before or not isinstance(before, str | list):
        return found
    turns = [{"role": "user", "content": found}] if isinstance(found, str) else found
    return [Turn.of({"role": "system", "content": before}).openai(), *turns]


def answers_in(value: Any) -> list[Turn]:
    """The answers in what was logged as output, one for each choice; InputError if there is none."""
    read = _structured(value)
    if isinstance(read, str | int | float):
        return [Turn("assistant", str(read))]
    if _is_turn(read):
        return [_turn(read, "assistant")]
    if isinstance(read, list) and read:
        if all(map(_is_turn, read)):
            return [_turn(read[-1], "assistant")]
        if all(isinstance(one, Mapping) and str(one.get("type")).islower() for one in read):
            return [_of_items(read)]  # or blocks
        return answers_in(read[0]) if isinstance(read[0], list) else [answer for one in read for answer in answers_in(one)]
    for key in _OUTPUTS if isinstance(read, Mapping) else ():
        if read.get(key) not in (None, [], {}):
            return answers_in(read[key])
    raise InputError(_NO_ANSWER)


def _structured(value: Any) -> Any:
    """A text that is JSON of turns, or of a body that holds them; every other text is what was said, also if it is JSON."""
    read = unpacked(value)
    parts = read if isinstance(read, list) else [read]
    inner = parts[0] if parts and isinstance(parts[0], list) else parts
    is_body = isinstance(read, Mapping) and (
        any(isinstance(read.get(key), list | Mapping) for key in _BODIES)
        or any(isinstance(read.get(key), list) and _are_turns(read[key]) for key in ("input", "output"))
    )
    return read if not isinstance(value, str) or is_body or _are_turns(inner) else value


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and any(value.get(key) is not None for key in _ROLES)


def _is_item(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" not in value and _ITEM.fullmatch(str(value.get("type"))) is not None


def _are_turns(values: list[Any]) -> bool:
    """Whether they are turns, with items of the Responses API among them perhaps."""
    return any(map(_is_turn, values)) and all(_is_turn(one) or _is_item(one) for one in values)


def turns_among(values: Sequence[Mapping[str, Any]]) -> Iterator[Turn]:
    """Turns; what lies between two inputs of the Responses API is one answer."""
    items = any(map(_is_item, values))
    for role, some in groupby(chain.from_iterable(map(_apart, values)), _role_of):
        if items and role == "assistant":
            yield _of_items(some)
        else:
            yield from (_turn(one, role) for one in some)


def _apart(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """OpenTelemetry's message: what each tool answered is a turn of its own, and what else was said comes behind."""
    rest, parts = [], value["parts"] if isinstance(value.get("parts"), list) else []
    for part in parts:
        if isinstance(part, Mapping) and part.get("type") == "tool_call_response":
            said = part.get("response", part.get("result"))
            content = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
            yield {"role": "tool", "content": content, "tool_call_id": str(part.get("id") or ""), "name": value.get("name")}
        else:
            rest.append(part)
    if rest or not parts:
        yield {**value, "parts": rest} if rest else value


def _role_of(value: Mapping[str, Any]) -> str:
    if not _is_item(value):
        return str(value.get("role", "user"))
    return "tool" if value["type"].endswith("_call_output") else "assistant"


def _of_items(items: Iterable[Mapping[str, Any]]) -> Turn:
    """Blocks of one answer, or items of the Responses API, whose texts lie in messages."""
    said = (one if one.get("type") == "message" or "role" in one else {"content": [one]} for one in items)
    turns = [Turn.of({"content": None, **one, "role": "assistant"}) for one in said]  # also as chat APIs write messages
    whole = Turn.of(("assistant", [part for turn in turns for part in turn.parts or filter(None, [turn.text])]))
    calls, thoughts = tuple(call for turn in turns for call in turn.calls), "".join(turn.reasoning for turn in turns)
    return replace(whole, calls=calls, reasoning=thoughts, refusal="".join(turn.refusal for turn in turns))


def _turn(value: Mapping[str, Any], role: str) -> Turn:
    """A turn; OpenTelemetry's has parts."""
    if str(value.get("type")).endswith("_call_output"):
        said = value.get("output")
        value = {"role": role, "tool_call_id": value.get("call_id"), "content": said if isinstance(said, str | list) else str(said)}
    if value.get("parts") and isinstance(value["parts"], list):
        return _of_parts(value, role)
    return Turn.of({"content": None, **value} if "lc" not in value and "value" not in value else value, role)


def _of_parts(value: Mapping[str, Any], role: str) -> Turn:
    content = [dict(part) if isinstance(part, Mapping) else {"type": "text", "text": part} for part in value["parts"]]
    for part in content:
        if (kind := part.get("type")) in ("text", "reasoning"):  # whose words lie under their own name elsewhere
            part[kind] = str(part.pop("content", part.get(kind)) or "")
    return Turn.of({"role": value.get("role") or role, "content": content, "name": value.get("name")})
