"""The reward/KL front on held-out prompts: one draw of the original, of the distilled generator, best-of-N and best of mini-N.

All selections replay the same draws of the original generator, as many as there are for each prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonmini_guard.training.distill.ranks import best_of_n_divergence, mini_n_divergence

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
