"""Thresholds fixed on other prompts than those that are reported, for every budget.

* guardrail: a strict threshold for all loops but the last and a laxer one for the last, whose false-acceptance rate is at
  most a quarter of best-of-32's at score 0. An early exit serves less than the best of the budget, so it has to be surer.
  Among those whose recall is within half a point of the highest, the one with the fewest draws.
* accelerator: the laxest constant threshold whose acceptable rate is within half a point of best-of-N's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from benchmarks.imdb.figures import Drawn, Floats

GUARD_SHARE = 0.25
SLACK = 0.005


def schedule(n: int) -> list[int]:
    """N = 4 k as k loops of 4; N = 1 as one loop of 1."""
    return [4] * (n // 4) if n % 4 == 0 else [n]


@dataclass(frozen=True)
class Loops:
    """The best score so far and its acceptability after each loop, each of shape (prompts, loops)."""

    best: Floats
    acceptable: Floats
    size: int

    def stopped(self, thresholds: Floats) -> tuple[Floats, Floats, Floats]:
        """Of each prompt: whether it exits, the acceptability at its stop, its draws."""
        passed = self.best >= thresholds
        exits = passed.any(1)
        last = np.where(exits, passed.argmax(1), self.best.shape[1] - 1)
        at_stop = self.acceptable[np.arange(len(last)), last]
        return exits.astype(float), at_stop, self.size * (last + 1.0)


def loops(drawn: Drawn, n: int) -> Loops:
    """The loops of a budget, over draws in their order."""
    ends = np.cumsum(schedule(n))
    index = np.stack([drawn.scores[:, :end].argmax(1) for end in ends], axis=1)
    return Loops(np.take_along_axis(drawn.scores, index, 1), np.take_along_axis(drawn.acceptable, index, 1), schedule(n)[0])


def false_acceptance_rate(served: Floats, acceptable: Floats) -> float:
    """FP / (FP + TN); 0 where every selected answer is acceptable."""
    bad = 1 - acceptable
    return float((served * bad).sum() / max(bad.sum(), 1.0))


def candidates(found: Loops) -> Floats:
    """Thresholds to try, from strict to lax: quantiles of the best scores after the last loop."""
    return np.unique(np.quantile(found.best[:, -1], np.linspace(0, 1, 61)))[::-1]


def guard_thresholds(drawn: Drawn, n: int, largest: int) -> tuple[float, ...]:
    """One threshold for each loop; all infinite where none keeps the target."""
    plain = loops(drawn, largest)
    target = GUARD_SHARE * false_acceptance_rate((plain.best[:, -1] >= 0).astype(float), plain.acceptable[:, -1])
    found = loops(drawn, n)
    tried: list[tuple[float, float, tuple[float, ...]]] = []
    levels = candidates(found)
    for last in levels:
        for early in levels[levels >= last] if found.best.shape[1] > 1 else [last]:
            thresholds = (float(early),) * (found.best.shape[1] - 1) + (float(last),)
            served, acceptable, draws = found.stopped(np.array(thresholds))
            if false_acceptance_rate(served, acceptable) <= target:
                tried.append((float((served * acceptable).mean()), float(draws.mean()), thresholds))
    if not tried:
        return (math.inf,) * found.best.shape[1]
    enough = max(tried)[0] - SLACK * float(found.acceptable[:, -1].mean())
    return min((draws, thresholds) for recall, draws, thresholds in tried if recall >= enough)[1]


def accelerator_threshold(drawn: Drawn, n: int) -> float:
    """The laxest threshold in an unbroken run from strict to lax whose acceptable rate stays near best-of-N's."""
    found = loops(drawn, n)
    target = float(found.acceptable[:, -1].mean()) - SLACK
    chosen = math.inf
    for threshold in candidates(found):
        if found.stopped(np.full(found.best.shape[1], threshold))[1].mean() < target:
            break
        chosen = float(threshold)
    return chosen
