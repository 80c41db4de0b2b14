"""From answers that were judged one by one to choice rows: accept/reject, pairs, or one choice among all.

An answer judged on its own says whether it beats "none". From several such judgements of one prompt, choices follow: none
where no answer is acceptable, else the best of them. Equally good answers are a tie among acceptable ones; its winner is drawn at
random, because leaving such rows out would leave the hard prompts over and move the zero.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from bonmini_guard.training.choices import Answer


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer, whether it is acceptable, and how good it is among the acceptable ones."""

    text: Answer
    acceptable: bool
    rating: float


Value = dict[str, Any]
Emitter = Callable[[Any, Sequence[Judged], int], Iterator[Value]]


def single(prompt: Any, answers: Sequence[Judged], seed: int) -> Iterator[Value]:
    """An accept/reject row for each answer."""
    for answer in answers:
        yield {"prompt": prompt, "responses": [answer.text], "choice": 0 if answer.acceptable else "none"}


def pairs(prompt: Any, answers: Sequence[Judged], seed: int) -> Iterator[Value]:
    """A row for each pair of different answers."""
    for pair in combinations(answers, 2):
        if pair[0].text != pair[1].text:
            yield from choice(prompt, pair, seed)


def choice(prompt: Any, answers: Sequence[Judged], seed: int) -> Iterator[Value]:
    """One row: the best acceptable answer among all, or none."""
    distinct = list({answer.text: answer for answer in answers}.values())
    texts = [answer.text for answer in distinct]
    best = max((answer.rating for answer in distinct if answer.acceptable), default=None)
    winners = [index for index, answer in enumerate(distinct) if answer.acceptable and answer.rating == best]
    if distinct:
        yield {"prompt": prompt, "responses": texts, "choice": one_of(winners, (prompt, texts), seed) if winners else "none"}


def one_of(places: Sequence[int], about: Any, seed: int) -> int:
    """One of the places, at random; the same one whenever it is asked about the same thing."""
    return random.Random(f"{seed} {about!r}").choice(places)


EMITTERS: Mapping[str, Emitter] = {"single": single, "pairs": pairs, "choice": choice}
