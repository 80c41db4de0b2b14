"""What every real server must show, whatever its ways."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.utils import convert_to_messages
from scipy.stats import binom

from benchmarks.desk import label
from bonmini_guard import BestOfMiniN, RewardModel
from bonmini_guard.adapters import OpenAICompatibleGenerator
from bonmini_guard.demo import desk, room
from bonmini_guard.demo.check import verdict
from bonmini_guard.demo.run import MODELS
from bonmini_guard.engine.protocols import DrawRequest

PROMPT = "Write two sentences about the sea in winter."
#: For servers that complete a text: after a request that is whole a model taught by chats often says nothing.
BEGINNING = "The sea in winter is"
#: How the desk draws, but for top 50, which servers take from the model or from keys of their own; with time for two busy cores.
DESK: dict[str, Any] = {"temperature": 0.65, "max_tokens": 64, "timeout": 1800}
ALPHA = 0.05


def request(seed: int, index: int = 0, prompt: str = PROMPT, **options: Any) -> DrawRequest:
    return DrawRequest([HumanMessage(prompt)], seed, index, options)


async def loop_of(generator: OpenAICompatibleGenerator, seeds: list[int], prompt: str = PROMPT) -> list[AIMessage]:
    """One loop's answers to the prompt."""
    return await answers_to(generator, [request(seed, index, prompt) for index, seed in enumerate(seeds)])


async def answers_to(generator: OpenAICompatibleGenerator, requests: list[DrawRequest]) -> list[AIMessage]:
    """Their answers, by group where the generator draws groups."""
    if generator.draw_group is None:
        return list(await asyncio.gather(*(generator.draw(each) for each in requests)))
    came = {position: answer async for position, answer in generator.draw_group(requests)}
    assert all(isinstance(answer, AIMessage) for answer in came.values()), came
    return [came[position] for position in range(len(requests))]


async def check_draws(base_url: str, *, streams: bool = True, **settings: Any) -> None:
    """Draws differ, a seed repeats its draw, usage is told, streams say the same as whole answers."""
    prompt = BEGINNING if settings.get("mode") == "completion" else PROMPT
    async with OpenAICompatibleGenerator(base_url, max_tokens=12, **settings) as generator:
        several = await loop_of(generator, [1, 2, 3, 4], prompt)
        assert len({answer.text for answer in several}) == 4
        assert all(answer.usage_metadata is not None for answer in several)
        first, again = await generator.draw(request(7, prompt=prompt)), await generator.draw(request(7, prompt=prompt))
        assert first.text == again.text
        assert first.response_metadata["truncated"] is True
    if streams:
        async with OpenAICompatibleGenerator(base_url, max_tokens=12, stream=True, **settings) as generator:
            assert (await generator.draw(request(7, prompt=prompt))).text == first.text


@contextlib.asynccontextmanager
async def desk_guard(base_url: str, **settings: Any) -> AsyncIterator[BestOfMiniN]:
    """The desk's certified guardrail on the server's draws."""
    scorer = RewardModel.load(str(MODELS / "desk-reward"), base=str(room.language_model()))
    async with OpenAICompatibleGenerator(base_url, **DESK, **settings) as generator:
        yield BestOfMiniN(generator=generator, reward_model=scorer, profile=MODELS / "guardrail.json", seed=1, timeout=1800)


def asked(prompts: int) -> list[tuple[desk.Note, list[BaseMessage]]]:
    """Facts and conversation of the first evaluation prompts."""
    return [(note, convert_to_messages(desk.messages(note, name))) for name, note in desk.prompts("evaluate")[:prompts]]


async def check_guard(base_url: str, prompts: int = 6, together: int = 1, **settings: Any) -> None:
    """The desk's guardrail, ``together`` requests at a time, accepts or abstains, and hardly any answer served is wrong."""
    decisions: Counter[str] = Counter()
    places = asyncio.Semaphore(together)

    async def ask(guard: BestOfMiniN, note: desk.Note, messages: list[BaseMessage]) -> None:
        async with places:
            result = await guard.arun(messages)
        assert (result.decision, result.reason) in (("accepted", "passed"), ("abstained", "budget_spent"))
        assert all(candidate.score is not None for candidate in result.candidates)
        assert result.usage["output_tokens"] > 0
        wrong = result.message is not None and verdict(note, result.message.text) is not None
        decisions.update({result.decision: 1, "wrong": int(wrong), "draws": result.draws})

    async with desk_guard(base_url, **settings) as guard:
        await asyncio.gather(*(ask(guard, note, messages) for note, messages in asked(prompts)))
    print(f"of {prompts} requests: {dict(decisions)}")
    assert decisions["accepted"] > 0
    assert decisions["wrong"] <= binom.ppf(0.9999, prompts, ALPHA)


async def check_pass_rate(base_url: str, prompts: int = 32, draws: int = 8, **settings: Any) -> None:
    """The server's draws are right as often as the local generator's, prompt by prompt: within 4 standard errors."""
    kept = {row["id"]: np.mean([each["acceptable"] for each in row["candidates"]]) for row in label.log_rows("evaluate")}
    notes = desk.prompts("evaluate")[:prompts]
    async with OpenAICompatibleGenerator(base_url, **DESK, **settings) as generator:
        right = await asyncio.gather(*(_right(generator, name, note, draws) for name, note in notes))
    known = np.array([kept[name] for name, _ in notes])
    error = math.sqrt(float(np.sum(known * (1 - known))) * (1 / draws + 1 / 32)) / prompts
    here, there = float(np.mean(right)), float(known.mean())
    print(f"acceptable: {here:.3f} of the server's draws, {there:.3f} of the local generator's, standard error {error:.3f}")
    assert abs(here - there) < 4 * error


async def _right(generator: OpenAICompatibleGenerator, name: str, note: desk.Note, draws: int) -> float:
    prompt = convert_to_messages(desk.messages(note, name))
    requests = [DrawRequest(prompt, seed, index) for index, seed in enumerate(label.seeds(f"live {name}", range(draws)))]
    answers = await answers_to(generator, requests)
    ended = [answer.response_metadata.get("finish_reason") == "stop" for answer in answers]
    return float(np.mean([verdict(note, answer.text, whole) is None for answer, whole in zip(answers, ended, strict=True)]))
