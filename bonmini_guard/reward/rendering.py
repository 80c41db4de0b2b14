"""What a reward model reads of fixed conversations: fingerprints rest on it, so that no change of it goes unnoticed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from bonmini_guard.errors import BonMiniGuardError
from bonmini_guard.reward.formatting import Formatter

_CALL = {"name": "look_up", "args": {"what": "x"}, "id": "call_1"}

#: Conversations and answers with what templates treat in different ways; the same in every release.
_PROBES: tuple[tuple[list[BaseMessage], AIMessage], ...] = (
    ([HumanMessage("What is 2 + 2?")], AIMessage("2 + 2 is 4.")),
    (
        [SystemMessage("Be brief."), HumanMessage("A capital?"), AIMessage("Rome."), HumanMessage(" Another? ")],
        AIMessage(" Paris.\n"),
    ),
    ([HumanMessage("x?"), AIMessage("", tool_calls=[_CALL]), ToolMessage("y", tool_call_id="call_1")], AIMessage("It is y.")),
    ([HumanMessage("x?")], AIMessage("I look.", tool_calls=[_CALL])),
    ([HumanMessage("Well?")], AIMessage("<think>hm</think> a</think>b", additional_kwargs={"reasoning_content": "hm"})),
    ([HumanMessage([{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "u"}}])], AIMessage("")),
)


def rendering_digest(formatter: Formatter) -> str:
    """64 bits of SHA-256 over the token ids of fixed conversations, and over the most tokens that the model is given."""
    read = [_read(formatter, messages, answer) for messages, answer in _PROBES]
    return hashlib.sha256(json.dumps([formatter.max_length, read]).encode()).hexdigest()[:16]


def _read(formatter: Formatter, messages: list[BaseMessage], answer: AIMessage) -> Any:
    try:
        return list(map(int, formatter.encode(messages, answer).ids))
    except BonMiniGuardError as error:  # a template that knows no tools, or hides a part of an answer
        return type(error).__name__
