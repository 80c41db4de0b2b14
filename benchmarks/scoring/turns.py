"""Texts that are scored, and contenders that score them in turns, in one run."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from time import perf_counter, process_time

import torch
from langchain_core.messages import AIMessage, HumanMessage

from benchmarks.scoring.models import finish, words
from benchmarks.scoring.rivals import Rival
from bonmini_guard import RewardModel

Pair = tuple[str, str]


# Every turn has texts of its own: a server that remembers what it has read must read it first.


def shared(prompt: int, answers: int, length: int, turn: int, *, same_prompt: bool = False) -> list[Pair]:
    """Answers to one prompt, which may be that of turn 0 again."""
    asked = torch.Generator().manual_seed(0 if same_prompt else turn)
    text, source = words(prompt, asked), torch.Generator().manual_seed(1000 + turn)
    return [(text, words(length, source)) for _ in range(answers)]


def mixed(count: int, turn: int) -> list[Pair]:
    """Answers to prompts of their own, 16 to 512 tokens together; as long in every turn."""
    lengths = torch.randint(16, 513, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    source = torch.Generator().manual_seed(1000 + turn)
    return [(words(length // 2, source), words(length - length // 2, source)) for length in lengths]


def first_loop(model: RewardModel) -> Rival:
    """A new request each time: the prompt is computed once, for all of its answers."""

    def score(pairs: Sequence[Pair]) -> list[float]:
        return [float(score or 0.0) for score in model.score(pairs[0][0], [answer for _, answer in pairs])]

    return score


def following_loop(model: RewardModel, pairs: Sequence[Pair]) -> Rival:
    """A session whose prompt is already there."""
    session = model.session([HumanMessage(pairs[0][0])])

    def score(pairs: Sequence[Pair]) -> list[float]:
        return [float(score or 0.0) for score in asyncio.run(session.score([AIMessage(answer) for _, answer in pairs]))]

    score(pairs)
    return score


def separate(model: RewardModel) -> Rival:
    """Each answer has a prompt of its own: requests that come at the same time."""

    async def together(pairs: Sequence[Pair]) -> list[float]:
        sessions = [model.session([HumanMessage(prompt)]) for prompt, _ in pairs]
        found = await asyncio.gather(*(s.score([AIMessage(answer)]) for s, (_, answer) in zip(sessions, pairs, strict=True)))
        for session in sessions:
            await session.aclose()
        return [float(scores[0] or 0.0) for scores in found]

    return lambda pairs: asyncio.run(together(pairs))


Seconds = dict[str, dict[str, float]]


def seconds_in_turns(
    groups: dict[str, dict[str, Rival]], texts: Callable[[int], Sequence[Pair]], rounds: int, device: str
) -> Seconds:
    """Median seconds of each, on the wall clock and of the processor, measured in turns; those of a group must score alike.

    On a machine that others use too, a process's own processor time is the fairer of the two; each computes in one thread.
    """
    for group in groups.values():
        check_agreement(group, texts(0)[:2], device)
    contenders = {f"{group}: {name}" if group else name: score for group, named in groups.items() for name, score in named.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(1, rounds + 1):
        pairs = texts(turn)
        for name, score in contenders.items():
            finish(device)
            begun = perf_counter(), process_time()
            score(pairs)
            times[name].append((perf_counter() - begun[0], process_time() - begun[1]))
    medians = {name: [statistics.median(part) for part in zip(*values, strict=True)] for name, values in times.items()}
    return {name: {"wall": wall, "processor": processor} for name, (wall, processor) in medians.items()}


def check_agreement(contenders: dict[str, Rival], pairs: Sequence[Pair], device: str) -> None:
    """Leave if some of them score otherwise; the calls warm all of them up."""
    found = {name: torch.tensor(score(pairs)[: len(pairs)]) for name, score in contenders.items()}
    first = next(iter(found.values()))
    tolerance = (1e-4 if device == "cpu" else 0.05) * (1 + first.abs().max())
    for name, scores in found.items():
        if (scores - first).abs().max() > tolerance:
            raise SystemExit(f"{name} scores otherwise: what it computes cannot be compared")
