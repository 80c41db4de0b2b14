"""How requests end early: timeouts, cancellation, and generators that draw a whole loop at once."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import AIMessage

from bonmini_guard.errors import GenerationError
from bonmini_guard.limiter import Limiter
from bonmini_guard.policy import accelerator, guardrail
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

from .adapters.drawing import until
from .test_engine import by_number, eager, others, run

# Timeouts


async def test_at_the_deadline_the_guardrail_abstains_even_if_the_unfinished_loop_holds_a_good_answer():
    generator = FakeGenerator(["9", "-1"], latency=lambda index: 0.0 if index == 0 else 30)
    scorer = FakeRewardModel(by_number)
    result = await run(generator, guardrail([2]), scorer, timeout=0.5)
    assert (result.decision, result.reason, result.message) == ("abstained", "deadline", None)
    assert generator.cancelled == [1]
    assert scorer.open_sessions == 0
    assert others() == set()


async def test_at_the_deadline_the_accelerator_serves_the_best_so_far():
    generator = FakeGenerator(["-3", "-1", "5"], latency=lambda index: 0.0 if index < 2 else 30)
    result = await run(generator, accelerator([3]), timeout=0.5)
    assert (result.decision, result.reason, result.message.content) == ("best_effort", "deadline", "-1")


async def test_at_the_deadline_with_a_slow_scorer_the_accelerator_serves_the_first_draw():
    result = await run(["1", "2"], accelerator([2]), FakeRewardModel(by_number, latency=30), timeout=0.5)
    assert (result.decision, result.reason, result.message.content) == ("unscored", "deadline", "1")


async def test_nothing_arrived_before_the_deadline():
    with pytest.raises(GenerationError, match=r"within the timeout of 0\.5 s"):
        await run(FakeGenerator(["1"], latency=30), accelerator([2]), timeout=0.5)
    assert others() == set()


async def test_a_timeout_of_the_generators_own_is_a_failed_draw():
    result = await run([TimeoutError("slow server"), "1"], guardrail([2]), timeout=30)
    assert result.decision == "accepted"


async def test_a_timeout_of_the_scorers_own_is_a_failed_scorer():
    def late(messages, candidates):
        raise TimeoutError

    assert (await run(["1"], guardrail([1]), late, timeout=30)).reason == "scorer_failed"


# Cancellation


@pytest.mark.parametrize("scoring", [0.0, 30.0])
async def test_a_cancelled_caller_leaves_nothing_behind(scoring):
    generator = FakeGenerator(["1"], latency=lambda index: 0.0 if index == 0 else 30)
    scorer = FakeRewardModel(by_number, latency=scoring)
    task = asyncio.create_task(run(generator, guardrail([3]), scorer))
    await until(lambda: scorer.open_sessions)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(generator.cancelled) == [1, 2]
    assert scorer.open_sessions == 0
    assert others() == set()


async def test_the_session_is_closed_even_if_the_caller_cancels_twice():
    async def answer(request):
        if request.index == 0:
            return "-1"
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.1)

    scorer = FakeRewardModel(by_number)
    task = asyncio.create_task(run(answer, guardrail([2]), scorer))
    for _ in range(2):
        await asyncio.sleep(0.02)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scorer.open_sessions == 0
    await asyncio.gather(*others(), return_exceptions=True)


# Generators that draw a whole loop


class Group:
    """Plays a script: (position, answer) to yield, an exception to raise, a number to sleep."""

    def __init__(self, *script):
        self.script = script
        self.requests = []
        self.closed = False

    async def draw_group(self, requests):
        self.requests.append(list(requests))
        try:
            for step in self.script:
                if isinstance(step, tuple):
                    position, answer = step
                    yield position, AIMessage(answer) if isinstance(answer, str) else answer
                elif isinstance(step, Exception):
                    raise step
                else:
                    await asyncio.sleep(step)
        finally:
            self.closed = True


async def test_a_group_draws_a_loop_at_a_time():
    generator = Group((1, "-1"), (0, "-2"))
    result = await run(generator, guardrail([2, 2]), limiter=Limiter(1))
    assert [[r.index for r in requests] for requests in generator.requests] == [[0, 1], [2, 3]]
    assert [c.score for c in result.candidates] == [-2.0, -1.0, -2.0, -1.0]
    assert len({r.seed for requests in generator.requests for r in requests}) == 4


async def test_a_group_may_yield_errors():
    result = await run(Group((0, ConnectionError("down")), (1, "1")), guardrail([2]))
    assert (result.decision, type(result.candidates[0].error)) == ("accepted", ConnectionError)


async def test_a_group_that_ends_early_fails_the_rest():
    result = await run(Group((1, "1")), guardrail([3]))
    assert result.decision == "accepted"
    assert [type(c.error) for c in result.candidates] == [GenerationError, type(None), GenerationError]


async def test_a_group_that_raises_midway_fails_the_rest():
    result = await run(Group((0, "1"), OSError("midway")), guardrail([2]))
    assert (result.decision, type(result.candidates[1].error)) == ("accepted", OSError)
    with pytest.raises(GenerationError):
        await run(Group(OSError("at once")), guardrail([2]))


@pytest.mark.parametrize("script", [[(0, "1"), (0, "2"), (1, "3"), (2, "-1")], [(0, "1"), (7, "2")]])
async def test_a_group_that_answers_twice_or_out_of_range_cannot_hang_or_overwrite(script):
    result = await asyncio.wait_for(run(Group(*script), guardrail([3])), 5)
    assert result.candidates[0].message.content == "1"
    assert isinstance(result.candidates[1].error, ValueError | IndexError)


async def test_an_eager_exit_closes_the_group():
    generator = Group((1, "1"), 30.0, (0, "2"))
    result = await run(generator, eager([2]))
    assert (result.decision, result.selected.index) == ("accepted", 1)
    assert generator.closed
    assert isinstance(result.candidates[0].error, asyncio.CancelledError)
    assert others() == set()
