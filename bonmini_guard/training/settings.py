"""How to train a reward model, and how to distil: the settings, checked at construction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_type_hints

import torch
from transformers import integrations
from transformers.training_args import OptimizerNames

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.validation import Amount, Count, Must, Natural, check, is_integer, is_number

Finite = Annotated[float, Must("a number above 0", lambda value: is_number(value) and 0 < value < math.inf)]
Seed = Annotated[int, Must("an integer of 0 or more, below 2**32", lambda value: is_integer(value) and 0 <= value < 2**32)]
Device = Literal["auto", "cpu", "cuda"]
Several = Annotated[int, Must("an integer of 2 or more", lambda value: is_integer(value) and value > 1)]


@dataclass(frozen=True)
class Settings:
    """How to train: what docs/training.md says of the command's options (``batch_size`` is ``--batch``), and ``weight_decay``.

    The rate rises over the first 5 % of the steps to its peak, and falls with a cosine. None takes what suits: of ``inputs`` what
    the base says, and text for a base without a head; of ``lora_alpha`` twice the rank; of ``threads`` torch's own setting.
    """

    objective: Literal["outside_option", "bradley_terry"] = "outside_option"
    epochs: Finite = 2.0
    learning_rate: Finite = 5e-5
    head_learning_rate: Finite | None = None
    batch_size: Count = 32
    seed: Seed = 0
    max_length: Count | None = None
    layers: Count | None = None
    device: Device = "auto"
    threads: Count | None = None
    weight_decay: Amount = 0.01
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    accumulate: Count = 1
    gradient_checkpointing: bool = False
    lora_rank: Count | None = None
    lora_alpha: Count | None = None
    checkpoints: Natural = 10
    early_stopping: Count | None = None
    twin: bool = False
    inputs: Literal["text", "pair"] | None = None
    optimizer: str = "adamw_torch_fused"
    push_to_hub: str | None = None
    report_to: str | None = None

    def __post_init__(self) -> None:
        check(vars(self), get_type_hints(type(self), include_extras=True))
        if self.optimizer not in (names := [name.value for name in OptimizerNames]):
            raise ConfigurationError(f"unknown optimizer {self.optimizer!r}: transformers knows {', '.join(names)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError("no CUDA device here: use --device cpu")
        if self.precision == "bfloat16" and not self.cuda:
            raise ConfigurationError("bfloat16 is for GPUs: most CPUs compute it far slower than float32; use float32")
        if self.early_stopping and not self.checkpoints:
            raise ConfigurationError("checkpoints is 0: it must be 1 or more with early stopping")
        if self.lora_alpha and not self.lora_rank:
            raise ConfigurationError("lora_alpha without lora_rank: give both")
        if missing := set(self.trackers) - set(cast(Any, integrations).get_available_reporting_integrations()):
            raise ConfigurationError(f"--report-to {min(missing)}: transformers knows or finds no such tracker here; install it")
        if self.twin and self.objective == "bradley_terry":
            raise ConfigurationError("a twin is for the objective outside_option: leave it out")

    @property
    def cuda(self) -> bool:
        """Whether to train on a GPU."""
        return self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())

    @property
    def trackers(self) -> list[str]:
        """Where losses go."""
        return (self.report_to or "").replace(",", " ").split()

    @property
    def half(self) -> bool:
        """Whether to compute in bfloat16."""
        return self.cuda and self.precision != "float32"


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
