"""Distillation of best-of-N into the generator (variational best-of-N, arXiv 2407.06057), and what it keeps and loses.

Nothing here is loaded until it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.distill.prompts import DistillPrompt, read_prompts
    from bonmini_guard.distill.settings import DistillSettings
    from bonmini_guard.distill.training import distill

__all__ = ["DistillPrompt", "DistillSettings", "distill", "read_prompts"]

_HOMES = {"DistillPrompt": "prompts", "DistillSettings": "settings", "distill": "training", "read_prompts": "prompts"}

__getattr__, __dir__ = lazy(__name__, _HOMES)
