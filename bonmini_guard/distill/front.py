"""The reward/KL front on held-out prompts: one draw of the original, of the distilled generator, best-of-N and best of mini-N.

All selections replay the same draws of the original generator, as many as there are for each prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonmini_guard.distill.ranks import best_of_n_divergence, mini_n_divergence

Floats = NDArray[np.float64]

#: Draws in a loop of the best of mini-N that is shown.
LOOP = 4


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
        mean ``score``, ``acceptance`` (mean sigmoid(score)), and with utilities ``utility`` and ``acceptable``, each with the
        half width of its 95 % interval over prompts.
    """
    records = [
        {"name": "original, one draw", "kl": 0.0, "draws": 1.0} | _means(original, _all(original.scores)),
        {"name": "distilled, one draw", "kl": divergence, "draws": 1.0} | _means(distilled, _all(distilled.scores)),
    ]
    for n in sizes:
        picks = [np.array([_best(row, n)]) for row in original.scores]
        records.append({"name": f"best-of-{n}", "kl": best_of_n_divergence(n), "draws": float(n)} | _means(original, picks))
    return [*records, *([_mini_n(original, max(sizes) // LOOP)] if max(sizes) >= 2 * LOOP else [])]


def _mini_n(drawn: Drawn, loops: int) -> dict[str, Any]:
    """Best of mini-N in loops with exit at 0, serving the best so far when nothing passes."""
    chosen = [_mini(row, loops) for row in drawn.scores]
    below = [float((row[~np.isnan(row)] < 0).mean()) for row in drawn.scores]
    divergence = float(np.mean([mini_n_divergence(q, LOOP, loops) for q in below]))
    about = {"name": f"best of mini-{LOOP} in {loops} loops, exit at 0", "kl": divergence}
    return about | {"draws": float(np.mean([n for _, n in chosen]))} | _means(drawn, [np.array([pick]) for pick, _ in chosen])


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


def _means(drawn: Drawn, picks: Sequence[NDArray[Any]]) -> dict[str, float]:
    """Means over prompts of the picked draws' values, and the half widths of their intervals."""
    values = {"score": drawn.scores, "acceptance": 1 / (1 + np.exp(-drawn.scores))}
    if drawn.utilities is not None:
        values |= {"utility": drawn.utilities, "acceptable": (drawn.utilities > 0).astype(float)}
    found: dict[str, float] = {}
    for key, table in values.items():
        means = np.array([table[row, places].mean() for row, places in enumerate(picks) if places.size])
        found |= {key: float(means.mean()), f"{key}_within": float(1.96 * means.std(ddof=1) / math.sqrt(len(means)))}
    return found
