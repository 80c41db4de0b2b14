"""What is sent to a reward server for one (conversation, answer): token ids, a templated text, a pair of texts, or messages.

The chat template is applied on this side, so that every server scores the very tokens that the model was trained and
calibrated on, and so that text of an answer cannot speak as the template.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.adapters.rewards.servers import KINDS, Inputs, ServerKind
from bonmini_guard.conversation import NOT_SHOWN, Turn, clean
from bonmini_guard.errors import CandidateTooLong, ConfigurationError, Unscorable, needing
from bonmini_guard.forks import Lock
from bonmini_guard.reward.texts import asked, spoken

if TYPE_CHECKING:
    from bonmini_guard.reward.formatting import Formatter

logger = logging.getLogger(__name__)

_OTHERWISE = "as text the server would read other tokens than the template's"


def as_messages(messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> list[Any]:
    """For a server that applies the template itself: (conversation, candidate), each message as a dictionary."""
    turns = [Turn.of(message).openai() for message in messages]
    return [(turns, Turn.of(candidate).openai()) for candidate in candidates]


class Writer:
    """Writes what is sent: what a tokenizer that this side has too makes of an answer, or a pair of texts.

    Without a tokenizer, for pairs, nothing is counted. ``adds_tokens``: whether the server puts special tokens around a text that
    it tokenises. ``has_zero`` is what the checkpoint says of its zero; None where only a tokenizer is known.
    """

    def __init__(self, tokenizer: Any, inputs: Inputs, max_length: int | None, adds_tokens: bool) -> None:
        self.inputs, self._adds_tokens, self.has_zero = inputs, adds_tokens, None
        self._formatter: Formatter | None = None
        # Tokenizers are not made for several threads at a time.
        self._lock = Lock()
        if tokenizer is None:
            return
        with needing("local"):
            from bonmini_guard.reward.checkpoint import added_tokens
            from bonmini_guard.reward.formatting import Formatter
        self._tokenizer, length, self.has_zero = _load(tokenizer, max_length, inputs == "pair")
        self._formatter = Formatter(self._tokenizer, length)
        self._before, self._after = added_tokens(self._tokenizer)

    def limit(self, length: int | None) -> None:
        """Take the server's limit of tokens where it is less."""
        if length is not None and self._formatter is not None:
            known = self._formatter.max_length
            self._formatter.max_length = length if known is None else min(known, length)

    def make(self, messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> list[Any]:
        """One input for each candidate; None, with a warning, for one that cannot be sent as it is."""
        with self._lock.held:
            return [self._one(messages, candidate, place) for place, candidate in enumerate(candidates)]

    def _one(self, messages: Sequence[BaseMessage], candidate: AIMessage, place: int) -> Any:
        try:
            if self.inputs == "pair":
                return self._pair(clean(asked(messages)), clean(spoken(candidate, NOT_SHOWN)))
            return self._templated(messages, candidate)
        except Unscorable as error:
            logger.warning("candidate %d has no score: %s", place, error)
            return None

    def _templated(self, messages: Sequence[BaseMessage], candidate: AIMessage) -> Any:
        assert self._formatter is not None
        encoded = self._formatter.encode(messages, candidate)
        if encoded.cut_turns:
            logger.warning("the conversation is too long: %d of its oldest turns were left out", encoded.cut_turns)
        if self.inputs == "ids":
            return encoded.ids
        rendered = self._formatter.render(messages, candidate, encoded.cut_turns)
        # As it is, or without what the server's tokenizer adds by itself at its ends.
        for text in (rendered, rendered.removeprefix(self._before).removesuffix(self._after)):
            if self._tokenizer(text, add_special_tokens=self._adds_tokens, verbose=False)["input_ids"] == encoded.ids:
                return text
        raise Unscorable(_OTHERWISE)

    def _pair(self, prompt: str, answer: str) -> list[str]:
        if self._formatter is None:
            return [prompt, answer]
        if self._formatter.holds_control_tokens(prompt) or self._formatter.holds_control_tokens(answer):
            raise Unscorable(_OTHERWISE)
        length = len(self._tokenizer(prompt, answer, verbose=False)["input_ids"])
        most = self._formatter.max_length
        if most is not None and length > most:
            raise CandidateTooLong(f"{length} tokens in prompt and answer, {most} allowed; answers are never cut")
        return [prompt, answer]


def writer(kind: ServerKind, tokenizer: Any, inputs: Inputs | None, max_length: int | None) -> Writer | None:
    """What writes the inputs of a kind of server, if it takes such and has what it needs; None for one that takes messages."""
    forms = KINDS[kind].inputs
    form = inputs or forms[0]
    if form not in forms:
        raise ConfigurationError(f"kind {kind!r} takes inputs {' or '.join(map(repr, forms))}, not {form!r}")
    if form == "messages":
        return None
    if tokenizer is None and not (form == "pair" and KINDS[kind].shared):
        raise ConfigurationError(f"kind {kind!r} needs tokenizer=: folder or id of the reward model that is served there")
    # vLLM can be told not to add any.
    return Writer(tokenizer, form, max_length, adds_tokens=not kind.startswith("vllm"))


def _load(tokenizer: Any, max_length: int | None, pair: bool) -> tuple[Any, int | None, bool | None]:
    """The tokenizer, its limit of tokens, and what its checkpoint says of its zero."""
    from bonmini_guard.reward.checkpoint import concatenation_template, has_zero, length_limit, load_config, load_tokenizer

    config, loaded = None, tokenizer
    if isinstance(tokenizer, str | Path):
        config, loaded = load_config(str(tokenizer)), load_tokenizer(str(tokenizer))
    elif getattr(tokenizer, "chat_template", None) is None and not (pair and callable(tokenizer)):
        raise ConfigurationError("tokenizer is no path and has no chat template: pass the reward model's folder or id")
    if pair:
        loaded = copy(loaded)
        loaded.chat_template = concatenation_template(loaded)  # which no pair is written by
    return loaded, length_limit(config, loaded, max_length), None if config is None else has_zero(config)
