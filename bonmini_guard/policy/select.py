"""Which scored draw is served where that is not simply the best one: (scores, texts, a uniform number in [0, 1)) -> its place."""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.validation import is_number


@dataclass(frozen=True)
class Soft:
    """Soft best-of-n (arXiv 2505.03156): draw i with probability ``exp(score_i / temperature)``, divided by the sum of all."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.temperature) or not 0 < self.temperature < math.inf:
            raise ConfigurationError(f"temperature is {self.temperature!r}: give a number above 0")

    def __call__(self, scores: Sequence[float], texts: Sequence[str], uniform: float) -> int:
        """Where the uniform number falls among the probabilities."""
        reached = list(accumulate(math.exp((score - max(scores)) / self.temperature) for score in scores))
        return min(bisect(reached, uniform * reached[-1]), len(reached) - 1)


def overlap(first: str, second: str) -> float:
    """F1 of the words that two texts share, in [0, 1]; 1 for the same words in any order."""
    one, other = Counter(first.split()), Counter(second.split())
    return 2 * (one & other).total() / max(1, one.total() + other.total())


@dataclass(frozen=True)
class MinimumBayesRisk:
    """The draw most like all: the largest ``reward * score_i + mean_j similarity(text_i, text_j)``; of equals the first.

    With a ``reward`` above 0 it is regularised best-of-N (arXiv 2404.01054, beta = 1 / reward). Similarities run in a thread.
    """

    similarity: Callable[[str, str], float] = overlap
    reward: float = 0.0

    def __call__(self, scores: Sequence[float], texts: Sequence[str], uniform: float) -> int:
        """The one of the largest sum."""
        alike = [sum(self.similarity(text, other) for other in texts) / len(texts) for text in texts]
        worth = [self.reward * score + each for score, each in zip(scores, alike, strict=True)]
        if not all(map(math.isfinite, worth)):
            raise ValueError("a similarity, or reward=, is not finite")
        return worth.index(max(worth))


SELECTIONS = {"best": None, "soft": Soft(), "mbr": MinimumBayesRisk()}
