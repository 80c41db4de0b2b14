"""The circuit breaker: a pure state machine, and its guard around calls."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from bonmini_guard.adapters.circuit import CircuitBreaker, CircuitOpen, counts
from bonmini_guard.adapters.http_errors import (
    EndpointTimeout,
    EndpointUnreachable,
    GenerationFailedAtEndpoint,
    MalformedAnswer,
    Overloaded,
    RequestRejected,
)
from bonmini_guard.errors import ConfigurationError

from .reward_server import Clock


async def attempt(breaker, error=None):
    with breaker:
        if error is not None:
            raise error


async def test_it_opens_after_failures_in_a_row_lets_one_trial_through_and_closes():
    clock = Clock()
    breaker = CircuitBreaker(failures=3, cooldown=10, clock=clock)
    for error in (EndpointTimeout("x"), EndpointUnreachable("x"), None, MalformedAnswer("x"), Overloaded("x", status=503)):
        await asyncio.gather(attempt(breaker, error), return_exceptions=True)
    assert breaker.state == "closed"
    with pytest.raises(GenerationFailedAtEndpoint):
        await attempt(breaker, GenerationFailedAtEndpoint("x"))
    assert (breaker.state, breaker.times_opened) == ("open", 1)
    with pytest.raises(CircuitOpen, match=r"^x; it keeps failing, and is left alone for up to 10 s") as caught:
        await attempt(breaker)
    assert (caught.value.retryable, caught.value.retry_after) == (False, 10.0)
    clock.advance(10)
    with breaker:
        assert breaker.state == "half_open"
        with pytest.raises(CircuitOpen):
            await attempt(breaker)
    assert breaker.state == "closed"


def test_where_it_is_unpickled_it_is_closed_for_that_machines_clock_may_be_far_behind():
    breaker = CircuitBreaker(failures=2)
    breaker.trip(EndpointTimeout("x"))
    other = pickle.loads(pickle.dumps(breaker))
    assert (breaker.state, other.state, other.failures) == ("open", "closed", 2)


async def test_a_trial_that_is_turned_away_keeps_it_open_and_a_refusal_of_the_request_does_not():
    clock = Clock()
    breaker = CircuitBreaker(failures=1, cooldown=10, clock=clock)
    breaker.trip(Overloaded("full", status=429))
    clock.advance(10)
    await asyncio.gather(attempt(breaker, Overloaded("still full", status=429)), return_exceptions=True)
    with pytest.raises(CircuitOpen, match="still full"):
        await attempt(breaker)
    clock.advance(10)
    await asyncio.gather(attempt(breaker, RequestRejected("no such model", status=404)), return_exceptions=True)
    assert breaker.state == "closed"


async def test_a_failed_trial_opens_it_again_at_once():
    clock = Clock()
    breaker = CircuitBreaker(failures=1, cooldown=10, clock=clock)
    for _ in range(3):
        with pytest.raises(EndpointTimeout):
            await attempt(breaker, EndpointTimeout("x"))
        with pytest.raises(CircuitOpen):
            await attempt(breaker)
        clock.advance(10)
    assert breaker.times_opened == 1


async def test_a_cancelled_trial_says_nothing_and_leaves_its_turn():
    clock = Clock()
    breaker = CircuitBreaker(failures=1, cooldown=10, clock=clock)
    with pytest.raises(EndpointTimeout):
        await attempt(breaker, EndpointTimeout("x"))
    clock.advance(10)
    with pytest.raises(asyncio.CancelledError):
        await attempt(breaker, asyncio.CancelledError())
    await attempt(breaker)
    assert breaker.state == "closed"


async def test_a_call_from_before_it_opened_that_is_cancelled_lets_no_second_trial_run():
    clock, go = Clock(), asyncio.Event()
    breaker = CircuitBreaker(failures=1, cooldown=10, clock=clock)

    async def waiting():
        with breaker:
            await go.wait()

    older = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    breaker.trip(EndpointTimeout("x"))
    clock.advance(10)
    trial = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    older.cancel()
    await asyncio.gather(older, return_exceptions=True)
    assert breaker.state == "half_open"
    with pytest.raises(CircuitOpen):
        await attempt(breaker)
    go.set()
    await trial
    assert breaker.state == "closed"


async def test_a_trial_that_never_reports_back_does_not_block_for_ever():
    clock = Clock()
    breaker = CircuitBreaker(failures=1, cooldown=10, clock=clock)
    breaker.trip(EndpointTimeout("x"))
    clock.advance(10)
    breaker.__enter__()
    clock.advance(9)
    with pytest.raises(CircuitOpen) as caught:
        breaker.check()
    assert caught.value.retry_after == 1
    clock.advance(1)
    await attempt(breaker)
    assert breaker.state == "closed"


def test_who_answers_is_well():
    generation = GenerationFailedAtEndpoint("x", status=500)
    unwell = [EndpointTimeout("x"), EndpointUnreachable("x"), Overloaded("x", status=503), generation, MalformedAnswer("x")]
    well = [Overloaded("x", status=429), RequestRejected("x", status=404), CircuitOpen("x"), ValueError("x")]
    assert [counts(error) for error in (*unwell, *well)] == [True] * 5 + [False] * 4


@pytest.mark.parametrize("numbers", [{"failures": 0}, {"cooldown": -1}])
def test_numbers_out_of_range(numbers):
    with pytest.raises(ConfigurationError):
        CircuitBreaker(**numbers)
