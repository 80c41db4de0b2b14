"""Rolling requests: draws in flight, decided on one by one as they arrive; and how many are in flight under load."""

from __future__ import annotations

import asyncio
import heapq
import random

import pytest
from langchain_core.messages import AIMessage

from bonmini_guard import BestOfMiniN, GuardProfile
from bonmini_guard.engine.engine import Engine
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.engine.load import LADDER, Load, load_of
from bonmini_guard.engine.protocols import EndRequest
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.policy.policy import Policy
from bonmini_guard.testing import FakeGenerator, FakeRewardModel
from tests.grouped import Grouped

from .test_engine import PROMPT, by_number, others, run
from .test_traces import rows


def rolling(draws, threshold=0.0, mode="guardrail"):
    return Policy(mode, (1,) * draws, (threshold,) * draws, "rolling")


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However busy the machine is, scores of fakes are waited for: the tests count what was started."""
    monkeypatch.setattr("bonmini_guard.engine.drawing.SCORING_WAIT", 60.0)


def test_the_width_is_the_widest_rung_that_asks_no_more_than_the_endpoint_carries():
    load = Load()
    widths = [load.begin(LADDER) for _ in range(1000)]
    assert [widths[requests - 1] for requests in (1, 2, 3, 4, 8, 12, 33, 1000)] == [32, 16, 8, 8, 4, 2, 1, 1]
    assert load.begin((4, 8)) == 4


# A request


async def test_the_first_to_arrive_that_passes_is_served_and_those_in_flight_are_cancelled_at_the_generator():
    generator = FakeGenerator(["9", "-1", "1", "8", "8"], latency=lambda index: {1: 0.0, 2: 0.3}.get(index, 30.0))
    result = await run(generator, rolling(5), in_flight=(3,))
    assert (result.decision, result.score, result.draws, result.draws_started, result.loops) == ("accepted", 1.0, 2, 4, 2)
    assert [candidate.index for candidate in result.candidates] == [1, 2]
    assert sorted(generator.cancelled) == [0, 3]
    assert others() == set()


async def test_what_arrived_together_is_scored_together_and_decided_one_by_one_in_order():
    scored = []
    scorer = FakeRewardModel(lambda text: scored.append(text) or float(text))
    result = await run(FakeGenerator(["-1", "5", "9", "9"]), rolling(4), scorer, in_flight=(3,))
    assert (result.selected.index, result.draws, result.draws_started) == (1, 2, 3)
    assert scored == ["-1", "5", "9"]


async def test_a_deadline_serves_or_names_the_best_that_is_there():
    slow = FakeGenerator(["-1", "-2"], latency=lambda index: 30.0 * index)
    served = await run(slow, rolling(2, mode="accelerator"), in_flight=(2,), timeout=1.0)
    assert (served.decision, served.reason, served.score, served.draws, served.draws_started) == (
        "best_effort", "deadline", -1.0, 1, 2,
    )  # fmt: skip


async def test_a_draw_that_ends_its_request_is_in_the_record():
    async def answer(request):
        if request.index == 1:
            raise EndRequest("tool_call", serve=1, message=AIMessage("a call"))
        await asyncio.sleep(30)

    result = await run(answer, rolling(4), in_flight=(2,))
    assert (result.decision, result.ended, result.candidates[-1] is result.selected) == ("unscored", True, True)


async def test_a_group_is_refilled_by_groups():
    generator = Grouped(4, lambda index: 0.01)
    result = await run(generator, rolling(6), in_flight=(2,))
    assert (result.score, result.draws) == (0.0, 5)
    assert sorted(index for group in generator.asked for index in group) == [0, 1, 2, 3, 4, 5]


async def test_a_draw_that_hangs_holds_up_no_others_because_one_failed():
    answers = [RuntimeError("lost"), "-1", "-2", "5"]
    generator = FakeGenerator(answers, latency=lambda index: 30.0 * (index == 1))
    result = await run(generator, rolling(4), in_flight=(2,))
    assert (result.score, result.draws, sorted(generator.cancelled)) == (5.0, 3, [1])


async def test_an_endpoint_that_always_fails_is_asked_in_rounds_and_given_up():
    failing = {width: FakeGenerator([ConnectionError("down")]) for width in (4, 8)}
    runs = [run(generator, rolling(32), in_flight=(width,)) for width, generator in failing.items()]
    for error in await asyncio.gather(*runs, return_exceptions=True):
        assert "none of 8 draws arrived" in str(error)
    assert [len(generator.requests) for generator in failing.values()] == [8, 8]


@pytest.mark.parametrize(("later", "drawn"), [("-1", 8), (ConnectionError("down"), 4)])
async def test_while_answers_are_scored_others_are_drawn_until_as_many_in_a_row_failed_as_are_in_flight(monkeypatch, later, drawn):
    monkeypatch.setattr("bonmini_guard.engine.drawing.SCORING_WAIT", 0.0)
    monkeypatch.setattr("bonmini_guard.engine.drawing.SCORING_SHARE", 0.0)
    generator, while_scored = FakeGenerator(["-1"] + [later] * 7), []

    async def slow(text):
        for _ in range(100):
            await asyncio.sleep(0)
        while_scored.append(len(generator.requests))
        return float(text)

    result = await run(generator, rolling(8), FakeRewardModel(slow), in_flight=(2,))
    assert (while_scored[0], result.draws, result.decision) == (drawn, 8, "abstained")


# Its shape


def made(**options):
    return BestOfMiniN(generator=FakeGenerator(["-1", "1"]), reward_model=FakeRewardModel(by_number), **options)


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_arguments_and_profiles_say_how_many_are_in_flight():
    assert made(in_flight=3, max_draws=5).guard.engine.in_flight == (3,)
    assert made(exit="rolling").guard.engine.in_flight == LADDER
    assert made(max_draws=5).guard.engine.in_flight == (1, 2, 4)
    assert made(max_draws=5).guard.engine.policy == rolling(5)
    profile = GuardProfile(
        mode="guardrail", schedule=(1,) * 4, thresholds=(0.0,) * 4, exit="rolling", in_flight=(2, 4), max_draws=4
    )
    assert made(profile=profile).guard.engine.in_flight == (2, 4)
    assert made(profile=profile, in_flight=4).guard.engine.in_flight == (4,)
    assert made(profile=profile).run("q").score == 1.0
    with pytest.raises(ConfigurationError, match="calibrated for in_flight 2, 4"):
        made(profile=profile, in_flight=8)


# Under load


async def test_requests_of_an_endpoint_share_its_load_and_it_is_free_again_when_they_are_over():
    load = load_of(endpoint := Limiter(1000))
    assert load_of(endpoint) is load

    async def answer(request):
        await asyncio.sleep(0.05)
        return "1"

    engine = Engine(FakeGenerator(answer), FakeRewardModel(by_number), rolling(32), load=load)
    results = await asyncio.gather(*(engine.run(PROMPT, seed=seed) for seed in range(4)))
    assert [result.draws_started for result in results] == [32, 16, 8, 8]
    assert load.requests == 0
    assert (await engine.run(PROMPT, seed=9)).draws_started == 32


async def test_a_request_has_the_threshold_of_its_own_width_and_says_which():
    policy = Policy("guardrail", (1,) * 4, (9.0,) * 4, "rolling", ladder=((1, 1.0), (4, 5.0)))
    load = Load()
    engine = Engine(FakeGenerator(["2", "2", "6", "2"]), FakeRewardModel(by_number), policy, in_flight=(1, 4), load=load)
    alone = await engine.run(PROMPT, seed=0)
    assert (alone.in_flight, alone.threshold, alone.selected.index) == (4, 5.0, 2)
    load.requests += 31
    crowded = await engine.run(PROMPT, seed=0)
    assert (crowded.in_flight, crowded.threshold, crowded.selected.index) == (1, 1.0, 0)
    assert policy.at(2) is policy, "a width that it does not name has the thresholds for all"


async def test_a_trace_says_how_many_were_in_flight_and_under_which_threshold(tmp_path):
    profile = GuardProfile(
        mode="guardrail",
        schedule=(1,) * 4,
        thresholds=(5.0,) * 4,
        exit="rolling",
        in_flight=(1, 4),
        in_flight_thresholds=(1.0, 5.0),
    )
    guard = made(profile=profile, trace_to=tmp_path / "traces.jsonl")
    await guard.arun("q")
    await guard.aflush()
    (row,) = rows(tmp_path / "traces.jsonl")
    assert (row["in_flight"], row["thresholds"], row["exit"]) == (4, [5.0] * 4, "rolling")


async def test_a_request_that_is_cancelled_while_it_closes_leaves_the_load_as_it_was():
    async def stubborn(request):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.3)
            raise

    engine = Engine(FakeGenerator(stubborn), FakeRewardModel(by_number), rolling(4), load=(load := Load()))
    task = asyncio.ensure_future(engine.run(PROMPT, seed=0))
    await asyncio.sleep(0.05)
    assert load.requests == 1
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.02)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert load.requests == 0


@pytest.mark.filterwarnings("ignore:uncalibrated")
async def test_a_generator_that_says_what_it_carries_is_believed():
    generator = FakeGenerator(["1"], 0.01)
    generator.carries = 128
    guard = BestOfMiniN(generator=generator, reward_model=FakeRewardModel(by_number), exit="rolling", max_draws=32, threshold=0.0)
    load = guard.guard.engine.load
    assert load.carried == 128
    assert [load.begin(LADDER) for _ in range(12)] == [32] * 4 + [16] * 4 + [8] * 4
    assert [load.begin(LADDER) for _ in range(88)] == [8] * 88, "it has further ones wait"
    assert load.begin((1, 2, 4)) == 4
    assert load.begin(LADDER, places=128) == 1, "a limiter is a bound"
    assert Load().carried == 32


async def test_what_a_draw_waits_for_its_place_is_no_pace():
    class Told(Load):
        def end(self, pace, refused):
            self.pace = pace
            super().end(pace, refused)

    load, limiter = Told(), Limiter(1)
    engine = Engine(FakeGenerator(["1"], 0.02), FakeRewardModel(by_number), rolling(4), limiter=limiter, load=load)
    await limiter.here().acquire()
    asyncio.get_running_loop().call_later(1.0, limiter.here().release)
    result = await engine.run(PROMPT, seed=0)
    assert result.timings.total > 0.99
    assert 0.01 < load.pace < 0.9


async def test_a_limiter_is_a_bound_of_what_is_carried():
    engine = Engine(FakeGenerator(["1"], 0.01), FakeRewardModel(by_number), rolling(32), limiter=Limiter(5))
    assert (await engine.run(PROMPT, seed=0)).draws_started == 4


def simulated(requests, rows, seconds=400.0, refuses=None, load=None):
    """So many users who ask again and again, of a server that serves ``rows`` at full pace and slows down beyond.

    Returns the mean width of the second half, and the load.
    """
    load, source = load or Load(), random.Random(0)
    widths, running = [], 0
    events = [(source.random(), number, None) for number in range(requests)]
    heapq.heapify(events)
    while events and events[0][0] < seconds:
        now, user, ends = heapq.heappop(events)
        if ends is not None:
            width, pace, refused = ends
            running -= width
            load.end(pace, refused)
        width = load.begin(LADDER)
        running += width
        widths.append((now, width))
        slow = max(1.0, running / rows)
        refused = int(refuses is not None and running > refuses)
        ends = width, 0.01 * slow * source.uniform(0.9, 1.1), refused
        heapq.heappush(events, (now + slow * source.uniform(0.8, 1.2), user, ends))
    late = [width for at, width in widths if at > seconds / 2]
    return sum(late) / len(late), load


def test_alone_a_request_is_wide_and_in_a_crowd_it_is_narrow():
    width, load = simulated(1, rows=16)
    assert width == 32
    assert simulated(64, rows=16)[0] < 1.5, "of an endpoint that was never seen alone"
    load.renew()
    assert simulated(64, rows=16, load=load)[0] < 1.5
    load.renew()
    assert simulated(1, rows=16, load=load)[0] == 32, "it is wide again once the crowd has gone"


def test_a_server_that_carries_more_is_asked_for_more_and_one_that_refuses_for_less():
    load = simulated(1, rows=500)[1]
    load.renew()
    assert simulated(12, rows=500, load=load)[0] == 32
    load.renew()
    assert simulated(12, rows=24, load=load)[0] < 4, "it has become slower"
    assert simulated(12, rows=500, refuses=20)[1].carried < 40
