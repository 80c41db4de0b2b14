"""One self-contained HTML file that says what a profile does on a log: consequence first, then the evidence.

Every number comes from a function of :mod:`bonmini_guard.calibration.figures` or :mod:`bonmini_guard.calibration.curves`
whose docstring gives formula and source; the page's last section lists them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bonmini_guard.calibration import curves, figures, page, plots
from bonmini_guard.calibration.evidence import percent
from bonmini_guard.calibration.figures import quality_of, replay_log, transformed
from bonmini_guard.calibration.logs import Log
from bonmini_guard.calibration.orders import one_a_unit
from bonmini_guard.calibration.ranking import Ranking, rank
from bonmini_guard.calibration.refutation import standing
from bonmini_guard.calibration.replay import replay_rankings
from bonmini_guard.policy.profile import GuardProfile

#: Slices shown in the table; the others are summed up in one row.
MOST_SLICES = 20
#: Below this many requests the report says that it shows little, and draws no curve.
FEW = 50


@dataclass(frozen=True)
class Material:
    """Everything that the sections of a report look at."""

    log: Log
    profile: GuardProfile
    figures: dict[str, Any]
    rankings: list[Ranking]
    fixed: curves.FixedN

    @property
    def budget(self) -> int:
        """N."""
        return sum(self.profile.schedule)

    @property
    def good(self) -> float:
        """Chance of serving an acceptable answer, from the replay or, without labels, from sigmoid(score)."""
        settled = replay_rankings(self.rankings, self.profile.schedule, self.profile.thresholds, self.profile.hopeless)
        return float(settled.settle(self.profile.mode).served_good.mean())


def build_report(log: Log, profile: GuardProfile, slice_key: str | None = None) -> str:
    """The HTML of a report.

    Args:
        log: complete rows, read with ``keys=[slice_key]`` where there is one.
        profile: what to report on; mode, schedule and thresholds suffice, but only a calibrated one promises anything.
        slice_key: a row key; one line of a table for each of its values.

    Raises:
        InputError: a row has fewer candidates than the budget, or every draw failed.
        ProfileError: the profile's exit is "eager".
    """
    log.require_scores()
    figures = replay_log(log, profile)
    scored = transformed(log, profile.score_transform)
    modelled, many = bool(np.all(log.unlabelled)), figures["requests"] >= FEW
    sections = [
        page.lead(first_words(standing(log, profile)[0], profile, figures), notes(profile, figures, modelled)),
        page.table("The figures", *_figures_table(figures)),
        _per_unit(log, profile, figures),
        *(_curves(scored, profile, figures, modelled) if many else []),
        _slices(log, profile, slice_key),
        _left_out(figures["left_out"]),
        page.sources(sources()),
    ]
    return page.html("Calibration report", [section for section in sections if section])


def _curves(log: Log, profile: GuardProfile, figures: dict[str, Any], modelled: bool) -> list[str]:
    budget = figures["budget"]
    judged = replace(log, labels=quality_of(log).astype(np.float32)) if modelled else log
    mine, plain = (curves.threshold_curve(judged, schedule) for schedule in (profile.schedule, (budget,)))
    if figures["order"] == "one":
        return [_risk_coverage(mine, plain, figures)]
    material = _material(log, profile, figures, modelled)
    histograms = plots.histograms(material.log, profile.thresholds)
    return [
        "" if modelled else _risk_coverage(mine, plain, figures),
        _quality(material, mine),
        _over_optimisation(material),
        page.figure("Scores by label", histograms, "All scored candidates of the log."),
        _reliability(material),
    ]


def _per_unit(log: Log, profile: GuardProfile, figures: dict[str, Any]) -> str:
    """The rates again with each prompt (or group) counted once, where the log has some of them several times."""
    units = one_a_unit(log)
    if len(units) == len(log):
        return ""
    once = replay_log(units, profile)
    rates = [(key, *_NAMES[key]) for key in _NAMES if key.endswith("rate") or key == "mean_draws"]
    rows = [
        [name.replace("...", "not acceptable,"), page.cell(figures[key], kind), page.cell(once[key], kind)]
        for key, name, kind in rates
    ]
    head = ["", f"per request ({len(log):,})", f"per prompt or group ({len(units):,})"]
    text = "The same prompt or group occurs several times. A promise counts each once: the right-hand column is what it speaks of."
    return page.table("Per request and per prompt", head, rows, text)


def _material(log: Log, profile: GuardProfile, figures: dict[str, Any], modelled: bool) -> Material:
    used = log if modelled else log.require_labels()
    rankings = rank(used.scores, quality_of(used), used.counts)
    finite = [threshold for threshold in profile.thresholds if math.isfinite(threshold)]
    fixed = curves.fixed_n(rankings, int(used.counts.min()), finite[-1] if finite else math.inf)
    return Material(used, profile, figures, rankings, fixed)


def first_words(said: str | None, profile: GuardProfile, figures: dict[str, Any]) -> str:
    """The first sentence: that the log refutes the promise or that the profile was edited, where so; else the consequence."""
    return f"{said} {consequence(profile, figures)}" if said else consequence(profile, figures)


def consequence(profile: GuardProfile, figures: dict[str, Any]) -> str:
    """What it means for 10,000 requests: exact expectations of the replay, and the promise where the profile carries one.

    ``served = 10,000 E[served] / requests`` (:func:`bonmini_guard.calibration.figures.replay_log`); "at most ... with
    confidence" is the profile's own alpha (or epsilon) and delta, proved by :mod:`bonmini_guard.calibration.certify` on the log
    it was calibrated on.
    """
    served = 10_000 * figures["served"] / figures["requests"]
    cost = f"using {figures['mean_draws']:.1f} draws instead of {figures['budget']}"
    if profile.mode == "accelerator":
        if profile.epsilon is None or profile.delta is None:
            return (
                f"Of 10,000 requests you would serve all {served:,.0f}, {cost}; this profile promises nothing about their quality."
            )
        return (
            f"Of 10,000 requests you would serve {served:,.0f}, with a quality at most {profile.epsilon:g} below "
            f"best-of-{figures['budget']} with {percent(1 - profile.delta)} confidence, {cost}."
        )
    return f"Of 10,000 requests you would serve {served:,.0f}, {_bad(profile, figures)}, {cost}."


def _bad(profile: GuardProfile, figures: dict[str, Any]) -> str:
    rate, share = figures["served_and_bad_rate"], page.cell(figures["bad_among_served_rate"], "rate")
    seen = (
        "an unknown number of them bad (no labels)"
        if rate is None
        else f"{10_000 * rate:,.0f} of them bad, {share} of those served, at this log's rates"
    )
    if profile.risk is None or profile.alpha is None or profile.delta is None:
        return f"{seen} (this profile promises nothing)"
    sure = f"with {percent(1 - profile.delta)} confidence"
    if profile.risk == "served_and_bad":
        return f"at most {10_000 * profile.alpha:,.0f} of them bad, {sure} ({seen})"
    of = "those served are bad" if profile.risk == "bad_among_served" else "the requests without a good answer are served"
    return f"at most {percent(profile.alpha)} of {of}, {sure} ({seen})"


def notes(profile: GuardProfile, figures: dict[str, Any], modelled: bool) -> list[str]:
    """What the reader must know before believing the figures."""
    said = ["The promise is an average over traffic like the log it was calibrated on, not a promise for each slice of it."]
    if profile.evidence.get("estimated"):
        said.append(f"{profile.evidence['estimated']}.")
    if figures["requests"] < FEW:
        said.append(
            f"{figures['requests']:.0f} requests say little: any rate here may be far from the true one, and no curve is drawn."
        )
    if modelled:
        said.append("This log has no labels: 'acceptable' is the reward model's own sigmoid(score) wherever a quality is shown.")
    return said


_NAMES = {
    "requests": ("requests", "count"),
    "served": ("served", "count"),
    "abstained": ("abstained", "count"),
    "false_acceptances": ("served and not acceptable", "count"),
    "served_and_bad_rate": ("... of all requests", "rate"),
    "bad_among_served_rate": ("... of those served", "rate"),
    "false_acceptance_rate": ("... of those whose answer is not acceptable", "rate"),
    "recall": ("recall", "rate"),
    "recall_vs_best_of_n": ("recall against best-of-N", "rate"),
    "acceptable_rate": ("served and acceptable, of all requests", "rate"),
    "mean_draws": ("draws a request", "mean"),
    "mean_loops": ("loops a request", "mean"),
}


def _figures_table(figures: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    columns = (figures, figures["best_of_n"], figures["best_of_n_at_zero"])
    head = ["", "this profile", f"best-of-{figures['budget']}", f"best-of-{figures['budget']} if its score is at least 0"]
    rows = [[name, *(page.cell(column[key], kind) for column in columns)] for key, (name, kind) in _NAMES.items()]
    if figures["order"] == "all":
        return head, rows, "Exact expectations over all orders in which the logged candidates could have been drawn."
    limits = [figures["intervals"].get(key) for key in _NAMES]
    spread = ["" if pair is None else f"{page.cell(pair[0], 'rate')} to {page.cell(pair[1], 'rate')}" for pair in limits]
    said = "Labelled in part: each row is run on one order of its draws. The last column gives exact 90 % limits."
    return [*head, "this profile, limits"], [[*row, each] for row, each in zip(rows, spread, strict=True)], said


def _risk_coverage(mine: curves.ThresholdCurve, plain: curves.ThresholdCurve, figures: dict[str, Any]) -> str:
    here = (figures["served"] / figures["requests"], figures["bad_among_served_rate"])
    text = "How many of the answers served are not acceptable, as the threshold falls and more are served. Lower is better."
    return page.figure("Risk and coverage", plots.risk_coverage(mine, plain, here, figures["budget"]), text)


def _quality(material: Material, curve: curves.ThresholdCurve) -> str:
    profile, guardrail = material.profile, material.profile.mode == "guardrail"
    oracle = curves.clairvoyant_draws(material.rankings, profile)
    equal = curves.smallest_equal_n(material.fixed, profile, material.good)
    draws, good = material.figures["mean_draws"], material.good
    ceiling = good if guardrail else float(material.fixed.quality[material.budget - 1])
    name = "best-of-N served at the same threshold" if guardrail else "plain best-of-N"
    fixed = (
        f"{name} needs N = {equal} for that"
        if equal
        else f"no fixed N up to {int(material.fixed.draws[-1])} gets there with {name}"
    )
    text = (
        f"This profile: {percent(good)} at {draws:.2f} draws; {fixed}. An oracle that sees all scores in advance would need "
        f"{oracle:.2f} draws{'' if guardrail else ' for the very answers of best-of-N'}: no stopping rule can do better."
    )
    plot = plots.quality_against_draws(material.fixed, curve, (draws, good), (oracle, ceiling), guardrail=guardrail)
    return page.figure("Quality against draws", plot, text)


def _over_optimisation(material: Material) -> str:
    return page.figure(
        "More draws, better answers?", plots.over_optimisation(material.fixed, material.budget), more_draws(material)
    )


def more_draws(material: Material) -> str:
    """Whether best-of-N at the budget is worse than a smaller N, in a sentence.

    The best N is the one with the largest quality of :func:`bonmini_guard.calibration.curves.fixed_n` up to the budget; the
    difference and its standard error are :func:`bonmini_guard.calibration.curves.paired_difference`'s.
    """
    budget, quality = material.budget, material.fixed.quality
    best = int(np.argmax(quality[:budget])) + 1
    if best == budget:
        return f"Up to the budget, quality rises with N: best-of-{budget} is acceptable for {percent(float(quality[budget - 1]))}."
    fall, error = curves.paired_difference(material.rankings, best, budget)
    sure = "more than two standard errors" if abs(fall) > 2 * error else "less than two standard errors: it may be chance"
    return (
        f"Over-optimisation: best-of-{budget} is worse than best-of-{best}. Its answers are acceptable for "
        f"{percent(float(quality[budget - 1]))} of requests against {percent(float(quality[best - 1]))} "
        f"(difference {100 * fall:+.1f} points, standard error {100 * error:.1f}; {sure}). The red line counts the requests "
        f"whose best answer passes the last threshold and is not acceptable: more draws find more answers that fool the scorer."
    )


def _reliability(material: Material) -> str:
    found = curves.reliability(material.log)
    if found is None:
        return ""
    text = (
        f"Does sigmoid(score) say how often an answer is acceptable? Expected calibration error {found.error:.3f} over "
        f"{int(found.count.sum()):,} labelled candidates; bars are 90 % limits as if candidates were independent."
    )
    return page.figure("Reliability of sigmoid(score)", plots.reliability_diagram(found), text)


def _slices(log: Log, profile: GuardProfile, key: str | None) -> str:
    if key is None:
        return ""
    head = [key, "requests", "served", "bad, of all requests", "bad, of served", "draws"]
    rows = [
        [
            name,
            page.cell(part["requests"], "count"),
            page.cell(part["served"] / part["requests"], "rate"),
            page.cell(part["served_and_bad_rate"], "rate"),
            page.cell(part["bad_among_served_rate"], "rate"),
            page.cell(part["mean_draws"], "mean"),
        ]
        for name, part in slice_figures(log, profile, key)
    ]
    return page.table(
        f"By {key}", head, rows, "The promise holds on average over all of them, not for each; small slices are uncertain."
    )


def slice_figures(log: Log, profile: GuardProfile, key: str) -> list[tuple[str, dict[str, Any]]]:
    """:func:`bonmini_guard.calibration.figures.replay_log` on the rows of each value of a key, the most frequent first."""
    values = np.array([_value(value) for value in log.extra[key]])
    frequent = [name for name, _ in Counter(values.tolist()).most_common(MOST_SLICES)]
    parts = [(name, np.flatnonzero(values == name)) for name in frequent]
    rest = np.flatnonzero(~np.isin(values, frequent))
    parts += [("all others", rest)] if rest.size else []
    usable = ((name, log.take(rows)) for name, rows in parts)
    whole = bool(np.all(log.unlabelled))
    # a slice without any label cannot be judged beside labelled ones
    return [(name, replay_log(part, profile)) for name, part in usable if whole or not np.all(part.unlabelled)]


def _value(value: Any) -> str:
    return "(none)" if value is None else str(value)


def _left_out(left_out: dict[str, int]) -> str:
    why = {
        "incomplete": "cut short by an early exit, so that calibration cannot use them",
        "unscored": "no candidate has a score; run 'bonmini-guard score'",
        "unlabelled": "no candidate has a label",
        "failed": "every draw failed, and rows are labelled in part: nobody can tell which of these belong to the labelled share",
        "not_random": "picked for labelling by scores, or labelled in pairs: their labels are not used",
        "torn": "a last line that was cut off while it was written",
    }
    rows = [[reason, f"{number:,}", why.get(reason, "")] for reason, number in left_out.items() if number]
    if not rows:
        return page.section("Left out", "<p>Nothing: every row of the log was used.</p>")
    return page.table("Left out", ["rows", "number", "why"], rows, "Rows of the log that no figure above looks at.")


def sources() -> list[tuple[str, Callable[..., Any]]]:
    """Each kind of number in a report, and the function that computes it."""
    return [
        ("The sentence on top", consequence),
        ("The figures, and each slice", figures.replay_log),
        ("Risk and coverage", curves.ThresholdCurve.bad_among_served.fget),  # type: ignore[attr-defined]
        ("Curves over all thresholds", curves.threshold_curve),
        ("Best-of-N for every N, and the red line", curves.fixed_n),
        ("Difference of two N and its standard error", curves.paired_difference),
        ("Smallest fixed N of equal quality", curves.smallest_equal_n),
        ("Draws of the oracle", curves.clairvoyant_draws),
        ("Reliability", curves.reliability),
        ("Expected calibration error", curves.Reliability.error.fget),  # type: ignore[attr-defined]
    ]
