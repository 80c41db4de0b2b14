"""MAPIE's learn-then-test as an oracle, where losses are 0 or 1."""

from __future__ import annotations

import numpy as np
import pytest
from mapie import risk_control as control

from bonmini_guard.calibration.choose import calibrate_guardrail
from tests.calibration.helpers import log_of


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_the_threshold_is_that_of_mapie_up_to_its_rounding(seed, alpha):
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=300)
    labels = (scores + 0.7 * generator.normal(size=300) > 0).astype(int)
    outcome = calibrate_guardrail(
        log_of(scores[:, None].tolist(), labels[:, None].astype(float).tolist()), schedule=(1,), alpha=alpha, delta=0.1
    )
    ordered = np.sort(scores)[::-1]
    middles = (ordered[:-1] + ordered[1:]) / 2
    served_and_bad = control.BinaryRisk(
        lambda y_true, y_pred: (y_pred == 1) & (y_true == 0), lambda y_true, y_pred: np.ones_like(y_true, dtype=bool), False
    )
    controller = control.BinaryClassificationController(
        lambda x: np.stack([-x[:, 0], x[:, 0]], axis=1),
        served_and_bad,
        alpha,
        0.9,
        best_predict_param_choice="recall",
        list_predict_params=middles,
        fwer_method="fixed_sequence",
    )
    controller.calibrate(scores[:, None], labels)
    ours = int(np.searchsorted(-middles, -outcome.profile.thresholds[0]))
    theirs = int(np.searchsorted(-middles, -float(np.min(controller.valid_predict_params))))
    # MAPIE rounds n times the mean upwards, which costs it one bad answer at times; it never certifies more
    assert theirs <= ours
    bad = labels[np.argsort(-scores)] == 0
    assert int(bad[theirs + 1 : ours + 1].sum()) <= 1
