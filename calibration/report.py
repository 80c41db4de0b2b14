"""One self-contained HTML file that says what a profile does on a log: consequence first, then the evidence.

Every number comes from a function whose docstring gives formula and source; the page's last section lists them.
"""

from __future__ import annotations

import inspect
import math
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from bonmini_guard.calibration import curves, figures, search, sliding
from bonmini_guard.calibration.evidence import consequence, percent
from bonmini_guard.calibration.figures import quality_of, replay_log, transformed
from bonmini_guard.calibration.logs import Log
from bonmini_guard.calibration.orders import labelled_units, one_a_unit
from bonmini_guard.calibration.refutation import standing
from bonmini_guard.calibration.replay import Ranking, rank, replay_rankings
from bonmini_guard.errors import needing
from bonmini_guard.logs.rows import name_of
from bonmini_guard.policy.profile import GuardProfile

with needing("calibration"):
    from jinja2 import Environment

#: Slices shown in the table; the others are summed up in one row.
MOST_SLICES = 20
#: Below this many requests the report says that it shows little, and draws its curve as single points and no other.
FEW = 50
#: Bars of the histogram of scores.
BARS = 40


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    title: str
    text: str
    head: list[str]
    rows: list[list[str]]


def build_report(
    log: Log, profile: GuardProfile, slice_key: str | None = None, *, against: GuardProfile | None = None, texts: bool = False
) -> str:
    """The HTML of a report.

    Args:
        log: complete rows, read with ``keys=["id", slice_key]`` where there is one.
        profile: what to report on; mode, schedule and thresholds suffice, but only a calibrated one promises anything.
        slice_key: a row key; one line of a table for each of its values.
        against: another profile, to be seen beside it.
        texts: show prompts and answers, not only ids.

    Raises:
        InputError: a row has fewer candidates than the budget, or every draw failed.
        ProfileError: a profile's exit is "eager".
    """
    log.require_scores()
    profiles = [profile] if against is None else [profile, against]
    replayed = [replay_log(log, each) for each in profiles]
    shown = {
        "profiles": [_shown(log, each, figures, texts) for each, figures in zip(profiles, replayed, strict=True)],
        "few": replayed[0]["requests"] < FEW,
        "label": f"bonmini-guard label {' '.join(map(shlex.quote, log.places.files))} -o picked.jsonl --mode accept --only",
        "charts": _charts(log, profile, replayed[0]),
    }
    tables = [
        _figures_table(log, profiles, replayed),
        *_per_unit(log, profile, replayed[0]),
        *([] if slice_key is None else [slices(log, profile, slice_key)]),
        *_searched(profile),
        _left_out(replayed[0]["left_out"]),
    ]
    # first that the log refutes the promise or that the profile was edited, where so; then the consequence
    said = [(standing(log, each)[0], consequence(each, figures)) for each, figures in zip(profiles, replayed, strict=True)]
    template = resources.files("bonmini_guard.calibration").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    told = [*notes(profile, replayed[0], log.is_bare), *prompt_offsets(log)]
    leads = [" ".join(filter(None, each)) for each in said]
    where = [(name, f"{of.__module__}.{of.__qualname__}", inspect.getdoc(of) or "") for name, of in sources()]
    page = {"leads": leads, "notes": told, "tables": tables, "sources": where, "data": shown}
    return environment.from_string(template).render(page)


def _shown(log: Log, profile: GuardProfile, figures: dict[str, Any], texts: bool) -> dict[str, Any]:
    found = sliding.slider(log, profile, figures)
    return {
        "mode": profile.mode,
        "schedule": profile.schedule,
        **found,
        "thresholds": [[each if math.isfinite(each) else None for each in one] for one in found["thresholds"]],
        "alpha": profile.alpha if found["certified"] else None,
        "risk": f"{profile.risk or 'served_and_bad'}_rate",
        "cases": sliding.cases(log, profile, texts=texts),
    }


def _charts(log: Log, profile: GuardProfile, figures: dict[str, Any]) -> dict[str, Any]:
    """The plots beside the slider's: of logs of some rows whose candidates are all labelled, or none is."""
    log = transformed(log, profile.score_transform)
    charts: dict[str, Any] = {"histogram": _histogram(log, profile)}
    if figures["order"] == "one" or figures["requests"] < FEW:
        return charts
    used = log if log.is_bare else log.require_labels()
    rankings = rank(used.scores, quality_of(used), used.counts)
    finite = [threshold for threshold in profile.serial_thresholds if math.isfinite(threshold)]
    fixed = curves.fixed_n(rankings, int(used.counts.min()), finite[-1] if finite else math.inf)
    charts["fixed"] = {key: np.round(values, 6).tolist() for key, values in vars(fixed).items()}
    charts["more_draws"] = more_draws(rankings, fixed, figures["budget"])
    charts["quality"] = _quality(rankings, fixed, profile, figures)
    found = curves.reliability(used)
    if found is not None:
        charts["reliability"] = {key: values.tolist() for key, values in vars(found).items()}
        charts["reliability"]["text"] = (
            f"Does sigmoid(score) say how often an answer is acceptable? Expected calibration error {found.error:.3f} over "
            f"{int(found.count.sum()):,} labelled candidates; bars are 90 % limits as if candidates were independent."
        )
    return charts


def _histogram(log: Log, profile: GuardProfile) -> dict[str, Any]:
    edges = np.linspace(log.scores[log.drawn].min(), log.scores[log.drawn].max() + 1e-9, BARS + 1)
    kinds = {"acceptable": log.labels == 1.0, "not acceptable": log.labels == 0.0, "not labelled": np.isnan(log.labels)}
    counts = {kind: np.histogram(log.scores[where & log.drawn], edges)[0].tolist() for kind, where in kinds.items()}
    return {"edges": edges.tolist(), "counts": {kind: bars for kind, bars in counts.items() if sum(bars)}}


def _quality(rankings: list[Ranking], fixed: curves.FixedN, profile: GuardProfile, figures: dict[str, Any]) -> dict[str, Any]:
    """Quality against draws: the profile, the oracle, and the fixed N that would do as well."""
    guardrail = profile.mode == "guardrail"
    settled = replay_rankings(rankings, profile.mode, profile.schedule, profile.serial_thresholds, profile.hopeless)
    good = float(settled.served_good.mean())
    oracle, equal = curves.clairvoyant_draws(rankings, profile), curves.smallest_equal_n(fixed, profile, good)
    name = "best-of-N served at the same threshold" if guardrail else "plain best-of-N"
    same = f"{name} needs N = {equal} for that" if equal else f"no N up to {int(fixed.draws[-1])} gets there with {name}"
    text = (
        f"This profile: {percent(good)} at {figures['mean_draws']:.2f} draws; {same}. An oracle that sees all scores in advance "
        f"would need {oracle:.2f} draws{'' if guardrail else ' for the very answers of best-of-N'}: no stopping rule can do better."
    )
    ceiling = good if guardrail else float(fixed.quality[figures["budget"] - 1])
    return {"text": text, "oracle": [oracle, ceiling], "profile": [figures["mean_draws"], good]}


def _per_unit(log: Log, profile: GuardProfile, replayed: dict[str, Any]) -> list[Table]:
    """The rates again with each prompt (or group) counted once, where the log has some of them several times."""
    log, units = _counting(log)
    if len(units) in (0, len(log)):
        return []
    once = replay_log(units, profile)
    rows = [
        [name.replace("  ", "not acceptable, "), _cell(replayed[key], kind), _cell(once[key], kind)]
        for key, name, kind in figures.SHOWN
        if kind != "count"
    ]
    head = ["", f"per request ({len(log):,})", f"per prompt or group ({len(units):,})"]
    text = "The same prompt or group occurs several times. A promise counts each once: the right-hand column is what it speaks of."
    return [Table("Per request and per prompt", text, head, rows)]


def notes(profile: GuardProfile, figures: dict[str, Any], modelled: bool) -> list[str]:
    """What the reader must know before believing the figures."""
    said = ["The promise is an average over traffic like the log it was calibrated on, not a promise for each slice of it."]
    if profile.evidence.get("estimated"):
        said.append(f"{profile.evidence['estimated']}.")
    if figures["requests"] < FEW:
        said.append(
            f"{figures['requests']:.0f} requests say little: rates here may be far from the true ones, and curves are mere points."
        )
    if modelled:
        said.append("This log has no labels: 'acceptable' is the reward model's own sigmoid(score) wherever a quality is shown.")
    return said


def prompt_offsets(log: Log) -> list[str]:
    """A sentence on how far prompts move the raw scores: nothing without labels, or where no row has two scores.

    ``sd(mean score of a row)`` beside ``sqrt(mean over rows of var(scores of a row))``, the variance with n - 1. Only labels tell
    whether the first is an offset that one threshold pays for: :func:`bonmini_guard.calibration.zero.orders`.
    """
    scores = log.scores[(log.drawn.sum(1) > 1) & np.isfinite(log.labels).any(1)]
    if not len(scores):
        return []
    between, within = np.nanmean(scores, axis=1).std(), np.sqrt(np.nanvar(scores, axis=1, ddof=1).mean())
    return [
        f"Scores: the means of prompts differ by a standard deviation of {between:.2f}, answers to one prompt by {within:.2f}. "
        "If the model only ranks, a part of the first may be offsets that say nothing about acceptance: 'bonmini-guard zero' tells."
    ]


def _figures_table(log: Log, profiles: list[GuardProfile], replayed: list[dict[str, Any]]) -> Table:
    first = replayed[0]
    budget, counted = first["budget"], _counted(log, profiles[0])
    plain = [first["best_of_n"], first["best_of_n_at_zero"]]
    names = ["this profile", "the other"][: len(profiles)]
    head = ["", names[0], "90 % limits", *names[1:], f"best-of-{budget}", f"best-of-{budget} if its score is at least 0"]
    rows = []
    for key, name, kind in figures.SHOWN:
        own, *others = (_cell(column[key], kind) for column in (*replayed, *plain))
        limits = _limits(*counted[key], 0.05) if key in counted else ""
        rows.append([name.replace("  ", "... "), own, limits, *others])
    said = "Exact expectations over all orders in which the logged candidates could have been drawn."
    if first["order"] == "one":
        said = "Labelled in part: each row is run on one order of its draws."
    return Table("The figures", f"{said} The limits are exact ones of counts, each prompt or group once, in one order.", head, rows)


def _counted(log: Log, profile: GuardProfile) -> dict[str, tuple[int, int]]:
    """What the profile's rates are made of, each prompt or group once; nothing where one order does not tell."""
    _, units = _counting(transformed(log, profile.score_transform))
    told = profile.hopeless is None and np.isfinite(units.labels).any()
    return figures.counted(figures.one_order_figures(units, profile)) if told else {}


def _counting(log: Log) -> tuple[Log, Log]:
    """The rows of which units have one each, and these, as calibrate takes them: labelled ones, where some are."""
    return labelled_units(log)[:2] if np.isfinite(log.labels).any() else (log, one_a_unit(log))


def _limits(ones: int, units: int, level: float) -> str:
    return " to ".join(_cell(limit, "rate") for limit in figures.interval(ones, units, level))


def _cell(value: float | None, kind: str) -> str:
    return figures.cell(value, kind).replace(" ", "\N{NO-BREAK SPACE}")


def more_draws(rankings: list[Ranking], fixed: curves.FixedN, budget: int) -> str:
    """Whether best-of-N at the budget is worse than a smaller N (:func:`~bonmini_guard.calibration.curves.over_optimised`)."""
    if (worse := curves.over_optimised(rankings, fixed, budget)) is None:
        quality = percent(float(fixed.quality[budget - 1]))
        return f"Up to the budget, quality rises with N: best-of-{budget} is acceptable for {quality}."
    return (
        f"Over-optimisation: {worse[0]} The red line counts the requests whose best answer passes the last threshold and is "
        "not acceptable: more draws find more answers that fool the scorer."
    )


def slices(log: Log, profile: GuardProfile, key: str) -> Table:
    """The profile on the rows of each value of a key, with limits that hold for all of them at once."""
    risk = profile.risk or "served_and_bad"
    parts = slice_figures(log, profile, key)
    rows = []
    for name, part, its_rows in parts:
        bad, among = _counted(its_rows, profile).get(f"{risk}_rate", (0, 0))
        limits = f"{bad:,} of {among:,}: {_limits(bad, among, 0.05 / len(parts))}" if among else ""
        served = _cell(figures.ratio(part["served"], part["requests"]), "rate")
        bad_rates = [_cell(part[each], "rate") for each in ("served_and_bad_rate", "bad_among_served_rate")]
        rows.append([name, _cell(part["requests"], "count"), served, *bad_rates, limits, _cell(part["mean_draws"], "mean")])
    head = [key, "requests", "served", "bad, of all requests", "bad, of served", f"{risk.replace('_', ' ')}, limits", "draws"]
    text = (
        "The promise holds on average over all of them, not for each. The limits hold for all slices at once, with 90 % confidence "
        "(exact, each at its share); they count each prompt or group once, in one order."
    )
    return Table(f"By {key}", text, head, rows)


def slice_figures(log: Log, profile: GuardProfile, key: str) -> list[tuple[str, dict[str, Any], Log]]:
    """:func:`bonmini_guard.calibration.figures.replay_log` on the rows of each value of a key, the most frequent first.

    Beside it stand these rows.
    """
    log = log.take(log.asked) if log.asked.any() else log
    values = np.array([name_of(value) or "(none)" for value in log.extra[key]])
    frequent = [name for name, _ in Counter(values.tolist()).most_common(MOST_SLICES)]
    parts = [(name, np.flatnonzero(values == name)) for name in frequent]
    rest = np.flatnonzero(~np.isin(values, frequent))
    parts += [("all others", rest)] if rest.size else []
    usable = ((name, log.take(rows)) for name, rows in parts)
    alike = log.is_bare or (bool(log.labelled.all()) and not log.asked.any())
    # a slice without any label cannot be judged beside labelled ones
    return [(name, replay_log(part, profile), part) for name, part in usable if alike or np.isfinite(part.labels).any()]


def _searched(profile: GuardProfile) -> list[Table]:
    """The shapes that the search behind a profile did not find beaten."""
    found = search.table_of(profile.evidence)
    text = (
        "Cost against latency against quality, on the rows that the shape was chosen on: no other shape was better in draws, 95th "
        f"percentile and requests served together. This profile's is {','.join(map(str, profile.schedule))}. "
        f"Prices are in {profile.evidence.get('priced', 'draws')}; wait and p95 in the time of the log, else in loops."
    )
    return [] if found is None else [Table("Shapes that were tried", text, *found)]


def _left_out(left_out: dict[str, int]) -> Table:
    rows = [[reason, f"{number:,}", figures.LEFT_OUT.get(reason, "")] for reason, number in left_out.items() if number]
    text = "Rows of the log that no figure above looks at." if rows else "Nothing: every row of the log was used."
    return Table("Left out", text, ["rows", "number", "why"] if rows else [], rows)


def sources() -> list[tuple[str, Callable[..., Any]]]:
    """Each kind of number in a report, and the function that computes it."""
    return [
        ("The sentence on top", consequence),
        ("The figures, and each slice", figures.replay_log),
        ("The slider, and curves over all thresholds", sliding.curve),
        ("Best-of-N for every N, and the red line", curves.fixed_n),
        ("Difference of two N and its standard error", curves.paired_difference),
        ("Smallest fixed N of equal quality", curves.smallest_equal_n),
        ("How far prompts move the scores", prompt_offsets),
        ("Draws of the oracle", curves.clairvoyant_draws),
        ("Reliability", curves.reliability),
        ("Expected calibration error", curves.Reliability.error.fget),  # type: ignore[attr-defined]
    ]
