"""Many texts in one sequence without padding, each behind a beginning that is computed once: for decoder models.

The model's own modules run; only its attention function is replaced, through the interface that transformers has for it.
A text sees itself causally and the beginning that it shares with others whole, as two softmaxes that are merged by
their log-sum-exp (arXiv 2402.05099 does so for batches that share a prefix). Of the last layer only the tokens that are read
go on to attend and to the feed-forward part; the others give it their keys and values, and nothing comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from bonmini_guard.reward.pooling import PooledScorer

IMPLEMENTATION = "bonmini_guard_packed"
#: What an attention function may be asked for that this one does not do.
_UNKNOWN = ("softcap", "s_aux", "position_bias")


@dataclass(frozen=True, eq=False, slots=True)
class Trunk:
    """The computed beginning of texts: tokens, and keys and values of each layer, of shape (1, key heads, tokens, head size)."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def bytes(self) -> int:
        """What it holds of memory."""
        return sum(part.nbytes for layer in self.layers for part in layer)

    def cut(self, length: int) -> Trunk:
        """Its first ``length`` tokens, without a hold on the rest."""
        layers = tuple((keys[:, :, :length].clone(), values[:, :, :length].clone()) for keys, values in self.layers)
        return Trunk(self.ids[:length], layers)


@dataclass(frozen=True, eq=False, slots=True)
class Segment:
    """Tokens to compute, read at their last one.

    Attributes:
        ids: its tokens, one or more.
        past: what stands before them: a trunk, or a segment of the same forward pass that has no past itself.
        keep: whether its keys and values are wanted as a trunk; only without a past.
    """

    ids: tuple[int, ...]
    past: Trunk | Segment | None = None
    keep: bool = False


@dataclass(frozen=True, slots=True)
class _View:
    """Which queries see which keys: those of each segment its own; ``shared`` ones of segments with one past, and that past.

    ``causal``: a segment's queries are as many as its keys, and see no later ones.
    """

    queries: list[slice]
    keys: list[slice]
    shared: list[tuple[slice, Trunk | slice]]
    causal: bool


@dataclass(slots=True)
class _Plan:
    """Where each segment lies in the sequence, for the attention function of every layer.

    Attributes:
        whole: what all tokens see.
        read: what the last token of each segment sees, the queries being those tokens (``ends``) alone.
        keep: segments whose keys and values are wanted, ``kept`` those of the layers that have run.
        layers: after how many of them nothing but the ends matters; None if that is not known.
    """

    whole: _View
    read: _View
    ends: Tensor
    keep: list[slice]
    layers: int | None
    kept: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)

    def keys_before(self, past: Trunk | slice, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        # Layers call in order, so the number of those that have kept something is the number of this layer.
        if isinstance(past, slice):
            return keys[:, :, past], values[:, :, past]
        return past.layers[len(self.kept)]


_plan: ContextVar[_Plan | None] = ContextVar("plan", default=None)


class PackedScorer:
    """Scores segments in one forward pass; computes every shared beginning once.

    The scorer's attention is :data:`IMPLEMENTATION`; it has ``layers`` if :func:`read_only_ends` has been asked of it.
    """

    def __init__(self, scorer: PooledScorer, layers: int | None = None) -> None:
        self._scorer = scorer
        self._layers = layers
        self._device = scorer.model.device

    @torch.inference_mode()
    def __call__(self, segments: Sequence[Segment]) -> tuple[Tensor, dict[Segment, Trunk]]:
        """Scores, shape (len(segments),) on the model's device, and the trunks of the segments to keep."""
        groups: dict[Trunk | Segment | None, list[Segment]] = {None: []}
        for segment in segments:
            groups.setdefault(segment.past, []).append(segment)
        # Those without a past first, then those of one past together.
        order = [segment for group in groups.values() for segment in group]
        sums = _sums(len(segment.ids) for segment in order)
        places = {segment: slice(*sums[number : number + 2]) for number, segment in enumerate(order)}
        plan = self._plan(order, places)
        ids = [token for segment in order for token in segment.ids]
        starts = ((0 if segment.past is None else len(segment.past.ids), len(segment.ids)) for segment in order)
        positions = [index for start, length in starts for index in range(start, start + length)]
        tokens, at = self._tensor([[ids], [positions]])
        token = _plan.set(plan)
        try:
            hidden = self._scorer.model.base_model(input_ids=tokens, position_ids=at, use_cache=False).last_hidden_state
        finally:
            _plan.reset(token)
        ends = self._tensor([places[segment].stop - 1 for segment in segments])
        keep = enumerate(segment for segment in order if segment.keep)
        trunks = {segment: Trunk(segment.ids, tuple(layer[number] for layer in plan.kept)) for number, segment in keep}
        return self._scorer.head(hidden[0].index_select(0, ends)), trunks

    def _plan(self, order: Sequence[Segment], places: dict[Segment, slice]) -> _Plan:
        own = list(places.values())
        single = {segment: slice(number, number + 1) for number, segment in enumerate(order)}
        return _Plan(
            whole=_View(own, own, _shared(order, places, places), causal=True),
            read=_View(list(single.values()), own, _shared(order, single, places), causal=False),
            ends=self._tensor([place.stop - 1 for place in own]),
            keep=[places[segment] for segment in order if segment.keep],
            layers=self._layers,
        )

    def _tensor(self, values: list[Any]) -> Tensor:
        tensor = torch.tensor(values)
        # From pinned memory the copy does not wait for what the GPU is doing.
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor


def install(model: Any) -> bool:
    """Replace a model's attention; False if it does not use the interface, and then nothing has changed.

    Without an active plan the replacement is what transformers calls ``sdpa``.
    """
    # Not above: these bring half of torch's compiler along, which takes longer than everything else that scores.
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _mask)
    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return False
    model.set_attn_implementation(IMPLEMENTATION)
    return True


def read_only_ends(model: Any) -> tuple[int, Callable[[], None]] | None:
    """Let the last layer's feed-forward part compute only what is read, while segments are scored.

    Gives how many layers the model has, and what undoes it; None if the layers are not named as usual, and then nothing changed.
    """
    stacks = [part for part in model.base_model.children() if isinstance(part, torch.nn.ModuleList)]
    feed_forward = getattr(stacks[0][-1], "mlp", None) if len(stacks) == 1 else None
    if feed_forward is None:
        return None
    hooks = feed_forward.register_forward_pre_hook(_take_ends), feed_forward.register_forward_hook(_put_ends)

    def undo() -> None:
        for hook in hooks:
            hook.remove()

    return len(stacks[0]), undo


def _shared(
    order: Sequence[Segment], queries: dict[Segment, slice], places: dict[Segment, slice]
) -> list[tuple[slice, Trunk | slice]]:
    """The queries that have one past, and that past."""
    behind: dict[Trunk | Segment, slice] = {}
    for segment in order:
        if segment.past is not None:
            first = behind.get(segment.past, queries[segment])
            behind[segment.past] = slice(first.start, queries[segment].stop)
    return [(rows, places[past] if isinstance(past, Segment) else past) for past, rows in behind.items()]


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    from transformers.masking_utils import sdpa_mask

    return None if _plan.get() is not None else sdpa_mask(*arguments, **options)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The attention function as transformers calls it; query of shape (1, heads, T, size), keys and values with fewer heads."""
    plan = _plan.get()
    if plan is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if any(options.get(name) is not None for name in _UNKNOWN):
        raise NotImplementedError("this model's attention has a term that packing does not know")
    scale = options.get("scaling")
    attend = partial(_many if query.is_cuda else _one_by_one, plan=plan, scale=query.shape[-1] ** -0.5 if scale is None else scale)
    if len(plan.kept) + 1 == plan.layers:  # the last one
        seen = attend((query.index_select(2, plan.ends), key, value), plan.read)
        out = torch.zeros_like(query).index_copy_(2, plan.ends, seen)
    else:
        out = attend((query, key, value), plan.whole)
    plan.kept.append([(key[:, :, place].clone(), value[:, :, place].clone()) for place in plan.keep])
    return out.transpose(1, 2), None


def _take_ends(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Before the last feed-forward part: only the tokens that are read."""
    plan = _plan.get()
    return None if plan is None else (inputs[0].index_select(1, plan.ends), *inputs[1:])


def _put_ends(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    """After it: put them back where they stood, for what is added to them stands there."""
    plan = _plan.get()
    if plan is None:
        return None
    out = output.new_zeros(1, plan.whole.keys[-1].stop, output.shape[-1])
    return out.index_copy_(1, plan.ends, output)


def _one_by_one(parts: tuple[Tensor, Tensor, Tensor], view: _View, plan: _Plan, scale: float) -> Tensor:
    """On a CPU: one call for each text, and one for all texts of a trunk."""
    query, key, value = parts
    out, weight = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
    for rows, place in zip(view.queries, view.keys, strict=True):
        out[:, :, rows], weight[:, :, rows] = _flash(query[:, :, rows], key[:, :, place], value[:, :, place], view.causal, scale)
    for rows, past in view.shared:
        whole = _flash(query[:, :, rows], *plan.keys_before(past, key, value), False, scale)
        out[:, :, rows] = _merged(out[:, :, rows], weight[:, :, rows], *whole)
    return out


def _flash(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, shape (1, heads, T)."""
    shape, heads, own = query.shape, query.shape[1], key.shape[1]
    if causal and heads != own:
        key, value = key.repeat_interleave(heads // own, 1), value.repeat_interleave(heads // own, 1)
    elif heads != own:
        # Where all see the same keys, the heads of a group are as good as more queries: no key is copied.
        query = query.reshape(1, own, -1, shape[-1])
    out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    return out.reshape(shape), weight.reshape(shape[:3])


def _many(parts: tuple[Tensor, Tensor, Tensor], view: _View, plan: _Plan, scale: float) -> Tensor:
    """On a GPU: one call for the own parts of all texts, one for what all of them share."""
    query, key, value = parts
    out, weight = _varlen(parts, (_ends(view.queries), _ends(view.keys)), view.causal, scale)
    if not view.shared:
        return out
    start = view.shared[0][0].start
    pasts = [plan.keys_before(past, key, value) for _, past in view.shared]
    keys, values = (torch.cat([past[part] for past in pasts], dim=2) if len(pasts) > 1 else pasts[0][part] for part in (0, 1))
    offsets = _ends([rows for rows, _ in view.shared]), _sums([past[0].shape[2] for past in pasts])
    whole = _varlen((query[:, :, start:], keys, values), offsets, False, scale)
    return torch.cat([out[:, :, :start], _merged(out[:, :, start:], weight[:, :, start:], *whole)], dim=2)


def _varlen(
    parts: tuple[Tensor, Tensor, Tensor], offsets: tuple[list[int], list[int]], causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    device = parts[0].device
    queries, keys = (torch.tensor(ends, dtype=torch.int32).pin_memory().to(device, non_blocking=True) for ends in offsets)
    longest_query, longest_key = (max(b - a for a, b in pairwise(ends)) for ends in offsets)
    query, key, value = (part[0].transpose(0, 1).contiguous() for part in parts)
    window = (-1, 0 if causal else -1)
    result = varlen_attn(
        query,
        key,
        value,
        queries,
        keys,
        longest_query,
        longest_key,
        return_aux=AuxRequest(lse=True),
        scale=scale,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result[0].transpose(0, 1)[None], result[1][None]


def _ends(places: Sequence[slice]) -> list[int]:
    return _sums(place.stop - place.start for place in places)


def _sums(lengths: Iterable[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))


def _merged(own: Tensor, own_weight: Tensor, shared: Tensor, shared_weight: Tensor) -> Tensor:
    share = torch.sigmoid(own_weight - shared_weight)[..., None]
    return torch.lerp(shared.to(share.dtype), own.to(share.dtype), share).to(own.dtype)
