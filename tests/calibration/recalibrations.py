"""Recalibrations on simulated traffic, counted against the truth: for the slow tests and for ``benchmarks.validity``.

The truth is the risk on one order in a population so large that its own error does not matter.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bonmini_guard.calibration.certify import RISKS
from bonmini_guard.calibration.choose import calibrate_accelerator, calibrate_guardrail
from bonmini_guard.calibration.evidence import Certificate
from bonmini_guard.calibration.orders import one_a_unit
from bonmini_guard.calibration.paths import Paths, Steps, counts_at, exits, paths, steps
from tests.calibration.populations import Population
from tests.sizes import most, worlds

COUNTS = tuple(each.name for each in fields(Steps) if each.name != "cuts")
REPEATS, DELTA = worlds(300), 0.1
MOST_MISSES = most(REPEATS, DELTA)

CLUSTERED = Population(size=16)
TIED = Population(size=16, digits=0)
HALF_BAD = Population(size=16, hopeless=0.5, middle=1.0)
SMALL = Population(size=4)
FOOLED = Population(size=16, middle=1.0, tail=3.0)
FAILING = Population(size=16, middle=0.5, failing=0.5)
GROUPED = Population(size=16, middle=0.5, per_group=30)
#: Each prompt under five ids: the unit is the prompt.
DUPLICATED = Population(size=16, middle=0.5, per_group=5)
#: One score for all: nothing or everything is served, at a risk barely above alpha.
BARELY = Population(size=1, middle=1.6, own=0.0, shared=0.0, noise=0.0, digits=-2)

FOUR = (4, 4, 4, 4)
CASES = {
    "served_and_bad": (CLUSTERED, 400, FOUR, "served_and_bad", 0.05),
    "served_and_bad, ties": (TIED, 400, FOUR, "served_and_bad", 0.1),
    "served_and_bad, half of the prompts bad": (HALF_BAD, 400, FOUR, "served_and_bad", 0.05),
    "served_and_bad, fooled where scores are high": (FOOLED, 400, FOUR, "served_and_bad", 0.1),
    "served_and_bad, failures follow badness": (FAILING, 400, FOUR, "served_and_bad", 0.05),
    "served_and_bad, groups of 1 to 30": (GROUPED, 200, FOUR, "served_and_bad", 0.1),
    "served_and_bad, every prompt under five ids": (DUPLICATED, 400, FOUR, "served_and_bad", 0.05),
    "served_and_bad, barely above alpha": (BARELY, 400, (1,), "served_and_bad", 0.05),
    "served_and_bad, few rows": (SMALL, 60, (2, 2), "served_and_bad", 0.1),
    "bad_among_served": (CLUSTERED, 400, FOUR, "bad_among_served", 0.1),
    "bad_among_served, half of the prompts bad": (HALF_BAD, 400, FOUR, "bad_among_served", 0.2),
    "bad_among_served, fooled where scores are high": (FOOLED, 400, FOUR, "bad_among_served", 0.15),
    "bad_among_served, failures follow badness": (FAILING, 400, FOUR, "bad_among_served", 0.1),
    "false_acceptance, failures follow badness": (FAILING, 400, FOUR, "false_acceptance", 0.2),
    "false_acceptance": (CLUSTERED, 400, FOUR, "false_acceptance", 0.2),
    "false_acceptance, ties": (TIED, 400, FOUR, "false_acceptance", 0.3),
}


#: Short answers are worse, and come first; or they are worse and flattered by the scorer; or long ones are worse.
HASTY = Population(size=8, middle=0.5, haste=0.6)
FLATTERED = Population(size=8, middle=0.5, haste=0.6, flattery=1.0)
SLOW = Population(size=8, middle=0.5, haste=-0.6)
EIGHT = (1,) * 8
#: As CASES, with the exit: decided in order of arrival.
ARRIVING = {
    "rolling, short answers worse": (HASTY, 400, EIGHT, "served_and_bad", 0.05, "rolling"),
    "rolling, short answers worse but overscored": (FLATTERED, 400, EIGHT, "served_and_bad", 0.1, "rolling"),
    "rolling, long answers worse": (SLOW, 400, EIGHT, "served_and_bad", 0.05, "rolling"),
    "rolling bad_among_served, short answers worse but overscored": (FLATTERED, 400, EIGHT, "bad_among_served", 0.15, "rolling"),
    "rolling false_acceptance, short answers worse": (HASTY, 400, EIGHT, "false_acceptance", 0.2, "rolling"),
    "eager, short answers worse": (HASTY, 400, (4, 4), "served_and_bad", 0.05, "eager"),
    "eager, short answers worse but overscored": (FLATTERED, 400, (4, 4), "served_and_bad", 0.1, "eager"),
}


@lru_cache(maxsize=16)
def _large(population, schedule, exit="loop", in_flight=1):
    rows = 200_000 if len(schedule) <= 4 else 20_000  # at 40,000 its own error already moved the share of misses by 0.03
    rows = rows if exit == "loop" else 100_000
    if population.per_group == 30:  # a random prompt of a random group
        rows //= 10
    path = paths(one_a_unit(population.log(rows, 999_999)), schedule, "auto", exit, in_flight)
    return path, steps(path)


def row_by_row(path: Paths, profile, in_flight=1) -> Steps:
    """The counts of rows under a profile's thresholds: one entry."""
    thresholds = profile.policy().at(in_flight).thresholds
    # An eager exit has one threshold, and decides at each draw.
    thresholds = thresholds if profile.exit == "loop" else thresholds[:1] * path.draws.size
    return counts_at(path, exits(path, thresholds), "left_out")


def looked_up(path: Paths, under_all: Steps, profile, in_flight=1) -> tuple[Steps, int]:
    """As :func:`row_by_row`, with the entry: where one threshold is for all loops it is found among those under all thresholds."""
    lowest, *others = profile.policy().at(in_flight).thresholds
    entry = int(np.searchsorted(-under_all.cuts, -lowest, side="right")) - 1
    one_for_all = all(threshold == lowest for threshold in others)
    return (under_all, entry) if one_for_all and entry >= 0 else (row_by_row(path, profile, in_flight), 0)


def truths(population, profile):
    """Counts per row of the large population under a profile, for each number of draws in flight that it holds for."""
    found = []
    for width in profile.in_flight or (1,):
        path, under_all = _large(population, profile.schedule, profile.exit, width)
        counts, entry = looked_up(path, under_all, profile, width)
        found.append({name: float(getattr(counts, name)[entry]) / len(path) for name in COUNTS})
    return found


def truth(population, profile):
    """As :func:`truths`, of a profile for one."""
    return truths(population, profile)[0]


def risk_of(counts, risk):
    """The true risk from counts per row."""
    among = {"served_and_bad": 1.0, "bad_among_served": counts["served"], "false_acceptance": counts["selected_bad"]}[risk]
    return counts["served_bad"] / max(among, 1e-12)


#: Shapes of a budget of 16 that a user might try by hand.
SCHEDULES = (FOUR, (16,), (8, 8), (2,) * 8, (2, 14), (4, 12), (2, 2, 4, 8), (1, 1, 2, 4, 8))


class Counted(NamedTuple):
    """What recalibrations came to.

    Attributes:
        misses: logs whose certificate is not true.
        contradicted: logs whose certificate's own risk is above alpha.
        served: of each log, the share served in truth; 0 without a certificate.
        found: share of logs with a certificate.
        labels: that a calibration looks at, a row.
    """

    misses: int
    contradicted: int
    served: list[float]
    found: float
    labels: float


def recalibrate(
    population, prompts, schedule, risk, alpha, repeats=REPEATS, seeds=1, thin=None, schedules=(), claimed=None, **options
):
    """Calibrate a case on many logs; of several tries on one log the one that serves most is kept.

    Tries are ``seeds``, or other ``schedules``; each is one of so many calibrations. ``claimed`` are numbers of draws in flight
    for which a rolling profile is taken to hold, whatever it was calibrated for.
    """
    assert risk in RISKS
    misses, contradicted, served, labels, found = 0, 0, [], [], 0
    for number in range(repeats):
        log = population.log(prompts, number)
        log = log if thin is None else thin(log, number)
        tries = [{"schedule": shape} for shape in schedules] or [{"schedule": schedule, "seed": seed} for seed in range(seeds)]
        asked = {"risk": risk, "alpha": alpha, "delta": DELTA, "calibrations": len(tries), **options}
        outcomes_ = [calibrate_guardrail(log, **one, **asked) for one in tries]
        kept = [outcome for outcome in outcomes_ if isinstance(outcome, Certificate)]
        seen = [outcome.profile.evidence if isinstance(outcome, Certificate) else outcome.evidence for outcome in outcomes_]
        labels += [evidence["labels_used"] / evidence["units"] for evidence in seen]
        if not kept:
            served.append(0.0)
            continue
        best = max(kept, key=lambda outcome: outcome.profile.evidence["served"])
        profile = best.profile if claimed is None else best.profile.model_copy(update={"in_flight": claimed})
        every, seen = truths(population, profile), best.profile.evidence
        misses += max(risk_of(counts, risk) for counts in every) > alpha
        own = {"served_and_bad": seen["counted"], "bad_among_served": seen["served"], "false_acceptance": seen["selected_bad"]}
        contradicted += seen["served_bad"] > alpha * own[risk]
        served.append(float(np.mean([counts["served"] for counts in every])))
        found += 1
    return Counted(misses, contradicted, served, found / repeats, float(np.mean(labels)))


def recalibrate_accelerator(population, prompts, schedule, epsilon, repeats=REPEATS, **options):
    """Misses, the mean draws in truth, and the share with a certificate."""
    misses, draws = 0, []
    for number in range(repeats):
        log = population.log(prompts, number)
        outcome = calibrate_accelerator(log, schedule=schedule, epsilon=epsilon, delta=DELTA, **options)
        if isinstance(outcome, Certificate):
            every = truths(population, outcome.profile)
            misses += max(counts["lost"] - counts["won"] for counts in every) > epsilon
            draws.append(np.mean([counts["draws"] for counts in every]))
    return misses, float(np.mean(draws)) if draws else float("nan"), len(draws) / repeats


def unlabelled_at_random(log, seed):
    """A quarter of the rows without labels."""
    rows = np.random.default_rng(seed).random(len(log)) < 0.25
    return replace(log, labels=np.where(rows[:, None], np.nan, log.labels))
