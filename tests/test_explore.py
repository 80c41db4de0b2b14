"""Exploration: complete rows in the background, without touching decision, answer or live traffic."""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from langchain_core.messages import AIMessage

from bonmini_guard import BestOfMiniN
from bonmini_guard.calibration.logs import log_of_rows
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.engine.scorers import FunctionSession
from bonmini_guard.logs.explore import MOST_AT_A_TIME
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")


def make(answers=("-1", "1"), sink=None, latency=0.0, **settings):
    generator = answers if hasattr(answers, "draw") else FakeGenerator(answers, latency)
    scorer = FakeRewardModel(float)
    settings = {"schedule": [2, 2, 4], "explore": 1.0, **settings}
    return BestOfMiniN(generator=generator, reward_model=scorer, on_explored=sink, **settings), generator


async def test_a_copy_of_an_explored_request_shows_what_was_served():
    """Where all draws are made again, one has the number of the draw that was served, and another text."""
    numbers, complete = iter(range(1, 99)), []

    class Counting:
        async def draw(self, request):
            return AIMessage(str(next(numbers)))

    guard, _ = make(Counting(), complete.append, exit="eager")
    served = await guard.arun("q")
    await guard.afinish()
    (explored,) = complete
    assert all(candidate is not explored.selected for candidate in explored.candidates)
    twin = copy.deepcopy(explored)
    assert (twin.selected.score, twin.selected.message.text) == (served.score, served.message.text)
    assert [each.score for each in twin.candidates] == [each.score for each in explored.candidates]


async def test_an_explored_request_has_every_draw_and_the_same_decision():
    complete = []
    guard, _ = make(sink=complete.append)
    result = await guard.arun("q")
    await guard.afinish()
    (explored,) = complete
    assert (result.draws, explored.draws) == (2, 8)
    assert (explored.decision, explored.selected, explored.request_id) == (result.decision, result.selected, result.request_id)
    assert [(c.index, c.loop) for c in explored.candidates] == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]
    assert explored.candidates[:2] == result.candidates
    assert all(c.score is not None for c in explored.candidates)
    assert (guard.exploration.explored, guard.exploration.draws) == (1, 6)


async def test_after_an_eager_exit_everything_is_drawn_anew_since_the_fast_draws_are_no_fair_sample():
    complete, draws = [], itertools.count()
    slow = FakeGenerator(["1", "-1"], latency=lambda index: 30.0 if next(draws) == 1 else 0.0)
    guard, _ = make(slow, complete.append, exit="eager")
    result = await guard.arun("q")
    await guard.afinish()
    assert result.candidates[1].message is None
    assert [c.index for c in complete[0].candidates] == list(range(8))
    assert not {c.seed for c in complete[0].candidates} & {c.seed for c in result.candidates}


@pytest.mark.parametrize("settings", [{"exit": "eager"}, {"timeout": 30.0}])
async def test_where_a_draw_can_be_cut_short_all_is_drawn_anew_even_if_none_was(settings):
    """Whether one was cut short depends on scores and durations: to keep the others' draws would choose by these."""
    complete = []
    guard, _ = make(["-1", "-1"], complete.append, **settings)
    result = await guard.arun("q")
    await guard.afinish()
    assert len(result.candidates) == 8
    assert [c.index for c in complete[0].candidates] == list(range(8))
    assert not {c.seed for c in complete[0].candidates} & {c.seed for c in result.candidates}


@pytest.mark.parametrize("settings", [{}, {"exit": "eager"}, {"lookahead": 2}, {"exit": "rolling", "max_draws": 4}])
async def test_the_logged_draws_are_a_fair_sample_of_the_generators(settings):
    complete = []
    # By the draw's own seed: a source for all would give its numbers in the order in which draws happen to arrive.
    answers = FakeGenerator(
        lambda request: "1" if random.Random(request.seed).random() < 0.25 else "-1", latency=lambda index: 1e-4 * index
    )
    guard, _ = make(answers, complete.append, **{"schedule": None if "max_draws" in settings else [2, 2], **settings})
    for seed in range(400):
        await guard.arun("q", seed=seed)
        await guard.afinish()
    draws = [c.score > 0 for result in complete for c in result.candidates]
    assert len(draws) == 1600
    assert sum(draws) / len(draws) == pytest.approx(0.25, abs=0.03)


async def test_draws_that_found_no_room_are_made_later():
    complete = []
    guard, generator = make(["-1"], complete.append, latency=0.01, schedule=[3], max_concurrency=Limiter(1, max_waiting=1))
    result = await guard.arun("q")
    assert [c.refused for c in result.candidates] == [False, False, True]
    await guard.afinish()
    assert [c.index for c in complete[0].candidates] == [0, 1, 2]
    assert complete[0].candidates[:2] == result.candidates[:2]
    assert complete[0].candidates[2].score == -1
    assert len(generator.requests) == 3


async def test_work_of_an_event_loop_that_was_closed_does_not_stay_under_way(tmp_path):
    rows = []
    guard, generator = make(["1"], trace_to=rows.append)
    generator._latency = lambda index: 0.0 if index < 2 else 30
    for _ in range(2 * MOST_AT_A_TIME):
        await asyncio.to_thread(closed_at_once, guard)
    assert len(guard.guard.explorer.background) == 0
    guard.finish(timeout=60)
    assert len(rows) == 2 * MOST_AT_A_TIME
    assert not any(row["complete"] for row in rows)


def closed_at_once(guard):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(guard.arun("q"))
    loop.close()


async def test_a_draw_that_failed_by_itself_or_has_no_score_is_kept():
    complete = []
    guard, _ = make([OSError(), "nan", "1", "1"], complete.append, schedule=[3, 2])
    await guard.arun("q")
    await guard.afinish()
    assert [type(c.error) for c in complete[0].candidates[:3]] == [OSError, type(None), type(None)]
    assert complete[0].candidates[1].score is None
    assert complete[0].draws == 5


async def test_what_could_not_be_completed_in_time_is_not_called_complete():
    complete, slow = [], False

    async def answer(request):
        if slow and request.index:
            await asyncio.sleep(30)
        return "1"

    guard, _ = make(FakeGenerator(answer), complete.append, timeout=1.0)
    await guard.arun("q")
    slow = True
    await guard.afinish()
    assert complete == []
    assert (guard.exploration.explored, guard.exploration.skipped) == (0, 1)


async def test_the_share_is_the_share_and_none_by_default(monkeypatch):
    monkeypatch.setattr("bonmini_guard.logs.explore.random", random.Random(0))
    guard, _ = make(explore=0.25)
    for _ in range(400):
        await guard.arun("q")
        await guard.afinish()
    assert 60 < guard.exploration.explored < 145
    assert make(explore=0.0)[0].guard.explorer is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no eager tasks before Python 3.12")
async def test_where_tasks_are_eager_a_sink_may_ask_the_guard_again():
    explored, loop = [], asyncio.get_running_loop()

    async def sink(result):
        explored.append(result)
        if len(explored) == 1:
            await guard.arun("and again")

    guard, _ = make(sink=sink)
    loop.set_task_factory(asyncio.eager_task_factory)
    await guard.arun("q")
    loop.set_task_factory(None)
    await guard.afinish()
    assert (len(explored), guard.exploration.explored) == (2, 2)


async def test_tokens_of_a_judge_are_part_of_what_exploring_has_cost():
    def judging(messages):
        async def score(candidates):
            session.spent = {"input_tokens": 5, "output_tokens": 1, "total_tokens": 6}
            return [float(each.text) for each in candidates]

        session = FunctionSession(score)
        return session

    rows = []
    guard = BestOfMiniN(
        generator=FakeGenerator(["-1", "1"]),
        reward_model=SimpleNamespace(session=judging),
        schedule=[2, 2],
        explore=1.0,
        trace_to=rows.append,
    )
    await guard.arun("q")
    await guard.afinish()
    assert [row["explored"]["usage"]["total_tokens"] for row in rows] == [6] == [guard.exploration.tokens]


async def test_only_a_few_are_completed_at_a_time_and_the_answer_does_not_wait():
    rows = []
    guard, _ = make(latency=lambda index: 0.0, trace_to=rows.append)
    guard.guard.engine.generator._latency = 0.02
    results = await asyncio.gather(*(guard.arun("q") for _ in range(20)))
    assert all(result.draws == 2 for result in results)
    assert len(guard.guard.explorer.background) == MOST_AT_A_TIME
    await guard.afinish()
    assert (guard.exploration.explored, guard.exploration.skipped) == (MOST_AT_A_TIME, 20 - MOST_AT_A_TIME)
    missed = [row for row in rows if not row["complete"]]
    assert [row["explored"] for row in missed] == [{"missed": "busy"}] * (20 - MOST_AT_A_TIME)
    assert log_of_rows(rows).left_out["explore_missed"] == 20 - MOST_AT_A_TIME


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_errors_of_the_sink_and_of_the_generator_harm_nobody(asynchronous, caplog):
    def sink(result):
        raise OSError("secret")

    async def later(result):
        raise OSError("secret")

    guard, _ = make(sink=later if asynchronous else sink)
    assert (await guard.arun("q")).decision == "accepted"
    await guard.afinish()
    assert (guard.exploration.explored, guard.exploration.skipped) == (1, 0)
    assert "secret" not in caplog.text


def test_event_loops_in_several_threads_share_a_guard_and_wait_for_its_exploring():
    """Each loop begins and ends requests while another one looks at what is under way."""
    guard, _ = make(latency=0.0, explore=0.5)

    async def requests():
        for _ in range(60):
            await asyncio.gather(*(guard.arun("q") for _ in range(4)))
            await guard.afinish()

    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            for ended in [threads.submit(asyncio.run, requests()) for _ in range(4)]:
                ended.result()
    finally:
        sys.setswitchinterval(switching)
    assert guard.exploration.explored + guard.exploration.skipped == pytest.approx(4 * 60 * 4 / 2, rel=0.2)
