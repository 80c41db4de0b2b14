"""The held-out figures, by hand and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from bonmini_guard.training.batches import Group, Judgement
from bonmini_guard.training.evidence import acceptance, area, figures, reliability, sampled


def group(*rows):
    return Group((), tuple(Judgement(*row) for row in rows))


def test_figures_by_hand():
    scores = torch.tensor([2.0, -1.0, 0.5])
    rows = group(((0, 1), 0, 3.0), ((1, 2), 2, 1.0), ((2,), 0, 1.0), ((2, 0), 0, 1.0, False))
    found = figures(scores, [rows], outside=True)
    each = [
        3 * (2 - math.log(math.exp(2) + math.exp(-1) + 1)),
        -math.log(math.exp(-1) + math.exp(0.5) + 1),
        0.5 - math.log(math.exp(0.5) + 1),
        0.5 - math.log(math.exp(0.5) + math.exp(2)),
    ]
    assert found["log_likelihood"] == pytest.approx(sum(each) / 6)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert (found["pairs"], found["pair_accuracy"]) == (4, pytest.approx(3 / 4))
    # Judged against none: 0 accepted three times, 1 and 2 rejected once each, 2 accepted once; the comparison says nothing.
    assert found["acceptances"] == 6
    assert found["acceptance_accuracy"] == pytest.approx(5 / 6)
    assert found["acceptance_balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["acceptance_auc"] == pytest.approx((3 * 2 + 1 * 1.5) / (4 * 2))


def test_without_an_outside_option_only_comparisons_count():
    found = figures(torch.tensor([1.0, 0.0]), [group(((0, 1), 0, 1.0), ((0, 1), 2, 5.0), ((0,), 0, 5.0))], outside=False)
    assert found["judgements"] == 1
    assert found["log_likelihood"] == pytest.approx(-math.log(1 + math.exp(-1)))


def test_nothing_to_measure_is_none():
    found = figures(torch.tensor([1.0, 0.0]), [group(((0, 1), 0, 1.0, False))], outside=False)
    assert found["acceptances"] == 0
    assert found["reliability_error"] is None
    assert figures(torch.tensor([1.0]), [group(((0,), 1, 1.0))], outside=True)["pair_accuracy"] is None


def test_the_area_is_scikit_learns_also_with_ties_and_weights():
    random = np.random.default_rng(0)
    scores, labels, weights = random.integers(0, 6, 300) / 2, random.random(300) < 0.4, random.integers(1, 5, 300)
    found = area(torch.tensor(scores), torch.tensor(labels), torch.tensor(weights))
    assert found == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))


def test_the_true_scores_are_reliable_against_sampled_judgements_and_shifted_ones_are_not():
    random = np.random.default_rng(1)
    utility = torch.tensor(random.normal(0, 2, 2 * 20_000))
    rows = []
    for number in range(20_000):
        noisy = np.append(utility[2 * number : 2 * number + 2], 0.0) + random.gumbel(size=3)
        rows.append(((2 * number, 2 * number + 1), int(noisy.argmax()), 1.0))
    judged = sampled(utility, group(*rows).judgements)
    assert acceptance(*judged)["reliability_error"] < 0.012
    assert acceptance(judged[0] + 1.0, *judged[1:])["reliability_error"] > 0.1


def test_bins_hold_equal_weight_and_keep_equal_scores_together():
    scores = torch.cat([torch.zeros(50), torch.arange(1.0, 51.0)])
    labels = torch.arange(100) % 2 == 0
    bins = reliability(scores, labels, torch.ones(100))
    assert bins[0] == {"predicted": 0.5, "observed": 0.5, "weight": 50.0}
    assert [part["weight"] for part in bins[1:]] == [10.0] * 5
