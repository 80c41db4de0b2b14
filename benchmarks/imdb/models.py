"""The toy models of this experiment: language model, reward model and truth are kept for the tests, the twin is trained anew.

Weights are stored in half precision to stay small; they are computed with in float32 on a CPU.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
MODELS, WORK = ROOT / "tests" / "models", ROOT / "build" / "imdb"

#: The two reward models, by name.
REWARDS = ("reward", "twin")

#: The sampling settings of every stage.
NEW_TOKENS = 32
TOP_K = 50


def model_path(name: str) -> Path:
    """The folder of a model: lm, reward and truth where the tests keep them, any other where training puts it."""
    kept = MODELS / name
    return kept if kept.is_dir() else WORK / name
