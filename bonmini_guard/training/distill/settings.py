"""How to distil: the settings, checked at construction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bonmini_guard.errors import ConfigurationError


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

    n: int = 16
    reference_draws: int = 32
    steps: int = 100
    prompts_a_step: int = 16
    draws: int = 8
    max_new_tokens: int = 64
    temperature: float = 1.0
    learning_rate: float = 1e-5
    lora_rank: int | None = None
    eval_prompts: int = 100
    eval_draws: int = 32
    seed: int = 0
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        least = {"n": 2, "reference_draws": 2, "draws": 2, "eval_prompts": 1, "eval_draws": 2}
        least |= dict.fromkeys(("steps", "prompts_a_step", "max_new_tokens", "lora_rank", "threads"), 1)
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ConfigurationError(f"{name} is {value}: it must be {smallest} or more")
        for name in ("temperature", "learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigurationError(f"{name} is {getattr(self, name)}: it must be a positive number")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigurationError(f"unknown device {self.device!r}: use auto, cpu or cuda")

    @property
    def beta(self) -> float:
        """The weight of the KL divergence from the original generator, against a reward of log F."""
        return 1.0 / (self.n - 1)
