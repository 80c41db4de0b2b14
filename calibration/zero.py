"""Where "acceptable" begins for a scorer that only ranks: what labels say of its zero, and how much they say.

Pairs leave an offset of each prompt open. The score of a *fixed* answer to the same prompt carries the same offset, and the
difference carries none. Of three forms the simplest wins that no other one beats on held-out prompts. Offsets show in the order of
raw scores: better among answers to one prompt than among answers to several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bonmini_guard.calibration.logs import Bools, Floats, Integers
from bonmini_guard.errors import ConfigurationError, InputError, needing
from bonmini_guard.logs.rows import Row, numbered, unit_of
from bonmini_guard.reward.spec import Anchor, Zero

with needing("calibration"):
    from scipy.optimize import minimize
    from scipy.stats import mannwhitneyu

FORMS = ("shift", "shift and factor", "fixed answers")
FOLDS, LEAST = 5, 10
#: By how much better the order within prompts must be than between them for an offset of prompts to be believed.
_OFFSET = 0.02
#: A ridge on the weights of fixed answers, in standard deviations of what they measure: few labels move them little.
_RIDGE = 1.0


@dataclass(frozen=True)
class Labels:
    """Labelled answers: (n,) raw scores, (n, k) those of the fixed answers to the same prompt, (n,) acceptable, (n,) the prompt."""

    raw: Floats
    anchors: Floats
    good: Bools
    unit: Integers

    def take(self, rows: Bools) -> Labels:
        """Some of them."""
        return Labels(*(column[rows] for column in vars(self).values()))


@dataclass(frozen=True)
class Fit:
    """R = factor * raw + shift - anchors @ weights."""

    shift: float
    factor: float
    weights: Floats

    def scores(self, labels: Labels) -> Floats:
        """(n,) scores with the zero."""
        return self.factor * labels.raw + self.shift - labels.anchors @ self.weights

    def zero(self, texts: Sequence[str]) -> Zero:
        """As a spec has it."""
        weighed = [Anchor(text=text, weight=float(weight)) for text, weight in zip(texts, self.weights, strict=True) if weight]
        return Zero(shift=self.shift, factor=self.factor, anchors=tuple(weighed))


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        form, fit: one of ``FORMS``, and it on all labels.
        table: by form, on held-out prompts: ``log_loss``, ``right_side`` (of zero) and ``auc``.
        gain: by form, how much it lowers the log loss of the form before it: mean over prompts, and its standard error.
        within: share of pairs of a good and a bad answer to one prompt that the raw scores put in order; NaN if there is none.
        between: the same over answers to different prompts.
    """

    form: str
    fit: Fit
    table: Mapping[str, Mapping[str, float]]
    gain: Mapping[str, tuple[float, float]]
    within: float
    between: float


def labels_of(rows: Iterable[Row], scorer: Any, anchors: Sequence[str]) -> Labels:
    """Score what is labelled, and the fixed answers beside it. Scores of this very scorer that stand in a row are kept."""
    from langchain_core.messages import AIMessage

    fixed, mark, found = [AIMessage(text) for text in anchors], scorer.fingerprint(), list[tuple[float, list[float], bool, int]]()
    for number, row in enumerate(rows):
        wanted = [one for one in row.candidates if not one.failed and one.label is not None]
        if not wanted or not row.is_random:
            continue
        known = row.value.get("scored_by") == mark and all(one.value.get("score") is not None for one in wanted)
        messages = [turn.message() for turn in row.prompt]
        given = scorer.score(messages, [*([] if known else [one.turn.message() for one in wanted]), *fixed])
        scores, beside = ([one.score for one in wanted], given) if known else (given[: len(wanted)], given[len(wanted) :])
        if None in beside:
            raise InputError(f"{row.place}: the answer {anchors[beside.index(None)]!r} has no score: give another --anchor")
        unit, _ = unit_of(row.value.get("group"), row.value.get("prompt"), number)
        found += [(s, beside, bool(one.label), unit) for s, one in zip(scores, wanted, strict=True) if s is not None]
    if not found:
        raise InputError("no answer is labelled: give rows whose candidates have acceptable = true or false")
    raw, anchored, good, units = zip(*found, strict=True)
    return Labels(
        np.array(raw, dtype=np.float64),
        np.array(anchored, dtype=np.float64).reshape(len(raw), len(anchors)),
        np.array(good, dtype=np.bool_),
        np.array(numbered(units)),
    )


def fit(labels: Labels, form: str) -> Fit:
    """Maximum likelihood of P(acceptable) = sigmoid(R); a factor is positive, and so orders answers of a prompt as before."""
    scale = float(np.std(labels.raw)) or 1.0
    spread = np.where(labels.anchors.std(axis=0) > 0, labels.anchors.std(axis=0), 1.0)
    sign = np.where(labels.good, 1.0, -1.0)
    count = labels.anchors.shape[1] if form == FORMS[2] else 0

    def unpacked(at: Floats) -> Fit:
        weights = np.zeros(labels.anchors.shape[1])
        weights[:count] = at[2 : 2 + count] / spread[:count]
        factor = float(np.exp(at[1]) / scale) if form != FORMS[0] else 1.0
        # from the means on, so that a spread that is small beside them is found, too
        return Fit(float(at[0] - factor * labels.raw.mean() + labels.anchors.mean(axis=0) @ weights), factor, weights)

    def loss(at: Floats) -> float:
        return float(np.logaddexp(0, -sign * unpacked(at).scores(labels)).sum() + _RIDGE * (at[2:] ** 2).sum() + 1e-3 * at[1] ** 2)

    return unpacked(minimize(loss, np.zeros(2 + count), method="L-BFGS-B").x)


def choose(labels: Labels, seed: int = 0) -> Choice:
    """The simplest form that no other one beats by more than a standard error on held-out prompts.

    Raises:
        ConfigurationError: fewer than ten prompts, or only good or only bad answers.
    """
    units = int(labels.unit.max()) + 1
    if units < LEAST or labels.good.all() or not labels.good.any():
        raise ConfigurationError(
            f"{units} prompts with {int(labels.good.sum())} acceptable of {labels.good.size} answers say nothing about a zero: "
            f"label at least {LEAST} prompts, some answers acceptable and some not"
        )
    forms = FORMS if labels.anchors.shape[1] else FORMS[:2]
    fold = np.random.default_rng(seed).permutation(units)[labels.unit] % FOLDS
    held = {form: _held_out(labels, fold, form) for form in forms}
    losses = {
        form: np.bincount(labels.unit, np.logaddexp(0, np.where(labels.good, -held[form], held[form]))) / np.bincount(labels.unit)
        for form in forms
    }
    chosen, gain, (within, between) = forms[0], dict[str, tuple[float, float]](), orders(labels)
    for form in forms[1:]:
        better = losses[chosen] - losses[form]
        gain[form] = float(better.mean()), float(better.std(ddof=1) / np.sqrt(units))
        # Where answers to one prompt are in no better order than answers to several, no offset is to be taken off: a fixed answer
        # then lowers the loss over all answers, and harms the order of the best ones, which are served.
        if gain[form][0] > gain[form][1] and (form != FORMS[2] or within > between + _OFFSET):
            chosen = form
    table = {form: _worth(held[form], labels.good, losses[form]) for form in forms}
    return Choice(chosen, fit(labels, chosen), table, gain, within, between)


def orders(labels: Labels) -> tuple[float, float]:
    """How often a good answer's raw score is above a bad one's: to the same prompt, and to another."""
    right = pairs = 0.0
    for rows in np.split(np.argsort(labels.unit, kind="stable"), np.cumsum(np.bincount(labels.unit))[:-1]):
        count = _pairs(labels.good[rows])
        right, pairs = right + (auc(labels.raw[rows], labels.good[rows]) * count if count else 0.0), pairs + count
    every, total = auc(labels.raw, labels.good), _pairs(labels.good)
    others = total - pairs
    return right / pairs if pairs else np.nan, (every * total - right) / others if others else np.nan


def auc(scores: Floats, good: Bools) -> float:
    """Area under the ROC curve; ties count half."""
    return float(mannwhitneyu(scores[good], scores[~good], method="asymptotic").statistic / _pairs(good))


def _pairs(good: Bools) -> int:
    return int(good.sum()) * int((~good).sum())


def _held_out(labels: Labels, fold: Integers, form: str) -> Floats:
    scores = np.empty(labels.raw.size)
    for number in range(FOLDS):
        out = fold == number
        scores[out] = fit(labels.take(~out), form).scores(labels.take(out))
    return scores


def _worth(scores: Floats, good: Bools, losses: Floats) -> dict[str, float]:
    return {"log_loss": float(losses.mean()), "right_side": float(((scores >= 0) == good).mean()), "auc": auc(scores, good)}
