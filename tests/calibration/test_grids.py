"""Grids and constant tables against the plain exact replay."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest

from bonmini_guard.calibration.constant import constant_outcomes
from bonmini_guard.calibration.grids import grid_totals
from bonmini_guard.calibration.ranking import rank
from bonmini_guard.calibration.replay import Outcomes, replay_rankings


def ragged(seed=0, prompts=30):
    generator = np.random.default_rng(seed)
    scores = np.round(generator.normal(size=(prompts, 9)), 1)
    scores[generator.random(scores.shape) < 0.15] = math.nan
    counts = generator.choice([7, 9], size=prompts)
    scores[counts == 7, 7:] = math.nan
    return rank(scores, (generator.random(scores.shape) < 0.5).astype(float), counts)


SCHEDULES = ((7,), (2, 3), (1, 1, 5))


def test_grid_totals_equal_single_replays():
    rankings = ragged()
    thresholds = np.array([-5.0, -1.0, -0.3, 0.0, 0.05, 0.7, 1.0, 4.0, math.inf])
    totals = grid_totals(rankings, SCHEDULES, thresholds)
    for s, schedule in enumerate(SCHEDULES):
        for t, threshold in enumerate(thresholds):
            single = replay_rankings(rankings, schedule, (threshold,) * len(schedule))
            for field in fields(Outcomes):
                assert getattr(totals, field.name)[s, t] == pytest.approx(getattr(single, field.name).sum(), abs=1e-9), field.name


def test_grid_thresholds_must_ascend():
    for bad in ([1.0, 0.0], [-math.inf, 0.0]):
        with pytest.raises(ValueError, match="ascending"):
            grid_totals(ragged(), SCHEDULES, np.array(bad))


def test_constant_tables_equal_single_replays():
    for ranking in ragged(1):
        tables = constant_outcomes(ranking, (2, 3))
        single = replay_rankings([ranking], (2, 3), (0.3, 0.3))
        below = ranking.below(0.3)
        order = np.argsort(np.argsort(ranking.rows))
        for field in fields(Outcomes):
            picked = getattr(tables, field.name)[np.arange(len(below)), below]
            assert picked[np.argsort(order)] == pytest.approx(getattr(single, field.name)), field.name
