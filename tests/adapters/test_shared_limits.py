"""One limit over several adapters, and turns between the requests that wait for one adapter."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import HumanMessage

from bonmini_guard.adapters import OpenAICompatibleGenerator, TGIGenerator
from bonmini_guard.engine.engine import Engine
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.policy.policy import best_of_n
from bonmini_guard.testing import FakeRewardModel

from .openai_server import OpenAIServer
from .tgi_server import TGIServer

PROMPT = [HumanMessage("question")]


@pytest.fixture
async def server():
    async with TGIServer() as running:
        yield running


def conduct(generator, draws):
    return Engine(generator, FakeRewardModel(lambda text: 0.0), best_of_n(draws)).run(PROMPT, seed=draws)


async def test_one_limiter_holds_two_adapters_to_one_limit():
    busy, most = 0, 0

    def begun(body):
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        asyncio.get_running_loop().call_later(0.005, ended)
        return 0.005

    def ended():
        nonlocal busy
        busy -= 1

    limiter = Limiter(3)
    async with TGIServer() as tgi, OpenAIServer() as openai:
        tgi.slow = openai.slow = begun
        first = TGIGenerator(tgi.url, token="", max_concurrency=limiter)
        second = OpenAICompatibleGenerator(openai.url, model="tiny", api_key="none", max_concurrency=limiter)
        async with first, second:
            await asyncio.gather(conduct(first, 10), conduct(second, 10))
    assert (len(tgi.requests), len(openai.requests), most) == (10, 10, 3)


async def test_a_large_request_does_not_hold_up_small_ones_at_an_adapter(server):
    server.slow = 0.002
    ended = []

    async def run(name, draws):
        await conduct(generator, draws)
        ended.append(name)

    async with TGIGenerator(server.url, token="", max_concurrency=2) as generator:
        large = asyncio.create_task(run("large", 120))
        while server.busy < 2:
            await asyncio.sleep(0.001)
        await asyncio.gather(large, *(run("small", 2) for _ in range(4)))
    assert ended == ["small"] * 4 + ["large"]
