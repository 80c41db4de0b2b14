"""Recalibrations on simulated traffic, counted against the truth: for the slow tests and for ``benchmarks.validity``.

The truth is the risk in a population so large that its own error does not matter.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.stats import binom

from bonmini_guard.calibration.accelerator import Split, calibrate_accelerator
from bonmini_guard.calibration.evidence import Certificate
from bonmini_guard.calibration.guardrail import calibrate_guardrail
from bonmini_guard.calibration.ranking import rank
from bonmini_guard.calibration.risks import RISKS
from bonmini_guard.calibration.staircase import Shape, staircase
from tests.calibration.populations import Population

REPEATS, DELTA = 500, 0.1
MOST_MISSES = int(binom.ppf(0.999, REPEATS, DELTA))

CLUSTERED = Population(size=8)
GROUPED = Population(size=6, per_group=3)
TIED = Population(size=6, digits=0)
HOPELESS = Population(size=6, hopeless=0.8)
SINGLE = Population(size=1, prompt=0.8, own=0.6)
SMALL = Population(size=4)


@lru_cache(maxsize=8)
def truth(population, shape, risk, alpha, prompts=20_000):
    """(cuts' staircase, true risk loss and served share of every column)."""
    log = population.log(prompts, 999_999)
    rankings, units = rank(log.scores, log.labels, log.counts), np.arange(prompts)
    loss = staircase(rankings, shape, lambda outcomes: RISKS[risk].loss(outcomes, alpha), units)
    served = staircase(rankings, shape, lambda outcomes: outcomes.accepted, units)
    return loss, loss.totals() / prompts, served.totals() / prompts


def recalibrate(population, prompts, shape, risk, alpha, bound="auto", repeats=REPEATS):
    """Misses, the mean served share, the share of runs with a certificate, and the oracle's served share."""
    stairs, loss, share = truth(population, shape, risk, alpha)
    misses, served = 0, []
    for seed in range(repeats):
        outcome = calibrate_guardrail(
            population.log(prompts, seed),
            schedule=shape.schedule,
            risk=risk,
            alpha=alpha,
            delta=DELTA,
            bound=bound,
            offsets=shape.offsets,
            floors=shape.floors,
            seed=seed,
        )
        if isinstance(outcome, Certificate):
            offset = shape.offsets[0] if shape.offsets else 0.0
            column = stairs.column_of(outcome.profile.thresholds[0] - offset)
            misses += bool(loss[column] > alpha)
            served.append(share[column])
    oracle = float(share[loss <= alpha].max(initial=0.0))
    return misses, float(np.sum(served)) / repeats, len(served) / repeats, oracle


CASES = {
    "served_and_bad, betting, clustered": (CLUSTERED, 150, Shape((2, 2, 4)), "served_and_bad", 0.05, "betting"),
    "served_and_bad, Hoeffding-Bentkus": (CLUSTERED, 150, Shape((2, 2, 4)), "served_and_bad", 0.05, "hoeffding_bentkus"),
    "served_and_bad, groups": (GROUPED, 150, Shape((2, 4)), "served_and_bad", 0.1, "auto"),
    "served_and_bad, heavy ties": (TIED, 150, Shape((2, 4)), "served_and_bad", 0.1, "auto"),
    "served_and_bad, 80 % hopeless": (HOPELESS, 100, Shape((2, 4)), "served_and_bad", 0.1, "auto"),
    "served_and_bad, per-loop thresholds and floors": (
        SMALL,
        60,
        Shape((2, 2), (0.3, 0.0), (-1.0, -9.0)),
        "served_and_bad",
        0.1,
        "auto",
    ),
    "bad_among_served, betting": (CLUSTERED, 200, Shape((2, 6)), "bad_among_served", 0.15, "betting"),
    "bad_among_served, binomial": (SINGLE, 400, Shape((1,)), "bad_among_served", 0.15, "binomial"),
    "bad_among_served, floors": (SMALL, 60, Shape((2, 2), None, (0.0, -9.0)), "bad_among_served", 0.25, "auto"),
    "false_acceptance, betting": (CLUSTERED, 200, Shape((2, 6)), "false_acceptance", 0.2, "betting"),
    "false_acceptance, binomial": (SINGLE, 400, Shape((1,)), "false_acceptance", 0.15, "binomial"),
}


def recalibrate_accelerator(population, prompts, schedule, epsilon, repeats=REPEATS):
    """Misses, and the number of different thresholds certified."""
    whole = Split(population.log(3_000, 999_999), schedule)
    lost, misses = {}, 0
    for seed in range(repeats):
        outcome = calibrate_accelerator(population.log(prompts, seed), schedule=schedule, epsilon=epsilon, delta=DELTA, seed=seed)
        if isinstance(outcome, Certificate):
            thresholds = outcome.profile.thresholds
            if thresholds not in lost:
                lost[thresholds] = float(whole.paired(thresholds).loss.mean())
            misses += lost[thresholds] > epsilon
    return misses, len(lost)
