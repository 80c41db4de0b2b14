"""What a training run shows that its user should know: a loss at chance, scores that hold two values or tie at the top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bonmini_guard.training.batches import Judgement

#: Scores nearer to each other than this, in logits, count as one value.
_TIE = 0.05


def constant_loss(rows: Sequence[Judgement], *, outside: bool) -> float:
    """The least mean loss, in nats, of a model that gives every answer the same score."""
    scores = torch.linspace(-10, 10, 401, dtype=torch.double)
    total, weight = torch.zeros_like(scores), 0.0
    for row in rows:
        size = torch.tensor(float(len(row.members)))
        lost = torch.log1p(size * scores.exp()) - scores * (row.target < len(row.members))
        total += row.weight * (lost if outside and row.offered else size.log())
        weight += row.weight
    return float(total.min() / weight)


def ties(scores: Tensor) -> dict[str, float | None]:
    """How many scores are the same, for a threshold among these cannot choose.

    Args:
        scores: shape (n,); NaN does not count.

    Returns:
        ``tied_at_top``, the share within 0.05 of the greatest; ``on_two_values``, the largest share that two windows of a
        twentieth of the range hold. None for fewer than 40 scores.
    """
    scores = scores[~scores.isnan()]
    if len(scores) < 40:
        return {"tied_at_top": None, "on_two_values": None}
    return {"tied_at_top": float((scores >= scores.max() - _TIE).double().mean()), "on_two_values": _on_two_values(scores)}


def _on_two_values(scores: Tensor) -> float:
    ordered = scores.double().sort().values
    ends = torch.searchsorted(ordered, ordered + max(float(ordered[-1] - ordered[0]) / 20, 1e-6), right=True)
    held = ends - torch.arange(len(ordered))
    # The most from each place on, for the second window begins where the first one ends.
    later = torch.cat([held.flip(0).cummax(0).values.flip(0), held.new_zeros(1)])
    return float((held + later[ends]).max()) / len(ordered)


def troubles(losses: Sequence[float], chance: float, held_out: Mapping[str, Any] | None) -> Iterator[str]:
    """What went wrong in a run, a line each with its cure.

    Args:
        losses: of the run in order, each the mean of some steps.
        chance: the loss of the best constant score.
        held_out: figures with the entries of :func:`ties`; None if nothing was held out.
    """
    if losses and losses[-1] > 0.97 * chance:
        yield f"the loss ended at {losses[-1]:.3f}, and one score for all answers has {chance:.3f}: nothing was learnt; {_CURE}"
    elif back := next((loss for at, loss in enumerate(losses) if min([*losses[:at], chance]) < 0.8 * chance < chance < loss), None):
        yield f"the loss fell, and went back to {back:.3f}, above what one score for all answers has ({chance:.3f}); {_CURE}"
    held_out = held_out or {}
    if (share := held_out.get("on_two_values") or 0.0) >= 0.9:
        yield f"{share:.0%} of the held-out scores lie on two values: a threshold between them cannot choose; {_FEWER}"
    if (share := held_out.get("tied_at_top") or 0.0) > 0.05:
        yield f"{share:.0%} of the held-out scores tie at the top: a threshold there takes all of them or none; {_FEWER}"


_CURE = "lower --learning-rate"
_FEWER = "try fewer --epochs, a lower --learning-rate, or another base"
