"""The retry policy that all HTTP adapters share: how long it waits, and when it gives up."""

from __future__ import annotations

import asyncio
import email.utils
import time

import httpx
import pytest

from bonmini_guard.adapters import http_errors as errors
from bonmini_guard.adapters.recovery import Recovery, pause
from tests.own_time import OwnTime


def after(error, backoff=0.0):
    """Seconds that the policy waits after an error."""
    return pause(error, 1, backoff)


def answered(value):
    return errors.from_response(httpx.Response(429, headers={} if value is None else {"retry-after": value}))


@pytest.mark.parametrize(("value", "seconds"), [("0", 0), ("7", 7), (" 7 ", 7), ("1.5", 1.5), ("86400", 60), ("9" * 400, 60)])
def test_retry_after_in_seconds_counts_up_to_a_minute(value, seconds):
    assert after(answered(value)) == seconds


@pytest.mark.parametrize(("ahead", "least", "most"), [(30, 25, 31), (-30, 0, 0), (3600, 60, 60)])
def test_retry_after_as_a_date(ahead, least, most):
    assert least <= after(answered(email.utils.formatdate(time.time() + ahead, usegmt=True))) <= most


def test_a_date_that_names_no_zone_is_of_greenwich_wherever_this_machine_is(monkeypatch):
    try:
        monkeypatch.setenv("TZ", "America/New_York")
        time.tzset()
        assert 2000 < answered(email.utils.formatdate(time.time() + 3000)).retry_after <= 3000
    finally:
        monkeypatch.undo()
        time.tzset()


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
        await Recovery().persist(attempt, retries=3, backoff=0.001)
    assert made == attempts


async def test_a_first_attempt_does_not_wait():
    asked = asyncio.Event()

    async def attempt():
        asked.set()

    task = asyncio.create_task(Recovery().persist(attempt))
    await asyncio.sleep(0)
    assert asked.is_set()
    await task


def test_waits_double_their_range_up_to_a_limit():
    most = [max(pause(errors.Overloaded("x"), attempts, 0.5) for _ in range(300)) for attempts in (1, 2, 3, 9)]
    assert all(0.7 * limit < wait <= limit for wait, limit in zip(most, (0.5, 1, 2, 8), strict=True))


class Server:
    """Answers after ``works`` seconds where it is well."""

    def __init__(self, works=0.0):
        self.asked, self.well, self.works = [], False, works

    async def __call__(self):
        self.asked.append(time.monotonic())
        await asyncio.sleep(self.works if self.well else 0)
        if not self.well:
            raise errors.Overloaded("full", status=503, retryable=True)
        return "answer"


async def test_in_trouble_one_asks_and_the_others_hear_what_it_heard():
    server, recovery = Server(), Recovery()
    outcomes = await asyncio.gather(*(recovery.persist(server, retries=3, backoff=0.02) for _ in range(6)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["full"] * 6
    assert len({id(outcome) for outcome in outcomes}) == 6
    assert len(server.asked) == 6 + 3
    # A new one does not begin with a request of its own where others are asking already.
    several = await asyncio.gather(*(recovery.persist(server, retries=0) for _ in range(6)), return_exceptions=True)
    assert ([str(outcome) for outcome in several], len(server.asked)) == (["full"] * 6, 10)


async def test_an_answer_lets_all_go_on_and_so_does_a_server_at_work():
    for works in (0.0, 1.5):
        server, recovery = Server(works), Recovery()
        running = [asyncio.create_task(recovery.persist(server, retries=3, backoff=0.05)) for _ in range(5)]
        while recovery.failed < 5:
            await asyncio.sleep(0)
        server.well = True
        with OwnTime() as own:
            assert await asyncio.gather(*running) == ["answer"] * 5
        assert len(server.asked) == 10
        assert own.seconds < 1.0 + 2 * works - 0.2 + 0.5


async def test_a_refusal_is_nobody_elses():
    server, recovery = Server(), Recovery()

    async def refused():
        await asyncio.sleep(0.01)
        server.well = True
        raise errors.RequestRejected("this prompt is too long", status=400)

    with pytest.raises(errors.Overloaded):
        await recovery.persist(server, retries=1, backoff=0.01)
    asked = [recovery.persist(refused, backoff=0.01), *(recovery.persist(server, retries=0) for _ in range(3))]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert list(map(str, outcomes)) == ["this prompt is too long", *["answer"] * 3]


async def test_one_that_asks_and_is_cancelled_leaves_its_turn_to_another():
    server, recovery = Server(), Recovery()
    running = [asyncio.create_task(recovery.persist(server, retries=1, backoff=0.1)) for _ in range(3)]
    while recovery.failed < 3:
        await asyncio.sleep(0)
    server.well = True
    running[0].cancel()
    assert await asyncio.gather(*running[1:]) == ["answer"] * 2


async def test_what_the_server_asked_for_is_one_wait_for_all():
    recovery, asked = Recovery(), []

    async def refused():
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise errors.Overloaded("slow down", status=429, retryable=True, retry_after=0.3)

    first = asyncio.create_task(recovery.persist(refused, backoff=0.01))
    await asyncio.sleep(0.05)
    await asyncio.gather(first, recovery.persist(refused, backoff=0.01))
    assert all(later - asked[0] >= 0.3 for later in asked[1:])
    recovery._until = time.monotonic() + 30
    with pytest.raises(errors.Overloaded, match="slow down"):
        await recovery.persist(refused, within=5.0)


async def test_a_wait_that_would_outlast_the_time_is_not_begun():
    made = 0

    async def attempt():
        nonlocal made
        made += 1
        raise errors.Overloaded("x", retryable=True, retry_after=30.0)

    with pytest.raises(errors.Overloaded):
        await Recovery().persist(attempt, retries=3, within=20.0)
    assert made == 1
