"""Training of reward models: choice rows, the outside-option loss, the trainer; data of other shapes; distillation.

Nothing here is loaded until it is asked for, so importing this package costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.training.choices import ChoiceRow as ChoiceRow
    from bonmini_guard.training.choices import read_choices as read_choices
    from bonmini_guard.training.loss import bradley_terry_loss as bradley_terry_loss
    from bonmini_guard.training.loss import outside_option_loss as outside_option_loss
    from bonmini_guard.training.run import evaluate_reward_model as evaluate_reward_model
    from bonmini_guard.training.run import train_reward_model as train_reward_model
    from bonmini_guard.training.trainer import OutsideOptionTrainer as OutsideOptionTrainer

_NAMES = {
    "choices": "ChoiceRow read_choices",
    "loss": "bradley_terry_loss outside_option_loss",
    "run": "evaluate_reward_model train_reward_model",
    "trainer": "OutsideOptionTrainer",
}
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
__all__ = list(_HOMES)
