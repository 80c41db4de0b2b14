"""Prompt and answer as a pair of texts, as cross-encoders are trained: with the tokenizer's separators, and its segments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from typing import Any, Literal

from langchain_core.messages import BaseMessage
from tokenizers import Tokenizer

from bonmini_guard.conversation import NOT_SHOWN, Turn, clean
from bonmini_guard.errors import CheckpointError, ConfigurationError, Unscorable
from bonmini_guard.reward.checkpoint import concatenation_template, inputs_of, note_of
from bonmini_guard.reward.control import plain_copy
from bonmini_guard.reward.formatting import Asked, Formatter, without_oldest
from bonmini_guard.reward.template import Conversation

Inputs = Literal["text", "pair", "answer"]


class _Plain(Formatter):
    """Formats what turns say, thoughts and calls in brackets, without a chat template."""

    def _turn(self, said: Turn) -> dict[str, Any]:
        role = "system" if said.role == "developer" else said.role
        return {"role": role, "content": clean(said.plain(thoughts=True))}


class PairFormatter(_Plain):
    """Formats answers for a model that reads ``tokenizer(prompt, answer)``.

    The prompt is what the conversation says, a line for each turn. Special tokens that texts spell are text; where the tokenizer
    cannot read one as such, its answer is :class:`Unscorable`. CheckpointError: it is no fast one, or writes nothing between them.

    Attributes:
        separator: behind whose first occurrence the second segment begins; None where the tokenizer tells no segments apart.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None, not_shown: Collection[str] = NOT_SHOWN) -> None:
        if not knows_pairs(tokenizer):
            raise CheckpointError("inputs='pair' needs a fast tokenizer that writes a separator between two texts: leave it out")
        self.max_length = max_length
        self.not_shown = frozenset(not_shown)
        self._tokenizer = plain_copy(tokenizer)
        tried = self._tokenizer.encode("a", "b")
        self._special = {index for index, special in zip(tried.ids, tried.special_tokens_mask, strict=True) if special}
        self._written = [sum(each.special_tokens_mask) for each in (self._tokenizer.encode("a"), tried)]
        at = tried.type_ids.index(1) if 1 in tried.type_ids else None
        self.separator = None if at is None or "token_type_ids" not in tokenizer.model_input_names else tried.ids[at - 1]

    def _ids(self, turns: Conversation, cut: int) -> list[int]:
        *before, answer = (turn["content"] for turn in without_oldest(turns, cut))
        # To transformers, and so to the model, an empty second text is none.
        ids: list[int] = self._tokenizer.encode("\n".join(before), answer or None).ids
        if sum(map(self._special.__contains__, ids)) != self._written[bool(answer)]:
            raise Unscorable("it spells a special token that the tokenizer does not read as text")
        return ids


class AnswerFormatter(_Plain):
    """Formats the answer alone, as its classifier's card calls it: ``tokenizer(answer)``."""

    def __init__(self, tokenizer: Any, max_length: int | None, not_shown: Collection[str]) -> None:
        alone = copy(tokenizer)
        alone.chat_template = concatenation_template(tokenizer)  # whatever its own is, which is not asked
        super().__init__(alone, max_length, not_shown)

    def asked(self, messages: Sequence[BaseMessage | Turn]) -> Asked:
        """Nothing: it is not read."""
        return Asked()


def formatter(
    model: Any, tokenizer: Any, max_length: int | None, inputs: Inputs | None = None, not_shown: Collection[str] = NOT_SHOWN
) -> Formatter:
    """What makes the inputs of a sequence classifier, of which a note is left in its configuration.

    Inputs are "text" (through the chat template), "pair", or "answer" (which is read alone); None takes what the checkpoint says,
    or a ConfigurationError. CheckpointError if the tokenizer cannot make them.
    """
    if inputs == "answer":
        return AnswerFormatter(tokenizer, max_length, not_shown)
    if inputs not in (None, "text", "pair"):
        raise ConfigurationError(f"inputs is {inputs!r}: use 'text', 'pair' or 'answer'")
    said = inputs or inputs_of(model.config)
    # Decoders, whose head is called score, are trained on one text.
    without_template = tokenizer.chat_template == concatenation_template(tokenizer)
    if said is None and not hasattr(model, "score") and without_template and knows_pairs(tokenizer):
        raise ConfigurationError(
            "this classifier may have been trained on pairs: it has no chat template, and its tokenizer writes a separator between "
            "two texts. On one text it would score and rank otherwise: say inputs='pair' if its card calls "
            "tokenizer(question, answer), inputs='text' if not"
        )
    made = PairFormatter(tokenizer, max_length, not_shown) if said == "pair" else Formatter(tokenizer, max_length, not_shown)
    note = note_of(model.config)
    if isinstance(made, PairFormatter):
        model.config.bonmini_guard = {**note, "inputs": "pair", "separator": made.separator}
    elif note:
        model.config.bonmini_guard = {key: value for key, value in note.items() if key not in ("inputs", "separator")}
    return made


def knows_pairs(tokenizer: Any) -> bool:
    """Whether a tokenizer writes a token of its own between the two texts of a pair."""
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        return False
    tried = tokenizer.backend_tokenizer.encode("a", "b")
    first, second = tried.sequence_ids.index(0), len(tried.ids) - 1 - tried.sequence_ids[::-1].index(1)
    return None in tried.sequence_ids[first:second]
