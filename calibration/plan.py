"""How many rows and labels will a promise need? Asked before labelling, answered by doing it on simulated labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bonmini_guard.calibration.choose import Evidence, rows_needed
from bonmini_guard.calibration.evidence import percent
from bonmini_guard.calibration.logs import Log
from bonmini_guard.calibration.on_demand import labels_asked, request
from bonmini_guard.calibration.orders import one_a_unit
from bonmini_guard.calibration.simulate import MOST_ROWS, floor_of


@dataclass(frozen=True)
class Plan:
    """The answer.

    Attributes:
        rows: rows needed; None if no number would do.
        labels: labels on them, at most.
        on_demand: labels on them if they are asked for on demand.
        sentence: the answer in one line, with its floor and its assumptions.
        served: share of requests that would then be served (a guardrail's).
    """

    rows: int | None
    labels: int | None
    on_demand: int | None
    sentence: str
    served: float | None


def plan_from_log(
    log: Log, *, mode: str, schedule: Sequence[int], level: float, delta: float, risk: str = "served_and_bad"
) -> Plan:
    """The number from a log's scores, by doing it: rows are drawn with replacement, labels by their scores, calibrations counted.

    Args:
        log: complete scored rows; where there are labels, they say how labels depend on scores, else sigmoid(score) does.
        mode: guardrail or accelerator.
        schedule: draws of each loop.
        level: alpha or epsilon.
        delta: the chance that the promise is missed.
        risk: of a guardrail, by name.

    Raises:
        ConfigurationError: something asked for is not usable.
        InputError: the log has too few candidates a row, or no scores.
    """
    guardrail = mode == "guardrail"
    asked = request(risk if guardrail else mode, level, delta, schedule)
    log.require_scores()
    labels = int(np.isfinite(log.labels).sum())
    what = f"labels depend on scores as {labels:,} of this log do" if labels else "sigmoid(score) is right, so the model's zero is"
    head = f"{asked} takes {floor_of(asked.risk.name if asked.risk else None, level, delta)}"
    needed = rows_needed(one_a_unit(log), asked)
    if needed is None:
        return Plan(None, None, None, f"{head}; {MOST_ROWS:,} rows would not do; assumed: {what}", None)
    rows, found = needed
    most = round(float(np.mean([one.labels for one in found])))
    fewer = round(float(np.mean([labels_asked(one, asked) for one in found])))
    served = float(np.mean([_served(one) for one in found])) if guardrail else None
    then = "" if served is None else f", which would then serve about {percent(served)} of requests (more rows serve more)"
    sentence = f"{head}; about {rows:,} rows with {most:,} labels, {fewer:,} with 'label --for'{then}; assumed: {what}"
    return Plan(rows, most, fewer, sentence, served)


def _served(tested: Evidence) -> float:
    return float(tested.steps.served[tested.found.cut or 0]) / len(tested.path)
