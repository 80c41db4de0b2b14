"""How many labelled prompts will a promise need? Asked before labelling, answered from assumptions that the answer names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bonmini_guard.calibration import bounds
from bonmini_guard.calibration.accelerator import quality_of
from bonmini_guard.calibration.enough import LEAST_SERVED, MOST_UNITS
from bonmini_guard.calibration.evidence import Certificate, check_share, percent
from bonmini_guard.calibration.guardrail import calibrate_guardrail
from bonmini_guard.calibration.logs import Log
from bonmini_guard.calibration.risks import risk_named

#: The chance of success that the number must give.
POWER = 0.8
#: Recalibrations on one size, and the largest size tried, when a log is simulated from.
REPEATS, MOST_SIMULATED = 20, 1 << 14


@dataclass(frozen=True)
class Plan:
    """The answer.

    Attributes:
        prompts: labelled prompts needed; None if no number would do.
        sentence: the answer in one line, with its assumptions.
        served: share of requests that would then be served; None if unknown.
        assumptions: what it rests on.
    """

    prompts: int | None
    sentence: str
    served: float | None
    assumptions: dict[str, Any]


def plan_from_shares(
    served: float, bad: float, *, risk: str = "served_and_bad", alpha: float = 0.05, delta: float = 0.1, fit_share: float = 0.4
) -> Plan:
    """The number from two guesses, by the exact binomial test at one threshold.

    With r the risk and u the share of prompts that count for it (served_and_bad: ``r = served * bad``, u = 1;
    bad_among_served: ``r = bad``, u = served; false_acceptance: ``r = served * bad / u``, ``u = served * bad + 1 - served``,
    abstentions being right), the smallest m with ``P(p(K) <= delta) >= 0.8``, ``K ~ Bin(m, r)``, ``p(k) = P(Bin(m, alpha) <= k)``;
    then ``n = m / u``, for the risks that are shares ``n / (1 - fit_share)``, and at least as many as serve 5 answers. A plan, not
    a promise: the sequence of tests needs somewhat more where the threshold is not known.

    Args:
        served: share of requests whose answer would be served.
        bad: share of those answers that are not acceptable.
        risk: the promise, by name.
        alpha: the most that the risk may be.
        delta: the chance that the promise is missed.
        fit_share: share of the log that the risks which are shares spend on choosing where to start.

    Raises:
        ConfigurationError: a share is not in (0, 1), or the risk is unknown.
    """
    for name, value in (("served", served), ("bad", bad), ("alpha", alpha), ("delta", delta), ("fit_share", fit_share)):
        check_share(name, value)
    counted = {"served_and_bad": 1.0, "bad_among_served": served, "false_acceptance": served * bad + 1.0 - served}
    is_share = risk_named(risk).is_share
    rate = bad if risk == "bad_among_served" else served * bad / counted[risk]
    assumed = {"served": served, "bad_among_served": bad, "source": "your two shares"}
    asked = f"{risk} <= {alpha:g} with confidence {1 - delta:g}"
    if rate >= alpha:
        sentence = f"no number of labels gives {asked}: at these shares the risk itself is {percent(rate)}"
        return Plan(None, sentence, None, assumed)
    units = _units_for(rate, alpha, delta)
    if units is None:
        return Plan(None, f"more than {MOST_UNITS:,} labels for {asked}: the risk is too close to alpha", None, assumed)
    prompts = max(units / counted[risk], LEAST_SERVED / served) / (1.0 - fit_share if is_share else 1.0)
    number = int(np.ceil(prompts))
    sentence = (
        f"about {number:,} labelled prompts for {asked}, with a chance of {percent(POWER)} or more; "
        f"assumed: {percent(served)} of the requests are served, {percent(bad)} of those answers are not acceptable"
    )
    return Plan(number, sentence, served, assumed)


def _units_for(rate: float, alpha: float, delta: float) -> int | None:
    low, high = 0, 16
    while _power(high, rate, alpha, delta) < POWER:
        low, high = high, 2 * high
        if high > MOST_UNITS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, rate, alpha, delta) >= POWER else (middle, high)
    return high


def _power(units: int, rate: float, alpha: float, delta: float) -> float:
    """P(p(K) <= delta) for K ~ Bin(units, rate)."""
    counts = np.arange(min(units, int(alpha * units) + 1) + 1)
    enough = np.flatnonzero(bounds.binomial(counts, units, alpha) <= delta)
    if not enough.size:
        return 0.0
    return float(bounds.binomial(counts[enough[-1:]], units, rate)[0])


def plan_from_log(
    log: Log,
    *,
    schedule: Sequence[int],
    risk: str = "served_and_bad",
    alpha: float = 0.05,
    delta: float = 0.1,
    fit_share: float = 0.4,
    seed: int = 0,
) -> Plan:
    """The number from a log's scores, by doing it: labels are simulated, and calibrations on them counted.

    A label that is missing is drawn from ``Bernoulli(sigmoid(score))``, the reward model's own claim; rows are drawn with
    replacement. The number is the smallest size of 32, 45, 64, ... for which at least 80 % of 20 calibrations end with a
    certificate.

    Args:
        log: complete scored rows; labels are used where there are any.
        schedule: draws of each loop.
        risk: the promise, by name.
        alpha: the most that the risk may be.
        delta: the chance that the promise is missed.
        fit_share: share of the log that the risks which are shares spend on choosing where to start.
        seed: of the simulation.
    """
    generator = np.random.default_rng(seed)
    labelled = float(np.isfinite(log.labels[log.drawn]).mean())
    assumed = {"labels_of_the_log": labelled, "source": "this log's scores"}
    what = "this log's labels" if labelled == 1.0 else "pseudo-labels from sigmoid(score), right only if the reward model's zero is"
    asked = f"{risk} <= {alpha:g} with confidence {1 - delta:g}"
    chance, size = quality_of(log), 32.0
    while size <= MOST_SIMULATED:
        shares = []
        for repeat in range(REPEATS):
            simulated = _simulated(log, chance, round(size), generator)
            options: dict[str, Any] = {"risk": risk, "alpha": alpha, "delta": delta, "fit_share": fit_share, "seed": repeat}
            outcome = calibrate_guardrail(simulated, schedule=schedule, bound="hoeffding_bentkus", **options)
            if isinstance(outcome, Certificate):
                shares.append(outcome.profile.evidence["served"] / outcome.profile.evidence["requests"])
            if len(shares) + REPEATS - 1 - repeat < POWER * REPEATS:
                break
        if len(shares) >= POWER * REPEATS:
            served = float(np.mean(shares))
            sentence = (
                f"about {round(size):,} labelled prompts for {asked}, which would then serve about {percent(served)} of the "
                f"requests (more labels serve more); assumed: {what}"
            )
            return Plan(round(size), sentence, served, assumed)
        size *= 2**0.5
    return Plan(None, f"{MOST_SIMULATED:,} labelled prompts would not do for {asked}; assumed: {what}", None, assumed)


def _simulated(log: Log, chance: Any, size: int, generator: np.random.Generator) -> Log:
    rows = generator.integers(0, len(log), size)
    drawn = log.take(rows)
    labels = np.where(np.isnan(chance[rows]), np.nan, generator.random((size, chance.shape[1])) < np.nan_to_num(chance[rows]))
    # drawn with replacement, rows stand for different prompts
    return replace(drawn, labels=labels, groups=np.arange(size))
