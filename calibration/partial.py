"""Partial labels, and scores without a zero: what can be estimated from them, and what can then no longer be promised."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from bonmini_guard.calibration.logs import Floats, Integers, Log
from bonmini_guard.errors import InputError, MissingExtraError
from bonmini_guard.profile import ScoreTransform

try:
    from scipy.optimize import isotonic_regression, minimize
except ImportError as error:
    raise MissingExtraError("scipy", "calibration") from error

FOLDS = 5
#: Labelled candidates below which a fit says nothing.
LEAST_LABELS = 20


@dataclass(frozen=True)
class Estimated:
    """A log whose missing labels are filled with P(acceptable | score).

    Attributes:
        log: labels in [0, 1]: 0 or 1 where a labeller said so, expected ones elsewhere.
        labelled: candidates with a label.
        modelled: candidates whose label is an expectation.
    """

    log: Log
    labelled: int
    modelled: int

    @property
    def sentence(self) -> str:
        """What is promised and what is not."""
        share = self.modelled / max(1, self.labelled + self.modelled)
        return (
            f"{100 * share:.0f} % of the labels are modelled from the scores: served shares, draws and loops are exact, every "
            f"rate of good or bad answers is an estimate and nothing is promised"
        )


def with_expected_labels(log: Log, seed: int = 0) -> Estimated:
    """Fill missing labels with a cross-fitted isotonic P(acceptable | score).

    The rows' groups are dealt into 5 folds; an unlabelled candidate gets the mean label that isotonic regression (pool adjacent
    violators, :func:`scipy.optimize.isotonic_regression`) of the *other* folds' labelled candidates gives at its score, so that a
    label never explains its own prompt. If only served answers are labelled, the fit knows them only: at equal scores an answer
    that was not selected may be better or worse, which no figure can tell.

    Raises:
        InputError: too few labels, of one kind only, or of too few prompts.
    """
    known = log.drawn & np.isfinite(log.labels)
    _require(log, known)
    folds = _folds(log.groups, seed)
    labels = log.labels.copy()
    for fold in range(FOLDS):
        inside = (folds == fold)[:, None]
        missing = log.drawn & ~known & inside
        if not (known & ~inside).any():
            raise InputError(f"{log.source}: all labels are of the same few prompts, and cannot model these; label more prompts")
        labels[missing] = _isotonic(log.scores[known & ~inside], log.labels[known & ~inside], log.scores[missing])
    return Estimated(replace(log, labels=labels), int(known.sum()), int((log.drawn & ~known).sum()))


def _folds(groups: Integers, seed: int) -> Integers:
    codes, inverse = np.unique(groups, return_inverse=True)
    dealt: Integers = (np.random.default_rng(seed).permutation(codes.size) % FOLDS)[inverse]
    return dealt


def _isotonic(scores: Floats, labels: Floats, wanted: Floats) -> Floats:
    values, place = np.unique(scores, return_inverse=True)
    weights = np.bincount(place).astype(np.float64)
    means = np.bincount(place, weights=labels) / weights
    fitted = isotonic_regression(means, weights=weights).x
    return np.asarray(np.interp(wanted, values, fitted), dtype=np.float64)


def _require(log: Log, known: np.ndarray) -> None:
    labels = log.labels[known]
    if labels.size < LEAST_LABELS or np.unique(labels).size < 2:
        raise InputError(
            f"{log.source}: {labels.size} labelled candidates ({int(labels.sum())} acceptable) are too few to model the others; "
            f"label {LEAST_LABELS} or more, of both kinds, with 'bonmini-guard label'"
        )


@dataclass(frozen=True)
class AverageZero:
    """The zero that scores without one have on average.

    Attributes:
        transform: ``score = a * raw_score + b``: on average over prompts, sigmoid of it is the chance of being acceptable.
        offsets: standard deviation of what each prompt's own zero differs by, in the same units.
    """

    transform: ScoreTransform
    offsets: float

    @property
    def sentence(self) -> str:
        """How far to believe it."""
        low, high = (100 / (1 + math.exp(-sign * self.offsets)) for sign in (-1, 1))
        return (
            f"average zero: score = {self.transform.a:.4g} * raw {self.transform.b:+.4g}; prompts differ from it by "
            f"{self.offsets:.2g} (standard deviation): a score of 0 means {low:.0f} % to {high:.0f} % acceptable "
            f"for most prompts, not 50 %"
        )


def average_zero(log: Log) -> AverageZero:
    """Fit ``P(acceptable) = sigmoid(a * raw + b)``, and the spread of per-prompt offsets around it.

    a and b by maximum likelihood over labelled candidates (Platt 1999). The offsets' standard deviation s by maximum marginal
    likelihood of ``sigmoid(a' raw + b' + s z)``, z standard normal and shared by a prompt's candidates (random-intercept logistic
    model, Gauss-Hermite quadrature with 21 nodes).

    Raises:
        InputError: too few labels, labels of one kind only, or higher scores that are not better.
    """
    known = log.drawn & np.isfinite(log.labels)
    _require(log, known)
    scores, labels = log.scores[known], log.labels[known]
    middle, spread = float(scores.mean()), float(scores.std()) or 1.0
    scaled = (scores - middle) / spread
    slope, zero = minimize(lambda x: _loss(x[0] * scaled + x[1], labels), [1.0, 0.0], method="BFGS").x
    if slope <= 0:
        raise InputError(
            f"{log.source}: higher scores are not more often acceptable, so that no zero can be fitted; check the scores"
        )
    units = np.broadcast_to(log.groups[:, None], log.scores.shape)[known]
    offsets = _offsets(scaled, labels, np.unique(units, return_inverse=True)[1], (slope, zero))
    a = float(slope) / spread
    return AverageZero(ScoreTransform(a=a, b=float(zero) - a * middle), offsets)


def _loss(logits: Floats, labels: Floats) -> float:
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def _offsets(scores: Floats, labels: Floats, units: Integers, start: tuple[float, float]) -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    log_weights = np.log(weights / weights.sum())
    order = np.argsort(units, kind="stable")
    scores, labels = scores[order], labels[order]
    begins = np.flatnonzero(np.diff(units[order], prepend=-1))

    def loss(x: Floats) -> float:
        logits = x[0] * scores[:, None] + x[1] + abs(x[2]) * nodes
        parts = labels[:, None] * logits - np.logaddexp(0.0, logits)
        return -float(np.logaddexp.reduce(np.add.reduceat(parts, begins, axis=0) + log_weights, axis=1).mean())

    return abs(float(minimize(loss, [*start, 0.7], method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6}).x[2]))
