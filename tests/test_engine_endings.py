"""How requests end early: timeouts, cancellation, and generators that draw a whole loop at once."""

from __future__ import annotations

import asyncio
import gc
import sys
import traceback
from contextvars import ContextVar
from types import SimpleNamespace

import pytest
from langchain_core.messages import AIMessage

from bonmini_guard.engine import outages
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.engine.protocols import EndRequest
from bonmini_guard.errors import ConfigurationError, GenerationError
from bonmini_guard.policy.policy import accelerator, guardrail
from bonmini_guard.reward.declared import as_scorer
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

from .adapters.drawing import until
from .grouped import Grouped
from .test_engine import by_number, eager, others, run


@pytest.mark.parametrize("timeout", [None, 3600.0])
async def test_a_request_that_is_over_is_gone_and_waits_for_no_collector_nor_for_its_timeout(timeout):
    def requests():
        return {id(each) for each in gc.get_objects() if type(each).__name__ == "Request"}

    gc.collect()
    gc.disable()
    try:
        before = requests()
        await run(FakeGenerator(["1", "2"]), guardrail([2]), timeout=timeout)
        await asyncio.sleep(0)
        assert requests() <= before
    finally:
        gc.enable()


async def test_answers_that_are_none_are_no_outage_to_wait_for(monkeypatch):
    monkeypatch.setattr(outages, "FIRST_PAUSE", 3600.0)
    ends = [{"finish_reason": "content_filter"}, {"finish_reason": "abort"}, {"stop_reason": "refusal"}]
    blocked = [AIMessage("2", response_metadata=end) for end in ends]
    result = await run(FakeGenerator([*blocked, "1"]), guardrail([1, 1, 1, 1]), timeout=60)
    assert (result.decision, result.draws) == ("accepted", 4)


async def test_a_scorer_that_swallows_every_cancellation_begins_nothing_when_the_request_is_over():
    class Stubborn:
        has_zero = True
        scorings = 0

        def session(self, messages):
            return self

        async def score(self, candidates):
            self.scorings += 1
            for _ in range(2):
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    continue
            return [-1.0] * len(candidates)

        async def aclose(self):
            pass

    scorer = Stubborn()
    result = await run(FakeGenerator(["1", "2"]), guardrail([1, 1]), scorer, timeout=0.2)
    assert result.reason == "deadline"
    await until(lambda: not others())
    assert scorer.scorings == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no eager tasks before Python 3.12")
async def test_eager_tasks_close_the_session():
    scorer, loop = FakeRewardModel(by_number), asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    result = await run(FakeGenerator(["-1", "2"]), guardrail([2]), scorer)
    loop.set_task_factory(None)
    assert (result.decision, scorer.open_sessions) == ("accepted", 0)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no eager tasks before Python 3.12")
@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit])
async def test_eager_tasks_that_end_at_once_are_failed_draws(error):
    async def answer(request):
        if request.index == 0:
            raise error
        return "1"

    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    result = await run(FakeGenerator(answer), guardrail([2]))
    loop.set_task_factory(None)
    assert (result.decision, [each.unfinished for each in result.candidates]) == ("accepted", [False, False])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no eager tasks before Python 3.12")
async def test_eager_tasks_launch_groups_ahead():
    generator, loop = Grouped(5, lambda index: 0.05 if index < 2 else 0), asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    result = await run(generator, guardrail([2, 2, 2]), lookahead=2)
    loop.set_task_factory(None)
    assert (result.score, generator.asked) == (0.0, [[0, 1], [2, 3], [4, 5]])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no eager tasks before Python 3.12")
async def test_eager_tasks_that_answer_at_once_launch_any_number_ahead():
    depths, loop = [], asyncio.get_running_loop()

    def answer(request):
        depths.append(sum(1 for _ in traceback.walk_stack(None)))
        return "-1" if request.index < 39 else "1"

    loop.set_task_factory(asyncio.eager_task_factory)
    result = await run(FakeGenerator(answer), guardrail([4] * 10), lookahead=4)
    loop.set_task_factory(None)
    assert (result.score, result.draws, len(depths)) == (1.0, 40, 40)
    assert max(depths) - min(depths) < 40, "each inside of the one before"


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


async def test_at_the_deadline_the_earliest_of_equal_scores_wins():
    generator = FakeGenerator(["2", "2.0", "5"], latency=lambda index: 0.0 if index < 2 else 30)
    result = await run(generator, accelerator([3]), timeout=0.5)
    assert (result.reason, result.message.content) == ("deadline", "2")


async def test_draws_do_not_see_each_others_context():
    mine, seen = ContextVar("mine", default=None), []

    class Marking(FakeGenerator):
        async def draw(self, request):
            seen.append(mine.get())
            mine.set(request.seed)
            return await super().draw(request)

    class MarkingGroups(FakeGenerator):
        draw = None

        async def draw_group(self, requests):
            seen.append(mine.get())
            mine.set(requests[0].seed)
            for position, _ in enumerate(requests):
                yield position, AIMessage("-1")

    await run(Marking(["1", "2", "3"]), accelerator([3]))
    await run(MarkingGroups([]), guardrail([1, 2, 3]))
    assert seen == [None] * 6


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


# A draw that ends its request


def ending(end, slow=(), at=0.0):
    """Draw 1 ends the request after a while; those that are slow would take far longer."""

    async def answer(request):
        if request.index == 1:
            await asyncio.sleep(at)
            raise end
        await asyncio.sleep(30 if request.index in slow else 0)
        return str(request.index)

    return FakeGenerator(answer)


async def test_a_draw_ends_its_request_with_its_answer_and_nothing_is_scored_any_more():
    generator, scorer = (
        ending(EndRequest("tool_call", serve=1, message=AIMessage("a call")), slow=(0, 2)),
        FakeRewardModel(by_number),
    )
    result = await run(generator, guardrail([3, 2]), scorer)
    assert (result.decision, result.reason, result.message.content, result.draws) == ("unscored", "tool_call", "a call", 3)
    assert result.ended
    assert result.score is None
    assert sorted(generator.cancelled) == [0, 2]
    assert others() == set()


async def test_a_failed_draw_may_end_the_request_with_the_answer_of_another():
    async def answer(request):
        if request.index == 0:
            await asyncio.sleep(0.05)
            raise EndRequest("tool_call", serve=1) from OSError("down")
        return AIMessage("a call")

    result = await run(FakeGenerator(answer), guardrail([2]), FakeRewardModel(lambda text: -1.0, latency=30))
    assert (result.message.content, type(result.candidates[0].error)) == ("a call", OSError)


@pytest.mark.parametrize("scorer", [by_number, FakeRewardModel(by_number, latency=30)], ids=["scored", "scoring"])
async def test_a_signal_is_raised_at_once_whatever_the_request_waits_for(scorer):
    generator = ending(EndRequest("interrupt", signal=KeyError("pause")), slow=(0,), at=0.05)
    with pytest.raises(KeyError, match="pause"):
        await asyncio.wait_for(run(generator, guardrail([3]), scorer, timeout=20), 60)
    assert others() == set()


async def test_a_signal_outranks_the_failure_of_every_draw():
    with pytest.raises(KeyError):
        await run(ending(EndRequest("interrupt", signal=KeyError("pause"))), guardrail([2]), lambda messages, candidates: 1 / 0)


async def test_a_scorer_that_makes_an_error_of_a_cancellation_does_not_hide_the_end():
    async def stubborn(messages, candidates):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            raise RuntimeError("cancelled") from None

    end = EndRequest("tool_call", serve=1, message=AIMessage("a call"))
    result = await run(ending(end, at=0.05), guardrail([2]), as_scorer(stubborn))
    assert result.message.content == "a call"


async def test_a_request_that_is_cancelled_stays_cancelled_though_a_draw_ends_it():
    generator = ending(EndRequest("tool_call", serve=1, message=AIMessage("a call")), slow=(0,), at=0.05)

    class Late(FakeGenerator):
        async def draw(self, request):
            try:
                return await generator.draw(request)
            except asyncio.CancelledError:
                raise EndRequest("tool_call", serve=request.index, message=AIMessage("late")) from None

    task = asyncio.create_task(run(Late([""]), guardrail([2])))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


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
    result = await asyncio.wait_for(run(Group(*script), guardrail([3])), 60)
    assert result.candidates[0].message.content == "1"
    assert isinstance(result.candidates[1].error, ValueError | IndexError)


async def test_an_eager_exit_closes_the_group():
    generator = Group((1, "1"), 30.0, (0, "2"))
    result = await run(generator, eager([2]))
    assert (result.decision, result.selected.index) == ("accepted", 1)
    assert generator.closed
    assert isinstance(result.candidates[0].error, asyncio.CancelledError)
    assert others() == set()


@pytest.mark.parametrize("serve", [0, 99, -1, "1"])
async def test_a_draw_that_ends_its_request_with_one_that_is_not_there_is_told(serve):
    generator = ending(EndRequest("tool_call", serve=serve, message=AIMessage("a call")), slow=(0,))
    with pytest.raises(ConfigurationError, match=f"with draw {serve!r}, which has not arrived"):
        await run(generator, guardrail([2]))


async def test_a_session_that_closes_because_a_draw_has_ended_the_request_closes_to_its_end():
    scoring, ended, closed = asyncio.Event(), asyncio.Event(), []

    class Session:
        async def score(self, candidates):
            scoring.set()
            await ended.wait()
            return [1.0] * len(candidates)

        async def aclose(self):
            await asyncio.sleep(0)
            closed.append(self)

    async def answer(request):
        if request.index == 0:
            return "1"
        await scoring.wait()
        ended.set()
        raise EndRequest("tool_call", serve=1, message=AIMessage("a call"))

    scorer = SimpleNamespace(session=lambda messages: Session(), has_zero=True)
    result = await run(FakeGenerator(answer), guardrail([2]), scorer)
    assert (result.message.content, len(closed)) == ("a call", 1)
