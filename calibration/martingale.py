"""Evidence that grows request by request and may be looked at as often as one likes: test martingales and e-processes.

Each process here starts at 1 and is, while nothing has changed, at most 1 in expectation at whatever moment one stops to look. So
it ever reaches ``1 / level`` with probability at most ``level`` (Ville's inequality), however many looks were taken.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bonmini_guard.calibration.logs import Floats
from bonmini_guard.errors import needing

with needing("calibration"):
    from scipy.special import betaln

#: How readily a gambler changes his bet, from hardly ever to now and then; the mean of their capitals is taken.
JUMPS = np.array([1e-4, 1e-3, 1e-2])[:, None]
#: Bets on a p-value p: ``1 + centre (p - 1/2) + spread (6 (p - 1/2)^2 - 1/2)``. The first does not bet.
CENTRE = np.array([0.0, 1.0, -1.0, 1.9, -1.9, 0.0, 0.0])
SPREAD = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.9, -0.9])
#: Bets on a share: its odds are those of all requests so far, times this. The first does not bet.
ODDS = np.array([1.0, 1.5, 2.0, 4.0, 1 / 1.5, 1 / 2.0, 1 / 4.0])
#: Bets against a promise: the rate is this many times the promised one. The first does not bet.
TIMES = np.array([1.0, 1.25, 1.5, 2.0, 3.0, 5.0])

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class ProcessState(BaseModel):
    """A process between two runs, as JSON holds it; see :class:`Process`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    shares: list[list[Annotated[Finite, Field(ge=0)]]]
    logs: list[Finite]
    counts: list[Count]
    steps: Count
    highest: Finite
    crossed: Count | None


class Process:
    """Gamblers who bet on each step and now and then change their bet (Vovk et al., arXiv 2102.10439, algorithm 1).

    Args:
        level: an alarm is ``1 / level`` times the first capital.
        bets: how many bets there are.
        counts: (C,) what the sub-class counts, at the beginning.
        state: of an earlier run, to go on from; ValueError if it is not that of such a process.

    Attributes:
        steps: how many there were.
        highest: the largest log value so far, at least 0.
        crossed: the step at which the alarm was first reached; None if never.
    """

    def __init__(self, level: float, bets: int, counts: Sequence[int], state: ProcessState | None = None) -> None:
        self.level = level
        self.counts = np.asarray(counts if state is None else state.counts, dtype=np.int64)
        self._shares = np.full((JUMPS.size, bets), 1.0 / bets) if state is None else np.asarray(state.shares, dtype=np.float64)
        self._logs = np.zeros(JUMPS.size) if state is None else np.asarray(state.logs, dtype=np.float64)
        self.steps, self.highest, self.crossed = (0, 0.0, None) if state is None else (state.steps, state.highest, state.crossed)
        shapes = (self.counts.shape, self._shares.shape, self._logs.shape)
        if shapes != ((len(counts),), (JUMPS.size, bets), (JUMPS.size,)):
            raise ValueError("its numbers are not as many as this profile needs")

    @property
    def p_value(self) -> float:
        """Valid at any time: one over the largest value so far."""
        return math.exp(-self.highest)

    def state(self) -> ProcessState:
        """What to go on from."""
        return ProcessState(
            shares=self._shares.tolist(),
            logs=self._logs.tolist(),
            counts=self.counts.tolist(),
            steps=self.steps,
            highest=self.highest,
            crossed=self.crossed,
        )

    def _step(self, payoffs: Floats) -> float:
        """Pay (B,) factors of the bets, each at most 1 in expectation; returns the log of the mean capital.

        The shares of each gambler add up to 1.
        """
        self._shares = ((1.0 - JUMPS) * self._shares + JUMPS / payoffs.size) * payoffs
        total = self._shares.sum(axis=1)
        self._shares /= total[:, None]
        self._logs += np.log(total)
        return float(np.logaddexp.reduce(self._logs)) - math.log(JUMPS.size)

    def _note(self, log_value: float) -> None:
        self.steps += 1
        self.highest = max(self.highest, log_value)
        if self.crossed is None and log_value >= -math.log(self.level):
            self.crossed = self.steps


class Ranks(Process):
    """A conformal test martingale: scores against all earlier ones, a reference among them.

    The p-value of a score is the share of scores above it, itself and its equals counted by chance; p-values of exchangeable
    scores are independent and uniform (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, section 2.2). Only
    counts are kept. A reference of m scores leaves m + 1 gaps; with ties broken by chance, the next score falls into a gap with
    probability ``(1 + earlier scores in it) / (m + 1 + earlier scores)`` (Polya's urn), so ranks among the gaps are exact, whatever
    the distribution. Without a reference the cells are fixed beforehand, and scores in one cell are equals.

    Args:
        edges: the reference's scores, or the cells' edges.
        seed: of chance; what is drawn for a request depends on it and the request's id alone, so that a run that goes on
            from a state ends as one run would.
        reference: whether the edges are a reference, from which the scores came too if nothing changed.
    """

    def __init__(
        self, level: float, edges: Sequence[float], seed: str, *, reference: bool = True, state: ProcessState | None = None
    ) -> None:
        self._itself = 0 if reference else 1
        super().__init__(level, CENTRE.size, [1 - self._itself] * (len(edges) + 1), state)
        self._seed = seed
        self._edges = sorted((edge, chances(seed, f"edge {number}")[0]) for number, edge in enumerate(edges))

    def add(self, score: float, name: str) -> None:
        """Count the score of a request with this id."""
        centred = self.rank(score, name) - 0.5
        # 1 in expectation if the p-value is uniform
        self._note(self._step(1.0 + CENTRE * centred + SPREAD * (6.0 * centred**2 - 0.5)))

    def rank(self, score: float, name: str) -> float:
        """The p-value, after which the score is one of the earlier ones."""
        tie, chance = chances(self._seed, f"score {name}")
        cell = bisect_left(self._edges, (score, 1.0 if self._itself else tie))
        above, own = int(self.counts[cell + 1 :].sum()), int(self.counts[cell]) + self._itself
        p_value = (above + chance * own) / (int(self.counts.sum()) + self._itself)
        self.counts[cell] += 1
        return p_value


class Shares(Process):
    """An e-process for "the share is what it was", the share before being known from a sample only.

    Universal inference (Wasserman, Ramdas and Balakrishnan, arXiv 1912.11436, section 8): the likelihood of predictions made
    step by step, over the largest likelihood that any one share gives to the reference and all requests together. The latter is at
    least that of the true share, whose ratio is a martingale from 1. The reference is predicted by the rule of Krichevsky and
    Trofimov, each request by a mixture of that rule and of bets on other odds.
    """

    def __init__(self, level: float, ones: int = 0, units: int = 0, state: ProcessState | None = None) -> None:
        super().__init__(level, ODDS.size, [ones, units], state)
        self._reference = predicted(ones, units)

    def add(self, one: bool) -> None:
        """Count one request."""
        ones, units = map(int, self.counts)
        odds = ODDS * (ones + 0.5) / (units - ones + 0.5)
        capital = self._step((odds if one else 1.0) / (1.0 + odds))
        self.counts += (int(one), 1)
        ones, units = map(int, self.counts)
        best = sum(count * math.log(count / units) for count in (ones, units - ones) if count)
        self._note(self._reference + capital - best)


def predicted(ones: int, units: int) -> float:
    """Log likelihood of a 0/1 sequence under the predictions ``(ones so far + 1/2) / (units so far + 1)``."""
    return float(betaln(ones + 0.5, units - ones + 0.5) - betaln(0.5, 0.5))


class Refutation(Process):
    """An e-process against a promise: "of these, at most such a share is bad". Its counts are of the bad, and of all."""

    def __init__(self, level: float, state: ProcessState | None = None) -> None:
        super().__init__(level, TIMES.size, [0, 0], state)

    def add(self, bad: bool, promised: float) -> None:
        """Count one label against the share promised for it, which must not depend on it; of 1 or more nothing is learnt."""
        self.counts += (int(bad), 1)
        if promised < 1.0:
            self._note(self._step(promise_payoffs(bad, promised)))


def promise_payoffs(bad: bool, promised: float) -> Floats:
    """(B,) likelihood ratios: at most 1 in expectation if the share of the bad is at most the promised one."""
    rates = np.minimum(TIMES * promised, 0.5 + 0.5 * promised)
    rates[0] = promised
    return rates / promised if bad else (1.0 - rates) / (1.0 - promised)


def lower_sequence(ones: int, units: int, delta: float) -> float:
    """A lower limit of a share that holds at all times together with probability ``1 - delta``; 0 if there are no ones.

    The least share that the mixture of :func:`predicted` does not refute: ``predicted - log likelihood < log(1 / delta)``.
    """
    low, high = 0.0, ones / units if units else 0.0
    most = predicted(ones, units) + math.log(delta)
    for _ in range(40 if ones else 0):
        middle = (low + high) / 2
        missed = (units - ones) * math.log1p(-middle) if units > ones else 0.0
        low, high = (middle, high) if ones * math.log(middle) + missed <= most else (low, middle)
    return low


def chances(seed: str, name: str) -> tuple[float, float]:
    """Two independent uniform numbers in [0, 1) that the seed and the name fix."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=14).digest()
    # 53 bits of each half: what a double holds, so that 1 never comes out
    halves = (int.from_bytes(digest[:7], "big") >> 3, int.from_bytes(digest[7:], "big") >> 3)
    return halves[0] / 2**53, halves[1] / 2**53
