"""Rules that draw a fixed number and choose otherwise than by the best score. A setting is (draws, the rule's own parameter)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.rivals.rules import CUTS, Floats, Integers, Plain, Pool

SIZES = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32)
Setting = tuple[int, float]


class Fixed(Plain):
    """Draws so many, then chooses; what is random in it is the same number for every setting.

    Args:
        seed: of that number.
    """

    #: Its own parameter.
    own: Sequence[float] = (0.0,)

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def knobs(self, pool: Pool) -> Sequence[Setting]:
        """Every size with every parameter."""
        return [(n, own) for n in SIZES if n <= pool.scores.shape[1] for own in self.own]

    def uniform(self, pool: Pool) -> Floats:
        """(P,) in [0, 1)."""
        return np.random.default_rng(self._seed).random(pool.scores.shape[0])

    def run(self, pool: Pool, index: Any, knob: Setting) -> tuple[Floats, Integers]:
        """All of them paid for."""
        return np.full(pool.scores.shape[0], float(knob[0])), self.chosen(pool, index, *knob).astype(np.int64)

    def chosen(self, pool: Pool, index: Any, n: int, own: float) -> Any:
        """(P,) which of the first ``n``."""
        raise NotImplementedError


class SoftBestOfN(Fixed):
    """Draw i with probability in proportion to exp(score / temperature): the package's ``Soft``, for many prompts at once."""

    source = "Verdun et al., arXiv 2505.03156"
    own = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)

    def chosen(self, pool: Pool, index: Any, n: int, own: float) -> Any:
        """Where a uniform number falls among the probabilities."""
        seen = pool.scores[:, :n]
        reached = np.exp((seen - seen.max(1, keepdims=True)) / own).cumsum(1)
        return np.minimum((reached <= self.uniform(pool)[:, None] * reached[:, -1:]).sum(1), n - 1)


class TopShare(Fixed):
    """One of the best ``ceil(n / M)``, each as likely."""

    source = "Sriraman, Block, arXiv 2603.05739 (rule as a reading note has it)"
    own = (2.0, 4.0, 8.0, 16.0, 32.0)

    def chosen(self, pool: Pool, index: Any, n: int, own: float) -> Any:
        """By rank."""
        order = np.argsort(-pool.scores[:, :n], axis=1, kind="stable")
        rank = (self.uniform(pool) * np.ceil(n / own)).astype(np.int64)
        return np.take_along_axis(order, rank[:, None], 1)[:, 0]


class RegularisedBestOfN(Fixed):
    """The largest score plus beta times the mean similarity to all draws."""

    source = "Jinnai et al., arXiv 2404.01054 (MBR-BoN), with shared words in place of embeddings"
    needs = "alike"
    own = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)

    def index(self, pool: Pool) -> Any:
        """(N, P, N) sums of similarities to the first n."""
        return np.zeros(0) if pool.alike is None else np.ascontiguousarray(np.moveaxis(pool.alike.cumsum(2), 2, 0))

    def chosen(self, pool: Pool, index: Any, n: int, own: float) -> Any:
        """Score and similarity."""
        return (pool.scores[:, :n] + own * index[n - 1, :, :n] / n).argmax(1)


class MinimumRisk(RegularisedBestOfN):
    """The draw most like all: the package's ``MinimumBayesRisk``, for many prompts at once."""

    source = "minimum Bayes risk, by shared words"
    own = (0.0,)

    def chosen(self, pool: Pool, index: Any, n: int, own: float) -> Any:
        """Similarity alone."""
        return index[n - 1, :, :n].argmax(1)


class Pessimism(Fixed):
    """Find a level on ``n`` draws, then accept among as many fresh ones by how far above it they are.

    The level solves ``mean_i relu((r_i - level) / beta) = 1``; a fresh draw is accepted with chance
    ``(r - level) / (R_max - level)``; where none is, one more draw is served.
    """

    source = "Huang et al., arXiv 2503.21878 (InferenceTimePessimism)"
    own = (0.1, 0.3, 1.0, 3.0)

    def fit(self, pool: Pool) -> None:
        """The largest reward."""
        self._most = float(pool.scores.max())

    def knobs(self, pool: Pool) -> Sequence[Setting]:
        """As many fresh draws must be left, and one."""
        return [(n, own) for n in range(1, (pool.scores.shape[1] - 1) // 2 + 1) for own in self.own]

    def run(self, pool: Pool, index: Any, knob: Setting) -> tuple[Floats, Integers]:
        """The first accepted, or the last."""
        n, beta = knob
        level, fresh = self.level(pool.scores[:, :n], beta), pool.scores[:, n : 2 * n]
        chance = (fresh - level[:, None]) / np.maximum(self._most - level[:, None], 1e-12)
        accepted = np.random.default_rng(self._seed).random(fresh.shape) < chance
        chosen = n + np.where(accepted.any(1), accepted.argmax(1), n)
        return chosen + 1.0, chosen.astype(np.int64)

    @staticmethod
    def level(seen: Floats, beta: float) -> Floats:
        """(P,) where the mean excess over it is ``beta``: ``(sum of the k largest - n beta) / k``, largest at the right k."""
        best = -np.sort(-seen, axis=1)
        levels = (best.cumsum(1) - seen.shape[1] * beta) / np.arange(1, seen.shape[1] + 1)
        return np.asarray(levels.max(1), dtype=np.float64)


class SpeculativeRejection(Fixed):
    """Begin n answers; after a quarter and after a half of their tokens go on with those whose partial score is in the best share.

    Draws are counted in whole answers' tokens.
    """

    source = "Sun et al., arXiv 2410.20290, alone: at fixed cuts in place of a full memory"
    needs = "partial"
    own = (0.25, 0.5, 0.75)

    def run(self, pool: Pool, index: Any, knob: Setting) -> tuple[Floats, Integers]:
        """The best of those that were finished."""
        n, share = knob
        left = np.ones((pool.scores.shape[0], n), dtype=bool)
        assert pool.partial is not None
        paid, before = np.zeros(left.shape[0]), 0.0
        for cut, scores in zip(CUTS, np.moveaxis(pool.partial[:, :n], 2, 0), strict=True):
            paid, before = paid + left.sum(1) * (cut - before), cut
            kept = np.ceil(left.sum(1) * share)
            rank = np.argsort(np.argsort(np.where(left, -scores, np.inf), axis=1, kind="stable"), axis=1)
            left &= rank < kept[:, None]
        paid += left.sum(1) * (1 - before)
        return paid, np.where(left, pool.scores[:, :n], -np.inf).argmax(1)
