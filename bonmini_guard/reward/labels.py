"""Classifiers with several labels: the score is the log-odds of the wanted ones (toxicity, safety, entailment, sentiment)."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import torch
from langchain_core.messages import AIMessage, BaseMessage
from torch import Tensor
from torch.nn.functional import logsigmoid

from bonmini_guard.conversation import Turn, clean
from bonmini_guard.errors import CandidateTooLong, CheckpointError
from bonmini_guard.reward.checkpoint import added_tokens, load_classifier
from bonmini_guard.reward.formatting import Encoded, Formatter
from bonmini_guard.reward.pairs import PairFormatter, formatter
from bonmini_guard.reward.reading import Reading, refuse_language_models
from bonmini_guard.reward.spec import Labels
from bonmini_guard.reward.texts import spoken


class LabelReading(Reading):
    """The log-odds of the wanted labels against the rest.

    Labels that exclude each other share one softmax. Where each is a question of its own (``multi_label_classification``), an
    answer is acceptable if all wanted ones hold and no unwanted one does.

    Args:
        labels: which are wanted.
    """

    def __init__(self, labels: Labels) -> None:
        super().__init__("pair" if labels.inputs == "pair" else "text" if labels.inputs == "template" else None)
        self._labels = labels
        self.mark = json.dumps(labels.model_dump(), sort_keys=True)

    def load(self, path: str, config: Any, dtype: Any, base: str | None) -> tuple[Any, list[str]]:
        """See :class:`Reading`.

        Raises:
            CheckpointError: it has one label, or not those that are named.
        """
        refuse_language_models(path, config)
        names = [str(config.id2label[index]) for index in range(config.num_labels)]
        if len(names) == 1:
            raise CheckpointError(f"{path}: has one label, which is the score: use kind = 'template' or 'pair'")
        wanted, unwanted = (_found(path, given, names) for given in (self._labels.wanted, self._labels.unwanted))
        if set(wanted) & set(unwanted):
            raise CheckpointError(f"{path}: {names[(set(wanted) & set(unwanted)).pop()]!r} is wanted and unwanted")
        self._apart = config.problem_type == "multi_label_classification"
        rest = [index for index in range(len(names)) if index not in (*wanted, *unwanted)]
        if not self._apart:
            wanted, unwanted = wanted or rest, unwanted or rest
            if not wanted or not unwanted:
                raise CheckpointError(f"{path}: all its labels ({', '.join(names)}) are wanted, or none: leave one out")
        self._wanted, self._unwanted = wanted, unwanted
        return load_classifier(path, config, dtype, base)

    def formatter(
        self, model: Any, tokenizer: Any, max_length: int | None, not_shown: Collection[str]
    ) -> Formatter | PairFormatter:
        """What makes the model's inputs."""
        if self._labels.inputs == "answer":
            return AnswerFormatter(tokenizer, max_length, not_shown)
        return formatter(model, tokenizer, max_length, self._inputs, not_shown)

    def has_zero(self, config: Any) -> bool:
        """At even odds."""
        return True

    def __call__(self, logits: Tensor) -> Tensor:
        """Log-odds, shape (B,), of logits, shape (B, labels)."""
        logits = logits.float()
        wanted, unwanted = logits[:, self._wanted], logits[:, self._unwanted]
        if not self._apart:
            return wanted.logsumexp(dim=1) - unwanted.logsumexp(dim=1)
        certain = logsigmoid(wanted).sum(dim=1) + logsigmoid(-unwanted).sum(dim=1)
        return certain - torch.log(-torch.expm1(certain.clamp(max=-1e-7)))


class AnswerFormatter(Formatter):
    """Formats the answer alone, as its classifier's card calls it: ``tokenizer(answer)``."""

    def __init__(self, tokenizer: Any, max_length: int | None, not_shown: Collection[str]) -> None:
        super().__init__(tokenizer, max_length, not_shown)
        self._before, self._after = added_tokens(tokenizer)

    def encode(self, messages: Sequence[BaseMessage | Turn], answer: AIMessage | Turn | str) -> Encoded:
        """Token ids of the answer.

        Raises:
            CandidateTooLong: it is too long.
            NotRendered: it holds a part that is no text.
        """
        said = [{"role": "assistant", "content": clean(spoken(answer, self.not_shown))}]
        ids = self._control.encode(said, lambda turns: self._before + str(turns[0]["content"]) + self._after)
        if not self._fits(ids):
            raise CandidateTooLong(f"{len(ids)} tokens in the answer, {self.max_length} allowed; answers are never cut")
        return Encoded(ids or [self._filler()])


def _found(path: str, given: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the named labels are."""
    for name in given:
        if name not in names:
            raise CheckpointError(f"{path}: has no label {name!r}; its labels are {', '.join(map(repr, names))}")
    return [names.index(name) for name in given]
