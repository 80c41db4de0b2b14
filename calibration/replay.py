"""Exact replay: what a guard would have done on a log, in expectation over draw orders. No Monte Carlo.

The draws of a request are a uniformly random ordered sample, without replacement, of N of the n candidates that the log
holds for the prompt. Write M_j for the position (see :mod:`bonmini_guard.calibration.ranking`) of the best candidate in
blocks 1..j. The procedure goes on after loop j when ``low_j < M_j <= top_j``: the best score does not pass the threshold and
is not under the floor. With ``G_j(x)`` the chance that block j lies within positions 1..x, given that the blocks before do,

    F_j(x) = P(went on after loops 1..j-1, M_j <= x) = H_{j-1}(x) G_j(x)
    H_j(x) = P(went on after loops 1..j,   M_j <= x) = max(0, F_j(min(x, top_j)) - F_j(low_j)),   H_0 = 1

because M_j <= x holds exactly when M_{j-1} <= x and block j lies within 1..x, and the chance of the latter does not depend
on where below x the earlier blocks lie. ``F_j(p) - F_j(p-1)`` is then the chance of arriving at the end of loop j with
the best at position p. Without floors this is the product of hypergeometric terms over blocks with
``cap_i = min(t_i, ..., t_l)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from bonmini_guard.calibration.logs import Floats, Integers, Log
from bonmini_guard.calibration.ranking import Mask, Ranking, block_chances, rank
from bonmini_guard.policy.policy import Mode, check_mode, check_schedule, check_thresholds


@dataclass(frozen=True)
class Outcomes:
    """Expectations for each of R prompts, (R,) arrays. The first six are chances.

    Attributes:
        accepted: an answer passed (and was served).
        accepted_good: ... and is acceptable.
        rest: the request ended without a pass, and at least one draw has a score.
        rest_good: ... and the best so far is acceptable.
        nothing: the request ended with failed draws only: no answer exists, which counts as not acceptable.
        draws: draws taken.
        loops: loops taken.
    """

    accepted: Floats
    accepted_good: Floats
    rest: Floats
    rest_good: Floats
    nothing: Floats
    draws: Floats
    loops: Floats

    def settle(self, mode: Mode) -> Settled:
        """What a mode makes of it: guardrail abstains without a pass, accelerator serves the best so far."""
        check_mode(mode)
        if mode == "guardrail":
            best_effort = best_effort_good = np.zeros_like(self.rest)
            abstained_good = self.rest_good
        else:
            best_effort, best_effort_good = self.rest, self.rest_good
            abstained_good = np.zeros_like(self.rest)
        served_good = self.accepted_good + best_effort_good
        return Settled(
            served_good=served_good,
            served_bad=self.accepted + best_effort - served_good,
            abstained_good=abstained_good,
            abstained_bad=1.0 - self.accepted - best_effort - abstained_good,
            accepted=self.accepted,
            best_effort=best_effort,
            draws=self.draws,
            loops=self.loops,
        )


@dataclass(frozen=True)
class Settled:
    """Expectations of a guard for each of R prompts, (R,) arrays. The first four are chances that sum to 1.

    Attributes:
        served_good: served and acceptable: a true positive.
        served_bad: served and not acceptable: a false acceptance.
        abstained_good: abstained though the best so far is acceptable: a false negative.
        abstained_bad: abstained, and the best so far is not acceptable or does not exist: a true negative.
        accepted: served because it passed.
        best_effort: served without a pass.
        draws: draws taken.
        loops: loops taken.
    """

    served_good: Floats
    served_bad: Floats
    abstained_good: Floats
    abstained_bad: Floats
    accepted: Floats
    best_effort: Floats
    draws: Floats
    loops: Floats

    @property
    def served(self) -> Floats:
        """Chance that an answer is given."""
        return self.accepted + self.best_effort


def replay(
    log: Log, mode: Mode, schedule: Sequence[int], thresholds: Sequence[float], floors: Sequence[float] | None = None
) -> Settled:
    """The exact expectation of a guard on every prompt of a log.

    Args:
        log: R complete rows; scores must already be those that the thresholds are compared with.
        mode: guardrail or accelerator.
        schedule: draws of each loop.
        thresholds: one for each loop, in any order; infinity never exits there.
        floors: one for each loop: a best score below it gives the request up (``BelowFloor``).

    Raises:
        InputError: a row has fewer candidates than the schedule draws, or lacks labels.
        ValueError: schedule and thresholds do not fit.
    """
    check_thresholds(thresholds, len(schedule))
    check_schedule(schedule)
    log.require(sum(schedule))
    log = log.require_labels()
    return replay_rankings(rank(log.scores, log.labels.astype(np.float64), log.counts), schedule, thresholds, floors).settle(mode)


def replay_rankings(
    rankings: Sequence[Ranking],
    schedule: Sequence[int],
    thresholds: Sequence[float | Floats],
    floors: Sequence[float] | None = None,
) -> Outcomes:
    """The same on sorted candidates; rows come back in the log's order.

    Args:
        rankings: all prompts, grouped by their number of candidates.
        schedule: draws of each loop.
        thresholds: for each loop one number (or, with a single ranking of P prompts, a (P,) array).
        floors: one for each loop, or None.
    """
    parts = [_replay_one(ranking, schedule, thresholds, floors) for ranking in rankings]
    order = np.concatenate([ranking.rows for ranking in rankings])
    back = np.argsort(order, kind="stable")
    return Outcomes(*(np.concatenate([getattr(part, f.name) for part in parts])[back] for f in fields(Outcomes)))


def _replay_one(
    ranking: Ranking, schedule: Sequence[int], thresholds: Sequence[float | Floats], floors: Sequence[float] | None
) -> Outcomes:
    tally = _Tally(ranking)
    chances = block_chances(ranking.size, schedule)
    went_on = np.ones((len(ranking.rows), ranking.size + 1))
    for loop, draws in enumerate(schedule):
        tally.begin(went_on[:, -1], draws)
        arrived = went_on * chances[loop]
        top = ranking.below(thresholds[loop])
        low = np.zeros_like(top) if floors is None else np.minimum(ranking.under_floor(floors[loop]), top)
        last = loop == len(schedule) - 1
        tally.end(arrived, top, top if last else low)
        went_on = _clip(arrived, low, top)
    return tally.outcomes()


def _clip(arrived: Floats, low: Integers, top: Integers) -> Floats:
    """H_j from F_j: keep the positions low < p <= top."""
    positions = np.arange(arrived.shape[1])
    inside = np.clip(positions, low[:, None], top[:, None])
    floor = np.take_along_axis(arrived, low[:, None], axis=1)
    kept: Floats = np.take_along_axis(arrived, inside, axis=1) - floor
    return kept


class _Tally:
    """Sums the endings over loops for one ranking."""

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking
        self._sums = {f.name: np.zeros(len(ranking.rows)) for f in fields(Outcomes)}

    def begin(self, chance: Floats, draws: int) -> None:
        """A loop is drawn with this chance."""
        self._sums["draws"] += chance * draws
        self._sums["loops"] += chance

    def end(self, arrived: Floats, top: Integers, given_up: Integers) -> None:
        """A loop ends: above ``top`` the best passes, up to ``given_up`` the request ends without a pass."""
        mass = np.diff(arrived, axis=1)
        positions = np.arange(1, arrived.shape[1])
        passed = positions > top[:, None]
        failed = positions <= self._ranking.failed[:, None]
        ended = (positions <= given_up[:, None]) & ~failed
        lost = failed & (positions <= given_up[:, None])
        self._add("accepted", mass, passed)
        self._add("rest", mass, ended)
        if lost.any():
            self._sums["nothing"] += np.sum(mass * lost, axis=1)

    def _add(self, name: str, mass: Floats, where: Mask) -> None:
        chosen = mass * where
        self._sums[name] += chosen.sum(axis=1)
        self._sums[f"{name}_good"] += np.einsum("ij,ij->i", chosen, self._ranking.quality)

    def outcomes(self) -> Outcomes:
        """The sums."""
        return Outcomes(**self._sums)
