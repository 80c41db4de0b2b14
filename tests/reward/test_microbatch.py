"""The queue in front of the model: batches across requests, fairness, waiting, cancellation, errors."""

import asyncio
import threading

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage

from bonmini_guard.errors import TooBusy
from bonmini_guard.reward.microbatch import MicroBatcher
from bonmini_guard.reward.model import RewardModel
from bonmini_guard.reward.trunks import TrunkStore
from bonmini_guard.reward.work import Work

from .test_model import CONFIGS, save


class Recorder:
    """Scores a text with its first token, notes every batch, and can be held up."""

    def __init__(self, packs=True):
        self.packs = packs
        self.seen = []
        self.begun, self.release = threading.Event(), threading.Event()
        self.release.set()
        self.poison = None

    def batches(self, segments, budget):
        yield list(segments)

    def __call__(self, segments):
        self.seen.append([segment.ids[0] for segment in segments])
        self.begun.set()
        self.release.wait()
        if any(segment.ids[0] == self.poison for segment in segments):
            raise FloatingPointError("secret")
        return torch.tensor([float(segment.ids[0]) for segment in segments]), {}


def work(*firsts, length=4):
    return Work([((first, *range(length - 1)), 0) for first in firsts])


def texts(item):
    return {text[0]: score for text, score in item.future.result(10).items()}


def held(recorder, batcher):
    """A batcher whose thread is busy with one call."""
    recorder.release.clear()
    first = work(0)
    batcher.submit(first)
    recorder.begun.wait()
    return first


@pytest.mark.parametrize("overlap", [False, True])
def test_calls_of_several_requests_share_batches_up_to_the_budget(overlap):
    recorder = Recorder()
    batcher = MicroBatcher(recorder, TrunkStore(0), budget=12, overlap=overlap)
    works = [held(recorder, batcher), *[work(number, number + 1) for number in (10, 20, 30)]]
    for item in works[1:]:
        batcher.submit(item)
    recorder.release.set()
    assert [sorted(texts(item)) for item in works] == [[0], [10, 11], [20, 21], [30, 31]]
    assert recorder.seen == [[0], [10, 11, 20], [21, 30, 31]]
    assert (batcher.batches, batcher.tokens, batcher.waiting) == (3, 28, 0)


def test_a_large_call_does_not_hold_up_the_small_ones():
    recorder = Recorder()
    batcher = MicroBatcher(recorder, TrunkStore(0), budget=4)
    held(recorder, batcher)
    large, small = work(*range(100, 120)), work(1)
    batcher.submit(large)
    batcher.submit(small)
    recorder.release.set()
    texts(large)
    assert [1] in recorder.seen[:6]
    assert len(texts(small)) == 1


def test_a_longer_text_than_the_budget_is_a_batch_of_its_own():
    recorder = Recorder()
    batcher = MicroBatcher(recorder, TrunkStore(0), budget=5)
    item = Work([((1, 2, 3), 0), (tuple(range(7, 57)), 0), ((2, 3, 4), 0)])
    batcher.submit(item)
    assert texts(item) == {1: 1.0, 2: 2.0, 7: 7.0}
    assert recorder.seen[-1] == [7]


def test_what_nobody_waits_for_is_not_computed():
    recorder = Recorder()
    batcher = MicroBatcher(recorder, TrunkStore(0), budget=4)
    held(recorder, batcher)
    gone, other = work(*range(10, 20)), work(1)
    batcher.submit(gone)
    batcher.submit(other)
    assert gone.future.cancel()
    recorder.release.set()
    texts(other)
    assert recorder.seen == [[0], [1]]


def test_a_call_that_cannot_be_computed_takes_no_other_with_it():
    recorder = Recorder()
    batcher = MicroBatcher(recorder, TrunkStore(0), budget=100)
    held(recorder, batcher)
    recorder.poison = 13
    bad, good = work(13, 14), work(1, 2)
    batcher.submit(bad)
    batcher.submit(good)
    recorder.release.set()
    assert texts(good) == {1: 1.0, 2: 2.0}
    with pytest.raises(FloatingPointError):
        bad.future.result(10)


def test_a_call_that_cannot_be_begun_ends_neither_the_others_nor_the_thread():
    """Cutting a kept trunk copies it, for which there may be no memory."""
    recorder = Recorder()
    batcher = MicroBatcher(recorder, TrunkStore(0), budget=100)
    held(recorder, batcher)
    bad, good = work(13), work(1)

    def take(*_):
        raise MemoryError

    bad.take = take
    batcher.submit(bad)
    batcher.submit(good)
    recorder.release.set()
    assert texts(good) == {1: 1.0}
    with pytest.raises(MemoryError):
        bad.future.result(10)
    batcher.submit(later := work(2))
    assert texts(later) == {2: 2.0}


class Unreadable:
    """Scores of a batch on a device that failed meanwhile."""

    def tolist(self):
        raise FloatingPointError("secret")


def test_a_batch_that_cannot_be_read_is_computed_again_call_by_call():
    recorder = Recorder()
    compute, together = recorder.__call__, []

    def scorer(segments):
        scores, kept = compute(segments)
        together.append(len(segments))
        return (Unreadable() if len(segments) > 1 else scores), kept

    scorer.packs, scorer.batches = True, recorder.batches
    batcher = MicroBatcher(scorer, TrunkStore(0), budget=8, overlap=True)
    held(recorder, batcher)
    calls = [work(number) for number in range(1, 6)]
    for call in calls:
        batcher.submit(call)
    recorder.release.set()
    assert [texts(call) for call in calls] == [{number: float(number)} for number in range(1, 6)]
    assert max(together) > 1


async def test_closing_during_requests_is_no_cancellation_of_theirs(tmp_path, monkeypatch):
    model = RewardModel.load(save(tmp_path, CONFIGS["llama"]), device="cpu", batch_tokens=16)
    compute, release = MicroBatcher._compute, threading.Event()

    def held_up(batcher, pieces):
        release.wait()
        compute(batcher, pieces)

    monkeypatch.setattr(MicroBatcher, "_compute", held_up)
    sessions = [model.session([HumanMessage(f"question {number}")]) for number in range(20)]
    requests = [asyncio.create_task(session.score([AIMessage("answer")])) for session in sessions]
    while not model._batcher.waiting:  # the first batch is held up, and more wait than it takes
        await asyncio.sleep(0.001)
    model.close()
    release.set()
    found = await asyncio.gather(*requests, return_exceptions=True)
    assert {type(one) for one in found} <= {list, RuntimeError}
    assert any(isinstance(one, RuntimeError) for one in found)


def test_the_window_opens_under_load_and_shuts_when_idle():
    recorder = Recorder()
    batcher = MicroBatcher(recorder, TrunkStore(0), budget=100, window=0.02)
    batcher.submit(one := work(5))
    assert texts(one) == {5: 5.0}
    assert batcher._window == 0.0
    held(recorder, batcher)
    for number in (1, 2):
        batcher.submit(last := work(number))
    recorder.release.set()
    texts(last)
    batcher.submit(lone := work(7))
    texts(lone)
    opened = batcher._window
    for number in range(500):  # a wait that a stall outlasts tells nothing
        if batcher._window >= 1e-3:
            batcher.submit(lone := work(number))
            texts(lone)
    assert 0.0 <= opened <= 0.02
    assert batcher._window < 1e-3


def test_a_wait_that_pays_fills_the_batch():
    recorder = Recorder()
    batcher = MicroBatcher(recorder, TrunkStore(0), budget=12, window=30.0)
    batcher._window = 30.0
    first, second = work(1), work(2, 3)
    batcher.submit(first)
    batcher.submit(second)
    assert texts(first) | texts(second) == {1: 1.0, 2: 2.0, 3: 3.0}
    assert recorder.seen == [[1, 2, 3]]


def test_closing_drops_what_waits():
    recorder = Recorder()
    batcher = MicroBatcher(recorder, TrunkStore(0), budget=4)
    first = held(recorder, batcher)
    waiting = work(1)
    batcher.submit(waiting)
    batcher.close()
    recorder.release.set()
    with pytest.raises(RuntimeError, match="closed"):
        waiting.future.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(work(2))
    assert texts(first) == {0: 0.0}


def test_a_call_without_texts_is_done_at_once():
    assert Work([]).future.result(0) == {}


@pytest.mark.parametrize("kind", ["llama", "bert"])
async def test_concurrent_requests_get_the_scores_they_get_alone(tmp_path, kind):
    model = RewardModel.load(save(tmp_path, CONFIGS[kind]), device="cpu", batch_tokens=200, batch_window=0.005)
    words = ["good", "fine", "dull", "awful", "plot", "cast", "the end"]
    prompts = [[HumanMessage("the film was " + words[n % 7] + " and very " * (n % 5))] for n in range(24)]
    answers = [[AIMessage(f"{word} {n}") for word in words[: 1 + n % 6]] for n in range(24)]

    async def one(n):
        session = model.session(prompts[n])
        try:
            return await session.score(answers[n]) + await session.score(answers[n][::-1])
        finally:
            await session.aclose()

    together = await asyncio.gather(*map(one, range(24)))
    for n in range(24):
        lone = model.score(prompts[n], answers[n])
        assert together[n] == pytest.approx(lone + lone[::-1], abs=1e-5)
    assert len(model._trunks._trunks) == 0


async def test_a_cancelled_session_leaves_the_others_their_scores(tmp_path):
    model = RewardModel.load(save(tmp_path, CONFIGS["llama"]), device="cpu", batch_tokens=20)
    expected = model.score("the film", ["good", "fine"])
    gone = asyncio.ensure_future(model.session([HumanMessage("the plot")]).score([AIMessage(f"dull {n}") for n in range(50)]))
    stays = asyncio.ensure_future(model.session([HumanMessage("the film")]).score([AIMessage("good"), AIMessage("fine")]))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == pytest.approx(expected, abs=1e-5)
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_what_waits_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("bonmini_guard.reward.model._IN_THE_QUEUE", 2)
    model = RewardModel.load(save(tmp_path, CONFIGS["llama"]), device="cpu")
    model._places.max_waiting = 3
    release = threading.Event()
    model._batcher._thread.submit(release.wait)
    sessions = [model.session([HumanMessage(f"the {n}")]) for n in range(6)]
    calls = [asyncio.create_task(session.score([AIMessage("good")])) for session in sessions]
    with pytest.raises(TooBusy):
        await calls[5]
    assert model._batcher.waiting <= 2
    release.set()
    assert all(score is not None for scores in await asyncio.gather(*calls[:5]) for score in scores)
