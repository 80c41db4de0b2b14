"""Choice rows as training batches: every text tokenised once, rows of one prompt together."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils.logging import tqdm

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError, Unscorable
from bonmini_guard.reward.formatting import Formatter
from bonmini_guard.reward.pooling import pad, share
from bonmini_guard.training.choices import Answer, ChoiceRow, shown

#: Batches that are sorted by length together: enough to save padding, few enough to keep the order random.
_WINDOW = 32


@dataclass(frozen=True, slots=True)
class Judgement:
    """One distinct row: its texts' places in the table, the chosen one of them (K for "none"), its weight, "none" offered."""

    members: tuple[int, ...]
    target: int
    weight: float
    offered: bool = True

    @property
    def is_none(self) -> bool:
        """Whether "none" was chosen."""
        return self.target == len(self.members)


@dataclass(frozen=True, slots=True)
class Group:
    """Judgements on one prompt, and the distinct texts that they need."""

    texts: tuple[int, ...]
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True, slots=True)
class Encoding:
    """Tokenised choice rows.

    Attributes:
        texts: token ids of each distinct (prompt, answer).
        groups: what to learn from them, each group with at most as many texts as a batch (but a whole row at least).
        too_long: judgements left out because the model cannot read them: an answer is too long, something has no token, or the
            chat template refuses the conversation.
        cut: texts of which the oldest turns were cut.
        prompts: how many the judgements are on.
    """

    texts: list[list[int]]
    groups: list[Group]
    too_long: int
    cut: int
    prompts: int

    @property
    def judgements(self) -> list[Judgement]:
        """Of all groups."""
        return [judgement for group in self.groups for judgement in group.judgements]


def encode_rows(rows: Iterable[ChoiceRow], formatter: Formatter, batch_size: int, known: float = math.inf) -> Encoding:
    """Tokenise each distinct text once, add up equal judgements, and group them by prompt; ``known`` tokens have embeddings."""
    by_prompt: dict[tuple[Turn, ...], Counter[tuple[tuple[Answer, ...], int, bool]]] = defaultdict(Counter)
    for row in rows:
        by_prompt[row.prompt][row.responses, row.target, row.none_offered] += row.count
    texts, groups, too_long, cut, prompts = list[list[int]](), list[Group](), 0, 0, 0
    for prompt, counts in tqdm(by_prompt.items(), desc="Tokenising prompts", delay=2.0):
        places = dict[Answer, int]()
        for answer in sorted(
            {answer for responses, _, _ in counts for answer in responses}, key=lambda one: (shown(one), repr(one))
        ):
            with suppress(Unscorable, InputError):
                encoded = formatter.encode(prompt, answer)
                if max(encoded.ids) >= known:
                    continue
                places[answer] = len(texts)
                texts.append(encoded.ids)
                cut += encoded.cut_turns > 0
        whole = {said: weight for said, weight in counts.items() if all(text in places for text in said[0])}
        too_long += counts.total() - sum(whole.values())
        judgements = (Judgement(tuple(places[text] for text in said[0]), said[1], float(w), said[2]) for said, w in whole.items())
        groups.extend(_grouped(judgements, batch_size))
        prompts += bool(whole)
    return Encoding(texts, groups, too_long, cut, prompts)


def _grouped(judgements: Iterable[Judgement], batch_size: int) -> list[Group]:
    """Judgements of one prompt in groups of at most ``batch_size`` texts, in the order of their texts."""
    groups: list[Group] = []
    texts: set[int] = set()
    held: list[Judgement] = []
    for judgement in sorted(judgements, key=lambda judgement: judgement.members):
        if held and len(texts | set(judgement.members)) > batch_size:
            groups.append(Group(tuple(sorted(texts)), tuple(held)))
            texts, held = set(), []
        texts.update(judgement.members)
        held.append(judgement)
    return [*groups, Group(tuple(sorted(texts)), tuple(held))] if held else groups


def batches_of(encoding: Encoding, batch_size: int, epochs: float = 1.0, seed: int = 0) -> list[list[Group]]:
    """All batches of a training run, in order: each is the list of groups of one step.

    Every pass shuffles the groups anew; within a window of batches, groups of like length come together. A fraction of an epoch
    ends within a pass.
    """
    source = random.Random(seed)
    batches: list[list[Group]] = []
    whole, part = int(epochs), epochs % 1
    for number in range(whole + (part > 0)):
        one_pass = _one_pass(encoding, batch_size, source)
        batches.extend(one_pass if number < whole else one_pass[: max(1, round(part * len(one_pass)))])
    return batches


def _one_pass(encoding: Encoding, batch_size: int, source: random.Random) -> list[list[Group]]:
    groups = encoding.groups
    shuffled = source.sample(groups, len(groups))
    width = sum(len(group.texts) for group in groups) / max(1, len(groups))
    window = max(1, int(_WINDOW * batch_size / max(width, 1.0)))
    batches: list[list[Group]] = []
    for start in range(0, len(shuffled), window):
        near = shuffled[start : start + window]
        near.sort(key=lambda group: max(len(encoding.texts[text]) for text in group.texts))
        batches.extend(_packed(near, batch_size))
    source.shuffle(batches)
    return batches


def _packed(groups: Iterable[Group], batch_size: int) -> list[list[Group]]:
    batches: list[list[Group]] = []
    room = 0
    for group in groups:
        if len(group.texts) > room:
            batches.append([])
            room = batch_size
        batches[-1].append(group)
        room -= len(group.texts)
    return batches


def tabled(rows: Sequence[Judgement]) -> dict[str, Tensor]:
    """What a loss takes of judgements: their texts, shape (sum of sizes,), and of each row size, choice, weight, "none" offered."""
    return {
        "members": torch.tensor([text for row in rows for text in row.members]),
        "sizes": torch.tensor([len(row.members) for row in rows]),
        "choices": torch.tensor([row.target for row in rows]),
        "weights": torch.tensor([row.weight for row in rows]),
        "offered": torch.tensor([row.offered for row in rows]),
    }


@dataclass(frozen=True)
class Collator:
    """Makes tensors of batches; each distinct text of the table appears once, filled up on the right.

    With ``shares``, texts of one group share the computation of their prompt: :func:`bonmini_guard.reward.pooling.share`.
    """

    texts: Sequence[list[int]]
    pad_id: int
    shares: bool = False

    def __call__(self, batches: Sequence[Sequence[Group]]) -> dict[str, Tensor]:
        """Tensors of one step.

        Returns:
            ``input_ids`` and ``attention_mask`` (texts, longest), or what ``share`` gives; ``members`` (sum of sizes,), the place
            of each row's answers among the texts; ``sizes``, ``choices``, ``weights`` and ``offered`` (rows,).
        """
        groups = [group for batch in batches for group in batch]
        wanted = sorted({text for group in groups for text in group.texts})
        told = tabled([judgement for group in groups for judgement in group.judgements])
        return self._texts(groups, wanted) | told | {"members": torch.searchsorted(torch.tensor(wanted), told["members"])}

    def _texts(self, groups: Sequence[Group], wanted: Sequence[int]) -> dict[str, Tensor]:
        if not self.shares:
            input_ids, attention_mask = pad([self.texts[text] for text in wanted], self.pad_id)
            return {"input_ids": input_ids, "attention_mask": attention_mask}
        # Texts of two groups, which a prompt with very many judgements has, are computed with the first.
        first = {text: number for number, group in reversed(list(enumerate(groups))) for text in group.texts}
        rows = [found for number in range(len(groups)) if (found := [text for text in wanted if first[text] == number])]
        inputs = share([[self.texts[text] for text in row] for row in rows], self.pad_id)
        slots = {text: slot for slot, text in enumerate(text for row in rows for text in row)}
        return inputs | {"ends": inputs["ends"][torch.tensor([slots[text] for text in wanted])]}


def model_inputs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a :class:`Collator`'s tensors the scorer takes."""
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids", "ends") if name in inputs}
