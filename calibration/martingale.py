"""A conformal test martingale: evidence, piece by piece, that new scores do not come from where the reference came from."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

import numpy as np

from bonmini_guard.calibration.logs import Floats

#: How readily a gambler changes his mind, from hardly ever to at every step; their capitals are averaged.
JUMPS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def conformal_p_values(reference: Sequence[float], scores: Sequence[float], generator: np.random.Generator) -> Floats:
    """Smoothed online ranks: independent and uniform if reference and scores are exchangeable.

    ``p_n = (#{s_i > s_n} + U #{s_i = s_n}) / (n_reference + n)``, i running over the reference and scores 1..n, U uniform
    (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, section 2.2).

    Args:
        reference: scores from calibration.
        scores: later scores in the order they came.
        generator: the source of U.
    """
    bag = sorted(reference)
    chances = generator.random(len(scores))
    p_values = np.empty(len(scores))
    for number, (score, chance) in enumerate(zip(scores, chances, strict=True)):
        insort(bag, score)
        low, high = bisect_left(bag, score), bisect_right(bag, score)
        p_values[number] = (len(bag) - high + chance * (high - low)) / len(bag)
    return p_values


def jumper_capital(p_values: Floats) -> Floats:
    """Log capital, after each p-value, of the composite simple jumper (Vovk et al., arXiv 2102.10439, algorithm 1).

    Gamblers who bet ``1 + e (p - 1/2)``, e in {-1, 0, 1}, and change e with a small chance at each step; the capital is the
    mean over :data:`JUMPS`. It starts at 1 and is a martingale if the p-values are independent and uniform, so that it ever
    reaches 1/a with chance at most a (Ville's inequality).
    """
    jumps = np.array(JUMPS)[:, None]
    bets = np.array([-1.0, 0.0, 1.0])
    purse = np.full((jumps.size, 3), 1.0 / 3.0)
    log_scale = np.zeros(jumps.size)
    path = np.empty((p_values.size, jumps.size))
    for step, p_value in enumerate(p_values):
        total = purse.sum(axis=1, keepdims=True)
        purse = ((1.0 - jumps) * purse + jumps * total / 3.0) * (1.0 + bets * (p_value - 0.5))
        total = purse.sum(axis=1)
        log_scale += np.log(total)
        purse /= total[:, None]
        path[step] = log_scale
    highest = path.max(axis=1, keepdims=True, initial=-np.inf)
    return np.asarray((highest + np.log(np.mean(np.exp(path - highest), axis=1, keepdims=True)))[:, 0], dtype=np.float64)
