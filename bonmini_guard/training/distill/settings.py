"""How to distil: the settings, checked at construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, get_type_hints

from bonmini_guard.training.settings import Device, Finite, Seed
from bonmini_guard.validation import Count, Must, check, is_integer

Several = Annotated[int, Must("an integer of 2 or more", lambda value: is_integer(value) and value > 1)]


@dataclass(frozen=True)
class DistillSettings:
    """How to distil: what docs/distillation.md says of the command's options."""

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
