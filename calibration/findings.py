"""What drift says: its findings, and the labels it asks for where only labels could tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, repeat, takewhile

import numpy as np
from numpy.typing import ArrayLike

from bonmini_guard.calibration.logs import Bools, Floats, Integers
from bonmini_guard.calibration.martingale import TIMES, promise_payoffs
from bonmini_guard.errors import needing

with needing("calibration"):
    from scipy.special import bdtrc

FALSE_ALARM_RATE = 0.01
TODO = (
    "the profile's promise no longer covers this traffic: calibrate anew on recent complete rows (the guard's explore=0.02 "
    "collects them), and until then treat its figures as unproven"
)
#: The chance with which a risk of twice the promised one is to be found.
POWER = 0.8
#: So many labels may be asked for, each number 5 % above the one before; more than the last nobody is asked for.
NUMBERS = np.array(
    [*takewhile(lambda number: number <= 20_000, accumulate(repeat(5), lambda number, _: number + max(1, number // 20)))]
)


@dataclass(frozen=True)
class Finding:
    """The answer to one question.

    Attributes:
        test: first_loop_scores, first_loop_scores_over_time, abstentions, best_efforts, labels, slices or fingerprints.
        p_value: None for fingerprints.
        level: the p-value at which drift is found.
        what: the figures, in a sentence.
    """

    test: str
    found: bool
    p_value: float | None
    level: float
    what: str

    def __str__(self) -> str:
        return self.what if self.p_value is None else f"{self.what} [p = {self.p_value:.2g}, level {self.level:.2g}]"


@dataclass(frozen=True)
class LabelsWanted:
    """Labels that would tell whether the promise still holds.

    Attributes:
        number: how many answers to label, beside those ``known``.
        rows: ids of rows to label, picked at random, as many as are wanted or as there are.
    """

    number: int
    known: int
    rows: tuple[str, ...]
    sentence: str


@dataclass(frozen=True)
class Drift:
    """All answers.

    Attributes:
        false_alarm_rate: the chance of ``drift`` although nothing changed, at most.
        holds_for: which looks the rate is for, in words.
        traces: how many were looked at, those of earlier looks with the same state included.
        left_out: rows not looked at, and why.
        todo: what to do; empty without drift.
        labels_wanted: which labels would tell what nothing else can; None if there are enough, or drift was found.
    """

    drift: bool
    false_alarm_rate: float
    holds_for: str
    traces: int
    findings: tuple[Finding, ...]
    left_out: dict[str, int]
    todo: str
    labels_wanted: LabelsWanted | None = None


def labels_needed(promised: float, actual: float, refuted: Callable[[Integers, Integers], Bools]) -> int | None:
    """How many labels find a share of bad ones that is higher than promised, with probability :data:`POWER`; exact binomial.

    Args:
        promised: the share that is tested.
        actual: the share that is to be found.
        refuted: (N,) whether so many bad ones (first) of so many labels (second) refute the promise.

    Returns:
        The least of :data:`NUMBERS`; None where none of them is enough.
    """
    if promised >= actual:
        return None
    # from the promised share on, more bad ones refute more surely: the first counts that do are found by halving
    low, high = np.ceil(promised * NUMBERS).astype(np.int64), NUMBERS + 1
    while np.any(low < high):
        middle = (low + high) // 2
        found = refuted(middle, NUMBERS)
        low, high = np.where(found, low, np.minimum(middle + 1, high)), np.where(found, middle, high)
    enough = (low <= NUMBERS) & (at_least(low, NUMBERS, actual) >= POWER)
    return int(NUMBERS[np.argmax(enough)]) if enough.any() else None


def at_least(ones: ArrayLike, units: ArrayLike, share: float) -> Floats:
    """(N,) P(Bin(units, share) >= ones)."""
    return np.where(np.less_equal(ones, 0), 1.0, bdtrc(np.subtract(ones, 1), units, share))


def refuted_by_bets(promised: float, level: float) -> Callable[[Integers, Integers], Bools]:
    """The rule of a watch, as if it looked once: the mean of the bets' likelihood ratios reaches ``1 / level``."""
    bad_log, good_log = (np.log(promise_payoffs(bad, promised)) for bad in (True, False))

    def refuted(bad: Integers, units: Integers) -> Bools:
        logs = bad[:, None] * bad_log + (units - bad)[:, None] * good_log
        return np.asarray(np.logaddexp.reduce(logs, axis=1) - math.log(TIMES.size) >= -math.log(level))

    return refuted
