"""Distillation of best-of-N into the generator (variational best-of-N, arXiv 2407.06057), and what it keeps and loses.

Nothing here is loaded until it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.training.distill.prompts import DistillPrompt, read_prompts
    from bonmini_guard.training.distill.run import distill
    from bonmini_guard.training.distill.settings import DistillSettings

__all__ = ["DistillPrompt", "DistillSettings", "distill", "read_prompts"]

_HOMES = {"DistillPrompt": "prompts", "DistillSettings": "settings", "distill": "run", "read_prompts": "prompts"}

__getattr__, __dir__ = lazy(__name__, _HOMES)
