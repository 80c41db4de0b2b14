"""The circuit breaker: a pure state machine, and its guard around calls."""

from __future__ import annotations

import asyncio

import pytest

from bonmini_guard.adapters.circuit import Circuit, CircuitBreaker, CircuitOpen, counts
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


def test_the_states_and_their_changes():
    one = Circuit().failed(now=1, limit=2)
    assert (one.state, one.failures, one.wait(1, cooldown=10)) == ("closed", 1, 0)
    assert one.succeeded() == Circuit()
    two = one.failed(now=5, limit=2)
    assert (two.state, two.wait(5, 10), two.wait(14, 10), two.wait(15, 10)) == ("open", 10, 1, 0)
    trial = two.begun(now=15)
    assert (trial.state, trial.wait(15, 10)) == ("half_open", 10)
    assert trial.succeeded() == Circuit()
    assert trial.failed(now=17, limit=2).wait(17, 10) == 10
    assert (trial.withdrawn().state, trial.withdrawn().wait(15, 10)) == ("open", 0)


def test_a_trial_that_never_reports_back_does_not_block_for_ever():
    lost = Circuit(opened=0.0).begun(now=10)
    assert (lost.wait(19, cooldown=10), lost.wait(20, cooldown=10)) == (1, 0)


def test_a_request_while_closed_changes_nothing():
    assert Circuit(failures=1).begun(now=3) == Circuit(failures=1)


async def attempt(breaker, error=None):
    async with breaker.guard():
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
    with pytest.raises(CircuitOpen, match="failed 3 times in a row and is left alone for 10") as caught:
        await attempt(breaker)
    assert (caught.value.retryable, caught.value.retry_after) == (False, 10.0)
    clock.advance(10)
    async with breaker.guard():
        assert breaker.state == "half_open"
        with pytest.raises(CircuitOpen):
            await attempt(breaker)
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


@pytest.mark.parametrize(
    ("error", "unwell"),
    [
        (EndpointTimeout("x"), True),
        (EndpointUnreachable("x"), True),
        (Overloaded("x", status=503), True),
        (GenerationFailedAtEndpoint("x", status=500), True),
        (MalformedAnswer("x"), True),
        (Overloaded("x", status=429), False),
        (RequestRejected("x", status=404), False),
        (CircuitOpen("x"), False),
        (ValueError("x"), False),
    ],
)
def test_who_answers_is_well(error, unwell):
    assert counts(error) is unwell


@pytest.mark.parametrize("numbers", [{"failures": 0}, {"cooldown": -1}])
def test_numbers_out_of_range(numbers):
    with pytest.raises(ConfigurationError):
        CircuitBreaker(**numbers)
