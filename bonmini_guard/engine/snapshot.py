"""What a draw gave: an answer, calls of tools with perhaps words beside them, or nothing at all.

It is frozen when it arrives: what is scored and what is served are copies that nobody else holds.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Collection, Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel

from bonmini_guard.conversation import NOT_SHOWN, Turn, hides, is_call

#: What chat APIs call the reason of an answer's end; Bedrock's is the fourth, that of OpenAI's Responses API the last.
_ENDS = ("finish_reason", "stop_reason", "done_reason", "stopReason", "status")
_NO_ENDS = tuple(str(None) for _ in _ENDS)
#: Of ``additional_kwargs``: what a turn holds by itself, or what only names the message.
_IN_THE_TURN = frozenset({"tool_calls", "reasoning_content", "refusal", "id"})
#: Ends of answers that a filter cut, that the token limit cut, and that the server gave up on.
FILTERED = frozenset(
    {
        *("content_filter", "safety", "recitation", "prohibited_content", "blocklist", "spii"),
        *("sensitive", "guardrail_intervened", "refusal", "content_filtered"),
    }
)
CUT = frozenset({"length", "max_tokens", "model_length", "model_context_window_exceeded", "max_output_tokens"})
GIVEN_UP = frozenset(
    {"abort", "error", "cancelled", "insufficient_system_resource", "network_error", "failed", "queued", "in_progress"}
)
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


def why_none(message: AIMessage, ends: tuple[str, ...]) -> str | None:
    """Why a message with such :func:`ends` is no answer; None for one that is."""
    filtered, cut, given_up = cut_short(ends)
    if filtered:
        return "a content filter withheld or cut it"
    if given_up:
        return "the server gave it up before its end"
    if "function_call" in message.additional_kwargs and not message.tool_calls:
        return "it is a function call of the old form, which nothing here reads: let the model use tools"
    if isinstance(message.content, str) and message.content.strip():
        return None
    turn = Turn.of(message)
    # Reasoning that is not told has a place all the same.
    blocks = message.content if isinstance(message.content, list) else []
    thought = any(isinstance(block, dict) and hides(str(block.get("type")), NOT_SHOWN) for block in blocks)
    thought = thought or bool(turn.reasoning or message.additional_kwargs.get("reasoning"))
    if turn.is_blank and (thought or cut):
        return "there is nothing but reasoning, or the token limit came first: raise it"
    return None


@lru_cache(maxsize=256)  # models have few words for it
def cut_short(ends: tuple[str, ...]) -> tuple[bool, bool, bool]:
    """Whether a filter, the token limit, or a failure came before the answer's end."""
    words = {end.lower().partition(":")[0] for end in ends}  # Gemini's "content_filter: RECITATION"
    return not FILTERED.isdisjoint(words), not CUT.isdisjoint(words), not GIVEN_UP.isdisjoint(words)


def calls_tools(message: AIMessage) -> bool:
    """Whether a message calls tools, and nothing else can be done with it."""
    return bool(message.tool_calls) and not message.invalid_tool_calls


def words(message: AIMessage) -> AIMessage | None:
    """What is said beside the calls, as an answer; None if there is nothing to read."""
    content: Any = message.content
    if not isinstance(content, str):
        content = [part for part in content if isinstance(part, str) or not is_call(part)]
    about = {key: value for key, value in message.additional_kwargs.items() if key not in ("tool_calls", "function_call")}
    said = message.model_copy(update={"content": content, "tool_calls": [], "invalid_tool_calls": [], "additional_kwargs": about})
    turn = Turn.of(said)
    return None if turn.is_blank and not turn.reasoning else said


def calls(message: AIMessage) -> AIMessage:
    """The calls without anything that could be read; log-probabilities and citations spell the text."""
    content: Any = "" if isinstance(message.content, str) else [part for part in message.content if is_call(part)]
    about = {key: value for key, value in message.additional_kwargs.items() if key == "tool_calls" or key.startswith("__")}
    flat = {key: value for key, value in message.response_metadata.items() if isinstance(value, str | int | float | None)}
    metadata = {key: value for key, value in flat.items() if key != "logprobs"}
    return message.model_copy(update={"content": content, "additional_kwargs": about, "response_metadata": metadata})
