"""Profiles that follow their file: taken over whole or refused, never under a request that has begun."""

from __future__ import annotations

import asyncio
import logging
import os

import pytest
from langchain_core.caches import InMemoryCache

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, GuardProfile, NoAcceptableResponse
from bonmini_guard.adapters.telemetry import OpenTelemetry
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

OLD = GuardProfile(mode="guardrail", schedule=(2, 2), thresholds=(0.0, 0.0))
NEW = OLD.model_copy(update={"thresholds": (5.0, 5.0)})
#: Small enough that each request looks.
AT_ONCE = 1e-9


class Told(OpenTelemetry):
    def __init__(self):
        super().__init__()
        self.told = []

    def reloaded(self, succeeded):
        self.told.append(succeeded)


@pytest.fixture
def path(tmp_path):
    OLD.save(tmp_path / "guardrail.json")
    return tmp_path / "guardrail.json"


def make(path, answers=("1",), **settings):
    generator = answers if hasattr(answers, "draw") else FakeGenerator(answers)
    return BestOfMiniN(
        generator=generator,
        reward_model=FakeRewardModel(float),
        profile=path,
        **{"reload": AT_ONCE, "telemetry": Told(), **settings},
    )


async def looked(guard):
    """A request that looks at the file, and what it finds there."""
    await guard.arun("q")
    thread = guard.guard.reloader._thread
    if thread is not None:
        await asyncio.to_thread(thread.join)


async def test_a_file_is_followed_from_another_folder(path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(path.parent)
    guard = make(path.name)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    NEW.save(path)
    await looked(guard)
    assert (guard.guard.reloader.taken, guard.guard.engine.profile) == (1, path.name)


async def test_a_changed_file_is_taken_over(path):
    guard = make(path)
    assert (await guard.arun("q")).decision == "accepted"
    NEW.save(path)
    await looked(guard)
    result = await guard.arun("q")
    assert (result.decision, result.threshold) == ("abstained", 5.0)
    assert (guard.guard.reloader.taken, guard.guard.reloader.refused, guard.telemetry.told) == (1, 0, [True])


BAD = {
    "half a file": NEW.model_dump_json()[:40],
    "no profile": "{}",
    "another mode": NEW.model_copy(update={"mode": "accelerator"}).model_dump_json(),
    "other parts": NEW.model_copy(update={"fingerprints": {"reward_model": "sha256:other"}}).model_dump_json(),
    "no file": None,
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_file_is_refused_once_and_a_good_one_after_it_taken(path, bad, caplog):
    guard = make(path)
    path.unlink()
    if BAD[bad] is not None:
        path.write_text(BAD[bad])
    for _ in range(5):
        await looked(guard)
    assert (await guard.arun("q")).decision == "accepted"
    assert (guard.guard.reloader.refused, guard.telemetry.told) == (1, [False])
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    NEW.save(path)
    await looked(guard)
    assert (await guard.arun("q")).decision == "abstained"


async def test_requests_end_under_the_profile_they_began_with(path):
    gate = asyncio.Event()

    async def answer(request):
        if request.index == 0:
            await gate.wait()
        return "1"

    guard = make(path, FakeGenerator(answer), max_concurrency=7, explore=1.0)
    under_way = asyncio.create_task(guard.arun("q"))
    await asyncio.sleep(0)
    NEW.model_copy(update={"schedule": (2, 2, 3), "thresholds": (5.0, 5.0, 5.0)}).save(path)
    later = asyncio.create_task(guard.arun("q"))
    await asyncio.sleep(0)
    await asyncio.to_thread(guard.guard.reloader._thread.join)
    third = asyncio.create_task(guard.arun("q"))
    gate.set()
    results = await asyncio.gather(under_way, later, third)
    assert [(r.decision, r.threshold) for r in results] == [("accepted", 0.0), ("accepted", 0.0), ("abstained", 5.0)]
    await guard.afinish()
    assert guard.exploration.draws == 2 + 2 + 0  # what was missing of the budget of each one's own profile
    assert guard.guard.engine.limiter.limit == 7


async def test_within_the_interval_nobody_looks(path, monkeypatch):
    looks, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda *given, **named: looks.append(given) or stat(*given, **named))
    assert make(path, reload=True).guard.reloader.interval == 1.0
    guard = make(path, reload=3600)
    NEW.save(path)
    looks.clear()
    for _ in range(10):
        assert (await guard.arun("q")).decision == "accepted"
    assert [given for given in looks if str(given[0]) == str(path)] == []


async def test_the_same_profile_written_again_changes_nothing(path):
    guard = make(path)
    OLD.save(path)
    await looked(guard)
    await looked(guard)
    assert (guard.guard.reloader.taken, guard.guard.reloader.refused) == (0, 0)


async def test_a_file_that_is_written_in_two_steps_is_taken_over_in_the_end(path, monkeypatch):
    monkeypatch.setattr("bonmini_guard.runnables.reload._SETTLED", 1.0)
    guard = make(path)
    text = NEW.model_dump_json()
    path.write_text(text[:50])
    task = asyncio.create_task(looked(guard))
    await asyncio.sleep(0.02)
    path.write_text(text)
    await task
    for _ in range(3):
        await looked(guard)
    assert (await guard.arun("q")).decision == "abstained"
    assert guard.guard.reloader.refused == 0


async def test_a_chat_model_follows_too_and_its_cache_does_not_outlive_the_profile(path):
    llm = ChatBestOfMiniN(
        generator=FakeGenerator(["1"]), reward_model=FakeRewardModel(float), profile=path, reload=AT_ONCE, cache=InMemoryCache()
    )
    assert (await llm.ainvoke("q")).content == "1"
    NEW.save(path)
    await llm.ainvoke("another")
    await asyncio.to_thread(llm.guard.reloader._thread.join)
    with pytest.raises(NoAcceptableResponse):
        await llm.ainvoke("q")


@pytest.mark.filterwarnings("ignore:uncalibrated")
@pytest.mark.parametrize("settings", [{"profile": OLD}, {}])
def test_there_must_be_a_file_to_follow(settings):
    with pytest.raises(ConfigurationError, match="follows a file"):
        BestOfMiniN(generator=FakeGenerator(["1"]), reward_model=FakeRewardModel(float), reload=True, **settings)


async def test_a_profile_of_several_draws_is_refused_where_temperature_0_makes_them_the_same(path):
    one = GuardProfile(mode="guardrail", schedule=(1,), thresholds=(0.0,))
    one.save(path)
    scorer = FakeRewardModel(float)
    guard = ChatBestOfMiniN(generator=FakeGenerator(["1"]), reward_model=scorer, profile=path, reload=AT_ONCE, temperature=0)
    OLD.save(path)
    await guard.ainvoke("q")
    await asyncio.to_thread(guard.guard.reloader._thread.join)
    assert (guard.guard.reloader.refused, (await guard.ainvoke("q")).text) == (1, "1")
