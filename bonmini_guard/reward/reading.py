"""How a checkpoint is asked and read: a classifier with one label, or, of a spec, with several (toxicity, safety, entailment)."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bonmini_guard.errors import CheckpointError
from bonmini_guard.reward.checkpoint import base_of, has_zero, load_classifier
from bonmini_guard.reward.formatting import Formatter
from bonmini_guard.reward.pairs import Inputs, formatter
from bonmini_guard.reward.spec import Labels


class Reading:
    """A classifier with one label, which is the score; inputs of None are what the checkpoint says.

    Attributes:
        mark: what a fingerprint tells of it, beside the model.
    """

    mark = ""
    #: Whether score 0 is the outside option; None takes what the checkpoint says.
    zero: bool | None = None

    def __init__(self, inputs: Inputs | None = None) -> None:
        self._inputs = inputs

    def load(self, path: str, config: Any, dtype: Any, base: str | None) -> tuple[Any, list[str]]:
        """The model, and the weights that the checkpoint lacks; a CheckpointError says what would take another kind."""
        if base_of(path, base) is None:
            refuse_language_models(path, config)
        if config.num_labels != 1:
            labels = ", ".join(map(str, config.id2label.values()))
            raise CheckpointError(
                f"{path}: a classifier with {config.num_labels} labels ({labels}), and a score is one number: say which are "
                "wanted, in a scorer spec with kind = 'labels' and [labels] wanted = [...]; or train one with 'bonmini-guard train'"
            )
        return load_classifier(path, config, dtype, base)

    def formatter(self, model: Any, tokenizer: Any, max_length: int | None, not_shown: Collection[str]) -> Formatter:
        """What makes the model's inputs."""
        return formatter(model, tokenizer, max_length, self._inputs, not_shown)

    def has_zero(self, config: Any) -> bool:
        """Whether score 0 is the outside option."""
        return has_zero(config) if self.zero is None else self.zero

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores, shape (B,), of logits, shape (B, labels)."""
        return logits[:, 0]


class LabelReading(Reading):
    """The log-odds of the wanted labels against the rest.

    Labels that exclude each other share one softmax. Where each is a question of its own (``multi_label_classification``), an
    answer is acceptable if all wanted ones hold and no unwanted one does.
    """

    zero = True  # at even odds

    def __init__(self, labels: Labels) -> None:
        super().__init__("text" if labels.inputs == "template" else labels.inputs)
        self._labels = labels
        self.mark = json.dumps(labels.model_dump(), sort_keys=True)

    def load(self, path: str, config: Any, dtype: Any, base: str | None) -> tuple[Any, list[str]]:
        """See :class:`Reading`."""
        refuse_language_models(path, config)
        names = [str(config.id2label[index]) for index in sorted(config.id2label)]
        if [*range(len(names))] != sorted(config.id2label):
            raise CheckpointError(f"{path}: id2label of its config.json names other labels than 0 to {len(names) - 1}")
        if len(names) == 1:
            raise CheckpointError(f"{path}: has one label, which is the score: use kind = 'template' or 'pair'")
        if config.problem_type == "regression":
            raise CheckpointError(f"{path}: its labels are numbers (problem_type is 'regression'), and no odds: use a function")
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

    def __call__(self, logits: Tensor) -> Tensor:
        """Log-odds, shape (B,), of logits, shape (B, labels)."""
        logits = logits.float()
        wanted, unwanted = logits[:, self._wanted], logits[:, self._unwanted]
        if not self._apart:
            return wanted.logsumexp(dim=1) - unwanted.logsumexp(dim=1)
        certain = logsigmoid(wanted).sum(dim=1) + logsigmoid(-unwanted).sum(dim=1)
        return certain - torch.log(-torch.expm1(certain.clamp(max=-1e-7)))


def _found(path: str, given: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the named labels are."""
    for name in given:
        if name not in names:
            raise CheckpointError(f"{path}: has no label {name!r}; its labels are {', '.join(map(repr, names))}")
    return [place for place, name in enumerate(names) if name in given]


def refuse_language_models(path: str, config: Any) -> None:
    """Refuse a language model: it has no classifier's head."""
    kind = next(iter(getattr(config, "architectures", None) or ()), "")
    if kind.endswith(("ForCausalLM", "ForConditionalGeneration")):
        raise CheckpointError(
            f"{path}: a language model ({kind}), no classifier: if it answers with verdicts (a guard model, a judge), name its "
            "tokens in a scorer spec with kind = 'token'; to put a head on it, 'bonmini-guard train --base'"
        )
