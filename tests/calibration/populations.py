"""Simulated traffic for the validity tests: prompts of different difficulty, and a scorer whose errors are shared by prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bonmini_guard.calibration.logs import Log
from tests.calibration.helpers import log_of_arrays


@dataclass(frozen=True)
class Population:
    """Utility = prompt + own part; acceptable = utility > 0; score = utility + an error of the prompt + an error of the draw.

    Attributes:
        size: candidates a prompt.
        middle: mean of the prompts' utilities.
        prompt: their spread.
        shared: spread of the scorer's error that all candidates of a prompt share.
        hopeless: share of prompts with nothing acceptable.
        digits: scores are rounded to so many digits: heavy ties; None for none.
        per_group: prompts of one group, which share their difficulty; 30 for groups of 1 to 30, of which the larger are harder.
        tail: scores above this are of answers that fool the scorer: the share of bad ones doubles there; None for none.
        failing: chance that an unacceptable answer is a failed draw instead.
        haste: answers have lengths (CV about 0.4), and are shorter the worse they are: by so much in the logarithm for a unit of
            utility; negative for longer. None for no lengths.
        flattery: what a unit less in the logarithm of its length adds to an answer's score.
    """

    size: int = 8
    middle: float = 0.0
    prompt: float = 1.0
    shared: float = 0.5
    own: float = 0.7
    noise: float = 0.5
    hopeless: float = 0.0
    digits: int | None = None
    per_group: int = 1
    tail: float | None = None
    failing: float = 0.0
    haste: float | None = None
    flattery: float = 0.0

    def log(self, prompts: int, seed: int) -> Log:
        """A random log."""
        generator = np.random.default_rng(seed)
        groups, harder = self._groups(prompts, generator)
        prompts = groups.size
        middle = self.middle + (self.prompt * generator.normal(size=groups[-1] + 1) - harder)[groups]
        utility = middle[:, None] + self.own * generator.normal(size=(prompts, self.size))
        lost = (generator.random(groups[-1] + 1) < self.hopeless)[groups]
        labels = np.where(lost[:, None], 0.0, (utility > 0).astype(float))
        scores = utility - 1.0 * lost[:, None] + self.shared * generator.normal(size=(prompts, 1))
        scores = scores + self.noise * generator.normal(size=scores.shape)
        long = np.zeros_like(scores)
        if self.haste is not None:
            long = 0.4 * generator.normal(size=scores.shape) + self.haste * (utility - middle[:, None])
        scores = scores - self.flattery * long
        if self.digits is not None:
            scores = np.round(scores, self.digits)
        if self.tail is not None:
            labels = np.where((scores > self.tail) & (generator.random(scores.shape) < 0.5), 0.0, labels)
        scores = np.where((labels == 0) & (generator.random(scores.shape) < self.failing), np.nan, scores)
        log = log_of_arrays(scores, labels, groups=groups, source="simulated")
        return log if self.haste is None else replace(log, costs=np.exp(long), costs_are="seconds")

    def _groups(self, prompts: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray | float]:
        """The group of each prompt, and how much harder each group is."""
        if self.per_group < 30:
            return np.arange(prompts) // self.per_group, 0.0
        sizes = generator.integers(1, 31, prompts)
        return np.repeat(np.arange(prompts), sizes), 0.03 * sizes
