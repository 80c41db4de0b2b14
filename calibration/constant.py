"""One threshold for all loops: every possible threshold at once, as a table over positions.

With the same threshold in every loop, what happens depends only on a, how many candidates lie below it. With
``Q_j(a) = (a)_{K_j} / (n)_{K_j}`` the chance that all draws of blocks 1..j do,

    P(accepted, best at p) = sum_j Q_{j-1}(a) (G_j(p) - G_j(p-1))   for p > a
    P(rest, best at p)     = Q_L(p) - Q_L(p-1)                      for p <= a
    draws = sum_j k_j Q_{j-1}(a),   loops = sum_j Q_{j-1}(a)

so the expected labels of all thresholds are one matrix product of the sorted labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bonmini_guard.calibration.logs import Floats
from bonmini_guard.calibration.ranking import Ranking, block_chances
from bonmini_guard.calibration.replay import Outcomes


@dataclass(frozen=True)
class Kernel:
    """The label-free part, for n candidates and one schedule. The index a runs over 0..n, the position p over 1..n.

    Attributes:
        accepted_at: (n, n+1) chance, with a candidates below the threshold, of accepting the one at position p.
        rest_at: (n,) chance that the best of all N draws is at position p; it is the rest's wherever p <= a.
        never: (n+1,) chance of no pass at all.
        draws: (n+1,) expected draws.
        loops: (n+1,) expected loops.
    """

    accepted_at: Floats
    rest_at: Floats
    never: Floats
    draws: Floats
    loops: Floats


def kernel(size: int, schedule: Sequence[int]) -> Kernel:
    """The kernel of n candidates and a schedule."""
    chances = block_chances(size, schedule)
    reached = np.vstack([np.ones(size + 1), np.cumprod(chances, axis=0)])
    above = np.arange(1, size + 1)[:, None] > np.arange(size + 1)
    return Kernel(
        accepted_at=(np.diff(chances, axis=1).T @ reached[:-1]) * above,
        rest_at=np.diff(reached[-1]),
        never=reached[-1],
        draws=np.asarray(schedule, dtype=np.float64) @ reached[:-1],
        loops=reached[:-1].sum(axis=0),
    )


def constant_outcomes(ranking: Ranking, schedule: Sequence[int]) -> Outcomes:
    """The outcomes for every a at once: (P, n+1) arrays. Entries with a below a prompt's failed draws do not occur."""
    part = kernel(ranking.size, schedule)
    shape = (len(ranking.rows), ranking.size + 1)
    rest_good = np.zeros(shape)
    np.cumsum(ranking.quality * part.rest_at, axis=1, out=rest_good[:, 1:])
    nothing = np.broadcast_to(part.never[ranking.failed][:, None], shape)
    return Outcomes(
        accepted=np.broadcast_to(1.0 - part.never, shape),
        accepted_good=ranking.quality @ part.accepted_at,
        rest=np.broadcast_to(part.never, shape) - nothing,
        rest_good=rest_good,
        nothing=nothing,
        draws=np.broadcast_to(part.draws, shape),
        loops=np.broadcast_to(part.loops, shape),
    )
