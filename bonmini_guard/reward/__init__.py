"""The reward model: choice rows, the outside-option loss, training, formatting and local scoring.

Nothing here is loaded until it is asked for, so importing this package costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.reward.choices import ChoiceRow, read_choices
    from bonmini_guard.reward.loss import bradley_terry_loss, outside_option_loss
    from bonmini_guard.reward.model import RewardModel
    from bonmini_guard.reward.training import OutsideOptionTrainer, evaluate_reward_model, train_reward_model

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

_HOMES = {
    "ChoiceRow": "choices",
    "OutsideOptionTrainer": "training",
    "RewardModel": "model",
    "bradley_terry_loss": "loss",
    "evaluate_reward_model": "training",
    "outside_option_loss": "loss",
    "read_choices": "choices",
    "train_reward_model": "training",
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
