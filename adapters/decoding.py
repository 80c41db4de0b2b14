"""A decode loop for Llama: the draws of all requests advance together, one token at a time, and leave as they end.

Why not ``generate``: it keeps ended rows until the last one ends, repeats the prompt's keys and values for every row, and takes
one prompt at a time. Here the prompt is computed and kept once, requests join and leave between tokens, and a prompt that begins
like one in progress takes over what they share.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from transformers import LlamaForCausalLM, PreTrainedModel

from bonmini_guard.adapters.sampling import Sampler
from bonmini_guard.forks import renewed_in_children

#: Rows at once: beyond them a processor gains nothing (tokens a second at 32, 128 and 256 rows: 140, 220, 228).
ROWS = {"cpu": 128}
ROWS_ELSEWHERE = 1024

#: A row's own keys and values are kept in room for this many tokens, then for twice as many, and so on.
ROOM = 32


class Group:
    """The draws of one request: rows that continue one prompt.

    Args:
        prompt: token ids, at least one.
        seeds: of each row; a row's answer depends on its seed alone (but for the last digits of sums, which change with the rows
            beside it).
        limit: tokens of an answer at most.
        ends: whether an answer (token ids so far) has ended.
        report: told each row's number and its token ids when it ends.
        sampler: how the next token is chosen.
    """

    def __init__(  # noqa: PLR0917 - called once
        self,
        prompt: Sequence[int],
        seeds: Sequence[int],
        limit: int,
        ends: Callable[[list[int]], bool],
        report: Callable[[int, list[int]], None],
        sampler: Sampler,
    ) -> None:
        self.sampler = sampler
        self.prompt, self.seeds, self.limit = list(prompt), list(seeds), limit
        self._ends, self._report = ends, report
        self.cancelled = threading.Event()
        self.error: BaseException | None = None
        self.live = list(range(len(seeds)))
        self.answers: list[list[int]] = [[] for _ in seeds]
        self.states = [Random(seed) for seed in seeds]

    @property
    def done(self) -> bool:
        """Whether no row is left to continue."""
        return not self.live or self.cancelled.is_set()

    def take(self, tokens: Sequence[int], leave: Callable[[int, int], None] = lambda place, last: None) -> None:
        """The next token of each live row; rows that end are reported, and the last one takes their place (``leave`` is told)."""
        for row, token in zip(self.live, tokens, strict=True):
            self.answers[row].append(token)
        # From the back, so that the row that moves has been looked at.
        for place in reversed(range(len(self.live))):
            answer = self.answers[self.live[place]]
            if len(answer) == self.limit or self._ends(answer):
                self._report(self.live[place], answer)
                leave(place, len(self.live) - 1)
                self.live[place] = self.live[-1]
                self.live.pop()


class Cache:
    """Keys and values of one group: of the prompt once, and of each row's own tokens.

    Attributes:
        prompt: keys and values, each of shape (layers, key-value heads, prompt tokens, head size).
        own: keys and values, each of shape (layers, rows, key-value heads, room, head size); the first ``length`` are taken.
    """

    def __init__(self, shape: tuple[int, int, int], tokens: int, rows: int, like: torch.Tensor) -> None:
        layers, heads, size = shape
        self.prompt = [like.new_empty(layers, heads, tokens, size) for _ in range(2)]
        self.own = [like.new_empty(layers, rows, heads, ROOM, size) for _ in range(2)]
        self.computed = self.length = 0

    def share(self, other: Cache, tokens: int) -> None:
        """Take over the first tokens of another prompt, which are the same."""
        for mine, theirs in zip(self.prompt, other.prompt, strict=True):
            mine[:, :, :tokens] = theirs[:, :, :tokens]
        self.computed = tokens

    def widen(self) -> None:
        """Make room for one more token of each row."""
        if self.length == self.own[0].shape[3]:
            self.own = [torch.cat([part, torch.empty_like(part)], 3) for part in self.own]
        self.length += 1

    def drop(self, place: int, last: int) -> None:
        """Remove a row: the last one takes its place."""
        if place != last and self.length:
            for part in self.own:
                part[:, place, :, : self.length] = part[:, last, :, : self.length]


class Decoder:
    """Continues groups of rows with the weights of a Llama model.

    Args:
        model: one that :func:`fits`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, config = model, model.config
        self._heads, self._shared, self._size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self._epsilon = config.rms_norm_eps
        self._most = ROWS.get(model.device.type, ROWS_ELSEWHERE)
        self.renew()
        renewed_in_children(self)

    def renew(self) -> None:
        """No groups: at first, and in a child after a fork, whose parent continues its own."""
        self._waiting: deque[Group] = deque()
        self._running: list[tuple[Group, Cache]] = []

    def add(self, group: Group) -> None:
        """Let a group join at the next token, or as soon as there is room for its rows."""
        self._waiting.append(group)

    @torch.inference_mode()
    def serve(self, group: Group) -> None:
        """Advance all groups until this one is done; one thread at a time.

        Raises:
            BaseException: what broke the computation that this group was part of.
        """
        while not group.done and group.error is None:
            self._admit()
            try:
                self._advance()
            except BaseException as error:
                for broken, _ in self._running:
                    broken.error = error
                self._running.clear()
        if group.error is not None:
            raise group.error

    def _admit(self) -> None:
        self._running = [(group, cache) for group, cache in self._running if not group.done]
        rows = sum(len(group.live) for group, _ in self._running)
        while self._waiting and (not self._running or rows + len(self._waiting[0].live) <= self._most):
            group = self._waiting.popleft()
            if not group.done:
                self._running.append((group, self._begin(group)))
                rows += len(group.live)

    def _begin(self, group: Group) -> Cache:
        shape = (len(self._model.model.layers), self._shared, self._size)
        cache = Cache(shape, len(group.prompt), len(group.live), self._model.lm_head.weight)
        alike = [(_common(group.prompt, other.prompt[: theirs.computed]), theirs) for other, theirs in self._running]
        if alike:
            # The last token is computed in any case: its output is the first answer token's.
            length, theirs = max(alike, key=lambda pair: pair[0])
            cache.share(theirs, min(length, len(group.prompt) - 1))
        return cache

    def _advance(self) -> None:
        running = [(group, cache) for group, cache in self._running if not group.done]
        if not running:
            return
        segments = [_segment(group, cache) for group, cache in running]
        logits = self._forward(segments)
        for piece, (group, cache) in zip(logits, running, strict=True):
            states = [group.states[row] for row in group.live]
            # A prompt's last token stands for all of its rows.
            tokens = group.sampler.choose(piece.expand(len(states), -1), states)
            group.take(tokens.tolist(), cache.drop)

    def _forward(self, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Logits of each segment's last position: shape (1 or rows, vocabulary)."""
        model = self._model.model
        device = self._model.device
        tokens = torch.tensor([token for segment in segments for token in segment.tokens], device=device)
        places = torch.tensor([[place for segment in segments for place in segment.places]], device=device)
        hidden = model.embed_tokens(tokens)
        turn = [part[0].unsqueeze(1) for part in model.rotary_emb(hidden, places)]
        for number, layer in enumerate(model.layers):
            hidden = self._layer(number, layer, hidden, turn, segments)
        sizes = [len(segment.tokens) for segment in segments]
        pieces = torch.split(hidden, sizes)
        last = [piece if segment.decoding else piece[-1:] for piece, segment in zip(pieces, segments, strict=True)]
        logits = self._model.lm_head(self._norm(torch.cat(last), model.norm))
        return list(torch.split(logits, [len(piece) for piece in last]))

    def _layer(
        self, number: int, layer: Any, hidden: torch.Tensor, turn: Sequence[torch.Tensor], segments: Sequence[Segment]
    ) -> torch.Tensor:
        attention, count = layer.self_attn, len(hidden)
        normed = self._norm(hidden, layer.input_layernorm)
        query = _turned(linear(normed, attention.q_proj.weight).view(count, self._heads, self._size), turn)
        key = _turned(linear(normed, attention.k_proj.weight).view(count, self._shared, self._size), turn)
        value = linear(normed, attention.v_proj.weight).view(count, self._shared, self._size)
        sizes = [len(segment.tokens) for segment in segments]
        parts = zip(segments, *(torch.split(part, sizes) for part in (query, key, value)), strict=True)
        attended = torch.cat([segment.attend(number, q, k, v) for segment, q, k, v in parts])
        hidden = hidden + linear(attended, attention.o_proj.weight)
        normed = self._norm(hidden, layer.post_attention_layernorm)
        opened = silu(linear(normed, layer.mlp.gate_proj.weight)) * linear(normed, layer.mlp.up_proj.weight)
        return hidden + linear(opened, layer.mlp.down_proj.weight)

    def _norm(self, hidden: torch.Tensor, norm: Any) -> torch.Tensor:
        return torch.rms_norm(hidden, (hidden.shape[-1],), norm.weight, self._epsilon)


class Segment:
    """What one group adds to a step: the rest of its prompt, or one token of each row.

    Attributes:
        tokens: token ids.
        places: their positions.
        decoding: whether they are one token of each row.
    """

    def __init__(self, tokens: list[int], places: list[int], cache: Cache, decoding: bool) -> None:
        self.tokens, self.places, self.decoding, self._cache = tokens, places, decoding, cache

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of one layer; shapes (tokens, heads, size), returns (tokens, heads * size)."""
        return (self._decode if self.decoding else self._prefill)(layer, query, key, value).flatten(1)

    def _prefill(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        keys, values = (part[layer] for part in self._cache.prompt)
        begin = keys.shape[1] - len(query)
        keys[:, begin:], values[:, begin:] = key.transpose(0, 1), value.transpose(0, 1)
        seen = torch.ones(len(query), keys.shape[1], dtype=torch.bool, device=query.device).tril(begin)
        attended = scaled_dot_product_attention(
            query.transpose(0, 1)[None], keys[None], values[None], attn_mask=seen, enable_gqa=True
        )
        return attended[0].transpose(0, 1)

    def _decode(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        cache, (rows, heads, size) = self._cache, key.shape
        keys, values = (part[layer, :rows, :, : cache.length] for part in cache.own)
        keys[:, :, -1], values[:, :, -1] = key, value
        shared_keys, shared_values = (part[layer] for part in cache.prompt)
        query = query.view(rows, heads, -1, size) / size**0.5
        # All rows read the prompt's keys in one product; each reads its own beside it.
        by_head = query.transpose(0, 1).reshape(heads, -1, size)
        shared = (by_head @ shared_keys.mT).view(heads, rows, -1, shared_keys.shape[1]).transpose(0, 1)
        weights = torch.cat([shared, query @ keys.mT], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
        of_prompt, of_own = torch.split(weights, [shared_keys.shape[1], cache.length], -1)
        read = of_prompt.transpose(0, 1).reshape(heads, -1, shared_keys.shape[1]) @ shared_values
        attended: torch.Tensor = read.view(heads, rows, -1, size).transpose(0, 1) + of_own @ values
        return attended.reshape(rows, -1, size)


def _segment(group: Group, cache: Cache) -> Segment:
    begin, length = cache.computed, len(group.prompt)
    if begin < length:
        cache.computed = length
        return Segment(group.prompt[begin:], list(range(begin, length)), cache, decoding=False)
    cache.widen()
    place = length + cache.length - 1
    return Segment([group.answers[row][-1] for row in group.live], [place] * len(group.live), cache, decoding=True)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    differ = (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return next(differ, min(len(first), len(second)))


def _turned(states: torch.Tensor, turn: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rotary positions; shapes (tokens, heads, size)."""
    cosine, sine = turn
    first, second = states.chunk(2, -1)
    return states * cosine + torch.cat([-second, first], -1) * sine


def fits(model: PreTrainedModel) -> bool:
    """Whether a model is a plain Llama whose layers this loop computes: no biases, no quantised, sharded or adapted layers."""
    config = model.config
    if type(model) is not LlamaForCausalLM or config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
        return False
    # The frequencies of other kinds change with the length of the input.
    fixed = config.rope_parameters["rope_type"] in {"default", "linear", "llama3"}
    plain = all(type(part) is torch.nn.Linear for part in model.modules() if "Linear" in type(part).__name__)
    return fixed and plain and len({weight.device for weight in model.parameters()}) == 1
