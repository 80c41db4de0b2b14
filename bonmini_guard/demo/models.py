"""Where the four bundled models lie.

``lm`` writes film reviews, ``reward`` was trained with an outside option, ``twin`` on the same pairs without it, ``truth``
judges them all. Weights are stored in half precision to stay small; they are computed with in float32 on a CPU.
"""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).parent / "models"

#: The two reward models, by name.
REWARDS = ("reward", "twin")

#: The sampling settings of every stage of the experiment and of the demonstration.
NEW_TOKENS = 32
TOP_K = 50


def model_path(name: str) -> Path:
    """The folder of a bundled model: lm, reward, twin or truth."""
    return MODELS / name
