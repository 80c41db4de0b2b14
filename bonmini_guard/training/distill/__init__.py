"""Distillation of best-of-N into the generator (variational best-of-N, arXiv 2407.06057), and what it keeps and loses."""

from bonmini_guard.training.distill.prompts import DistillPrompt, read_prompts
from bonmini_guard.training.distill.run import distill
from bonmini_guard.training.settings import DistillSettings

__all__ = ["DistillPrompt", "DistillSettings", "distill", "read_prompts"]
