"""The retry policy that all HTTP adapters share: how long it waits, and when it gives up."""

from __future__ import annotations

import email.utils
import time

import httpx
import pytest
from tenacity import RetryCallState

from bonmini_guard.adapters import http_errors as errors


def after(error, backoff=0.0):
    """Seconds that the policy waits after an error."""
    state = RetryCallState(None, None, (), {})
    state.set_exception((type(error), error, None))
    return errors._wait(backoff)(state)


def answered(value):
    return errors.from_response(httpx.Response(429, headers={} if value is None else {"retry-after": value}))


@pytest.mark.parametrize(("value", "seconds"), [("0", 0), ("7", 7), (" 7 ", 7), ("1.5", 1.5), ("86400", 60), ("9" * 400, 60)])
def test_retry_after_in_seconds_counts_up_to_a_minute(value, seconds):
    assert after(answered(value)) == seconds


@pytest.mark.parametrize(("ahead", "least", "most"), [(30, 25, 31), (-30, 0, 0), (3600, 60, 60)])
def test_retry_after_as_a_date(ahead, least, most):
    assert least <= after(answered(email.utils.formatdate(time.time() + ahead, usegmt=True))) <= most


@pytest.mark.parametrize("value", [None, "", "soon", "-5", "nan", "Fri, 99 Foo 2026"])
def test_without_a_readable_one_the_wait_is_the_policys_own(value):
    assert answered(value).retry_after is None
    assert 0 <= after(answered(value), backoff=0.25) <= 0.25


def test_milliseconds_come_first_and_a_loading_model_says_how_long_it_takes():
    both = errors.from_response(httpx.Response(429, headers={"retry-after": "7", "retry-after-ms": "1500"}))
    loading = errors.from_response(httpx.Response(503, json={"error": "Model a/b is currently loading", "estimated_time": 6.0}))
    assert (after(both), after(loading)) == (1.5, 6.0)


def test_waits_are_spread_also_after_a_retry_after():
    waits = {after(answered("5"), backoff=1.0) for _ in range(20)}
    assert len(waits) > 10
    assert all(5 <= wait <= 6 for wait in waits)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (errors.Overloaded("x", retryable=True), 4),
        (errors.MalformedAnswer("x", retryable=True), 2),
        (errors.RequestRejected("x"), 1),
        (ValueError("x"), 1),
    ],
)
async def test_attempts(error, attempts):
    made = 0

    async def attempt():
        nonlocal made
        made += 1
        raise error

    with pytest.raises(type(error)):
        await errors.with_retries(attempt, retries=3, backoff=0.001)
    assert made == attempts


async def test_a_wait_that_would_outlast_the_time_is_not_begun():
    made = 0

    async def attempt():
        nonlocal made
        made += 1
        raise errors.Overloaded("x", retryable=True, retry_after=30.0)

    with pytest.raises(errors.Overloaded):
        await errors.with_retries(attempt, retries=3, within=20.0)
    assert made == 1
