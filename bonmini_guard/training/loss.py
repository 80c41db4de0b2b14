"""Losses of discrete choice: with an outside option of utility 0, and without one.

Random utility with Gumbel noise gives the multinomial logit. For one row with scores R_1..R_K:

    P(c = i) = exp R_i / (1 + sum_j exp R_j),     P(none) = 1 / (1 + sum_j exp R_j)

(arXiv 2510.04087, the outside option normalised to zero). The gradient of a row's loss in R_i is P(c = i) - 1[c = i].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Objective = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def outside_option_loss(
    scores: Tensor, sizes: Tensor, choices: Tensor, weights: Tensor | None = None, offered: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood of choices among K answers and "none", whose utility is 0.

    Args:
        scores: float, shape (sum of sizes,): the rows' scores, one row after the other.
        sizes: int, shape (B,): answers in each row, 1 or more.
        choices: int, shape (B,): the chosen index, or the row's size for "none".
        weights: float, shape (B,), not negative; None weighs all rows alike.
        offered: bool, shape (B,): whether "none" could be chosen; None means in every row. A row without it is a comparison
            among its answers only, whose likelihood is the one of :func:`bradley_terry_loss`.

    Returns:
        The weighted mean over rows, a scalar in nats.

    Raises:
        ValueError: the shapes or the ranges do not fit.
    """
    _check(scores, sizes, choices, none_allowed=True)
    if offered is not None and bool((~offered & (choices == sizes)).any()):
        raise ValueError("a row chose none where it was not offered: offer it, or leave the row out")
    return mean_loss(choice_logits(scores, sizes, outside=True, offered=offered), choices, weights)


def bradley_terry_loss(
    scores: Tensor, sizes: Tensor, choices: Tensor, weights: Tensor | None = None, offered: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood of choices among K answers; for pairs, -logsigmoid of the difference.

    Blind to a constant added to all scores of a row: it ranks and has no zero. Rows in which "none" was chosen must be
    left out by the caller. Arguments, result and errors are those of :func:`outside_option_loss`; whether "none" was offered makes
    no difference here, because among rows that chose an answer the two likelihoods agree. A row has two answers at least.
    """
    _check(scores, sizes, choices, none_allowed=False)
    if bool((sizes < 2).any()):
        raise ValueError("a row has a single answer: comparing needs 2 or more; leave such rows out")
    return mean_loss(choice_logits(scores, sizes, outside=False), choices, weights)


OBJECTIVES: dict[str, Objective] = {"outside_option": outside_option_loss, "bradley_terry": bradley_terry_loss}


def choice_logits(scores: Tensor, sizes: Tensor, *, outside: bool, offered: Tensor | None = None) -> Tensor:
    """The rows' scores side by side, shape (B, largest size [+ 1]), in float32 or wider.

    A row shorter than the longest is filled with -inf; with ``outside``, its "none" stands at column ``size`` as 0, or as
    -inf where it was not ``offered``.
    """
    columns = torch.arange(int(sizes.max()) + int(outside), device=scores.device)
    present = columns.unsqueeze(0) < sizes.unsqueeze(1)
    # Half precision would round the likelihoods themselves.
    wide = scores if scores.dtype == torch.float64 else scores.float()
    padded = wide.new_full(present.shape, -torch.inf).masked_scatter(present, wide)
    if not outside:
        return padded
    none = padded.new_zeros(len(sizes)) if offered is None else padded.new_zeros(len(sizes)).masked_fill(~offered, -torch.inf)
    return padded.scatter(1, sizes.unsqueeze(1), none.unsqueeze(1))


def _check(scores: Tensor, sizes: Tensor, choices: Tensor, *, none_allowed: bool) -> None:
    if sizes.numel() == 0 or bool((sizes < 1).any()) or scores.shape != (int(sizes.sum()),):
        raise ValueError(f"{tuple(scores.shape)} scores do not fit {sizes.numel()} rows: every row needs 1 or more answers")
    if choices.shape != sizes.shape:
        raise ValueError(f"{tuple(choices.shape)} choices for {tuple(sizes.shape)} rows: give one each")
    last = sizes if none_allowed else sizes - 1
    if bool(((choices < 0) | (choices > last)).any()):
        raise ValueError("a choice is out of range: use 0 to K - 1" + (", or K for none" if none_allowed else ""))


def mean_loss(logits: Tensor, choices: Tensor, weights: Tensor | None) -> Tensor:
    """The mean negative log-likelihood of chosen columns."""
    losses = cross_entropy(logits, choices, reduction="none")
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()
