"""Training of reward models: choice rows, the outside-option loss, the trainer; data of other shapes; distillation.

Nothing here is loaded until it is asked for, so importing this package costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.training.choices import ChoiceRow, read_choices
    from bonmini_guard.training.loss import bradley_terry_loss, outside_option_loss
    from bonmini_guard.training.run import evaluate_reward_model, train_reward_model
    from bonmini_guard.training.trainer import OutsideOptionTrainer

__all__ = [
    "ChoiceRow",
    "OutsideOptionTrainer",
    "bradley_terry_loss",
    "evaluate_reward_model",
    "outside_option_loss",
    "read_choices",
    "train_reward_model",
]

_HOMES = {
    "ChoiceRow": "choices",
    "OutsideOptionTrainer": "trainer",
    "bradley_terry_loss": "loss",
    "evaluate_reward_model": "run",
    "outside_option_loss": "loss",
    "read_choices": "choices",
    "train_reward_model": "run",
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
