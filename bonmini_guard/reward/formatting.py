"""From (conversation, answer) to token ids, through the tokenizer's chat template.

Training and scoring both go through here. The answer is never cut; control tokens inside texts are plain text.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2.exceptions import TemplateError
from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.conversation import NOT_SHOWN, Turn, clean
from bonmini_guard.errors import CandidateTooLong, InputError, NotRendered
from bonmini_guard.reward.control import ControlTokens
from bonmini_guard.reward.template import Conversation, Template
from bonmini_guard.reward.texts import readable


@dataclass(frozen=True, slots=True)
class Encoded:
    """One formatted (conversation, answer): token ids, never empty; how many of the oldest turns were left out to make it fit."""

    ids: list[int]
    cut_turns: int = 0


class Asked(list[dict[str, Any]]):
    """A conversation as its chat template takes it."""


class Formatter:
    """Formats answers for a fast tokenizer with a chat template.

    What would be served and does not reach the tokens makes an answer unscorable, but for kinds of parts that are ``not_shown`` to
    users, which are left out. By default reasoning: long thoughts would leave no room for the answer.
    CheckpointError: the tokenizer is no fast one, or its chat template writes nothing of an answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None = None,
        not_shown: Collection[str] = NOT_SHOWN,
        template: Template | None = None,
    ) -> None:
        self.max_length = max_length
        self.not_shown = frozenset(not_shown)
        self._tokenizer = tokenizer
        self._control = ControlTokens(tokenizer)
        self._template = template or Template(tokenizer)

    def encode(self, messages: Sequence[BaseMessage | Turn] | Asked, answer: AIMessage | Turn | str) -> Encoded:
        """Token ids of the answer behind its conversation.

        If they are too many, the oldest turns that are not a system message are left out, one at a time; the last turn
        and the answer stay whole. A lone surrogate, which no tokenizer can read, becomes U+FFFD.

        Raises:
            CandidateTooLong: the last turn and the answer alone are too long.
            NotRendered: a part of the answer is not in them.
            InputError: the chat template refuses the conversation.
        """
        asked = messages if isinstance(messages, Asked) else self.asked(messages)
        turns = [*asked, self._turn(readable(answer, self.not_shown))]
        try:
            ids = self._ids(turns, 0)
        except TemplateError as error:
            with contextlib.suppress(TemplateError):  # of which it refuses another answer, too
                self._template.render([*asked, {"role": "assistant", "content": "a"}])
                raise NotRendered("the chat template refuses it") from error
            raise InputError(f"the chat template refuses the conversation: {error}") from error
        most = self.max_length
        return Encoded(ids, 0) if most is None or len(ids) <= most else self._cut(turns, len(ids), most)

    def _cut(self, turns: Conversation, length: int, most: int) -> Encoded:
        """With as few turns left out as will do, found by bisection: each try reads the whole conversation."""
        # The last two that are no system message stay.
        low, high = 1, sum(turn["role"] != "system" for turn in turns) - 2
        found: Encoded | None = None
        while low <= high:
            tried = self._first_accepted(turns, (low + high) // 2, high)
            if tried is None or len(tried.ids) <= most:
                found, high = tried or found, (low + high) // 2 - 1
            else:
                length, low = len(tried.ids), tried.cut_turns + 1
        if found is None:
            raise CandidateTooLong(f"{length} tokens in the answer and what must go with it, {most} allowed; answers are never cut")
        return found

    def _first_accepted(self, turns: Conversation, cut: int, most: int) -> Encoded | None:
        """After so many turns are left out, or more: without its first, a conversation may break the template's alternation."""
        for number in range(cut, most + 1):
            with contextlib.suppress(TemplateError):
                return Encoded(self._ids(turns, number), number)
        return None

    def _ids(self, turns: Conversation, cut: int) -> list[int]:
        return self._control.encode(without_oldest(turns, cut) if cut else turns, self._template.proven) or [self._filler()]

    def render(self, messages: Sequence[BaseMessage | Turn], answer: AIMessage | Turn | str, cut_turns: int = 0) -> str:
        """The text that the chat template writes, without so many of the oldest turns.

        A server that tokenises it reads control tokens inside answers as control tokens: compare with :meth:`encode`.
        """
        turns = [*self.asked(messages), self._turn(readable(answer, self.not_shown))]
        return self._template.render(without_oldest(turns, cut_turns))

    def holds_control_tokens(self, text: str) -> bool:
        """Whether a text spells one of the tokenizer's control tokens."""
        return any(token in text for token in self._control.tokens)

    def _filler(self) -> int:
        # A template that writes nothing around an empty text leaves no token to read a score at.
        candidates = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id)
        return next((index for index in candidates if index is not None), 0)

    def asked(self, messages: Sequence[BaseMessage | Turn]) -> Asked:
        """A conversation made ready, to be encoded with several answers; what was thought in it is left out."""
        return Asked(self._turn(replace(turn, reasoning="") if turn.reasoning else turn) for turn in map(Turn.of, messages))

    def _turn(self, said: Turn) -> dict[str, Any]:
        turn = said.template()
        if "tool_calls" in turn and not self._shows_tool_calls(turn):
            calls = json.dumps(turn.pop("tool_calls"), ensure_ascii=False)
            turn["content"] = "\n".join(filter(None, (turn["content"], calls)))
        return turn

    def _shows_tool_calls(self, turn: dict[str, Any]) -> bool:
        whole = all(isinstance(call["function"]["arguments"], dict) for call in turn["tool_calls"])
        if not whole or not self._template.shows_calls:
            return False
        try:
            self._template.proven([{"role": "user", "content": "?"}, turn])
        except (TemplateError, NotRendered):
            return False
        return True


def rendered(messages: Sequence[BaseMessage | Turn], tokenizer: Any) -> Any:
    """A prompt for a generator: turns for a tokenizer with a chat template, else their texts one after the other."""
    turns = map(Turn.of, messages)
    return (
        clean("".join(turn.plain() for turn in turns)) if tokenizer.chat_template is None else [turn.template() for turn in turns]
    )


def prompt_ids(prompt: Any, tokenizer: Any, tools: Sequence[Any] | None = None) -> list[int]:
    """Token ids of a rendered prompt, ready to be continued; its chat template may tell of tools."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    text = tokenizer.apply_chat_template(prompt, tools=tools, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def without_oldest(turns: Conversation, cut: int) -> Conversation:
    """The conversation without so many of its oldest turns; system messages stay."""
    oldest = set([place for place, turn in enumerate(turns) if turn["role"] != "system"][:cut])
    return [turn for place, turn in enumerate(turns) if place not in oldest]
