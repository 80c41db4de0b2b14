"""What every real server must show, whatever its ways."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage

from benchmarks.imdb.models import model_path
from bonmini_guard import BestOfMiniN, RewardModel
from bonmini_guard.adapters import OpenAICompatibleGenerator
from bonmini_guard.protocols import DrawRequest

PROMPT = "The film was"


def request(seed: int, index: int = 0, **options: Any) -> DrawRequest:
    return DrawRequest([HumanMessage(PROMPT)], seed, index, options)


async def loop_of(generator: OpenAICompatibleGenerator, seeds: list[int]) -> list[AIMessage]:
    """One loop's answers, by group where the generator draws groups."""
    requests = [request(seed, index) for index, seed in enumerate(seeds)]
    if generator.draw_group is None:
        return list(await asyncio.gather(*(generator.draw(each) for each in requests)))
    came = {position: answer async for position, answer in generator.draw_group(requests)}
    assert all(isinstance(answer, AIMessage) for answer in came.values()), came
    return [came[position] for position in range(len(seeds))]


async def check_draws(base_url: str, *, streams: bool = True, **settings: Any) -> None:
    """Draws differ, a seed repeats its draw, usage is told, streams say the same as whole answers."""
    async with OpenAICompatibleGenerator(base_url, max_tokens=12, **settings) as generator:
        several = await loop_of(generator, [1, 2, 3, 4])
        assert len({answer.text for answer in several}) == 4
        assert all(answer.usage_metadata is not None for answer in several)
        first, again = await generator.draw(request(7)), await generator.draw(request(7))
        assert first.text == again.text
        assert first.response_metadata["truncated"] is True
    if streams:
        async with OpenAICompatibleGenerator(base_url, max_tokens=12, stream=True, **settings) as generator:
            assert (await generator.draw(request(7))).text == first.text


async def check_guard(base_url: str, **settings: Any) -> None:
    """Both configurations conduct a request on the server's draws, and its tokens are counted."""
    scorer = RewardModel.load(str(model_path("reward")))
    async with OpenAICompatibleGenerator(base_url, max_tokens=24, **settings) as generator:
        for mode in ("guardrail", "accelerator"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                guard = BestOfMiniN(
                    generator=generator, reward_model=scorer, mode=mode, mini_n=4, max_loops=3, threshold=2.0, seed=1
                )
            result = await guard.arun(PROMPT)
            assert result.decision in ("accepted", "best_effort", "abstained")
            assert result.draws in (4, 8, 12)
            assert all(candidate.score is not None for candidate in result.candidates)
            assert result.usage["output_tokens"] > 0
            print(f"{mode}: {result.decision} after {result.draws} draws, {dict(result.usage)}")
