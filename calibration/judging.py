"""How far a judge's verdicts agree with people's labels, and what a certificate made of them would be worth.

Cohen's kappa (Educational and Psychological Measurement 20, 1960) with percentile intervals over prompts drawn again. It certifies
nothing: a promise is made from people's labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bonmini_guard.calibration.choose import calibrate_guardrail
from bonmini_guard.calibration.evidence import NotEnoughEvidence
from bonmini_guard.calibration.figures import replay_log
from bonmini_guard.calibration.logs import Bools, Integers, log_of_rows
from bonmini_guard.errors import InputError
from bonmini_guard.logs.rows import Candidate, Row, name_of, numbered, unit_of

RESAMPLES, LEVEL = 1000, 0.95


@dataclass(frozen=True)
class Judged:
    """Answers that people and the judge have judged: (n,) verdicts, numbers of prompts, places in the row, characters.

    ``slice`` is the value of a row key, "" without one; ``silent`` counts labelled answers on which the judge said nothing.
    """

    people: Bools
    judge: Bools
    unit: Integers
    place: Integers
    length: Integers
    slice: Any
    silent: int


def judged(rows: Iterable[Row], name: str, key: str | None = None) -> Judged:
    """Collect them; InputError if there is none."""
    found, silent = list[tuple[Any, ...]](), 0
    for number, row in enumerate(rows):
        unit, _ = unit_of(row.value.get("group"), row.value.get("prompt"), number)
        part = (name_of(row.value.get(key)) if key else None) or ""
        for place, one in enumerate(row.candidates):
            if one.label is None or one.failed:
                continue
            verdict = verdict_of(one, name)
            silent += verdict is None
            if verdict is not None:
                found.append((one.label, verdict, unit, place, len(one.turn.text), part))
    if not found:
        raise InputError(f"no answer is labelled by people and judged by {name!r}: give a log with acceptable = true or false")
    people, judge, units, places, lengths, slices = (np.array(column) for column in zip(*found, strict=True))
    return Judged(people, judge, np.array(numbered(units.tolist())), places, lengths, slices, silent)


def verdict_of(candidate: Candidate, name: str) -> bool | None:
    """What a judge said of a candidate; None where it said nothing."""
    return (candidate.value.get("verdicts") or {}).get(name)


def agreement(found: Judged) -> dict[str, Any]:
    """Kappa, agreement, errors of either kind, and how the judge's leaning moves: [value, low, high], None where undefined."""
    parts: dict[str, tuple[Callable[[Bools, Bools], float], Bools]] = {
        name: (figure, np.ones_like(found.people)) for name, figure in _FIGURES.items()
    }
    longer, later = found.length > np.median(found.length), found.place > np.median(found.place)
    for name, rows in {"shorter half": ~longer, "longer half": longer, "earlier draws": ~later, "later draws": later}.items():
        parts[f"leaning, {name}"] = _leaning, rows
    for value in sorted(set(found.slice.tolist()) - {""}):
        parts[f"kappa, {value}"] = kappa, found.slice == value
    random, units = np.random.default_rng(0), int(found.unit.max()) + 1
    rows_of = np.split(np.argsort(found.unit, kind="stable"), np.cumsum(np.bincount(found.unit))[:-1])
    again = [np.concatenate([rows_of[unit] for unit in random.integers(units, size=units)]) for _ in range(RESAMPLES)]
    told = {name: _with_interval(figure, rows, found, again) for name, (figure, rows) in parts.items() if rows.any()}
    return {"answers": int(found.people.size), "prompts": units, "without a verdict": found.silent, "figures": told}


def moved_certificate(rows: Iterable[Row], name: str, alpha: float, delta: float) -> dict[str, Any]:
    """A guardrail calibrated on the verdicts, held against people's labels on the same rows; best of all draws of a row.

    Returns:
        ``alpha``; ``threshold`` and the risk ``by_judge`` and ``by_people``, shares of all requests that are served a bad answer;
        None where the verdicts certify nothing, or rows lack scores.
    """
    whole = [row.value for row in rows if all(_whole(one, name) for one in row.candidates)]
    told = [{**row, "candidates": [{**one, "acceptable": one["verdicts"][name]} for one in row["candidates"]]} for row in whole]
    nothing = {"alpha": alpha, "threshold": None, "by_judge": None, "by_people": None}
    try:
        logs = log_of_rows(told), log_of_rows(whole)
        outcome = calibrate_guardrail(logs[0], schedule=[int(logs[0].counts.min())], alpha=alpha, delta=delta)
    except InputError:  # none is left, or they are no log that anything could be calibrated on
        return nothing
    if isinstance(outcome, NotEnoughEvidence):
        return nothing
    risks = [replay_log(log, outcome.profile)["served_and_bad_rate"] for log in logs]
    return {"alpha": alpha, "threshold": outcome.profile.thresholds[0], "by_judge": risks[0], "by_people": risks[1]}


def _whole(one: Candidate, name: str) -> bool:
    labelled = not one.failed and one.label is not None and one.value.get("score") is not None
    return labelled and verdict_of(one, name) is not None


def kappa(people: Bools, judge: Bools) -> float:
    """Cohen's kappa; NaN where both always say the same one thing."""
    same = float((people == judge).mean())
    chance = float(people.mean() * judge.mean() + (~people).mean() * (~judge).mean())
    return (same - chance) / (1 - chance) if chance < 1 else np.nan


def _leaning(people: Bools, judge: Bools) -> float:
    return float(judge.mean() - people.mean())


def _share(of: Bools, among: Bools) -> float:
    return float(of[among].mean()) if among.any() else np.nan


_FIGURES: Mapping[str, Callable[[Bools, Bools], float]] = {
    "kappa": kappa,
    "agreement": lambda people, judge: float((people == judge).mean()),
    "bad answers that it accepts": lambda people, judge: _share(judge, ~people),
    "good answers that it refuses": lambda people, judge: _share(~judge, people),
    "leaning (its acceptance less people's)": _leaning,
}


def _with_interval(
    figure: Callable[[Bools, Bools], float], rows: Bools, found: Judged, again: list[Integers]
) -> list[float | None]:
    values = [figure(found.people[some], found.judge[some]) for sample in again if (some := sample[rows[sample]]).size]
    known = [value for value in values if not np.isnan(value)] or [np.nan]
    told = [figure(found.people[rows], found.judge[rows]), *np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()]
    return [None if np.isnan(each) else each for each in told]
