"""The accelerator's choice of thresholds, and backward induction against an exhaustive search."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest

from bonmini_guard.calibration.accelerator import calibrate_accelerator, quality_of
from bonmini_guard.calibration.costs import expected_cost
from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence
from bonmini_guard.calibration.induction import thresholds_for_cost
from bonmini_guard.calibration.ranking import rank
from bonmini_guard.calibration.replay import replay_rankings
from bonmini_guard.errors import ConfigurationError, InputError
from tests.calibration.helpers import log_of
from tests.calibration.populations import Population


def value(rankings, schedule, thresholds, cost):
    settled = replay_rankings(rankings, schedule, thresholds).settle("accelerator")
    return float((settled.served_good - cost * settled.draws).mean())


@pytest.mark.parametrize("cost", [0.001, 0.02, 0.08])
def test_backward_induction_is_about_as_good_as_an_exhaustive_search(cost):
    log = Population(size=6, digits=0).log(40, 2)
    rankings, schedule = rank(log.scores, log.labels, log.counts), (2, 2, 2)
    cuts = [*(np.unique(log.scores) - 0.5).tolist(), math.inf]
    best = max(value(rankings, schedule, (a, b, b), cost) for a, b in itertools.product(cuts, cuts))
    found = thresholds_for_cost(rankings, schedule, cost)
    assert value(rankings, schedule, found, cost) >= best - 0.003


def test_prices_of_loops_are_weighed_as_they_are():
    log = Population(size=6, digits=0).log(40, 2)
    rankings, schedule = rank(log.scores, log.labels, log.counts), (2, 2, 2)
    prices = np.random.default_rng(0).gamma(2.0, 2.0, (len(log), 3))

    def worth(thresholds):
        served = replay_rankings(rankings, schedule, thresholds).settle("accelerator").served_good
        return float((served - 0.02 * expected_cost(rankings, schedule, thresholds, prices)).mean())

    cuts = [*(np.unique(log.scores) - 0.5).tolist(), math.inf]
    best = max(worth((a, b, b)) for a, b in itertools.product(cuts, cuts))
    priced = thresholds_for_cost(rankings, schedule, 0.02, prices)
    assert worth(priced) >= best - 0.003
    even = np.full(prices.shape, 2.0)
    assert thresholds_for_cost(rankings, schedule, 0.02, even) == thresholds_for_cost(rankings, schedule, 0.02)


def test_a_free_draw_is_always_taken_and_a_dear_one_never():
    log = Population(size=6).log(50, 0)
    rankings = rank(log.scores, np.clip(1 / (1 + np.exp(-log.scores)), 0, 1), log.counts)
    assert thresholds_for_cost(rankings, (2, 2, 2), 1.0)[0] <= log.scores.min() + 1.0
    free = replay_rankings(rankings, (2, 2, 2), thresholds_for_cost(rankings, (2, 2, 2), 0.0))
    assert free.rest_good.sum() + free.accepted_good.sum() == pytest.approx(
        replay_rankings(rankings, (6,), (math.inf,)).rest_good.sum()
    )


def test_quality_is_the_label_or_the_modelled_chance():
    nan = math.nan
    scores = [[0.0, 2.0, nan, -800.0]] * 3
    labels = [[nan] * 4, [1.0, 0.0, nan, 1.0], [nan, 0.0, nan, nan]]
    modelled = [0.5, 1 / (1 + math.exp(-2)), nan, 0.0]
    # A row labelled in part is modelled as a whole: its labels and its model cannot be compared with each other.
    np.testing.assert_allclose(quality_of(log_of(scores, labels)), [modelled, [1.0, 0.0, nan, 1.0], modelled], atol=1e-12)


def test_the_sentence_says_what_quality_is():
    population, generator = Population(size=8), np.random.default_rng(0)
    whole = population.log(600, 0)
    whole.labels[:] = generator.random(whole.scores.shape) < 1 / (1 + np.exp(-whole.scores))
    half, none = copy.deepcopy(whole), copy.deepcopy(whole)
    half.labels[::2], none.labels[:] = math.nan, math.nan
    said = [calibrate_accelerator(log, schedule=[2, 2, 4], epsilon=0.1).sentence for log in (whole, half, none)]
    assert "Quality is" not in said[0]
    assert "Quality is the label in " in said[1]
    assert "Quality is sigmoid(score) here, no label" in said[2]


def test_unlabelled_logs_are_calibrated_on_the_modelled_chance():
    log = Population(size=8).log(300, 0)
    blank = log_of(log.scores.tolist(), np.full(log.scores.shape, math.nan).tolist())
    outcome = calibrate_accelerator(blank, schedule=(4, 4), epsilon=0.05)
    assert isinstance(outcome, Certificate)
    assert outcome.profile.evidence["labels"] == 0
    assert outcome.profile.evidence["mean_draws"] < 8
    assert outcome.profile.evidence["quality_loss"] < 0.05


def test_too_few_prompts_names_a_number():
    outcome = calibrate_accelerator(Population(size=8).log(100, 0), schedule=(4, 4), epsilon=0.01)
    assert isinstance(outcome, NotEnoughEvidence)
    assert outcome.further is not None
    assert "further ones like them would suffice" in outcome.sentence


@pytest.mark.parametrize(
    "changes", [{"epsilon": 0.0}, {"delta": 2.0}, {"fit_share": 1.0}, {"schedule": (8,)}, {"schedule": (0, 8)}]
)
def test_wrong_arguments_are_refused(changes):
    with pytest.raises(ConfigurationError):
        calibrate_accelerator(Population(size=8).log(30, 0), **{"schedule": (4, 4), **changes})


def test_a_log_where_nothing_can_be_saved_is_told_so():
    scores = [[math.nan, math.nan]] * 1500 + [[1.0, 1.0]]
    outcome = calibrate_accelerator(log_of(scores, [[math.nan] * 2] * 1500 + [[1.0, 1.0]]), schedule=(1, 1))
    assert isinstance(outcome, NotEnoughEvidence)
    assert "no early exit saves any draws" in outcome.sentence
    with pytest.raises(InputError, match="every draw failed"):
        calibrate_accelerator(log_of(scores[:9], scores[:9]), schedule=(1, 1))


def test_a_single_row_cannot_be_split():
    with pytest.raises(ConfigurationError, match="too few to split"):
        calibrate_accelerator(Population(size=8).log(1, 0), schedule=(4, 4))
