import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonmini_guard.training.loss import bradley_terry_loss, outside_option_loss


def ragged(seed, rows=12, outside=True, least=1):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(least, 6, (rows,), generator=generator)
    scores = torch.randn(int(sizes.sum()), generator=generator, dtype=torch.float64) * 3
    choices = (torch.rand(rows, generator=generator) * (sizes + outside)).long()
    weights = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
    return scores.requires_grad_(), sizes, choices, weights


def by_hand(scores, sizes, choices, weights, outside):
    total = 0.0
    for row, choice, weight in zip(scores.split(sizes.tolist()), choices.tolist(), weights, strict=True):
        utilities = torch.cat([row, row.new_zeros(1)]) if outside else row
        total += weight * torch.distributions.Categorical(logits=utilities).log_prob(torch.tensor(choice))
    return -total / weights.sum()


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_losses_equal_categorical_likelihoods(seed, outside):
    batch = ragged(seed, outside=outside, least=1 if outside else 2)
    loss = outside_option_loss if outside else bradley_terry_loss
    torch.testing.assert_close(loss(*batch), by_hand(*batch, outside))


def test_the_formula_by_hand():
    loss = outside_option_loss(torch.tensor([1.0, -2.0]), torch.tensor([2]), torch.tensor([2]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(1) + math.exp(-2)))
    accept = outside_option_loss(torch.tensor([0.7]), torch.tensor([1]), torch.tensor([0]))
    assert accept.item() == pytest.approx(-math.log(1 / (1 + math.exp(-0.7))))
    pair = bradley_terry_loss(torch.tensor([1.0, 3.0]), torch.tensor([2]), torch.tensor([0]))
    assert pair.item() == pytest.approx(math.log(1 + math.exp(2.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_scores_stay_finite(dtype):
    scores = torch.tensor([1e4, -1e4, 1e4, 5.0], dtype=dtype, requires_grad=True)
    loss = outside_option_loss(scores, torch.tensor([3, 1]), torch.tensor([3, 1]))
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "sizes", "choices"),
    [
        (outside_option_loss, [2, 1], [3, 0]),
        (outside_option_loss, [2, 1], [-1, 0]),
        (outside_option_loss, [2, 2], [0, 0]),
        (outside_option_loss, [3, 0], [0, 0]),
        (outside_option_loss, [3], [0, 0]),
        (bradley_terry_loss, [2, 1], [0, 0]),
        (bradley_terry_loss, [3], [3]),
    ],
)
def test_shapes_and_ranges_are_checked(loss, sizes, choices):
    with pytest.raises(ValueError, match=r"row|range"):
        loss(torch.zeros(3), torch.tensor(sizes), torch.tensor(choices))


def choose(utilities, pairs, generator, none=True):
    """Labels of Gumbel-noisy choosers; 2 stands for none."""
    offered = torch.cat([utilities[pairs], torch.zeros(len(pairs), 1)], dim=1)
    noise = -torch.log(-torch.log(torch.rand(offered.shape, generator=generator)))
    return (offered + noise)[:, : 3 if none else 2].argmax(1)


def fit(loss, pairs, choices, items):
    scores = torch.zeros(items, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=100, line_search_fn="strong_wolfe")
    sizes = torch.full((len(pairs),), 2)

    def closure():
        optimizer.zero_grad()
        value = loss(scores[pairs.flatten()], sizes, choices)
        value.backward()
        return value

    optimizer.step(closure)
    return scores.detach()


def test_known_utilities_are_recovered_with_their_zero_and_not_by_pairs():
    # 40,000 choices over 6 items: standard errors of about 0.02; 0.1 is five of them.
    generator = torch.Generator().manual_seed(0)
    utilities = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]) + 0.7
    pairs = torch.stack([torch.randperm(6, generator=generator)[:2] for _ in range(40_000)])
    outside = fit(outside_option_loss, pairs, choose(utilities, pairs, generator), 6)
    assert (outside - utilities).abs().max() < 0.1
    ranked = fit(bradley_terry_loss, pairs, choose(utilities, pairs, generator, none=False), 6)
    assert ((ranked - ranked.mean()) - (utilities - utilities.mean())).abs().max() < 0.1
    assert abs(ranked.mean() - utilities.mean()) > 0.5


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_rows_without_none_are_comparisons(seed):
    scores, sizes, choices, weights = ragged(seed, outside=False, least=2)
    offered = torch.zeros(len(sizes), dtype=torch.bool)
    compared = outside_option_loss(scores, sizes, choices, weights, offered)
    torch.testing.assert_close(compared, bradley_terry_loss(scores, sizes, choices, weights))
    torch.testing.assert_close(compared, outside_option_loss(scores + 3.0, sizes, choices, weights, offered))
    with pytest.raises(ValueError, match="not offered"):
        outside_option_loss(scores, sizes, sizes, weights, offered)
