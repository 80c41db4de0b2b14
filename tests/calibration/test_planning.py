"""Planning: the number of rows, further ones or all of them, gives a certificate in four cases of five."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from bonmini_guard.calibration.choose import calibrate_accelerator, calibrate_guardrail
from bonmini_guard.calibration.evidence import Certificate
from bonmini_guard.calibration.logs import log_of_arrays
from bonmini_guard.calibration.on_demand import plan, request
from bonmini_guard.calibration.simulate import POWER
from tests.calibration.populations import Population

FOUR = (4,) * 4
WORLDS = {
    "clustered": Population(size=16),
    "half bad": Population(size=16, hopeless=0.5, middle=1.0),
    "failing": Population(size=16, middle=0.5, failing=0.5),
}
#: Level, rows of the log from which is planned, and of the log that is too small.
ASKED = {
    "served_and_bad": (0.05, 200, 30),
    "bad_among_served": (0.3, 200, 30),  # at 0.2 the second world takes ten times as many rows
    "false_acceptance": (0.2, 200, 30),
    "accelerator": (0.03, 200, 60),
}


def certified(log, what, level):
    if what == "accelerator":
        return calibrate_accelerator(log, schedule=FOUR, epsilon=level)
    return calibrate_guardrail(log, schedule=FOUR, risk=what, alpha=level)


def joined(one, other):
    return log_of_arrays(*(np.concatenate([getattr(log, name) for log in (one, other)]) for name in ("scores", "labels")))


@pytest.mark.slow
@pytest.mark.parametrize("what", ASKED)
def test_what_a_plan_says_gives_a_certificate_four_times_of_five(what):
    """60 calibrations: were the chance only 0.5, this would fail 97 times of 100; at 0.8 it does once in 1,000."""
    level, rows, _ = ASKED[what]
    found = tried = 0
    for world in WORLDS.values():
        needed = plan(world.log(rows, 700), request(what, level, 0.1, FOUR)).rows
        logs = [world.log(needed, 5000 + number) for number in range(20)]
        found += sum(isinstance(certified(log, what, level), Certificate) for log in logs)
        tried += len(logs)
    assert found >= binom.ppf(0.001, tried, POWER)


@pytest.mark.slow
def test_so_many_further_rows_give_a_certificate_four_times_of_five():
    """27 refused logs, over risks and worlds: were the chance only 0.5, this would fail 9 times of 10; at 0.8 once in 1,000."""
    found = tried = 0
    for what in ("served_and_bad", "false_acceptance", "accelerator"):
        level, _, rows = ASKED[what]
        for world in WORLDS.values():
            logs = (world.log(rows, seed) for seed in range(200))
            outcomes = ((log, certified(log, what, level)) for log in logs)
            refused = ((log, outcome) for log, outcome in outcomes if not isinstance(outcome, Certificate))
            for number, (log, outcome) in zip(range(3), refused, strict=False):
                further = world.log(outcome.further, 9000 + number)
                found += isinstance(certified(joined(log, further), what, level), Certificate)
                tried += 1
    assert tried == 27
    assert found >= binom.ppf(0.001, tried, POWER)
