"""What a draw gave, frozen when it arrived: what is scored and what is served are copies that nobody else holds."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel

from bonmini_guard.conversation import Turn, hides

#: What chat APIs call the reason of an answer's end; Bedrock's is the fourth, that of OpenAI's Responses API the last.
_ENDS = ("finish_reason", "stop_reason", "done_reason", "stopReason", "status")
_NO_ENDS = tuple(str(None) for _ in _ENDS)
#: Of ``additional_kwargs``: what a turn holds by itself, or what only names the message.
_IN_THE_TURN = frozenset({"tool_calls", "reasoning_content", "refusal", "id"})
_PLAIN = frozenset({str, int, float, bool, type(None)})
_new = object.__new__
M = TypeVar("M", bound=BaseMessage)
#: What sets pydantic's own parts of a model, which does not let itself be written to so fast.
_set_fields, _set_extra, _set_given, _set_private = (
    vars(BaseModel)[part].__set__ for part in ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__", "__pydantic_private__")
)


def frozen(message: M) -> M:
    """A copy that shares nothing mutable with the original.

    Raises:
        Exception: a part of it cannot be copied.
    """
    # As pydantic's own copy does, in half the time: nothing else takes as long in a draw.
    fields, extra = message.__dict__.copy(), message.__pydantic_extra__
    for name, value in fields.items():
        if (kind := type(value)) not in _PLAIN:
            fields[name] = _copied(value) if value else kind()
    twin = _new(type(message))
    _set_fields(twin, fields)
    _set_extra(twin, _copied(extra) if extra or extra is None else {})
    _set_given(twin, message.__pydantic_fields_set__.copy())
    _set_private(twin, message.__pydantic_private__)
    return twin


def copies(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """A prompt for those who may change it, or look at it later; of it, what cannot be copied (a tool's artifact) is as it was."""
    kept = [*messages]
    for place, message in enumerate(messages):
        with contextlib.suppress(Exception):
            kept[place] = frozen(message)
    return kept


def identity(message: AIMessage, end: tuple[str, ...] | None = None) -> Hashable:
    """Equal for answers that may share one score: content, calls, reasoning, refusal and the reason of the end are the same.

    Ids, times and tokens make no difference. A plain text stands for itself: a digest costs more than a draw. ``end`` is what
    :func:`ends` says of the answer, where that is known.

    Raises:
        Exception: a part of it cannot be read.
    """
    end = ends(message) if end is None else end
    if isinstance(message.content, str) and not (message.tool_calls or message.additional_kwargs or message.invalid_tool_calls):
        return message.content if end == _NO_ENDS else (message.content, end)
    more = {key: value for key, value in message.additional_kwargs.items() if key not in _IN_THE_TURN}
    return Turn.of(message).digest(), json.dumps(more, default=repr), end


def ends(message: AIMessage) -> tuple[str, ...]:
    """Why the answer came to an end, by each of the names that there are for it."""
    about = message.response_metadata
    if not about:
        return _NO_ENDS
    said = tuple([str(about.get(name)) for name in _ENDS])
    # Why a response is incomplete.
    details = about.get("incomplete_details")
    return (*said, str(details.get("reason"))) if isinstance(details, dict) else said


def shown(message: AIMessage, not_shown: Collection[str]) -> AIMessage:
    """The answer without the parts of these kinds; see :meth:`~bonmini_guard.conversation.Turn.without`."""
    thoughts = "reasoning" in not_shown
    content: Any = message.content
    if not isinstance(content, str):
        content = _without(content, not_shown)
    hidden = {*(("reasoning_content", "reasoning") if thoughts else ()), *({"refusal", "audio"} & {*not_shown})}
    about = {key: value for key, value in message.additional_kwargs.items() if key not in hidden}
    if outputs := about.get("tool_outputs"):
        about["tool_outputs"] = _without(outputs, not_shown)
    if content == message.content and about == message.additional_kwargs:
        return message
    return message.model_copy(update={"content": content, "additional_kwargs": about})


def _without(parts: Iterable[Any], not_shown: Collection[str]) -> list[Any]:
    return [part for part in parts if isinstance(part, str) or not hides(str(part.get("type")), not_shown)]


def _copied(value: Any) -> Any:
    # Most of what messages hold is JSON, which copies faster this way than by deepcopy.
    kind = type(value)
    if kind is dict:
        return {key: each if type(each) in _PLAIN else _copied(each) for key, each in value.items()}
    if kind is list:
        return [each if type(each) in _PLAIN else _copied(each) for each in value]
    return value if kind in _PLAIN else copy.deepcopy(value)
