"""The reward model: formatting and local scoring. Names of training that began here are still found here.

Nothing here is loaded until it is asked for, so importing this package costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.reward.model import RewardModel
    from bonmini_guard.training import (
        ChoiceRow,
        OutsideOptionTrainer,
        bradley_terry_loss,
        evaluate_reward_model,
        outside_option_loss,
        read_choices,
        train_reward_model,
    )

__all__ = [
    "ChoiceRow",
    "OutsideOptionTrainer",
    "RewardModel",
    "bradley_terry_loss",
    "evaluate_reward_model",
    "outside_option_loss",
    "read_choices",
    "train_reward_model",
]

_HOMES = dict.fromkeys(__all__, ".training") | {"RewardModel": "model"}

__getattr__, __dir__ = lazy(__name__, _HOMES)
