"""The promises, checked by simulation: over 500 recalibrations each is missed in at most delta of them; and they are not empty."""

from __future__ import annotations

import numpy as np
import pytest

from bonmini_guard.calibration import bounds
from bonmini_guard.calibration.staircase import Shape
from tests.calibration.recalibrations import CASES, MOST_MISSES, SINGLE, SMALL, recalibrate, recalibrate_accelerator

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_promised_risk_is_kept(case):
    misses, _, _, _ = recalibrate(*case)
    assert misses <= MOST_MISSES


def test_this_file_would_notice_a_naive_threshold(monkeypatch):
    naive = lambda means, units, level: np.where(means < level, 0.0, 1.0)  # noqa: E731
    monkeypatch.setattr(bounds, "hoeffding_bentkus", naive)
    misses, _, _, _ = recalibrate(*CASES["served_and_bad, Hoeffding-Bentkus"])
    assert misses > 2 * MOST_MISSES


def test_served_and_bad_reaches_90_percent_of_the_oracle_at_1000_prompts():
    misses, served, _, oracle = recalibrate(SINGLE, 1000, Shape((1,)), "served_and_bad", 0.05)
    assert misses <= MOST_MISSES
    assert served >= 0.9 * oracle


@pytest.mark.parametrize("risk", ["bad_among_served", "false_acceptance"])
def test_share_risks_find_thresholds_at_1000_prompts(risk):
    _, _, found, oracle = recalibrate(SINGLE, 1000, Shape((1,)), risk, 0.1, repeats=150)
    assert oracle >= 0.3
    assert found >= 0.9


def test_the_promised_quality_is_kept():
    misses, certified = recalibrate_accelerator(SMALL, 150, (2, 2), 0.05)
    assert misses <= MOST_MISSES
    assert certified > 50
