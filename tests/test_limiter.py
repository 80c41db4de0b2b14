"""The limiter: a hard limit, turns between requests, a bounded queue, and nothing lost to cancellation."""

from __future__ import annotations

import asyncio
import random

import pytest
from langchain_core.runnables import ConfigurableField

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN
from bonmini_guard.engine.engine import Engine
from bonmini_guard.engine.limiter import Limiter, request_lane
from bonmini_guard.errors import ConfigurationError, TooBusy
from bonmini_guard.policy.policy import guardrail
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

from .test_engine import PROMPT, by_number, run


class Busy:
    """Draws that take a moment, and how many of them are made at a time."""

    now = most = 0

    async def __call__(self, request):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.005)
        self.now -= 1
        return "-1"


async def hold(limiter, lane, order, gate):
    async with limiter.here(lane):
        order.append(lane)
        await gate.wait()


async def started(tasks_waiting, limiter):
    while limiter.here().room.waiting < tasks_waiting:
        await asyncio.sleep(0)


async def test_requests_take_turns_and_draws_of_one_keep_their_order():
    limiter, order, gate = Limiter(1), [], asyncio.Event()
    gate.set()
    await limiter.here().acquire()
    tasks = [asyncio.create_task(hold(limiter, lane, order, gate)) for lane in "aaaabbc"]
    await started(7, limiter)
    limiter.here().release()
    await asyncio.gather(*tasks)
    assert "".join(order) == "abcabaa"
    assert (limiter.here().free, limiter.here().room.waiting) == (1, 0)


async def test_a_small_request_is_not_starved_by_a_large_one():
    finished = []

    async def draw(request):
        await asyncio.sleep(0)
        return "1"

    async def conduct(name, draws, limiter):
        engine = Engine(FakeGenerator(draw), FakeRewardModel(by_number), guardrail([draws]), limiter=limiter)
        await engine.run(PROMPT, seed=1)
        finished.append(name)

    limiter = Limiter(4)
    large = asyncio.create_task(conduct("large", 400, limiter))
    await started(300, limiter)
    await asyncio.gather(large, *(conduct("small", 4, limiter) for _ in range(5)))
    assert finished == ["small"] * 5 + ["large"]


async def test_beyond_its_room_the_limiter_refuses_at_once():
    limiter, gate = Limiter(1, max_waiting=2), asyncio.Event()
    tasks = [asyncio.create_task(hold(limiter, lane, [], gate)) for lane in range(3)]
    await started(2, limiter)
    with pytest.raises(TooBusy, match="2 wait for one of 1 places already: retry later, or raise max_waiting="):
        await limiter.here().acquire()
    gate.set()
    await asyncio.gather(*tasks)
    async with limiter.here():
        pass


async def test_who_no_longer_waits_makes_room_at_once():
    limiter, gate = Limiter(1, max_waiting=1), asyncio.Event()
    holds, waits = (asyncio.create_task(hold(limiter, lane, [], gate)) for lane in "ab")
    await started(1, limiter)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    limiter.here().admit()
    gate.set()
    await holds


async def test_a_request_that_finds_no_room_draws_nothing():
    limiter, generator = Limiter(1, max_waiting=0), FakeGenerator(["1"], latency=30)
    first = asyncio.create_task(run(generator, guardrail([1]), limiter=limiter))
    await asyncio.sleep(0.01)
    with pytest.raises(TooBusy):
        await run(generator, guardrail([1]), limiter=limiter)
    assert len(generator.requests) == 1
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert limiter.here().free == 1


async def test_a_request_none_of_whose_draws_found_room_is_refused_as_well():
    """Both were admitted before either had drawn."""
    limiter = Limiter(1, max_waiting=0)
    requests = [run(FakeGenerator(["1"], latency=0.01), guardrail([1]), limiter=limiter) for _ in range(2)]
    first, second = await asyncio.gather(*requests, return_exceptions=True)
    assert first.decision == "accepted"
    assert isinstance(second, TooBusy)


async def test_draws_without_room_of_a_request_that_was_admitted_are_failed_draws():
    generator = FakeGenerator(["-1", "-1", "5"], latency=0.01)
    result = await run(generator, guardrail([3]), limiter=Limiter(1, max_waiting=1))
    assert (result.decision, result.draws) == ("abstained", 3)
    assert [type(candidate.error).__name__ for candidate in result.candidates] == ["NoneType", "NoneType", "TooBusy"]


@pytest.mark.parametrize("seed", range(20))
async def test_no_place_is_lost_or_doubled_whatever_is_cancelled_and_when(seed):
    source, limiter, held, most = random.Random(seed), Limiter(3), 0, 0

    async def work(lane):
        nonlocal held, most
        async with limiter.here(lane):
            held += 1
            most = max(most, held)
            try:
                await asyncio.sleep(0.001 * source.random())
            finally:
                held -= 1

    tasks = [asyncio.create_task(work(source.choice("abc"))) for _ in range(60)]
    for _ in range(40):
        await asyncio.sleep(0)
        source.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    room = limiter.here().room
    assert (held, most, room.free, room.waiting, dict(room.lanes)) == (0, 3, 3, 0, {})


async def test_one_limiter_holds_two_guards_to_one_limit():
    draw, limiter = Busy(), Limiter(3)
    with pytest.warns(UserWarning, match="uncalibrated"):
        guards = [
            BestOfMiniN(
                generator=FakeGenerator(draw), reward_model=FakeRewardModel(by_number), schedule=[4, 4], max_concurrency=limiter
            )
            for _ in range(2)
        ]
    await asyncio.gather(*(guard.arun("question") for guard in guards * 5))
    assert draw.most == 3


async def test_the_engine_names_each_request_to_what_it_calls():
    lanes = []

    async def draw(request):
        lanes.append(request_lane.get())
        return "-1"

    await asyncio.gather(*(run(FakeGenerator(draw), guardrail([2, 2])) for _ in range(2)))
    assert len(set(lanes)) == 2
    assert None not in lanes
    assert request_lane.get() is None


async def test_free_are_the_places_of_both_limits():
    calls, guards = Limiter(16), Limiter(4)
    here = calls.here(inner=guards.here())
    assert here.free == 4
    async with guards.here():
        assert here.free == 3


@pytest.mark.parametrize("numbers", [(0, 1), (-1, 1), (1, -1)])
def test_numbers_out_of_range(numbers):
    with pytest.raises(ConfigurationError, match=r"must be a positive integer|must be an integer of 0 or more"):
        Limiter(*numbers)


@pytest.mark.filterwarnings("ignore:uncalibrated")
@pytest.mark.parametrize("face", [BestOfMiniN, ChatBestOfMiniN])
async def test_calls_that_each_configure_a_guard_share_its_limit(face):
    draw = Busy()
    guard = face(generator=FakeGenerator(draw), reward_model=FakeRewardModel(by_number), schedule=[2], max_concurrency=2)
    configured = guard.configurable_fields(threshold=ConfigurableField(id="threshold"))
    await configured.abatch(list("abcd"), {"configurable": {"threshold": -2.0}})
    assert draw.most == 2
