"""Hedging: the same call twice when the first is late, whichever answers first, and nothing left behind."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import HumanMessage

from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import HedgedGenerator
from bonmini_guard.adapters.hedge import Hedge, all_or_none
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.protocols import DrawRequest
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

REQUEST = DrawRequest([HumanMessage("question")], seed=7)


def others():
    return asyncio.all_tasks() - {asyncio.current_task()}


class Calls:
    """Calls that last as long as they are told, in order."""

    def __init__(self, *plans):
        self.plans = list(plans)
        self.made = 0
        self.cancelled = 0

    async def __call__(self):
        seconds, answer = self.plans[self.made]
        self.made += 1
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_an_answer_in_time_is_asked_for_once():
    calls = Calls((0, "first"))
    assert await Hedge(after=30).call(calls) == "first"
    assert calls.made == 1


async def test_a_late_call_is_made_again_and_the_loser_is_cancelled():
    calls = Calls((30, "first"), (0, "second"))
    assert await Hedge(after=0.01).call(calls) == "second"
    assert (calls.made, calls.cancelled, others()) == (2, 1, set())


async def test_the_first_may_still_win():
    calls = Calls((0.05, "first"), (30, "second"))
    assert await Hedge(after=0.01).call(calls) == "first"
    assert (calls.made, calls.cancelled) == (2, 1)


async def test_an_error_in_time_is_not_hedged_away():
    calls = Calls((0, ValueError("down")))
    with pytest.raises(ValueError, match="down"):
        await Hedge(after=30).call(calls)


@pytest.mark.parametrize("plans", [[(0.03, ValueError("x")), (0.06, "fine")], [(0.06, "fine"), (0, ValueError("x"))]])
async def test_an_error_of_one_waits_for_the_other(plans):
    assert await Hedge(after=0.01).call(Calls(*plans)) == "fine"


async def test_errors_of_both_are_one_error():
    with pytest.raises(ValueError, match="x"):
        await Hedge(after=0.01).call(Calls((0.02, ValueError("x")), (0.02, ValueError("x"))))


async def test_when_everything_is_late_only_a_share_is_asked_for_twice():
    hedge = Hedge(after=0.001, share=0.1)
    made = 0

    async def late():
        nonlocal made
        made += 1
        await asyncio.sleep(0.02)

    await asyncio.gather(*(hedge.call(late) for _ in range(100)))
    assert made == 110
    assert (hedge.calls, hedge.hedged) == (100, 10)


async def test_a_cancelled_caller_leaves_nothing_behind():
    calls = Calls((30, "first"), (30, "second"))
    task = asyncio.create_task(Hedge(after=0.005).call(calls))
    while calls.made < 2:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (calls.cancelled, others()) == (2, set())


async def test_a_late_draw_is_repeated_with_its_own_seed():
    inner = FakeGenerator(["answer"], latency=0.03)
    hedged = HedgedGenerator(inner, after=0.005)
    assert (await hedged.draw(REQUEST)).content == "answer"
    assert [request.seed for request in inner.requests] == [7, 7]


async def test_the_winner_does_not_depend_on_which_copy_arrives_where_seeds_are_honoured():
    """A hedge with seeds of its own would serve the shorter of two answers; this one serves the seed's answer."""

    async def draw(request):
        await asyncio.sleep(0.01 if request.seed % 2 else 0.03)
        return f"answer of {request.seed}"

    hedged = HedgedGenerator(FakeGenerator(draw), after=0.005, share=1.0)
    for seed in range(6):
        assert (await hedged.draw(DrawRequest(REQUEST.messages, seed))).content == f"answer of {seed}"


async def test_it_passes_for_the_generator_it_wraps():
    inner = FakeGenerator(["1"])
    inner.deterministic = True
    hedged = HedgedGenerator(inner, after=1.0)
    assert (hedged.deterministic, hedged.fingerprint()) == (True, "fake-generator")
    with pytest.raises(ConfigurationError, match="deterministic"):
        BestOfMiniN(generator=hedged, reward_model=FakeRewardModel(float))


def test_a_generator_of_groups_is_refused():
    class Groups:
        def draw_group(self, requests): ...

    with pytest.raises(ConfigurationError, match="cannot be hedged"):
        HedgedGenerator(Groups(), after=1.0)


@pytest.mark.parametrize("numbers", [{"after": 0}, {"after": -1}, {"after": 1, "share": 0}, {"after": 1, "share": 2}])
def test_numbers_out_of_range(numbers):
    with pytest.raises(ConfigurationError):
        Hedge(**numbers)


async def test_all_or_none_leaves_no_call_running_when_one_fails():
    gone = []

    async def slow():
        try:
            await asyncio.sleep(30)
        finally:
            gone.append(True)

    async def broken():
        raise ValueError("down")

    with pytest.raises(ValueError, match="down"):
        await all_or_none([slow, broken, slow])
    assert (gone, others()) == ([True, True], set())
    assert await all_or_none([]) == []
