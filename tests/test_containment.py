"""Foreign code cannot hold a request beyond its deadline, take it down, or be awaited for ever."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN
from bonmini_guard.engine.containment import MOST_LEFT_BEHIND, Quarantine
from bonmini_guard.engine.engine import CANCEL_GRACE
from bonmini_guard.engine.workers import Workers
from bonmini_guard.errors import ConfigurationError, GenerationError, NoAcceptableResponse, TooBusy
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

from .own_time import OwnTime
from .test_engine import others

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

TIMEOUT = 0.4
#: Seconds beyond the timeout: the contract's quarter, and some.
LATE = 0.6
#: Foreign code goes on, whatever is said to it, until the test has seen how the request ended.
released = threading.Event()


@pytest.fixture(autouse=True)
def _released():
    released.clear()
    yield
    released.set()


def make(answer=("good",), score=lambda messages, candidates: [1.0] * len(candidates), **settings):
    generator = answer if hasattr(answer, "draw") or hasattr(answer, "draw_group") else FakeGenerator(answer)
    settings = {"schedule": [2], "timeout": TIMEOUT, **settings}
    return BestOfMiniN(generator=generator, reward_model=score, **settings)


async def timed(work):
    with OwnTime() as own:
        try:
            result = await work
        except Exception as error:
            result = error
    released.set()
    return result, own.seconds


async def stubborn():
    """Ignores every cancellation, as code with a bare ``except:`` does."""
    while not released.is_set():
        with contextlib.suppress(BaseException):
            await asyncio.sleep(0.01)


def blocking(*_):
    released.wait(30)


async def stubborn_scorer(messages, candidates):
    await stubborn()
    return [1.0] * len(candidates)


class Session:
    """Scores at once; what it does when it is closed is the test's."""

    has_zero = True

    def __init__(self, close):
        self.close = close

    def session(self, messages):
        return self

    async def score(self, candidates):
        return [1.0] * len(candidates)

    async def aclose(self):
        await self.close()


# The deadline


@pytest.mark.parametrize(
    ("mode", "decision"),
    [("guardrail", ("abstained", "deadline")), ("accelerator", ("unscored", "deadline"))],
)
@pytest.mark.parametrize("score", [stubborn_scorer, blocking], ids=["ignores cancellation", "blocks its thread"])
async def test_a_scorer_that_does_not_end_is_left_behind(mode, decision, score):
    result, seconds = await timed(make(score=score, mode=mode).arun("q"))
    assert (result.decision, result.reason) == decision
    assert seconds < TIMEOUT + LATE


async def test_what_a_scorer_says_after_the_deadline_changes_no_record():
    async def score(messages, candidates):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.3)
        return [1.0] * len(candidates)

    generator = FakeGenerator(["1"])
    result = await make(generator, score, schedule=[2, 2]).arun("q")
    await asyncio.gather(*others(), return_exceptions=True)
    assert (result.decision, result.reason, len(result.candidates), len(generator.requests)) == ("abstained", "deadline", 2, 2)
    assert all(candidate.score is None and candidate.scored is None for candidate in result.candidates)


async def test_an_event_loop_that_is_blocked_over_the_deadline_serves_nothing_as_accepted():
    async def score(messages, candidates):
        time.sleep(1.5 * TIMEOUT)
        return [1.0] * len(candidates)

    assert (await make(score=score).arun("q")).reason == "deadline"
    served = await make(score=score, mode="accelerator").arun("q")
    assert (served.decision, served.reason) == ("best_effort", "deadline")


@pytest.mark.parametrize("group", [False, True])
async def test_draws_that_ignore_their_cancellation_are_left_behind(group):
    class Stuck:
        async def draw(self, request):
            if request.index:
                await stubborn()
            return AIMessage("good")

    class StuckGroup:
        async def draw_group(self, requests):
            yield 0, AIMessage("good")
            await stubborn()

    for settings in ({"mode": "accelerator"}, {"mode": "accelerator", "exit": "eager"}, {}):
        released.clear()
        result, seconds = await timed(make(StuckGroup() if group else Stuck(), **settings).arun("q"))
        assert seconds < TIMEOUT + LATE
        assert result.served == ("mode" in settings)


@pytest.mark.parametrize("close", [stubborn, lambda: asyncio.sleep(30)], ids=["ignores cancellation", "hangs"])
@pytest.mark.parametrize("timeout", [TIMEOUT, 30.0])
async def test_a_session_that_does_not_close_holds_nobody(close, timeout):
    result, seconds = await timed(make(score=Session(close), timeout=timeout).arun("q"))
    assert result.decision == "accepted"
    assert seconds < 2


async def test_a_session_that_takes_its_time_to_close_is_waited_for():
    closed = []

    async def close():
        await asyncio.sleep(0.05)
        closed.append(True)

    await make(score=Session(close), timeout=30.0).arun("q")
    assert closed == [True]


async def test_callbacks_of_an_observer_are_within_the_deadline():
    class Slow(AsyncCallbackHandler):
        async def on_chain_start(self, serialized, inputs, *, parent_run_id=None, **kwargs):
            if parent_run_id is not None:
                await stubborn()

    result, seconds = await timed(make().arun("q", config={"callbacks": [Slow()]}))
    assert (result.decision, result.reason) == ("abstained", "deadline")
    assert seconds < TIMEOUT + LATE


def slow(kind, method):
    """A handler that holds whoever tells it of one event of the outermost run; the async one is deaf to its cancellation."""

    def block(*_, parent_run_id=None, **about):
        if parent_run_id is None:
            blocking()

    async def hold(*_, parent_run_id=None, **about):
        if parent_run_id is None:
            await stubborn()

    async def hear(*_, **about):
        """Or LangChain calls the older one."""

    named = {"on_chat_model_start": lambda *_, **about: None, method: block}
    if kind is AsyncCallbackHandler:
        named = {"on_chat_model_start": hear, method: hold}
    return type("Slow", (kind,), named)()


KINDS = pytest.mark.parametrize("kind", [BaseCallbackHandler, AsyncCallbackHandler])


@KINDS
@pytest.mark.parametrize(("event", "reason"), [("on_chain_start", "deadline"), ("on_chain_end", "passed")])
async def test_callbacks_of_the_run_itself_are_within_the_deadline(kind, event, reason):
    result, seconds = await timed(make().arun("q", config={"callbacks": [slow(kind, event)]}))
    assert result.reason == reason
    assert seconds < TIMEOUT + LATE


async def test_callbacks_told_of_an_error_are_within_the_deadline():
    failing = make(FakeGenerator([OSError("no")]))
    error, seconds = await timed(failing.arun("q", config={"callbacks": [slow(AsyncCallbackHandler, "on_chain_error")]}))
    assert isinstance(error, GenerationError)
    assert seconds < TIMEOUT + LATE


def chat():
    return ChatBestOfMiniN(
        generator=FakeGenerator(["good"]), reward_model=lambda messages, texts: [1.0] * len(texts), schedule=[2], timeout=TIMEOUT
    )


@KINDS
async def test_callbacks_told_of_a_token_are_within_the_deadline(kind):
    message, seconds = await timed(chat().ainvoke("q", config={"callbacks": [slow(kind, "on_llm_new_token")]}))
    assert message.text == "good"
    assert seconds < TIMEOUT + LATE


def test_sync_callbacks_told_of_a_token_are_within_the_deadline():
    with OwnTime() as own:
        assert chat().invoke("q", config={"callbacks": [slow(BaseCallbackHandler, "on_llm_new_token")]}).text == "good"
    assert own.seconds < TIMEOUT + LATE


class DeafForEver:
    """A scorer whose sessions ignore their cancellation, and would take long to close."""

    has_zero = True

    def session(self, messages):
        return self

    async def score(self, candidates):
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()

    async def aclose(self):
        await asyncio.sleep(30)


async def test_what_was_left_behind_and_is_collected_cancels_nobody():
    guard = make(score=DeafForEver())
    result, gone = await guard.arun("q"), weakref.ref(guard)
    assert result.reason == "deadline"
    # Its guard is gone, and nobody will ever wake it: it is closed here, in the midst of another task.
    del guard
    gc.collect()
    assert gone() is None
    await asyncio.sleep(CANCEL_GRACE + 0.3)
    assert not asyncio.current_task().cancelling()


async def test_callbacks_around_a_run_that_cancel_themselves_cancel_no_run():
    async def leave(*_, **__):
        raise asyncio.CancelledError

    class Leaving(AsyncCallbackHandler):
        on_chain_start = on_chain_end = leave

    guard = make(FakeGenerator(["good"]), lambda m, c: [1.0] * len(c), timeout=30.0)
    assert (await guard.arun("q", config={"callbacks": [Leaving()]})).decision == "accepted"


# What is said to abstentions


async def slow_answer(_):
    await asyncio.sleep(30)


@pytest.mark.parametrize("face", [BestOfMiniN, ChatBestOfMiniN])
@pytest.mark.parametrize(
    "say",
    [RunnableLambda(slow_answer), slow_answer, blocking, lambda result: stubborn()],
    ids=["runnable", "coroutine function", "blocking function", "ignores cancellation"],
)
async def test_an_answer_to_an_abstention_that_overruns_is_the_abstention(face, say):
    guard = face(generator=FakeGenerator(["bad"]), reward_model=lambda m, c: [-1.0], schedule=[1], timeout=TIMEOUT, on_abstain=say)
    error, seconds = await timed(guard.ainvoke("q"))
    assert isinstance(error, NoAcceptableResponse)
    assert seconds < TIMEOUT + LATE


async def test_a_share_of_the_timeout_is_kept_for_it():
    async def say(result):
        await asyncio.sleep(0.05)
        return f"sorry: {result.reason}"

    settings = {"timeout": 2.0, "on_abstain_reserve": 0.5, "schedule": [2]}
    answers = FakeGenerator(["good"], latency=lambda index: 30 * index)
    guard = BestOfMiniN(generator=answers, reward_model=FakeRewardModel(lambda text: 1.0), on_abstain=say, **settings)
    begun = time.perf_counter()
    message, seconds = await timed(guard.ainvoke("q"))
    assert message.text == "sorry: deadline"
    assert time.perf_counter() - begun > 1.0
    assert seconds < 2.0 + LATE
    for choice, seconds in ((say, 1.0), ("error", 2.0), ("message", 2.0)):
        guard = BestOfMiniN(generator=answers, reward_model=lambda messages, candidates: [], on_abstain=choice, **settings)
        assert guard.guard.engine.timeout == seconds


async def test_a_function_for_abstentions_may_block_without_holding_up_others():
    together = threading.Barrier(8)

    def say(result):
        together.wait(30)
        return threading.current_thread().name

    guard = make(["bad"], lambda m, c: [-1.0] * len(c), on_abstain=say, timeout=60.0)
    names = await asyncio.gather(*(guard.ainvoke("q") for _ in range(8)))
    assert threading.current_thread().name not in [name.text for name in names]


def test_a_timeout_is_there_without_being_asked_for():
    for said, timeout in (({}, 300), ({"timeout": None}, None)):
        guard = BestOfMiniN(generator=FakeGenerator([""]), reward_model=lambda messages, candidates: [], **said)
        assert guard.guard.engine.timeout == timeout


# Whatever is raised


def raising(kind):
    async def asynchronous(messages, candidates):
        raise kind

    def synchronous(messages, candidates):
        raise kind

    return [asynchronous, synchronous]


@pytest.mark.parametrize("where", [0, 1], ids=["async", "sync"])
@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, asyncio.CancelledError, GeneratorExit, RecursionError])
async def test_whatever_a_scorer_raises_is_a_failed_scorer(kind, where):
    result = await asyncio.wait_for(make(score=raising(kind)[where], timeout=30.0).arun("q"), 60)
    assert (result.decision, result.reason) == ("abstained", "scorer_failed")
    assert kind.__name__ in f"{result.scorer_error!r}{result.scorer_error.__cause__!r}"


@pytest.mark.parametrize("kind", [StopIteration, asyncio.CancelledError, GeneratorExit, RecursionError])
async def test_whatever_a_generator_raises_is_a_failed_draw(kind):
    def answer(request):
        if request.index == 0:
            raise kind
        return "good"

    result = await asyncio.wait_for(make(answer, timeout=30.0).arun("q"), 60)
    assert (result.decision, result.selected.index) == ("accepted", 1)
    assert isinstance(result.candidates[0].error, Exception)
    assert not result.candidates[0].unfinished


@pytest.mark.parametrize("kind", [StopIteration, asyncio.CancelledError, GeneratorExit, OSError])
async def test_an_accepted_answer_is_not_lost_with_a_session_that_fails_to_close(kind):
    async def close():
        raise kind

    assert (await make(score=Session(close), timeout=30.0).arun("q")).decision == "accepted"


@pytest.mark.parametrize("face", [BestOfMiniN, ChatBestOfMiniN])
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("when", ["on_chain_start", "on_chain_end"])
async def test_a_callback_that_cancels_itself_cancels_no_request(face, raises, when):
    class Leaving(AsyncCallbackHandler):
        raise_error = raises

    async def leave(self, *_, parent_run_id=None, **__):
        if parent_run_id is not None:  # of the outermost run the caller's own chain tells
            raise asyncio.CancelledError

    setattr(Leaving, when, leave)
    guard = face(generator=FakeGenerator(["good"]), reward_model=lambda m, c: [1.0] * len(c), schedule=[1], timeout=30.0)
    with pytest.raises(RuntimeError, match="CancelledError") if raises else contextlib.nullcontext():
        assert (await guard.ainvoke("q", {"callbacks": [Leaving()]})).text == "good"
    assert not asyncio.current_task().cancelling()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("part", ["generator", "scorer", "close"])
def test_an_interrupt_in_the_main_thread_is_the_processs_own(kind, part):
    async def leave(*_):
        raise kind

    parts = {"generator": leave} if part == "generator" else {"score": leave if part == "scorer" else Session(leave)}

    async def main():
        generator = FakeGenerator(lambda request: leave() if part == "generator" else "good")
        await make(generator, parts.get("score", lambda m, c: [1.0] * len(c)), timeout=30.0).arun("q")

    with pytest.raises(kind):
        asyncio.run(main())


@pytest.mark.parametrize("part", ["generator", "scorer", "close"])
def test_elsewhere_it_is_a_failure_of_that_part_and_the_shared_loop_goes_on(part):
    async def leave(*_):
        raise SystemExit(3)

    generator = FakeGenerator(lambda request: leave() if part == "generator" and request.index else "good")
    score = {"scorer": leave, "close": Session(leave)}.get(part, lambda m, c: [1.0] * len(c))
    result = make(generator, score, timeout=30.0).run("q")
    assert (result.decision, result.reason) == (("abstained", "scorer_failed") if part == "scorer" else ("accepted", "passed"))
    assert make().run("q").decision == "accepted"


async def test_an_answer_to_an_abstention_that_is_cancelled_by_itself_does_not_look_like_the_caller():
    async def say(result):
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="CancelledError"):
        await make(["bad"], lambda m, c: [-1.0] * len(c), on_abstain=say).ainvoke("q")


# What is told of a broken part


@pytest.mark.parametrize("mode", ["guardrail", "accelerator"])
def test_a_broken_reward_function_is_told_at_the_first_request_with_its_place_and_without_texts(mode, caplog):
    def broken(messages, candidates):
        raise KeyError(candidates[0].text)

    result = make(["secret"], broken, mode=mode, timeout=30.0).run("q")
    place = rf"KeyError in broken\(\) at test_containment\.py:{broken.__code__.co_firstlineno + 1}"
    assert re.fullmatch(place, result.metadata()["scorer_error"])
    assert re.search(place, caplog.text)
    assert "secret" not in caplog.text + repr(result.metadata())
    if mode == "guardrail":
        with pytest.raises(NoAcceptableResponse, match=place):
            make(["secret"], broken, timeout=30.0).invoke("q")


def test_another_reward_model_behind_an_address_is_told_in_the_log_with_its_cure(caplog):
    def moved(messages, candidates):
        raise ConfigurationError("another model is served there; bring the old one back")

    assert make(["secret"], moved, timeout=30.0).run("q").reason == "scorer_failed"
    assert re.search(r"ConfigurationError in moved\(\) at \S+: another model is served there; bring the old one back", caplog.text)


class Judge:
    def __call__(self, candidate):
        return 1.0


@pytest.mark.parametrize("wrong", [lambda candidate: [1.0], lambda: [1.0], lambda m, c, more: [1.0], len, Judge()])
def test_a_reward_function_of_another_signature_is_refused_when_the_guard_is_made(wrong):
    with pytest.raises(ConfigurationError, match=r"cannot be called as .*\(messages, candidates\)"):
        make(score=wrong)


@pytest.mark.parametrize("right", [lambda m, c, more=None: [1.0] * len(c), lambda *both: [1.0] * len(both[1])])
def test_reward_functions_may_take_more(right):
    assert make(score=right, timeout=30.0).run("q").decision == "accepted"


# What is left behind


async def test_scorers_of_one_guard_that_never_return_starve_no_other_and_are_bounded(caplog):
    release = threading.Event()

    def stuck(messages, candidates):
        release.wait(30)
        return [1.0] * len(candidates)

    one, other = make(score=stuck, timeout=0.2), make(timeout=30.0)
    try:
        results = await asyncio.gather(*(one.arun("q") for _ in range(80)))
        assert {result.reason for result in results} == {"deadline"}
        assert "run on although nobody waits for them" in caplog.text
        with pytest.raises(TooBusy, match="hold all of its threads"):
            await one.arun("q")
        assert (await other.arun("q")).decision == "accepted"
    finally:
        release.set()
    async with asyncio.timeout(60):
        while True:
            try:
                if (await one.arun("q")).decision == "accepted":
                    break
            except TooBusy:
                await asyncio.sleep(0.05)


async def test_tasks_left_behind_are_bounded_counted_and_forgotten_when_they_end(caplog):
    quarantine, release = Quarantine(most=3), asyncio.Event()
    tasks = [asyncio.create_task(release.wait()) for _ in range(3)]
    quarantine.hold(tasks[:2], 0.1)
    quarantine.admit()
    quarantine.hold(tasks, 0.1)
    assert len(quarantine) == 3
    assert "were left behind (3 in all)" in caplog.text
    with pytest.raises(TooBusy, match="3 draws or scorings"):
        quarantine.admit()
    release.set()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)
    quarantine.admit()
    assert len(quarantine) == 0


async def test_a_guard_that_has_left_too_much_behind_takes_no_more(monkeypatch):
    guard = make(score=stubborn_scorer, timeout=0.2)
    await asyncio.gather(*(guard.arun("q") for _ in range(MOST_LEFT_BEHIND)))
    with pytest.raises(TooBusy):
        await guard.arun("q")
    released.set()
    await asyncio.gather(*others(), return_exceptions=True)


# Threads


def test_workers_make_calls_in_few_threads_and_answer_errors():
    workers = Workers(2, "test-workers")
    calls = [workers.submit(threading.current_thread) for _ in range(20)]
    assert len({call.result(60) for call in calls}) <= 2
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 / 0).result(60)
    workers.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        workers.submit(len, "")


def test_workers_hold_nothing_of_a_call_that_is_over():
    class Heavy:
        pass

    workers, heavy = Workers(1, "test-workers"), Heavy()
    gone = weakref.ref(heavy)
    workers.submit(lambda it: None, heavy).result(60)
    del heavy
    deadline = time.monotonic() + 60
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert gone() is None


async def test_a_call_that_was_never_begun_is_dropped_with_its_caller():
    workers, release, made = Workers(1, "test-workers"), threading.Event(), []
    first = asyncio.create_task(workers.run(release.wait))
    second = asyncio.create_task(workers.run(made.append, 1))
    await asyncio.sleep(0.05)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    release.set()
    await first
    assert (made, workers.left_behind) == ([], 0)


@pytest.mark.parametrize("call", ["guard.invoke('q')", "asyncio.run(guard.ainvoke('q'))"])
@pytest.mark.parametrize("stuck", ["scorer", "generator", "fallback"])
def test_a_process_ends_although_foreign_code_hangs_in_a_thread(call, stuck):
    if stuck == "generator" and "asyncio.run" in call:
        pytest.skip("its threads are the event loop's own, which asyncio.run() waits for")
    program = f"""
        import asyncio, time, warnings
        warnings.simplefilter("ignore")
        from langchain_core.language_models import FakeListChatModel
        from bonmini_guard import BestOfMiniN
        from bonmini_guard.testing import FakeGenerator
        hang = lambda *_: time.sleep(600)
        class Hanging(FakeListChatModel):
            def _call(self, *_, **__): time.sleep(600)
        generator = Hanging(responses=["a"]) if {stuck!r} == "generator" else FakeGenerator(["a"])
        score = hang if {stuck!r} == "scorer" else lambda m, c: [-1.0] * len(c)
        guard = BestOfMiniN(generator=generator, reward_model=score, schedule=[1], timeout=0.5, on_abstain=hang)
        try: {call}
        except Exception as error: print(type(error).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ),
        check=False,
    )
    assert done.stdout.strip() in ("NoAcceptableResponse", "GenerationError"), done.stderr[-500:]
