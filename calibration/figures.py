"""The figures of a guard on a log: counts, rates and costs, next to plain best-of-N."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from scipy.special import expit

from bonmini_guard.calibration.certify import lower_limit, upper_limit
from bonmini_guard.calibration.logs import Bools, Floats, Log, log_of_rows
from bonmini_guard.calibration.orders import labelled_units
from bonmini_guard.calibration.paths import Missing, exits, paths
from bonmini_guard.calibration.replay import Settled, rank, replay_rankings
from bonmini_guard.errors import ProfileError
from bonmini_guard.policy.policy import Mode
from bonmini_guard.policy.profile import GuardProfile, ScoreTransform

Figures = dict[str, float | None]

#: The figures as people are shown them: key, name (indented below what it is a part of), kind.
SHOWN = (
    ("requests", "requests", "count"),
    ("served", "served", "count"),
    ("accepted", "  accepted (passed)", "count"),
    ("best_effort", "  best effort", "count"),
    ("abstained", "abstained", "count"),
    ("missed_acceptances", "  though acceptable", "count"),
    ("false_acceptances", "served and not acceptable", "count"),
    ("served_and_bad_rate", "  of all requests", "rate"),
    ("bad_among_served_rate", "  of those served", "rate"),
    ("false_acceptance_rate", "  of those not acceptable", "rate"),
    ("precision", "precision", "rate"),
    ("recall", "recall", "rate"),
    ("recall_vs_best_of_n", "recall against best-of-N", "rate"),
    ("acceptable_rate", "served and acceptable, of all", "rate"),
    ("mean_draws", "draws a request", "mean"),
    ("mean_loops", "loops a request", "mean"),
)
#: Figures that need labels; null for a log without any.
LABEL_FIGURES = tuple(key for key, _, kind in SHOWN if kind == "rate" or key.endswith("_acceptances"))
#: Why a log's rows were not used.
LEFT_OUT = {
    "incomplete": "cut short by an early exit, so that calibration cannot use them",
    "unscored": "no candidate has a score; run 'bonmini-guard score'",
    "unlabelled": "no candidate has a label",
    "failed": "every draw failed, and rows are labelled in part: nobody can tell which of these belong to the labelled share",
    "trained_on": "the reward model learnt from them, which flatters it",
    "explore_missed": "requests that the guard was to explore, and could not",
    "not_in_the_labelled_set": "not among the rows that were fixed for labelling",
    "not_random": "picked for labelling by scores, or labelled in pairs: their labels are not used",
    "other_thresholds": "decided under other thresholds than the profile's: their first loops alone are compared",
    "torn": "a last line that was cut off while it was written",
}


def cell(value: float | None, kind: str) -> str:
    """A figure as text; a dash where it is unknown."""
    if value is None:
        return "-"
    return {"count": f"{value:,.1f}", "rate": f"{100 * value:.2f} %", "mean": f"{value:.2f}"}[kind]


def replay_log(rows: Log | Iterable[Mapping[str, Any]], profile: GuardProfile) -> dict[str, Any]:
    """What a profile does on a log, in exact expectation over draw orders.

    Counts are expectations, hence floats. A rate with denominator 0 is None. With TP, FP, FN, TN = served and acceptable,
    served and not, abstained though the best so far is acceptable, abstained rightly (summed over requests):
    ``false_acceptance_rate = FP / (FP + TN)``, ``served_and_bad_rate = FP / requests``,
    ``bad_among_served_rate = FP / (TP + FP) = 1 - precision``, ``recall = TP / (TP + FN)``,
    ``recall_vs_best_of_n = acceptable_rate / (that of best-of-N)``,
    ``acceptable_rate = TP / requests``. Source of the false-acceptance rate: arXiv 2510.04087.

    Args:
        rows: a log, or log rows in memory.
        profile: only mode, schedule and thresholds need to be set; ``score_transform`` and ``hopeless`` are applied.

    Returns:
        The figures; ``best_of_n`` and ``best_of_n_at_zero`` hold the same for one loop of N draws, always served, and served
        when the score is at least 0; ``left_out`` counts rows that were not used.

    Raises:
        InputError: a row has fewer than N candidates.
        ProfileError: the profile's exit is "eager", which a log cannot replay.
    """
    log = rows if isinstance(rows, Log) else log_of_rows(rows)
    if profile.exit == "eager":
        raise ProfileError("a profile with exit 'eager' serves by order of arrival, and this replays all orders; use exit 'loop'")
    budget = sum(profile.schedule)
    log.require(budget)
    # A rolling exit is replayed with one draw in flight at a time: over all orders of the draws, as loops of one.
    log = transformed(log, profile.score_transform)
    if np.any(~log.labelled & ~log.unlabelled) or log.asked.any():
        return one_order_figures(log, profile)
    log = log if log.is_bare else log.require_labels()
    figures = _of_three(sums_over(log, _asked(profile, budget)))
    if log.is_bare:
        for part in (figures, figures["best_of_n"], figures["best_of_n_at_zero"]):
            part.update(dict.fromkeys(LABEL_FIGURES))
    return {**figures, "budget": budget, "left_out": dict(log.left_out), "order": "all"}


def one_order_figures(log: Log, profile: GuardProfile) -> dict[str, Any]:
    """The same figures from the one order of each row, for logs labelled in part.

    Beside them stand exact 90 % ``intervals`` of rates over units, of which one row each is counted. A row counts if the label
    of its selected answer is there. Of a set fixed for labelling every row does, and what a guardrail serves without a label is
    taken for bad. What it refuses without one has no figures (None), but under a promise of ``false_acceptance``, which takes
    it for acceptable: that is the worst. So has best-of-N, and what an accelerator serves.
    """
    budget = sum(profile.schedule)
    log, units, missing = labelled_units(log)
    asked = _asked(profile, budget)
    figures, once = (_of_three([sums_of(one_order(rows, ran, missing, profile.risk)) for ran in asked]) for rows in (log, units))
    limits = {name: interval(*counts) for name, counts in counted(once).items()}
    if missing == "counts_as_bad" and np.isnan(paths(log, (budget,)).good).any():
        # of answers that only best-of-N serves nobody asked for the labels
        figures["recall_vs_best_of_n"] = None
        for other in ("best_of_n", "best_of_n_at_zero"):
            figures[other].update(dict.fromkeys(LABEL_FIGURES))
    return {**figures, "budget": budget, "order": "one", "intervals": limits, "left_out": dict(log.left_out)}


def one_order(log: Log, ran: Ran, missing: Missing, risk: str | None) -> Settled:
    """What becomes of each row that counts, in its one order: chances of 0 or 1; NaN where nobody can judge."""
    mode, schedule, thresholds, floors = ran
    path = paths(log, schedule)
    at, low = exits(path, thresholds), path.best < np.asarray(-math.inf if floors is None else floors)
    ends = np.minimum(at, np.where(low.any(axis=1), low.argmax(axis=1), len(schedule)))
    passed, last = (at == ends) & (at < len(schedule)), np.minimum(ends, len(schedule) - 1)
    rows = np.arange(len(path))
    found, good = np.isfinite(path.best[rows, last]), path.good[rows, last]
    served = passed if mode == "guardrail" else found
    counts, bad = ~np.isnan(good) | (missing == "counts_as_bad"), np.where(np.isnan(good), served, good == 0)
    if not counts.all():  # as :func:`bonmini_guard.calibration.paths.outcomes` does
        counts &= found
    unknown = np.isnan(good) & np.where(served, mode == "accelerator", risk != "false_acceptance")

    def of(which: Bools, judged: Bools) -> Floats:
        return np.where(which & unknown, np.nan, which & judged)[counts]

    return Settled(
        served_good=of(served, ~bad),
        served_bad=of(served, bad),
        abstained_good=of(~served, ~bad),
        abstained_bad=of(~served, bad),
        accepted=passed[counts].astype(float),
        best_effort=(served & ~passed)[counts].astype(float),
        draws=path.draws[last][counts].astype(float),
        loops=last[counts] + 1.0,
    )


def counted(figures: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """What rates of whole counts are made of: so many of so many."""
    names = ("requests", "served", "false_acceptances", "abstained")
    if figures["false_acceptances"] is None:
        return {}
    requests, served, bad, abstained = (round(figures[name]) for name in names)
    pairs = {
        "served_and_bad_rate": (bad, requests),
        "bad_among_served_rate": (bad, served),
        "acceptable_rate": (served - bad, requests),
    }
    if (missed := figures["missed_acceptances"]) is not None:
        pairs["false_acceptance_rate"] = bad, bad + abstained - round(missed)
    return {name: pair for name, pair in pairs.items() if pair[1]}


def interval(ones: int, units: int, level: float = 0.05) -> list[float]:
    """Exact (Clopper-Pearson) limits of a rate, each missed with this chance at most."""
    return [lower_limit(ones, units, level), upper_limit(ones, units, level)]


def quality_of(log: Log) -> Floats:
    """(R, W) labels in a labelled log; in one without any label sigmoid(score), the modelled chance. NaN for failed draws.

    The two are never mixed: a label beside a model whose zero is off says nothing about which answer is better.
    """
    if not log.is_bare:
        return np.where(log.drawn, log.labels, np.nan)
    return np.asarray(expit(log.scores), dtype=np.float64)


def transformed(log: Log, transform: ScoreTransform) -> Log:
    """The log with ``score = a * raw_score + b``, by the very operations of the live guard."""
    if transform == ScoreTransform():
        return log
    return replace(log, scores=transform.a * log.scores + transform.b)


def _of_three(sums: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    plain, at_zero, guard = (figures_of_sums(each, sums[0]["served_good"] / max(1, sums[0]["requests"])) for each in sums)
    return {**guard, "best_of_n": plain, "best_of_n_at_zero": at_zero}


#: Mode, schedule, thresholds and floors.
Ran = tuple[Mode, tuple[int, ...], tuple[float, ...], tuple[float, ...] | None]


def sums_over(log: Log, asked: Sequence[Ran]) -> list[Counter[str]]:
    """:func:`sums_of` all rows under each of these, expectations over all orders of the draws; a piece of the log at a time."""
    totals = [Counter[str]() for _ in asked]
    for part in log.parts():
        rankings = rank(part.scores, np.nan_to_num(part.labels), part.counts)
        for total, ran in zip(totals, asked, strict=True):
            total.update(sums_of(replay_rankings(rankings, *ran)))
    return totals


def _asked(profile: GuardProfile, budget: int) -> tuple[Ran, ...]:
    return (
        ("accelerator", (budget,), (math.inf,), None),
        ("guardrail", (budget,), (0.0,), None),
        (profile.mode, profile.schedule, profile.serial_thresholds, profile.hopeless),
    )


def sums_of(settled: Settled) -> Mapping[str, Any]:
    """Of each array, and the number of its rows: what adds up over pieces of a log."""
    return {"requests": settled.draws.size} | {each.name: float(getattr(settled, each.name).sum()) for each in fields(Settled)}


def figures_of_sums(sums: Mapping[str, float], best_of_n_rate: float) -> Figures:
    """The figures of :func:`replay_log`, from expectations added up; such a share of requests best-of-N answers acceptably."""
    # expectations of what cannot happen come out as +-1e-17 and would print as -0.0
    known = {name: float(np.maximum(0.0, value)) for name, value in sums.items()}
    requests, good, bad = known["requests"], known["served_good"], known["served_bad"]
    missed, refused, served = known["abstained_good"], known["abstained_bad"], known["accepted"] + known["best_effort"]
    return {
        "requests": requests,
        "served": served,
        "accepted": known["accepted"],
        "best_effort": known["best_effort"],
        "abstained": max(0.0, requests - served),
        "false_acceptances": known_or_none(bad),
        "missed_acceptances": known_or_none(missed),
        "false_acceptance_rate": ratio(bad, bad + refused),
        "served_and_bad_rate": ratio(bad, requests),
        "bad_among_served_rate": ratio(bad, good + bad),
        "precision": ratio(good, good + bad),
        "recall": ratio(good, good + missed),
        "recall_vs_best_of_n": ratio(good, best_of_n_rate * requests),
        "acceptable_rate": ratio(good, requests),
        "mean_draws": ratio(known["draws"], requests),
        "mean_loops": ratio(known["loops"], requests),
    }


def known_or_none(value: float) -> float | None:
    """The value, None for NaN."""
    return None if math.isnan(value) else value


def ratio(numerator: float, denominator: float) -> float | None:
    """The ratio, or None where it is not known or the denominator is 0 (up to rounding: less than a billionth of a request)."""
    return known_or_none(numerator / denominator) if denominator > 1e-9 else None
