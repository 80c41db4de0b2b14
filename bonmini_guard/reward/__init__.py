"""The reward model: formatting and local scoring. Names of training that began here are still found here.

Nothing here is loaded until it is asked for, so importing this package costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.reward.model import RewardModel as RewardModel
    from bonmini_guard.training import ChoiceRow as ChoiceRow
    from bonmini_guard.training import OutsideOptionTrainer as OutsideOptionTrainer
    from bonmini_guard.training import bradley_terry_loss as bradley_terry_loss
    from bonmini_guard.training import evaluate_reward_model as evaluate_reward_model
    from bonmini_guard.training import outside_option_loss as outside_option_loss
    from bonmini_guard.training import read_choices as read_choices
    from bonmini_guard.training import train_reward_model as train_reward_model

_NAMES = {
    "model": "RewardModel",
    ".training": "ChoiceRow OutsideOptionTrainer bradley_terry_loss evaluate_reward_model outside_option_loss "
    "read_choices train_reward_model",
}
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
__all__ = list(_HOMES)
