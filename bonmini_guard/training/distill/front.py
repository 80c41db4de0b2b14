"""The reward/KL front on held-out prompts: one draw of the original, of the distilled generator, best-of-N and best of mini-N."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonmini_guard.policy.policy import Policy, accelerator, best_of_n, run

Floats = NDArray[np.float64]

#: Draws in a loop of the best of mini-N that is shown.
LOOP = 4


def log_f(reference: Sequence[float], score: float) -> float:
    """Log of (1 + how many reference scores lie below ``score``) / (1 + M): the estimate of log F; the 1 keeps it finite.

    Of M draws of the original generator for the same prompt the ascending scores. Best-of-N is the law of the draw with the highest
    rank, so it does not change when rewards are stretched (arXiv 2407.06057).
    """
    return math.log((1 + bisect_left(reference, score)) / (1 + len(reference)))


def mini_n_divergence(below: float, size: int, loops: int) -> float:
    """KL(accelerated best of mini-N, one draw) for one prompt, where scores have no ties.

    In ranks u = F(score), the served answer has density n u^(n-1) (1 + q^n + ... + q^(n(L-1))) above the threshold's
    rank q, since a loop is entered only if all loops before it stayed below; and N u^(N-1) under it, the best of all. One loop is
    best-of-n: log n - (n - 1) / n, an upper bound where scores have ties (arXiv 2401.01879). ``below`` is q, the share of draws
    below the threshold, ``size`` n, ``loops`` L.
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
    """One record for each way to answer: draws for the same prompts, KL(distilled, original) in nats an answer, the N of best-of-N.

    Returns:
        Records with ``name``, ``kl`` (nats; for selections the value without ties, an upper bound otherwise), ``draws`` and
        mean ``score``, ``acceptance`` (mean sigmoid(score)), and with utilities ``utility`` and ``acceptable``. Each comes with
        ``*_within``, the half width of its 95 % interval over prompts, and with ``*_gain`` and ``*_gain_within``: how much more
        it is than one draw of the original for the same prompt, whose interval does not hold how much prompts differ.
    """
    one = _means(original, _all(original.scores))
    new = _means(distilled, _all(distilled.scores))
    answers = [("original, one draw", 0.0, 1.0, one), ("distilled, one draw", divergence, 1.0, new)]
    answers += [(f"best-of-{n}", mini_n_divergence(0.0, n, 1), *_selected(original, best_of_n(n))) for n in sizes]
    if (loops := max(sizes) // LOOP) > 1:
        below = [float((row[~np.isnan(row)] < 0).mean()) for row in original.scores if not np.isnan(row).all()]
        kl = float(np.mean([mini_n_divergence(q, LOOP, loops) for q in below]))
        name = f"best of mini-{LOOP} in {loops} loops, exit at 0"
        answers.append((name, kl, *_selected(original, accelerator([LOOP] * loops))))
    return [{"name": name, "kl": kl, "draws": draws} | _summary(means, one) for name, kl, draws, means in answers]


def _selected(drawn: Drawn, policy: Policy) -> tuple[float, dict[str, Floats]]:
    """What a policy draws on average, and the means of what it selects."""
    ran = [run(policy, row.tolist()) for row in drawn.scores]
    means = _means(drawn, [np.array([each.decision.index or 0]) for each in ran])
    return float(np.mean([each.draws for each in ran])), means


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
