"""Traffic under watch: traces as a guard leaves them, and how often ``drift`` cries out over them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bonmini_guard.calibration.drift import find_drift
from bonmini_guard.calibration.evidence import Certificate
from bonmini_guard.calibration.guardrail import calibrate_guardrail
from bonmini_guard.calibration.traces import traces_of_rows
from bonmini_guard.policy import Action, State
from tests.calibration.populations import Population

TRAFFIC = Population(size=4)


def guarded(profile, log, labelled=1.0, seed=0, **extra):
    """Traces: the rows of a log as the live policy would have left them, cut short by its exits."""
    policy, generator = profile.policy(), np.random.default_rng(seed)
    for i, name in enumerate(log.ids):
        state = State()
        decision = policy.decide(state)
        while decision.action is Action.DRAW:
            state = policy.observe(state, log.scores[i, state.drawn : state.drawn + decision.draws].tolist())
            decision = policy.decide(state)
        candidates = [{"text": "x", "score": float(score), "raw_score": float(score)} for score in log.scores[i, : state.drawn]]
        if decision.action is Action.SERVE and generator.random() < labelled:
            candidates[decision.index]["acceptable"] = bool(log.labels[i, decision.index])
        outcome = "abstained" if decision.action is Action.ABSTAIN else "accepted" if decision.accepted else "best_effort"
        yield {
            "id": name,
            "prompt": "p",
            "candidates": candidates,
            "decision": outcome,
            "reason": decision.reason,
            "selected": decision.index,
            "complete": False,
            **extra,
        }


def calibrated(seed=0, population=TRAFFIC, prompts=300):
    outcome = calibrate_guardrail(population.log(prompts, seed), schedule=(2, 2), alpha=0.1)
    assert isinstance(outcome, Certificate)
    return outcome.profile


def alarms(population, later, repeats, rates, *, prompts=200, traces=150):
    """In how many of the repeats each rate's ``drift`` says drift, for later traffic from another population or the same."""
    heard = Counter()
    for seed in range(repeats):
        profile = calibrated(seed, population, prompts)
        rows = guarded(profile, later.log(traces, 100_000 + seed), labelled=0.5, seed=seed)
        found = traces_of_rows(((f"test:{i}", row) for i, row in enumerate(rows)), profile)
        for rate in rates:
            heard[rate] += find_drift(profile, found, false_alarm_rate=rate).drift
    return heard
