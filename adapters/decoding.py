"""A decode loop for Llama: draws join and leave between tokens, whatever their age and their prompt, and advance together.

Why not ``generate``: it keeps ended rows until the last one ends, repeats the prompt's keys and values for every row, and takes
one prompt at a time. Why not transformers' continuous batching manager: it samples with ``torch.multinomial`` from the global
random state, so that no seed decides a draw, and later draws share a prompt by whole blocks of it alone. On a processor its
attention sets every query against the keys of all requests under one mask, which costs their product.
Here a prompt is computed once and kept for later draws, and a seed decides a draw alone: in float32 on one thread of a processor to
the last bit; more threads, and GPUs, divide large products by their size, so that logits differ in their last digits (by 4e-5).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import linear, pad, silu
from transformers import LlamaForCausalLM, PreTrainedModel

from bonmini_guard.adapters.attention import Bunch, Prompt, Prompts, Row, room_of
from bonmini_guard.adapters.sampling import Sampler
from bonmini_guard.forks import renewed_in_children

#: Rows at once: beyond them a processor gains nothing.
ROWS = {"cpu": 128}
ROWS_ELSEWHERE = 1024
#: Fewer rows than these are computed as these: a processor multiplies a single row in another order, and so to other digits.
LEAST = {"cpu": 2}
#: Bytes of keys and values of prompts that are kept for later draws.
HELD = {"cpu": 2**28}
HELD_ELSEWHERE = 2**31


@dataclass(eq=False)
class Group:
    """The draws of one request that were asked for together.

    Attributes:
        prompt: token ids, at least one.
        seeds: of each row, of 64 bits; a row's answer depends on its seed alone.
        limit: tokens of an answer at most.
        ends: whether an answer (token ids so far) has ended.
        report: told each row's number and its token ids when it ends.
        begun: how many rows have joined the loop.
        live: numbers of the rows that have not ended.
    """

    prompt: list[int]
    seeds: list[int]
    limit: int
    ends: Callable[[list[int]], bool]
    report: Callable[[int, list[int]], None]
    sampler: Sampler
    cancelled: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    begun: int = 0
    held: Prompt | None = None

    def __post_init__(self) -> None:
        self.live = set(range(len(self.seeds)))
        self.answers: list[list[int]] = [[] for _ in self.seeds]

    @property
    def done(self) -> bool:
        """Whether no row is left to continue."""
        return not self.live or self.cancelled.is_set()

    def take(self, row: int, token: int) -> bool:
        """A row's next token; whether the row has ended with it, and has been reported."""
        answer = self.answers[row]
        answer.append(token)
        ended = len(answer) == self.limit or self.ends(answer)
        if ended:
            self.live.discard(row)
            self.report(row, answer)
        return ended


#: What takes part in a step.
Segment = Prompt | Bunch


class Decoder:
    """Continues groups of rows, at most ``most`` rows at once, with the weights of a Llama model that :func:`fits`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, config, place = model, model.config, model.device.type
        self._heads, self._shared, self._size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self._epsilon = config.rms_norm_eps
        self.most, self._least = ROWS.get(place, ROWS_ELSEWHERE), LEAST.get(place, 1)
        self._bytes = HELD.get(place, HELD_ELSEWHERE)
        self._turned: list[torch.Tensor] = []
        if place == "cpu":
            _lay_out(model)
        self.renew()
        renewed_in_children(self)

    def renew(self) -> None:
        """Nothing begun: at first, after an error, and in a child after a fork, whose parent continues its own."""
        self._shape = len(self._model.model.layers), self._shared, self._size
        self._waiting: deque[Group] = deque()
        self._prompts = Prompts(self._shape, self._model.lm_head.weight, self._bytes)
        self._bunches: dict[int, Bunch] = {}

    def add(self, group: Group) -> None:
        """Let a group's rows join at the next token, or as soon as there is room for them."""
        self._waiting.append(group)

    @torch.inference_mode()
    def serve(self, group: Group) -> None:
        """Advance all rows until this group is done, one thread at a time; raises what broke a step that it was part of."""
        while not group.done and group.error is None:
            starting: list[Row] = []
            try:
                self._advance(starting)
            except BaseException as error:
                rows = [*starting, *(row for bunch in self._bunches.values() for row in bunch.rows)]
                # Of no row: what was to make room for the next one's prompt.
                for broken in [row.group for row in rows] or list(self._waiting)[:1]:
                    broken.error = error
                self._bunches.clear()
                self._prompts = Prompts(self._shape, self._model.lm_head.weight, self._bytes)
        if group.error is not None:
            raise group.error

    def _advance(self, starting: list[Row]) -> None:
        """One more token of every row."""
        self._let_go()
        self._admit(starting)
        bunches = list(self._bunches.values())
        prompts = list({id(row.prompt): row.prompt for row in starting if row.prompt.logits is None}.values())
        rows = [*(row for bunch in bunches for row in bunch.rows), *starting]
        if not rows:
            return
        pieces = self._forward([*prompts, *bunches])
        for prompt, logits in zip(prompts, pieces, strict=False):
            prompt.logits = logits[-1:]
        following = [*pieces[len(prompts) :], *(row.prompt.logits for row in starting if row.prompt.logits is not None)]
        ended = [row.group.take(row.number, token) for row, token in zip(rows, self._chosen(rows, following), strict=True)]
        self._sort(bunches, starting, ended)

    def _let_go(self) -> None:
        for width, bunch in list(self._bunches.items()):
            for at in reversed(range(len(bunch.rows))):
                if bunch.rows[at].group.cancelled.is_set():
                    bunch.leave(at)
            if not bunch.rows:
                del self._bunches[width]

    def _admit(self, starting: list[Row]) -> None:
        room = self.most - sum(len(bunch.rows) for bunch in self._bunches.values())
        while self._waiting and len(starting) < room:
            group = self._waiting[0]
            if not group.cancelled.is_set() and group.error is None and group.begun < len(group.seeds):
                group.held = group.held or self._prompts.get(group.prompt)
                starting.append(Row(group, group.begun, group.held))
                group.begun += 1
            else:
                self._waiting.popleft()

    def _sort(self, bunches: Sequence[Bunch], starting: Sequence[Row], ended: list[bool]) -> None:
        """Rows that have ended leave, those that have begun join."""
        for bunch in bunches:
            count = len(bunch.rows)
            # From the back, so that the row that moves has been looked at.
            for at in reversed(range(count)):
                if ended[at]:
                    bunch.leave(at)
            del ended[:count]
        for row, over in zip(starting, ended, strict=True):
            if not over:
                width = room_of(row.prompt)
                if width not in self._bunches:
                    self._bunches[width] = Bunch(width, self._shape, self._model.lm_head.weight)
                self._bunches[width].join(row)

    def _chosen(self, rows: Sequence[Row], logits: Sequence[torch.Tensor]) -> list[int]:
        together = _joined(list(logits))
        numbers = torch.tensor([[row.group.seeds[row.number] for row in rows], [len(row.answer) for row in rows]])
        seeds, steps = numbers.to(together.device)
        samplers = {row.group.sampler for row in rows}
        if len(samplers) == 1:
            return list(samplers.pop().choose(together, seeds, steps).tolist())
        chosen = torch.empty_like(seeds)
        for sampler in samplers:
            at = torch.tensor([place for place, row in enumerate(rows) if row.group.sampler == sampler], device=seeds.device)
            chosen[at] = sampler.choose(together[at], seeds[at], steps[at])
        return list(chosen.tolist())

    def _forward(self, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Logits: of each prompt's last token, shape (1, vocabulary), and of each bunch, shape (rows, vocabulary)."""
        if not segments:
            return []
        model, device = self._model.model, self._model.device
        steps = [segment.step() for segment in segments]
        sizes = [len(tokens) for tokens, _ in steps]
        numbers = torch.tensor([[one for step in steps for one in step[which]] for which in range(2)])
        tokens, places = pad(numbers, (0, max(0, self._least - numbers.shape[1]))).to(device)
        hidden = model.embed_tokens(tokens)
        turn = [part[places].unsqueeze(1) for part in self._turns(max(max(places) for _, places in steps), hidden)]
        for number, layer in enumerate(model.layers):
            hidden = self._layer(number, layer, hidden, turn, segments, sizes)
        pieces = torch.split(hidden[: sum(sizes)], sizes)
        last = [piece[-1:] if isinstance(segment, Prompt) else piece for piece, segment in zip(pieces, segments, strict=True)]
        sizes = [len(piece) for piece in last]
        logits = self._model.lm_head(self._norm(_joined(last, self._least), model.norm))
        return list(torch.split(logits[: sum(sizes)], sizes))

    def _turns(self, place: int, like: torch.Tensor) -> list[torch.Tensor]:
        """Cosines and sines of all positions, this one included; each shape (positions, size)."""
        if not self._turned or place >= len(self._turned[0]):
            count = 1 << max(9, place.bit_length())
            everywhere = self._model.model.rotary_emb(like, torch.arange(count, device=like.device)[None])
            self._turned = [part[0] for part in everywhere]
        return self._turned

    def _layer(  # noqa: PLR0917 - called once
        self,
        number: int,
        layer: Any,
        hidden: torch.Tensor,
        turn: Sequence[torch.Tensor],
        segments: Sequence[Segment],
        sizes: list[int],
    ) -> torch.Tensor:
        attention, count = layer.self_attn, len(hidden)
        normed = self._norm(hidden, layer.input_layernorm)
        asked, told, value = (linear(normed, part.weight) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        turned = _turned(torch.cat([asked, told], 1).view(count, -1, self._size), turn)
        together = turned[:, : self._heads], turned[:, self._heads :], value.view(count, self._shared, self._size)
        parts = zip(segments, *(torch.split(part[: sum(sizes)], sizes) for part in together), strict=True)
        attended = _joined([segment.attend(number, q, k, v) for segment, q, k, v in parts], count)
        hidden = hidden + linear(attended, attention.o_proj.weight)
        normed = self._norm(hidden, layer.post_attention_layernorm)
        opened = silu(linear(normed, layer.mlp.gate_proj.weight)) * linear(normed, layer.mlp.up_proj.weight)
        return hidden + linear(opened, layer.mlp.down_proj.weight)

    def _norm(self, hidden: torch.Tensor, norm: Any) -> torch.Tensor:
        return torch.rms_norm(hidden, (hidden.shape[-1],), norm.weight, self._epsilon)


def _joined(parts: list[torch.Tensor], least: int = 0) -> torch.Tensor:
    """One after the other, with zeros behind them up to ``least``; shape (rows, any)."""
    missing = least - sum(map(len, parts))
    if missing > 0:
        parts = [*parts, parts[0].new_zeros(missing, parts[0].shape[1])]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _turned(states: torch.Tensor, turn: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rotary positions; shapes (tokens, heads, size)."""
    cosine, sine = turn
    first, second = states.chunk(2, -1)
    return (states * cosine).addcmul_(torch.cat([-second, first], -1), sine)


def _lay_out(model: PreTrainedModel) -> None:
    """Store each layer's weights by input, in place: so few rows are multiplied two to three times as fast as by output.

    Two rows and more then end in the same digits, too; by output, sixteen and more did.
    """
    for part in model.modules():
        if type(part) is torch.nn.Linear:
            part.weight.data = part.weight.data.T.contiguous().T


def fits(model: PreTrainedModel) -> bool:
    """Whether a model is a plain Llama whose layers this loop computes: no biases, no quantised, sharded or adapted layers."""
    config = model.config
    if type(model) is not LlamaForCausalLM or config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
        return False
    # The frequencies of other kinds change with the length of the input.
    fixed = config.rope_parameters["rope_type"] in {"default", "linear", "llama3"}
    plain = all(type(part) is torch.nn.Linear for part in model.modules() if "Linear" in type(part).__name__)
    return fixed and plain and len({weight.device for weight in model.parameters()}) == 1
