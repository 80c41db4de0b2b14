"""Keys and values while a decode loop needs them: of prompts, kept for later draws, and of rows, whatever their age.

A row attends to its prompt and to its own tokens. Rows whose prompts are about equally long form a bunch, for which attention is
computed at once: prompts stand in lines, each with room for a few rows, so that a prompt is read once for all of a line's rows.
The shapes of these products do not depend on the company, so neither do their last digits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from bonmini_guard.reward.pooling import alike

if TYPE_CHECKING:
    from bonmini_guard.adapters.decoding import Group

#: Rows that share a line; a prompt of more rows has several lines.
LANES = 8
#: Own tokens are read in steps of so many, and prompts have room for so many tokens, or twice as many, and so on.
ROOM = 32
#: Prompts, the most recently used ones, that a new one is compared with: of small models thousands are kept.
COMPARED = 64

#: (layers, key-value heads, head size)
Shape = tuple[int, int, int]


class Prompt:
    """A prompt's keys and values, and what comes after it.

    Attributes:
        tokens: token ids, at least one.
        parts: keys and values; shape (2, layers, key-value heads, tokens, head size).
        computed: how many of the tokens they hold.
        logits: of the first token of an answer, once all is computed; shape (1, vocabulary).
    """

    def __init__(self, tokens: Sequence[int], shape: Shape, like: torch.Tensor) -> None:
        layers, heads, size = shape
        self.tokens = list(tokens)
        self.parts = like.new_empty(2, layers, heads, len(tokens), size)
        self.computed = 0
        self.logits: torch.Tensor | None = None

    def step(self) -> tuple[list[int], list[int]]:
        """What is left of it, to be computed now: token ids and their positions."""
        return self.tokens[self.computed :], list(range(self.computed, len(self.tokens)))

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of one layer; shapes (tokens, heads, size), returns (tokens, heads * size)."""
        keys, values = self.parts[:, layer]
        keys[:, self.computed :], values[:, self.computed :] = key.transpose(0, 1), value.transpose(0, 1)
        seen = torch.ones(len(query), keys.shape[1], dtype=torch.bool, device=query.device).tril(self.computed)
        attended = scaled_dot_product_attention(
            query.transpose(0, 1)[None], keys[None], values[None], attn_mask=seen, enable_gqa=True
        )
        return attended[0].transpose(0, 1).flatten(1)


class Prompts:
    """Prompts by their tokens, the least recently used ones dropped beyond a number of bytes."""

    def __init__(self, shape: Shape, like: torch.Tensor, most: int) -> None:
        self._shape, self._like, self._most = shape, like, most
        self._held: OrderedDict[tuple[int, ...], Prompt] = OrderedDict()
        self._bytes = 0

    def get(self, tokens: Sequence[int]) -> Prompt:
        """A prompt, computed or still to be; a new one takes over what it shares with the most similar recent one."""
        key = tuple(tokens)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        prompt = Prompt(tokens, self._shape, self._like)
        recent = islice(reversed(self._held.values()), COMPARED)
        similar = [(alike(tokens, other.tokens), other) for other in recent if other.logits is not None]
        if similar:
            # The last token is computed in any case: its output is the first answer token's.
            length, other = max(similar, key=lambda pair: pair[0])
            prompt.computed = min(length, len(tokens) - 1)
            prompt.parts[:, :, :, : prompt.computed] = other.parts[:, :, :, : prompt.computed]
        self._held[key] = prompt
        self._bytes += prompt.parts.nbytes
        while self._bytes > self._most and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].parts.nbytes
        return prompt


@dataclass(slots=True, eq=False)
class Row:
    """A draw in progress.

    Attributes:
        age: tokens of its own whose keys and values are kept.
        place: its line and the lane in it.
    """

    group: Group
    number: int
    prompt: Prompt
    age: int = 0
    place: int = 0

    @property
    def answer(self) -> list[int]:
        """Token ids so far."""
        return self.group.answers[self.number]


class Bunch:
    """Rows whose prompts have room in as many tokens, and what they attend to.

    Attributes:
        width: of a prompt's room.
        shared: keys and values of prompts; shape (2, layers, lines, key-value heads, width, size), zeros behind a prompt's end.
        own: of rows; shape (2, layers, rows, key-value heads, room, size).
        rows: in the order of ``own``.
        lines: each line's prompt and its free lanes.
    """

    def __init__(self, width: int, shape: Shape, like: torch.Tensor) -> None:
        layers, heads, size = shape
        self.width = width
        self.shared = like.new_zeros(2, layers, 1, heads, width, size)
        self.own = like.new_zeros(2, layers, LANES, heads, ROOM, size)
        self.rows: list[Row] = []
        self.lines: list[tuple[Prompt, list[int]]] = []

    def join(self, row: Row) -> None:
        """Take a row in."""
        line = next((at for at, (prompt, free) in enumerate(self.lines) if prompt is row.prompt and free), None)
        if line is None:
            line = len(self.lines)
            self.lines.append((row.prompt, list(range(LANES))))
            self.shared = _with_room(self.shared, 2, line + 1)
            self.shared[:, :, line] = 0
            self.shared[:, :, line, :, : len(row.prompt.tokens)] = row.prompt.parts
        row.place = line * LANES + self.lines[line][1].pop()
        self.rows.append(row)
        self.own = _with_room(self.own, 2, len(self.rows))

    def leave(self, at: int) -> None:
        """Let a row go: the last one takes its place, and the last line that of an empty one."""
        gone, last = self.rows[at], self.rows.pop()
        if gone is not last:
            self.rows[at] = last
            self.own[:, :, at, :, : last.age] = self.own[:, :, len(self.rows), :, : last.age]
        line, lane = divmod(gone.place, LANES)
        self.lines[line][1].append(lane)
        if len(self.lines[line][1]) == LANES:
            moved = len(self.lines) - 1
            self.shared[:, :, line] = self.shared[:, :, moved]
            self.lines[line] = self.lines[moved]
            self.lines.pop()
            for row in self.rows:
                if row.place // LANES == moved:
                    row.place += (line - moved) * LANES

    def step(self) -> tuple[list[int], list[int]]:
        """Each row's last token, whose keys and values are to be kept: token ids and their positions."""
        ages, device = [row.age for row in self.rows], self.own.device
        for row in self.rows:
            row.age += 1
        places = [len(row.prompt.tokens) + age for row, age in zip(self.rows, ages, strict=True)]
        self._taken = -(-(max(ages) + 1) // ROOM) * ROOM
        self.own = _with_room(self.own, 4, self._taken)
        self._numbers = torch.arange(len(self.rows), device=device)
        self._ages, ends, places_in_lines = torch.tensor(
            [ages, [len(row.prompt.tokens) for row in self.rows], [row.place for row in self.rows]], device=device
        )
        self._order(places_in_lines)
        behind = torch.arange(self.width, device=device) >= ends[:, None]
        later = torch.arange(self._taken, device=device) > self._ages[:, None]
        mask = torch.cat([behind, later], 1)[:, None, None]
        self._mask = torch.zeros(mask.shape, dtype=self.own.dtype, device=device).masked_fill_(mask, -torch.inf)
        return [row.answer[-1] for row in self.rows], places

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of one layer; shapes (rows, heads, size), returns (rows, heads * size)."""
        (rows, heads, size), lines, taken = key.shape, len(self.lines), self._taken
        for part, new in zip(self.own[:, layer], (key, value), strict=True):
            part[self._numbers, :, self._ages] = new
        keys, values = self.own[:, layer, :rows, :, :taken]
        shared_keys, shared_values = self.shared[:, layer, :lines]
        query = query.view(rows, heads, -1, size) / size**0.5
        of_prompt = self._from_lines(self._in_lines(query) @ shared_keys.mT)
        weights = torch.cat([of_prompt, query @ keys.mT], -1).add_(self._mask)
        of_prompt, of_own = torch.split(weights.softmax(-1, dtype=torch.float32).to(query.dtype), [self.width, taken], -1)
        attended: torch.Tensor = self._from_lines(self._in_lines(of_prompt) @ shared_values) + of_own @ values
        return attended.reshape(rows, -1)

    def _order(self, places: torch.Tensor) -> None:
        """Where each row's heads stand among the lines', and which stand there: an empty lane is computed as the first row is."""
        heads = torch.arange(self.own.shape[3], device=places.device)
        filled = places.new_zeros(len(self.lines) * LANES)
        filled[places] = self._numbers
        self._into = (filled.view(-1, 1, LANES) * len(heads) + heads[:, None]).flatten()
        line, lane = places[:, None] // LANES, places[:, None] % LANES
        self._out = ((line * len(heads) + heads) * LANES + lane).flatten()

    def _in_lines(self, rows: torch.Tensor) -> torch.Tensor:
        """From (rows, heads, queries, any) to (lines, heads, lanes * queries, any)."""
        count, heads, queries, size = rows.shape
        chosen = rows.reshape(count * heads, -1).index_select(0, self._into)
        return chosen.view(len(self.lines), heads, LANES * queries, size)

    def _from_lines(self, lines: torch.Tensor) -> torch.Tensor:
        count, heads, queries, size = lines.shape
        chosen = lines.view(count * heads * LANES, -1).index_select(0, self._out)
        return chosen.view(len(self.rows), heads, queries // LANES, size)


def room_of(prompt: Prompt) -> int:
    """The room that a prompt takes in a line: the next power of two."""
    return max(ROOM, 1 << (len(prompt.tokens) - 1).bit_length())


def _with_room(part: torch.Tensor, dimension: int, size: int) -> torch.Tensor:
    """As it is, or twice as large with zeros at the end."""
    while part.shape[dimension] < size:
        part = torch.cat([part, torch.zeros_like(part)], dimension)
    return part
