"""Traffic under watch: traces as a guard leaves them, and how often ``drift`` cries out over them, week by week."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bonmini_guard.calibration.choose import calibrate_guardrail
from bonmini_guard.calibration.drift import find_drift
from bonmini_guard.calibration.evidence import Certificate
from bonmini_guard.calibration.traces import traces_of_rows
from bonmini_guard.calibration.watch import Watch
from bonmini_guard.policy.policy import Action, run
from tests.calibration.populations import Population

TRAFFIC = Population(size=4)


def guarded(profile, log, labelled=1.0, seed=0, prefix="", **extra):
    """Traces: the rows of a log as the live policy would have left them, cut short by its exits; some labelled as a whole."""
    policy, generator = profile.policy(), np.random.default_rng(seed)
    for i in range(len(log)):
        ran = run(policy, log.scores[i].tolist())
        decision = ran.decision
        candidates = [{"text": "x", "score": float(score), "raw_score": float(score)} for score in log.scores[i, : ran.draws]]
        if generator.random() < labelled:
            for candidate, good in zip(candidates, log.labels[i], strict=False):
                candidate["acceptable"] = bool(good)
        outcome = "abstained" if decision.action is Action.ABSTAIN else "accepted" if decision.accepted else "best_effort"
        yield {
            "id": f"{prefix}{i}",
            "prompt": "p",
            "candidates": candidates,
            "decision": outcome,
            "reason": decision.reason,
            "selected": decision.index,
            "complete": False,
            **extra,
        }


def placed(rows):
    """(place, row) pairs as a file would give them."""
    return ((f"test:{number}", row) for number, row in enumerate(rows, start=1))


def calibrated(seed=0, population=TRAFFIC, prompts=300, **options):
    outcome = calibrate_guardrail(population.log(prompts, seed), **{"schedule": (2, 2), "alpha": 0.1} | options)
    assert isinstance(outcome, Certificate)
    return outcome.profile


def alarms(population, later, repeats, rates, *, prompts=200, traces=150):
    """In how many of the repeats one look at each rate says drift, for later traffic from another population or the same."""
    heard = Counter()
    for seed in range(repeats):
        profile = calibrated(seed, population, prompts)
        found = traces_of_rows(placed(guarded(profile, later.log(traces, 100_000 + seed), 0.5, seed)), profile)
        for rate in rates:
            heard[rate] += find_drift(profile, found, false_alarm_rate=rate).drift
    return heard


def weeks_of(profile, populations, traces, seed, labelled=0.2, grouped=1):
    """The rows of each week, one population a week; groups of so many rows belong to one week."""
    for week, population in enumerate(populations):
        rows = list(guarded(profile, population.log(traces, 1_000_003 * (seed + 1) + week), labelled, seed, f"{week}-"))
        yield [row | {"group": f"{week}-{number // grouped}"} for number, row in enumerate(rows)] if grouped > 1 else rows


def first_alarm(profile, weeks, how, rate=0.01):
    """The week, from 1, and the tests of the first alarm; ``how`` is a watch ("state"), "looks" or "naive". None if there is none.

    Without a state each week is looked at by itself: at an equal share of the rate, or at all of it.
    """
    weeks = list(weeks)
    watch = Watch(profile, false_alarm_rate=rate)
    for week, rows in enumerate(weeks, start=1):
        if how == "state":
            drift = watch.look(traces_of_rows(placed(rows), profile, memory=watch.memory))
        else:
            looks = len(weeks) if how == "looks" else 1
            drift = find_drift(profile, traces_of_rows(placed(rows), profile), false_alarm_rate=rate, looks=looks)
        if drift.drift:
            return week, {finding.test for finding in drift.findings if finding.found}
    return None
