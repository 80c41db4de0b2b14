"""What a loop costs: draws, tokens (money, capacity) or seconds (an idle server's latency)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from bonmini_guard.calibration.logs import Floats, Log
from bonmini_guard.calibration.ranking import Ranking
from bonmini_guard.calibration.replay import replay_rankings
from bonmini_guard.errors import InputError

Cost = Literal["draws", "tokens", "seconds"]


def loop_prices(log: Log, schedule: Sequence[int], cost: Cost) -> Floats:
    """(R, L) expected cost of each loop of each prompt, if it is drawn.

    Draws: k_j. Tokens: k_j times the mean ``tokens`` of the prompt's candidates. Seconds: the draws of a loop run at the same
    time, so the expected maximum of k_j of the n candidates' ``seconds``, ``sum_p s_(p) ((p)_k - (p-1)_k) / (n)_k`` over the sorted
    s; waiting between loops and scoring are not in it. Costs are taken as independent of the scores within a prompt.

    Raises:
        InputError: the log was read without these costs.
    """
    if cost == "draws":
        return np.broadcast_to(np.asarray(schedule, dtype=np.float64), (len(log), len(schedule)))
    if log.costs is None:
        raise InputError(f'{log.source}: was read without "{cost}" of candidates; pass cost="{cost}" to load_log')
    if cost == "tokens":
        sums = np.nansum(log.costs, axis=1) / log.counts
        return np.asarray(sums[:, None] * np.asarray(schedule, dtype=np.float64), dtype=np.float64)
    return np.stack([_expected_maximum(log, draws) for draws in schedule], axis=1)


def _expected_maximum(log: Log, draws: int) -> Floats:
    assert log.costs is not None
    expected = np.zeros(len(log))
    for size in np.unique(log.counts):
        rows = np.flatnonzero(log.counts == size)
        seconds = np.sort(np.nan_to_num(log.costs[rows, :size]), axis=1)
        within = np.ones(size + 1)
        for taken in range(draws):
            within *= np.maximum(np.arange(size + 1) - taken, 0.0) / (size - taken)
        expected[rows] = seconds @ np.diff(within)
    return expected


def expected_cost(rankings: Sequence[Ranking], schedule: Sequence[int], thresholds: Sequence[float], prices: Floats) -> Floats:
    """(R,) ``sum_j P(loop j is drawn) price_j``, the chances being exact (:mod:`bonmini_guard.calibration.replay`)."""
    total = prices[:, 0].copy()
    for loop in range(1, len(schedule)):
        before = replay_rankings(rankings, tuple(schedule[:loop]), tuple(thresholds[:loop]))
        total += (before.rest + before.nothing) * prices[:, loop]
    return total
