"""How a checkpoint is asked and read: a classifier with one label, unless a spec says otherwise."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from bonmini_guard.errors import CheckpointError
from bonmini_guard.reward.checkpoint import base_of, has_zero, load_classifier
from bonmini_guard.reward.formatting import Formatter
from bonmini_guard.reward.pairs import Inputs, formatter


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


def refuse_language_models(path: str, config: Any) -> None:
    """Refuse a language model: it has no classifier's head."""
    kind = next(iter(getattr(config, "architectures", None) or ()), "")
    if kind.endswith(("ForCausalLM", "ForConditionalGeneration")):
        raise CheckpointError(
            f"{path}: a language model ({kind}), no classifier: if it answers with verdicts (a guard model, a judge), name its "
            "tokens in a scorer spec with kind = 'token'; to put a head on it, 'bonmini-guard train --base'"
        )
