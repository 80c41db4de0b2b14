"""The reward/KL front on held-out prompts: one draw of the original, of the distilled generator, best-of-N and best of mini-N.

All selections replay the same draws of the original generator, as many as there are for each prompt.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Draws in a loop of the best of mini-N that is shown.
LOOP = 4


class ReferenceRewards:
    """The finite scores of M reference draws for one prompt, as ranks: the estimate of log F that variational best-of-N maximises.

    F(r) is the probability that a draw of the original generator for the same prompt scores below r. Best-of-N is the law of the
    draw with the highest rank, so it does not change when rewards are stretched (arXiv 2407.06057).
    """

    def __init__(self, scores: Sequence[float]) -> None:
        if not scores or not all(math.isfinite(score) for score in scores):
            raise ValueError("reference scores must be finite, and one or more")
        self._sorted = sorted(scores)

    def log_f(self, score: float) -> float:
        """Log of (1 + number of reference scores below ``score``) / (1 + M); the 1 keeps it finite."""
        return math.log((1 + bisect_left(self._sorted, score)) / (1 + len(self._sorted)))


def best_of_n_divergence(n: int) -> float:
    """KL(best-of-N, one draw) = log N - (N - 1) / N where scores have no ties; an upper bound otherwise (arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def mini_n_divergence(below: float, size: int, loops: int) -> float:
    """KL(accelerated best of mini-N, one draw) for one prompt, where scores have no ties.

    In ranks u = F(score), the served answer has density n u^(n-1) (1 + q^n + ... + q^(n(L-1))) above the threshold's
    rank q, since a loop is entered only if all loops before it stayed below; and N u^(N-1) under it, the best of all.

    Args:
        below: q, the share of draws below the threshold.
        size: n, draws in a loop.
        loops: L.
    """
    total = size * loops
    again = sum(below ** (size * loop) for loop in range(loops))
    return _term(size, size * again, below, 1.0) + _term(total, total, 0.0, below)


def _term(power: int, weight: float, low: float, high: float) -> float:
    """The integral of g log g from ``low`` to ``high`` for g(u) = weight * u^(power - 1)."""

    def primitive(u: float) -> float:
        if u == 0:
            return 0.0
        mass = weight * u**power / power
        return mass * (math.log(weight) + (power - 1) * (math.log(u) - 1 / power))

    return primitive(high) - primitive(low)


class Drawn(NamedTuple):
    """Draws of one generator: scores, shape (prompts, draws), NaN where there is none; and true utilities, if they are known."""

    scores: Floats
    utilities: Floats | None = None


def front(original: Drawn, distilled: Drawn, divergence: float, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """One record for each way to answer.

    Args:
        original: draws of the original generator.
        distilled: draws of the distilled one, for the same prompts.
        divergence: KL(distilled, original), nats an answer.
        sizes: the N of best-of-N, each at most the original's draws.

    Returns:
        Records with ``name``, ``kl`` (nats; for selections the value without ties, an upper bound otherwise), ``draws`` and
        mean ``score``, ``acceptance`` (mean sigmoid(score)), and with utilities ``utility`` and ``acceptable``. Each comes with
        ``*_within``, the half width of its 95 % interval over prompts, and with ``*_gain`` and ``*_gain_within``: how much more
        it is than one draw of the original for the same prompt, whose interval does not hold how much prompts differ.
    """
    one = _means(original, _all(original.scores))
    new = _means(distilled, _all(distilled.scores))
    answers = [("original, one draw", 0.0, 1.0, one), ("distilled, one draw", divergence, 1.0, new)]
    for n in sizes:
        picks = [np.array([_best(row, n)]) for row in original.scores]
        answers.append((f"best-of-{n}", best_of_n_divergence(n), float(n), _means(original, picks)))
    if max(sizes) >= 2 * LOOP:
        answers.append(_mini_n(original, max(sizes) // LOOP))
    return [{"name": name, "kl": kl, "draws": draws} | _summary(means, one) for name, kl, draws, means in answers]


def _mini_n(drawn: Drawn, loops: int) -> tuple[str, float, float, dict[str, Floats]]:
    """Best of mini-N in loops with exit at 0, serving the best so far when nothing passes."""
    chosen = [_mini(row, loops) for row in drawn.scores]
    below = [float((row[~np.isnan(row)] < 0).mean()) for row in drawn.scores]
    divergence = float(np.mean([mini_n_divergence(q, LOOP, loops) for q in below]))
    means = _means(drawn, [np.array([pick]) for pick, _ in chosen])
    return f"best of mini-{LOOP} in {loops} loops, exit at 0", divergence, float(np.mean([n for _, n in chosen])), means


def _mini(scores: Floats, loops: int) -> tuple[int, int]:
    for drawn in range(LOOP, LOOP * loops, LOOP):
        best = _best(scores, drawn)
        if scores[best] >= 0:
            return best, drawn
    return _best(scores, LOOP * loops), LOOP * loops


def _best(scores: Floats, n: int) -> int:
    return int(np.where(np.isnan(scores[:n]), -math.inf, scores[:n]).argmax())


def _all(scores: Floats) -> list[NDArray[Any]]:
    return [np.flatnonzero(~np.isnan(row)) for row in scores]


def _means(drawn: Drawn, picks: Sequence[NDArray[Any]]) -> dict[str, Floats]:
    """The means of the picked draws' values for each prompt, shape (prompts,); NaN where nothing was picked."""
    values = {"score": drawn.scores, "acceptance": 1 / (1 + np.exp(-drawn.scores))}
    if drawn.utilities is not None:
        values |= {"utility": drawn.utilities, "acceptable": (drawn.utilities > 0).astype(float)}
    return {
        key: np.array([table[row, places].mean() if places.size else np.nan for row, places in enumerate(picks)])
        for key, table in values.items()
    }


def _summary(means: dict[str, Floats], one: dict[str, Floats]) -> dict[str, float]:
    """Means over prompts, and over their differences from one draw of the original, with half widths of 95 % intervals."""
    found: dict[str, float] = {}
    for key, values in means.items():
        for name, some in ((key, values), (f"{key}_gain", values - one[key])):
            known = some[~np.isnan(some)]
            found |= {name: float(known.mean()), f"{name}_within": float(1.96 * known.std(ddof=1) / math.sqrt(len(known)))}
    return found
