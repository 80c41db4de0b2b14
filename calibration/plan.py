"""How many rows and labels will a promise need? Asked before labelling, answered by doing it on pseudo-labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bonmini_guard.calibration.choose import calibrate_accelerator, calibrate_guardrail
from bonmini_guard.calibration.evidence import Certificate, percent
from bonmini_guard.calibration.further import POWER, least_rows
from bonmini_guard.calibration.logs import Floats, Log

#: Recalibrations on one size, and the largest size tried.
REPEATS, MOST_SIMULATED = 60, 1 << 15


@dataclass(frozen=True)
class Plan:
    """The answer.

    Attributes:
        rows: rows needed; None if no number would do.
        labels: labels on them, at most.
        sentence: the answer in one line, with its floor and its assumptions.
        served: share of requests that would then be served (a guardrail's).
        assumptions: what it rests on.
    """

    rows: int | None
    labels: int | None
    sentence: str
    served: float | None
    assumptions: dict[str, Any]


def plan_from_log(
    log: Log, *, mode: str, schedule: Sequence[int], level: float, delta: float, risk: str = "served_and_bad"
) -> Plan:
    """The number from a log's scores, by doing it: labels are simulated, and calibrations on them counted.

    A label that is missing is drawn from ``Bernoulli(sigmoid(score))``, the reward model's own claim; rows are drawn with
    replacement. The number is the smallest size of 32, 45, 64, ... for which 80 % of 60 calibrations end with a certificate.

    Args:
        log: complete scored rows; labels are used where there are any.
        mode: guardrail or accelerator.
        schedule: draws of each loop.
        level: alpha or epsilon.
        delta: the chance that the promise is missed.
        risk: of a guardrail, by name.
    """
    generator = np.random.default_rng(0)
    known = float(np.isfinite(log.labels[log.drawn]).mean()) if log.drawn.any() else 0.0
    what = "this log's labels" if known == 1.0 else "pseudo-labels from sigmoid(score), right only if the reward model's zero is"
    asked = f"{risk} <= {level:g}" if mode == "guardrail" else f"quality within {level:g} of best-of-N"
    asked += f" with confidence {1 - delta:g}"
    floor = f"{asked} takes {least_rows(level, delta)} rows at the very least"
    assumed, chance, size = {"labels_of_the_log": known, "source": "this log's scores"}, _chances(log), 32.0
    while size <= MOST_SIMULATED:
        outcomes = _outcomes(log, chance, round(size), (mode, tuple(schedule), level, delta, risk), generator)
        if len(outcomes) >= POWER * REPEATS:
            labels = int(np.mean([outcome.profile.evidence["labels_used"] for outcome in outcomes]))
            served = _served(outcomes) if mode == "guardrail" else None
            then = "" if served is None else f", which would then serve about {percent(served)} of requests (more rows serve more)"
            sentence = (
                f"{floor}; about {round(size):,} rows with {labels:,} labels (fewer with 'label --for'){then}; assumed: {what}"
            )
            return Plan(round(size), labels, sentence, served, assumed)
        size *= 2**0.5
    return Plan(None, None, f"{floor}; {MOST_SIMULATED:,} rows would not do; assumed: {what}", None, assumed)


def _served(outcomes: list[Certificate]) -> float:
    return float(np.mean([one.profile.evidence["served"] / one.profile.evidence["counted"] for one in outcomes]))


def _chances(log: Log) -> Floats:
    with np.errstate(over="ignore"):
        modelled = 1.0 / (1.0 + np.exp(-log.scores))
    return np.where(np.isnan(log.labels), modelled, log.labels)


def _outcomes(
    log: Log, chance: Floats, size: int, asked: tuple[str, tuple[int, ...], float, float, str], generator: np.random.Generator
) -> list[Certificate]:
    mode, schedule, level, delta, risk = asked
    found: list[Certificate] = []
    for repeat in range(REPEATS):
        simulated = _simulated(log, chance, size, generator)
        if mode == "guardrail":
            outcome = calibrate_guardrail(simulated, schedule=schedule, risk=risk, alpha=level, delta=delta)
        else:
            outcome = calibrate_accelerator(simulated, schedule=schedule, epsilon=level, delta=delta)
        found += [outcome] if isinstance(outcome, Certificate) else []
        if len(found) + REPEATS - 1 - repeat < POWER * REPEATS:
            break
    return found


def _simulated(log: Log, chance: Floats, size: int, generator: np.random.Generator) -> Log:
    rows = generator.integers(0, len(log), size)
    labels = np.where(np.isnan(chance[rows]), np.nan, generator.random((size, chance.shape[1])) < np.nan_to_num(chance[rows]))
    # drawn with replacement, rows stand for different prompts, each with an order of its own
    keys, asked = generator.integers(1 << 62, size=size).astype(np.uint64), np.zeros(size, dtype=bool)
    return replace(log.take(rows), keys=keys, labels=labels.astype(np.float32), groups=np.arange(size), asked=asked)
