"""From (conversation, answer) to token ids, through the tokenizer's chat template.

Training and scoring both go through here. The answer is never cut; control tokens inside texts are plain text.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage

from bonmini_guard.errors import CandidateTooLong, InputError
from bonmini_guard.reward.control import ControlTokens, Conversation

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One formatted (conversation, answer).

    Attributes:
        ids: token ids, with what the template writes; never empty.
        cut_turns: how many of the oldest turns were left out to make it fit.
    """

    ids: list[int]
    cut_turns: int = 0


class Formatter:
    """Formats answers for one tokenizer.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        max_length: most tokens the model takes; None has no limit.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None) -> None:
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._control = ControlTokens(tokenizer)

    def encode(self, messages: Sequence[BaseMessage], answer: AIMessage | str) -> Encoded:
        """Token ids of the answer behind its conversation.

        If they are too many, the oldest turns that are not a system message are left out, one at a time; the last turn
        and the answer stay whole. A lone surrogate, which no tokenizer can read, becomes U+FFFD.

        Raises:
            CandidateTooLong: the last turn and the answer alone are too long.
            InputError: the chat template refuses the conversation.
        """
        turns = [self._turn(message) for message in messages]
        turns.append(self._turn(AIMessage(answer) if isinstance(answer, str) else answer))
        try:
            ids = self._ids(turns, 0)
        except TemplateError as error:
            raise InputError(f"the chat template refuses the conversation: {error}") from error
        return Encoded(ids, 0) if self._fits(ids) else self._cut(turns, len(ids))

    def _cut(self, turns: Conversation, length: int) -> Encoded:
        """With as few turns left out as will do, found by bisection: each try reads the whole conversation."""
        low, high = 1, _most_cuts(turns)
        found: Encoded | None = None
        while low <= high:
            tried = self._first_accepted(turns, (low + high) // 2, high)
            if tried is None or self._fits(tried.ids):
                found, high = tried or found, (low + high) // 2 - 1
            else:
                length, low = len(tried.ids), tried.cut_turns + 1
        if found is None:
            raise CandidateTooLong(
                f"{length} tokens in the last turn and the answer, {self.max_length} allowed; answers are never cut"
            )
        return found

    def _first_accepted(self, turns: Conversation, cut: int, most: int) -> Encoded | None:
        """After so many turns are left out, or more: without its first, a conversation may break the template's alternation."""
        for number in range(cut, most + 1):
            with contextlib.suppress(TemplateError):
                return Encoded(self._ids(turns, number), number)
        return None

    def _ids(self, turns: Conversation, cut: int) -> list[int]:
        return self._control.encode(_without(turns, cut), self._render) or [self._filler()]

    def _fits(self, ids: Sequence[int]) -> bool:
        return self.max_length is None or len(ids) <= self.max_length

    def render(self, messages: Sequence[BaseMessage], answer: AIMessage | str, cut_turns: int = 0) -> str:
        """The text that the chat template writes, without so many of the oldest turns.

        A server that tokenises it reads control tokens inside answers as control tokens: compare with :meth:`encode`.
        """
        turns = [self._turn(message) for message in (*messages, AIMessage(answer) if isinstance(answer, str) else answer)]
        return self._render(_without(turns, cut_turns))

    def holds_control_tokens(self, text: str) -> bool:
        """Whether a text spells one of the tokenizer's control tokens."""
        return any(token in text for token in self._control.tokens)

    def _render(self, conversation: Conversation) -> str:
        return str(self._tokenizer.apply_chat_template(conversation, tokenize=False))

    def _filler(self) -> int:
        # A template that writes nothing around an empty text leaves no token to read a score at.
        candidates = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id)
        return next((index for index in candidates if index is not None), 0)

    def _turn(self, message: BaseMessage) -> dict[str, Any]:
        turn = as_dictionary(message)
        if "tool_calls" in turn and not self._shows_tool_calls(turn):
            calls = json.dumps(turn.pop("tool_calls"), ensure_ascii=False)
            turn["content"] = "\n".join(filter(None, (turn["content"], calls)))
        return turn

    def _shows_tool_calls(self, turn: dict[str, Any]) -> bool:
        user = {"role": "user", "content": "?"}
        try:
            shown = self._render([user, turn])
            return shown != self._render([user, {key: part for key, part in turn.items() if key != "tool_calls"}])
        except (TemplateError, TypeError):
            return False


def clean(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def as_dictionary(message: BaseMessage) -> dict[str, Any]:
    """A message as chat templates take it: role, content, tool calls.

    Raises:
        InputError: a message of a type that no chat template knows.
    """
    role = message.role if isinstance(message, ChatMessage) else _ROLES.get(message.type)
    if role is None:
        raise InputError(f"a message of type {message.type!r} cannot be scored; use human, ai, system or tool messages")
    turn: dict[str, Any] = {"role": role, "content": clean(str(message.text))}
    if isinstance(message, AIMessage) and message.tool_calls:
        turn["tool_calls"] = [_tool_call(dict(call)) for call in message.tool_calls]
    if isinstance(message, ToolMessage):
        turn |= {"tool_call_id": clean(message.tool_call_id)} | ({"name": clean(message.name)} if message.name else {})
    return turn


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    # The arguments stay an object, as chat templates of transformers expect, and not OpenAI's string of JSON.
    arguments = json.loads(clean(json.dumps(call["args"], ensure_ascii=False)))
    function = {"name": clean(call["name"]), "arguments": arguments}
    return {"id": clean(call.get("id") or ""), "type": "function", "function": function}


def _most_cuts(turns: Conversation) -> int:
    """How many turns can be left out: the last two that are no system message stay."""
    return max(0, len([turn for turn in turns if turn["role"] != "system"]) - 2)


def _without(turns: Conversation, cut: int) -> Conversation:
    """The conversation without so many of its oldest turns; system messages stay."""
    oldest = set([place for place, turn in enumerate(turns) if turn["role"] != "system"][:cut])
    return [turn for place, turn in enumerate(turns) if place not in oldest]
