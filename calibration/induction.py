"""Per-loop thresholds by backward induction: when is one more loop worth its price?

Maximised over threshold rules, on a sample of prompts: mean of ``quality(served) - cost * price``, the price being in draws,
tokens or seconds. With the best so far at position p after loop j, stopping gives its quality q_p; going on gives, exactly (see
:mod:`bonmini_guard.calibration.replay`),

    C_j(p) = G_{j+1}(p) V_{j+1}(p) + sum_{x > p} (G_{j+1}(x) - G_{j+1}(x-1)) V_{j+1}(x) - cost price_{j+1}
    V_j(p) = q_p where p passes t_j, else C_j(p);   V_L(p) = q_p

A rule may look at the score alone, not at the prompt, so t_j maximises the gain ``q - C_j`` summed over all candidates that
it lets pass, each weighted by its chance of being the best when loop j ends. Given the other thresholds this is the best t_j;
sweeps repeat it until nothing moves, so the value never falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bonmini_guard.calibration.logs import Floats, Integers
from bonmini_guard.calibration.ranking import Ranking, block_chances

SWEEPS = 4


@dataclass(frozen=True)
class _Flat:
    """All candidates of all rankings, sorted by score from high to low; ``ends`` marks the last of each tie."""

    order: Integers
    scores: Floats
    ends: Integers


def thresholds_for_cost(
    rankings: Sequence[Ranking], schedule: Sequence[int], cost: float, prices: Floats | None = None
) -> tuple[float, ...]:
    """One threshold a loop; the last loop's is that of the loop before it, since an accelerator serves there anyway.

    Args:
        rankings: prompts with qualities in [0, 1].
        schedule: draws of each loop.
        cost: price of one draw, in units of quality; of one unit of ``prices`` where they are given.
        prices: (R, L) what each loop of each prompt costs (:func:`bonmini_guard.calibration.costs.loop_prices`); default its draws.
    """
    flat = _flatten(rankings)
    chances = [block_chances(ranking.size, schedule) for ranking in rankings]
    thresholds = [float("inf")] * len(schedule)
    for _ in range(SWEEPS):
        before = list(thresholds)
        weights = [_arrivals(r, g, thresholds) for r, g in zip(rankings, chances, strict=True)]
        values = [ranking.quality for ranking in rankings]
        for loop in reversed(range(len(schedule) - 1)):
            onward = [
                _onward(v, g[loop + 1]) - cost * _price(r, schedule, loop + 1, prices)
                for r, v, g in zip(rankings, values, chances, strict=True)
            ]
            gains = [w[loop] * (r.quality - c) for r, w, c in zip(rankings, weights, onward, strict=True)]
            thresholds[loop] = _best_cut(flat, gains)
            values = [np.where(r.scores >= thresholds[loop], r.quality, c) for r, c in zip(rankings, onward, strict=True)]
        if thresholds == before:
            break
    if len(thresholds) > 1:
        thresholds[-1] = thresholds[-2]
    return tuple(thresholds)


def _price(ranking: Ranking, schedule: Sequence[int], loop: int, prices: Floats | None) -> Floats | int:
    """What a loop costs: one number, or one for each of the ranking's prompts."""
    return schedule[loop] if prices is None else prices[ranking.rows, loop][:, None]


def _flatten(rankings: Sequence[Ranking]) -> _Flat:
    scores = np.concatenate([ranking.scores.ravel() for ranking in rankings])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.ones(scores.size, dtype=bool)
    last[:-1] = scores[1:] != scores[:-1]
    return _Flat(order, scores, np.flatnonzero(last & np.isfinite(scores)))


def _arrivals(ranking: Ranking, chances: Floats, thresholds: Sequence[float]) -> list[Floats]:
    """For each loop (P, n): the chance that it ends with the best at each position, under the thresholds before it."""
    went_on = np.ones((len(ranking.rows), ranking.size + 1))
    masses = []
    for loop, threshold in enumerate(thresholds):
        arrived = went_on * chances[loop]
        masses.append(np.diff(arrived, axis=1))
        top = ranking.below(threshold)[:, None]
        went_on = np.take_along_axis(arrived, np.minimum(np.arange(ranking.size + 1), top), axis=1)
    return masses


def _onward(values: Floats, chances: Floats) -> Floats:
    """(P, n) expected value of the next loop from each position."""
    gained = np.diff(chances) * values
    above = np.cumsum(gained[:, ::-1], axis=1)[:, ::-1] - gained
    expected: Floats = chances[1:] * values + above
    return expected


def _best_cut(flat: _Flat, gains: Sequence[Floats]) -> float:
    """The threshold that lets pass the candidates with the largest total gain; infinity if no gain is positive."""
    total = np.cumsum(np.concatenate([gain.ravel() for gain in gains])[flat.order])[flat.ends]
    if total.size == 0 or total.max() <= 0:
        return float("inf")
    best = int(np.argmax(total))
    cut = float(flat.scores[flat.ends[best]])
    return (cut + float(flat.scores[flat.ends[best + 1]])) / 2 if best + 1 < total.size else cut
