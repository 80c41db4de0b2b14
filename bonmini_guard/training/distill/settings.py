"""How to distil: the settings, checked at construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, get_type_hints

from bonmini_guard.training.settings import Device, Finite, Seed
from bonmini_guard.validation import Count, Must, check, is_integer

Several = Annotated[int, Must("an integer of 2 or more", lambda value: is_integer(value) and value > 1)]


@dataclass(frozen=True)
class DistillSettings:
    """How to distil.

    Attributes:
        n: the N of the best-of-N to imitate, 2 or more; it fixes the KL coefficient, 1 / (N - 1).
        reference_draws: draws of the original generator for each prompt, by which rewards become ranks.
        steps: optimizer steps.
        prompts_a_step: prompts in a step.
        draws: draws for each of them, 2 or more.
        max_new_tokens: tokens of an answer at most.
        temperature: of sampling, in training and in the figures.
        learning_rate: its peak.
        lora_rank: train low-rank adapters of this rank instead of all weights; merged at the end.
        eval_prompts: prompts held out for the figures, at most a fifth.
        eval_draws: draws for each of those prompts.
        seed: of sampling and of the order of prompts.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads; None leaves torch's setting alone.
    """

    n: Several = 16
    reference_draws: Several = 32
    steps: Count = 100
    prompts_a_step: Count = 16
    draws: Several = 8
    max_new_tokens: Count = 64
    temperature: Finite = 1.0
    learning_rate: Finite = 1e-5
    lora_rank: Count | None = None
    eval_prompts: Count = 100
    eval_draws: Several = 32
    seed: Seed = 0
    device: Device = "auto"
    threads: Count | None = None

    def __post_init__(self) -> None:
        check(vars(self), get_type_hints(type(self), include_extras=True))

    @property
    def beta(self) -> float:
        """The weight of the KL divergence from the original generator, against a reward of log F."""
        return 1.0 / (self.n - 1)
