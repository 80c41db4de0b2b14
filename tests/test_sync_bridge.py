"""Sync calls: inside a running loop, from threads, nested, interrupted, after a fork."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bonmini_guard import BestOfMiniN
from bonmini_guard.engine import bridge as bridge_module
from bonmini_guard.engine.bridge import LoopThread, run_sync
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

tenant = contextvars.ContextVar("tenant", default="nobody")


def make(answer="good", **settings):
    generator = answer if hasattr(answer, "draw") else FakeGenerator(answer if callable(answer) else [answer])
    scorer = FakeRewardModel(lambda text: 1.0)
    return BestOfMiniN(generator=generator, reward_model=scorer, **{"mini_n": 2, "max_loops": 1, **settings})


def test_threads_share_one_loop_and_one_limiter():
    running, most, loops = 0, 0, set()

    async def answer(request):
        nonlocal running, most
        loops.add(asyncio.get_running_loop())
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return request.messages[0].content

    guard = make(answer, max_concurrency=3)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: guard.invoke(str(i)).content, range(60)))
    assert answers == [str(i) for i in range(60)]
    assert most == 3
    assert len(loops) == 1


def test_the_callers_context_variables_are_carried_over():
    seen = []
    guard = make(lambda request: seen.append(tenant.get()) or "good")
    tenant.set("acme")
    guard.invoke("q")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(guard.invoke, "q").result()
    assert seen == ["acme", "acme", "nobody", "nobody"]


@pytest.mark.parametrize("depth", [1, 3])
def test_a_sync_call_on_the_bridges_own_thread_does_not_wait_for_itself(depth):
    async def nested(level):
        return threading.current_thread() if level == 0 else run_sync(lambda: nested(level - 1))

    with ThreadPoolExecutor(1) as pool:
        call = lambda: run_sync(lambda: nested(depth))  # noqa: E731
        first, second = pool.submit(call).result(timeout=60), pool.submit(call).result(timeout=60)
    assert first is second  # reused, so that threads do not pile up


def test_a_guard_may_call_a_guard_in_its_abstention():
    inner = make("spare")
    outer = BestOfMiniN(
        generator=FakeGenerator(["bad"]),
        reward_model=FakeRewardModel({"bad": -1.0}),
        mini_n=1,
        max_loops=1,
        on_abstain=lambda result: inner.invoke("q"),
    )
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(outer.invoke, "q").result(timeout=60).content == "spare"


@pytest.fixture
def interruptible():
    """Python's own handler of SIGINT: a process started in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class SoftTimeLimitExceededError(Exception):
    """What a handler of signals raises in a worker's main thread."""


def raise_soft(number, frame):
    raise SoftTimeLimitExceededError


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("handler", "raised"), [(signal.default_int_handler, KeyboardInterrupt), (raise_soft, SoftTimeLimitExceededError)]
)
def test_an_interrupt_cancels_the_request_and_waits_until_it_is_gone(handler, raised):
    signal.signal(signal.SIGINT, handler)

    def latency(index):
        if index == 1:  # the last draw has begun, and the caller waits
            os.kill(os.getpid(), signal.SIGINT)
        return 60

    generator = FakeGenerator(["good"], latency=latency)
    begun = time.perf_counter()
    with pytest.raises(raised):
        make(generator).invoke("q")
    assert time.perf_counter() - begun < 30
    assert sorted(generator.cancelled) == [0, 1]


def test_sync_guards_inside_the_draws_of_a_sync_guard_need_no_thread_of_its_pool(monkeypatch):
    monkeypatch.setattr("bonmini_guard.engine.bridge.BLOCKING_CALLS", 2)
    monkeypatch.setattr("bonmini_guard.engine.bridge._bridges", bridge_module._Bridges())
    inner = make(lambda request: "good")
    together = threading.Barrier(2)

    def ask():
        together.wait(30)  # every thread of the pool now waits for a guard
        return inner.invoke("q").content

    async def draw(request):
        return await asyncio.to_thread(ask)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(make(draw).invoke, "q").result(timeout=30).content == "good"


def test_an_interrupt_before_the_first_step_does_not_hang(monkeypatch):
    bridge, blocked = LoopThread(), threading.Event()
    bridge.loop.call_soon_threadsafe(blocked.wait, 10)

    class Interrupted(bridge_module.Future):
        def result(self, timeout=None):
            # The cancellation is queued right behind the task's beginning: it never takes its first step.
            threading.Timer(0.05, blocked.set).start()
            raise KeyboardInterrupt

        def exception(self, timeout=None):
            return super().exception(5)

    monkeypatch.setattr(bridge_module, "Future", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        bridge.run(lambda: asyncio.sleep(0))
