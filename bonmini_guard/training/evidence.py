"""How well scores predict held-out judgements, as docs/training.md explains (the evidence); and what went wrong in a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bonmini_guard.training.batches import Collator, Encoding, Group, Judgement, batches_of, model_inputs, tabled
from bonmini_guard.training.loss import choice_logits, mean_loss

BINS = 10
#: Scores nearer to each other than this, in logits, count as one value.
_TIE = 0.05


@torch.inference_mode()
def score_texts(model: Any, encoding: Encoding, pad_id: int, batch_size: int) -> Tensor:
    """The score of every text of an encoding that a judgement needs, shape (texts,), NaN for the others; on the CPU."""
    scores = torch.full((len(encoding.texts),), torch.nan)
    collate = Collator(encoding.texts, pad_id, model.shares(pad_id))
    device, training = next(model.parameters()).device, model.training
    model.eval()
    for batch in batches_of(encoding, batch_size):
        inputs = model_inputs(collate([batch]))
        found = model(**{name: part.to(device) for name, part in inputs.items()})
        # In the collator's own order.
        scores[sorted({text for group in batch for text in group.texts})] = found.float().cpu()
    model.train(training)
    return scores


def figures(scores: Tensor, groups: Sequence[Group], *, outside: bool) -> dict[str, Any]:
    """What held-out judgements say about scores.

    Args:
        scores: shape (texts,).
        groups: the judgements.
        outside: whether score 0 stands for "none" in the likelihood; without it, only choices among several answers count.

    Returns:
        ``judgements``; ``log_likelihood`` (mean, nats) and ``accuracy`` (share of judgements that are the first choice of the
        scores); ``pairs`` and ``pair_accuracy``: chosen answers against the others of their rows, equal scores counting half;
        and the entries of :func:`acceptance` and :func:`ties`. None where there was nothing to measure.
    """
    rows = [judgement for group in groups for judgement in group.judgements]
    return _likelihood(scores, rows, outside) | _ranking(scores, rows) | acceptance(*sampled(scores, rows)) | ties(scores)


def sampled(scores: Tensor, rows: Sequence[Judgement]) -> tuple[Tensor, Tensor, Tensor]:
    """The sampled judgements of single answers: scores, whether each was preferred to none, weights; each of shape (n,)."""
    found: list[tuple[int, bool, float]] = []
    for row in rows:
        judged = row.members if row.is_none else row.members[row.target : row.target + 1]
        found.extend((text, not row.is_none, row.weight) for text in judged if row.offered)
    places = torch.tensor([text for text, _, _ in found], dtype=torch.long)
    labels = torch.tensor([label for _, label, _ in found], dtype=torch.bool)
    return scores[places], labels, torch.tensor([weight for _, _, weight in found])


def acceptance(scores: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Any]:
    """How scores separate accepted from rejected answers, and whether sigmoid(score) is the chance of being accepted.

    ``acceptance_accuracy`` and ``acceptance_balanced_accuracy`` are of deciding at score 0; ``reliability_error`` is the mean
    distance between predicted and observed acceptance over the ``reliability`` bins.
    """
    if labels.numel() == 0 or bool(labels.all()) or not bool(labels.any()):
        names = ("acceptance_auc", "acceptance_accuracy", "acceptance_balanced_accuracy", "reliability_error", "reliability")
        return {"acceptances": int(weights.sum())} | dict.fromkeys(names)
    right = ((scores >= 0) == labels).double() * weights
    each = [float(right[part].sum() / weights[part].sum()) for part in (labels, ~labels)]
    bins = reliability(scores, labels, weights)
    return {
        "acceptances": int(weights.sum()),
        "acceptance_auc": area(scores, labels, weights),
        "acceptance_accuracy": float(right.sum() / weights.sum()),
        "acceptance_balanced_accuracy": sum(each) / 2,
        "reliability_error": sum(abs(b["predicted"] - b["observed"]) * b["weight"] for b in bins) / float(weights.sum()),
        "reliability": bins,
    }


def area(scores: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Area under the ROC curve: the weighted share of (accepted, rejected) pairs in the right order, equal scores half."""
    _, place = torch.unique(scores.double(), return_inverse=True)
    zeros = torch.zeros(int(place.max()) + 1, dtype=torch.double)
    accepted = zeros.index_add(0, place, weights.double() * labels)
    rejected = zeros.index_add(0, place, weights.double() * ~labels)
    below = rejected.cumsum(0) - rejected / 2
    return float((accepted * below).sum() / (accepted.sum() * rejected.sum()))


def reliability(scores: Tensor, labels: Tensor, weights: Tensor, bins: int = BINS) -> list[dict[str, float]]:
    """Mean sigmoid(score) and the share accepted in bins of about equal weight, from low to high; equal scores stay together."""
    order = scores.argsort(stable=True)
    values, chances, wide = scores[order], torch.sigmoid(scores[order].double()), weights[order].double()
    middle = (wide.cumsum(0) - wide / 2) / wide.sum()
    _, ties = torch.unique_consecutive(values, return_inverse=True)
    first = torch.full((int(ties.max()) + 1,), torch.inf, dtype=torch.double).scatter_reduce(0, ties, middle, "amin")
    bin_of = (first[ties] * bins).long().clamp(max=bins - 1)
    found = []
    for number in sorted(set(bin_of.tolist())):
        part = bin_of == number
        total = wide[part].sum()
        predicted = float((chances[part] * wide[part]).sum() / total)
        observed = float((labels[order][part] * wide[part]).sum() / total)
        found.append({"predicted": predicted, "observed": observed, "weight": float(total)})
    return found


def _likelihood(scores: Tensor, rows: Sequence[Judgement], outside: bool) -> dict[str, Any]:
    used = [row for row in rows if outside or (not row.is_none and len(row.members) > 1)]
    if not used:
        return {"judgements": 0, "log_likelihood": None, "accuracy": None}
    told = tabled(used)
    weights, chosen = told["weights"].double(), told["choices"]
    logits = choice_logits(scores[told["members"]], told["sizes"], outside=outside, offered=told["offered"]).double()
    first = (logits.argmax(1) == chosen).double()
    total = weights.sum()
    return {
        "judgements": int(total),
        "log_likelihood": -float(mean_loss(logits, chosen, weights)),
        "accuracy": float((first * weights).sum() / total),
    }


def _ranking(scores: Tensor, rows: Sequence[Judgement]) -> dict[str, Any]:
    won = [row for row in rows if not row.is_none]
    pairs = [(row.members[row.target], text, row.weight) for row in won for at, text in enumerate(row.members) if at != row.target]
    if not pairs:
        return {"pairs": 0, "pair_accuracy": None}
    chosen, others, weights = zip(*pairs, strict=True)
    difference = (scores[list(chosen)] - scores[list(others)]).sign().double()
    wide = torch.tensor(weights, dtype=torch.double)
    return {"pairs": int(wide.sum()), "pair_accuracy": float(((difference + 1) / 2 * wide).sum() / wide.sum())}


def constant_loss(rows: Sequence[Judgement], *, outside: bool) -> float:
    """The least mean loss, in nats, of a model that gives every answer the same score."""
    scores = torch.linspace(-10, 10, 401, dtype=torch.double)
    total, weight = torch.zeros_like(scores), 0.0
    for row in rows:
        size = torch.tensor(float(len(row.members)))
        lost = torch.log1p(size * scores.exp()) - scores * (not row.is_none)
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
    ordered = scores.double().sort().values
    ends = torch.searchsorted(ordered, ordered + max(float(ordered[-1] - ordered[0]) / 20, 1e-6), right=True)
    held = ends - torch.arange(len(ordered))
    # The most from each place on, for the second window begins where the first one ends.
    later = torch.cat([held.flip(0).cummax(0).values.flip(0), held.new_zeros(1)])
    top = float((scores >= scores.max() - _TIE).double().mean())
    return {"tied_at_top": top, "on_two_values": float((held + later[ends]).max()) / len(ordered)}


def troubles(losses: Sequence[float], chance: float, held_out: Mapping[str, Any] | None) -> Iterator[str]:
    """What went wrong in a run, a line each with its cure: by its losses in order, that of the best constant, held-out figures."""
    if losses and losses[-1] > 0.97 * chance:
        yield f"the loss ended at {losses[-1]:.3f}, and one score for all answers has {chance:.3f}: nothing was learnt; {_OTHER}"
    elif back := next((loss for at, loss in enumerate(losses) if min([*losses[:at], chance]) < 0.8 * chance < chance < loss), None):
        yield f"the loss fell, and went back to {back:.3f}, above what one score for all answers has ({chance:.3f}); {_CURE}"
    held_out = held_out or {}
    if (share := held_out.get("on_two_values") or 0.0) >= 0.9:
        yield f"{share:.0%} of the held-out scores lie on two values: a threshold between them cannot choose; {_FEWER}"
    if (share := held_out.get("tied_at_top") or 0.0) > 0.05:
        yield f"{share:.0%} of the held-out scores tie at the top: a threshold there takes all of them or none; {_FEWER}"


_CURE = "lower --learning-rate"
_OTHER = "try another --learning-rate (small models want 3e-4 and more), or more --epochs"
_FEWER = "try fewer --epochs, a lower --learning-rate, or another base"
