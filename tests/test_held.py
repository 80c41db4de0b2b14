"""Async code that holds the event loop is told once, with its place; what awaits, or works in a thread, is not."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import AIMessage

from bonmini_guard import BestOfMiniN
from bonmini_guard.engine.held import BEAT, HELD, turning
from bonmini_guard.testing import FakeGenerator

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")
LONG = HELD + 0.8
#: How often it is held so long, if it is not told before: on a busy machine the thread that looks may be late.
TIMES = range(10)


def guard(generator=None, score=lambda messages, candidates: [1.0] * len(candidates), **settings):
    return BestOfMiniN(generator=generator or FakeGenerator(["good"]), reward_model=score, schedule=[1], timeout=30.0, **settings)


def told(caplog):
    return [record.getMessage() for record in caplog.records if "holds the event loop" in record.getMessage()]


def place_of(function):
    return re.escape(f"{function.__qualname__}() at {__file__}:")


async def test_a_reward_model_that_blocks_is_told_once_with_its_place(caplog):
    async def blocks(messages, candidates):
        for _ in TIMES:
            if not told(caplog):
                time.sleep(LONG)
        return [1.0] * len(candidates)

    for _ in range(2):
        assert (await guard(score=blocks).arun("q")).reason == "passed"
    (said,) = told(caplog)
    line = blocks.__code__.co_firstlineno + 3
    assert re.search(rf"^the reward model holds .* in {place_of(blocks)}{line}:", said)


async def test_a_generator_that_blocks_in_the_standard_library_is_told_where_it_called_it(caplog):
    class Blocks:
        async def draw(self, request):
            for _ in TIMES:
                if not told(caplog):
                    with contextlib.suppress(TimeoutError):
                        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), asyncio.get_running_loop()).result(LONG)

    await asyncio.gather(guard(Blocks()).arun("q"), return_exceptions=True)
    (said,) = told(caplog)
    assert re.search(rf"^the generator holds .* in {place_of(Blocks.draw)}", said)


async def test_a_fallback_that_blocks_is_told(caplog):
    async def blocks(result):
        for _ in TIMES:
            if not told(caplog):
                time.sleep(LONG)
        return "sorry"

    assert (await guard(score=lambda messages, texts: [-1.0], on_abstain=blocks).ainvoke("q")).text == "sorry"
    (said,) = told(caplog)
    assert re.search(rf"^on_abstain holds .* in {place_of(blocks)}", said)


async def test_a_callback_that_blocks_is_told(caplog):
    class Blocks(AsyncCallbackHandler):
        async def on_chain_end(self, outputs, **about):
            for _ in TIMES:
                if "score" in outputs and not told(caplog):
                    time.sleep(LONG)

    assert (await guard().ainvoke("q", {"callbacks": [Blocks()]})).text == "good"
    (said,) = told(caplog)
    assert re.search(rf"^a callback holds .* in {place_of(Blocks.on_chain_end)}", said)


async def test_what_awaits_or_works_in_a_thread_is_not_told(caplog):
    class Patient:
        async def draw(self, request):
            await asyncio.sleep(LONG)
            return AIMessage("good")

    def slow(messages, candidates):
        time.sleep(LONG)
        return [1.0] * len(candidates)

    assert (await guard(Patient(), slow).arun("q")).reason == "passed"
    assert told(caplog) == []


async def test_many_short_steps_are_not_told(caplog, monkeypatch):
    monkeypatch.setattr("bonmini_guard.engine.held.HELD", 3.0)  # a step of 0.3 s may take a busy machine longer, but not that

    async def busy():
        time.sleep(0.3)

    with turning():
        await asyncio.gather(*(busy() for _ in range(12)))
    assert told(caplog) == []


async def test_what_blocks_a_loop_without_requests_is_not_told(caplog):
    with turning():
        await asyncio.sleep(0)
    time.sleep(LONG)
    assert told(caplog) == []


async def test_a_request_right_after_a_pause_is_watched(caplog):
    with turning():
        await asyncio.sleep(0)
    time.sleep(2 * BEAT)  # somebody looks, and there is no request
    with turning():
        for _ in TIMES:
            if not told(caplog):
                time.sleep(LONG)
    assert len(told(caplog)) == 1
