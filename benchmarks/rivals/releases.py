"""Rules of other works that come with a promise: each is fitted on labelled draws, then told to serve or to abstain.

Outcomes are what each does on the draws in their order: (draws, which one is served; -1 where none is).
"""

from __future__ import annotations

import numpy as np
from scipy.special import bdtr

from benchmarks.rivals.rules import Floats, Integers, Pool, best_so_far, first
from bonmini_guard.calibration.certify import upper_limit

Outcome = tuple[Integers, Integers]


class EProcess:
    """Release once the product of the draws' e-values reaches ``1 / alpha``; abstain at the budget.

    Cho, Sun, arXiv 2605.12947, as its abstract states it: scores are compared with a pool of high-scoring failures (here: of each
    calibration prompt the best draw that is not acceptable), and the evidence is added up so that it may be looked at after each
    draw. Our choices: ``p = (1 + #{pool >= score}) / (m + 1)``, and ``e = p ** -0.5 / 2``, a calibrator of mean 1 under uniform p.
    """

    source = "arXiv 2605.12947, abstract; the calibrator is ours"

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def fit(self, pool: Pool) -> None:
        """The failures."""
        bad = np.where(pool.good, -np.inf, pool.scores).max(1)
        self.failures = np.sort(bad[np.isfinite(bad)])

    def e_values(self, scores: Floats) -> Floats:
        """One for each draw."""
        above = self.failures.size - np.searchsorted(self.failures, scores, side="left")
        return np.asarray(0.5 * ((1 + above) / (1 + self.failures.size)) ** -0.5)

    def run(self, pool: Pool) -> Outcome:
        """The best so far, once the evidence suffices."""
        released = self.e_values(pool.scores).cumprod(1) >= 1 / self._alpha
        stops = first(released, pool.scores.shape[1])
        chosen = np.where(np.arange(pool.scores.shape[1]) < stops[:, None], pool.scores, -np.inf).argmax(1)
        return stops, np.where(released.any(1), chosen, -1)


class ConformalSet:
    """Draw until the best score reaches a level: at most epsilon of the sets hold no acceptable draw, with confidence 1 - delta.

    Quach et al., arXiv 2306.10193 (Conformal Language Modeling, F = max), without its filters of quality and likeness: learn then
    test over levels from strict to lax. The promise is of the set; served here is its best-scored draw, at the budget too.
    """

    source = "arXiv 2306.10193, F = max"

    def __init__(self, epsilon: float, delta: float = 0.1) -> None:
        self._epsilon, self._delta = epsilon, delta

    def fit(self, pool: Pool) -> None:
        """The laxest level in an unbroken run of those that are certified; the strictest draws all."""
        prompts, self.level = pool.scores.shape[0], np.inf
        best, hit = best_so_far(pool.scores), np.maximum.accumulate(pool.good, axis=1)
        for level in np.quantile(best[:, -1], np.linspace(1, 0, 201)):
            stops = first(best >= level, pool.scores.shape[1])
            missed = int((~hit[np.arange(prompts), stops - 1]).sum())
            if bdtr(missed, prompts, self._epsilon) > self._delta:
                break
            self.level = float(level)

    def run(self, pool: Pool) -> Outcome:
        """The best so far."""
        stops = first(best_so_far(pool.scores) >= self.level, pool.scores.shape[1])
        return stops, np.where(np.arange(pool.scores.shape[1]) < stops[:, None], pool.scores, -np.inf).argmax(1)


class Safer:
    """The fewest draws that hold an acceptable one often enough, then of these only scores above a level; abstain if none is.

    SAFER, arXiv 2510.10193, as reviewed: ``s = min {s : upper limit of P(none acceptable among s) <= alpha}``, or it abstains from
    all; then conformal risk control over prompts that s draws reach: the level t is the largest with
    ``(n' L(t) + 1) / (n' + 1) <= beta``, L the share whose acceptable draws all lie below t. Served here is the best-scored draw.
    """

    source = "arXiv 2510.10193, secondary source"

    def __init__(self, alpha: float, beta: float = 0.1, delta: float = 0.1) -> None:
        self._alpha, self._beta, self._delta = alpha, beta, delta

    def fit(self, pool: Pool) -> None:
        """The number of draws (0: abstains from all), and the level."""
        prompts, reached = pool.scores.shape[0], np.maximum.accumulate(pool.good, axis=1)
        limits = [upper_limit(int((~reached[:, s]).sum()), prompts, self._delta) for s in range(reached.shape[1])]
        self.draws = next((s + 1 for s, limit in enumerate(limits) if limit <= self._alpha), 0)
        best = np.where(pool.good, pool.scores, -np.inf)[:, : self.draws].max(1, initial=-np.inf)
        best = np.sort(best[np.isfinite(best)])
        # At most so many of the reachable prompts may lose all of their acceptable draws.
        lost = int(np.floor(self._beta * (best.size + 1) - 1))
        self.level = float(best[lost]) if 0 <= lost < best.size else -np.inf

    def run(self, pool: Pool) -> Outcome:
        """A fixed number of draws."""
        rows = pool.scores.shape[0]
        if not self.draws:
            return np.zeros(rows, dtype=np.int64), np.full(rows, -1)
        seen = pool.scores[:, : self.draws]
        return np.full(rows, self.draws), np.where(seen.max(1) >= self.level, seen.argmax(1), -1)
