"""The engine's contract (design.md 3.1 and 3.2), with the shipped fakes."""

from __future__ import annotations

import asyncio
import json
import math
import time
from fractions import Fraction

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from bonmini_guard.engine import engine as engine_module
from bonmini_guard.engine.engine import Engine, draw_seed
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.engine.protocols import EndRequest
from bonmini_guard.errors import GenerationError
from bonmini_guard.policy.policy import Policy, accelerator, best_of_n, guardrail
from bonmini_guard.testing import FakeGenerator, FakeRewardModel
from tests.grouped import Grouped

PROMPT = [HumanMessage("question")]


def by_number(text: str) -> float:
    """Answers of these tests are their own scores."""
    return float(text)


async def run(generator, policy, scorer=by_number, **settings):
    generator = generator if hasattr(generator, "draw") or hasattr(generator, "draw_group") else FakeGenerator(generator)
    scorer = scorer if hasattr(scorer, "session") else FakeRewardModel(scorer)
    seed = settings.pop("seed", 1)
    return await Engine(generator, scorer, policy, **settings).run(PROMPT, seed=seed)


def others() -> set[asyncio.Task]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def eager(schedule, threshold=0.0, mode="guardrail"):
    return Policy(mode, tuple(schedule), (threshold,) * len(schedule), "eager")


# Which answer


async def test_loop_exit_serves_the_best_of_the_loop_although_another_passed_first():
    generator = FakeGenerator(["1", "9"], latency=lambda index: 0.03 * index)
    result = await run(generator, guardrail([2, 2]))
    assert (result.decision, result.reason, result.score) == ("accepted", "passed", 9.0)
    assert (result.draws, result.loops, result.threshold) == (2, 1, 0.0)
    assert generator.cancelled == []


async def test_eager_exit_serves_the_first_to_arrive_and_its_siblings_are_gone():
    generator = FakeGenerator(["9", "1", "8"], latency=lambda index: 0.01 if index == 1 else 30)
    begun = time.perf_counter()
    result = await run(generator, eager([3]))
    assert (result.decision, result.score, result.selected.index) == ("accepted", 1.0, 1)
    assert time.perf_counter() - begun < 20
    assert sorted(generator.cancelled) == [0, 2]
    assert others() == set()
    assert result.draws == 3


async def test_a_sibling_that_cleans_up_slowly_is_awaited():
    gone = []

    async def answer(request):
        if request.index == 0:
            return "1"
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.05)
            gone.append(request.index)

    await run(answer, eager([3]))
    assert sorted(gone) == [1, 2]
    assert others() == set()


async def test_a_draw_that_ignores_its_cancellation_does_not_hold_the_request(monkeypatch, caplog):
    monkeypatch.setattr(engine_module, "CANCEL_GRACE", 0.05)
    release = asyncio.Event()

    async def answer(request):
        while request.index == 1 and not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "1"

    assert (await asyncio.wait_for(run(answer, eager([2])), 60)).decision == "accepted"
    assert "ignored their cancellation" in caplog.text
    release.set()
    await asyncio.gather(*others(), return_exceptions=True)


async def test_the_earliest_drawn_of_equals_wins_in_whatever_order_they_arrive():
    generator = FakeGenerator(["5", "5.0", "5.00"], latency=lambda index: 0.03 * (2 - index))
    assert (await run(generator, guardrail([3]))).selected.index == 0


async def test_the_candidates_record_everything():
    result = await run(["-1", "2"], guardrail([1, 1]), transform=lambda raw: 2 * raw - 1)
    first, second = result.candidates
    assert [(c.index, c.loop, c.raw_score, c.score) for c in (first, second)] == [(0, 0, -1.0, -3.0), (1, 1, 2.0, 3.0)]
    assert result.has_zero
    for candidate in result.candidates:
        assert 0 <= candidate.started <= candidate.finished <= candidate.scored <= result.timings.total


# Draws of later loops, launched ahead


async def test_draws_launched_ahead_and_not_needed_are_cancelled_and_counted():
    usage = {"input_tokens": 1, "output_tokens": 10, "total_tokens": 11}
    answers = [AIMessage(score, usage_metadata=usage) for score in ("1", "5", "-1")]
    generator = FakeGenerator(answers, latency=lambda index: {0: 1.0, 1: 0.0}.get(index, 30.0))
    result = await run(generator, guardrail([1, 1, 1]), lookahead=1)
    assert (result.selected.index, result.draws, result.draws_started, result.loops) == (0, 1, 3, 1)
    assert generator.cancelled == [2]
    assert result.usage["total_tokens"] == 22, "what arrived and did not count was billed"
    assert others() == set()


async def test_as_one_launched_ahead_arrives_the_next_one_starts_and_its_answer_is_there_when_its_loop_begins():
    generator = FakeGenerator(["-1", "-2", "-3", "1"], latency=lambda index: 1.0 * (index == 0))
    result = await run(generator, guardrail([1, 1, 1, 1]), lookahead=1)
    first, *later = result.candidates
    assert all(draw.finished < first.finished < draw.scored for draw in later)
    assert [draw.loop for draw in result.candidates] == [0, 1, 2, 3]


async def test_a_group_launched_ahead_is_one_group():
    generator = Grouped(5, lambda index: 0.5 if index < 2 else 0)
    assert (await run(generator, guardrail([2, 2, 2]), lookahead=2)).score == 0.0
    assert generator.asked == [[0, 1], [2, 3], [4, 5]]


async def test_nothing_is_launched_ahead_while_draws_fail_or_no_place_is_free():
    failing = FakeGenerator([ConnectionError("down")] * 3 + ["1"] * 3, latency=lambda index: 0.02 * (index == 1))
    await run(failing, guardrail([2, 2, 2]), lookahead=1)
    assert [request.index for request in failing.requests] == [0, 1, 2, 3], "one at the start, none after the failures"
    full = FakeGenerator(["-1", "-1", "1", "1"], latency=0.01)
    result = await run(full, guardrail([2, 2]), lookahead=2, limiter=Limiter(2))
    assert (result.draws, result.draws_started) == (4, 4)
    assert all(draw.finished < later.started for draw in result.candidates[:2] for later in result.candidates[2:])


async def test_a_draw_launched_ahead_ends_its_request_only_if_its_loop_begins():
    async def answer(request):
        if request.index == 1:
            raise EndRequest("interrupt", message=AIMessage("7"), serve=1)
        await asyncio.sleep(0.02)
        return "1"

    kept = await run(answer, guardrail([1, 1]), lookahead=1)
    assert (kept.decision, kept.selected.index, kept.ended) == ("accepted", 0, False)
    ended = await run(answer, guardrail([1, 1], 5.0), lookahead=1)
    assert (ended.decision, ended.selected.index, ended.ended) == ("unscored", 1, True)


# Failed draws


async def test_a_failed_draw_is_recorded_and_the_request_goes_on():
    result = await run([ConnectionError("down"), "1"], guardrail([2]))
    assert (result.decision, result.draws, result.selected.index) == ("accepted", 2, 1)
    assert isinstance(result.candidates[0].error, ConnectionError)
    assert result.candidates[0].failed


async def test_all_draws_failed_is_an_error_with_its_causes():
    scorer = FakeRewardModel(by_number)
    with pytest.raises(GenerationError, match="none of 4 draws arrived: ConnectionError, see below") as caught:
        await run([ConnectionError("one"), ValueError("two")], guardrail([2, 2]), scorer)
    causes = caught.value.__cause__.exceptions
    # Each cause once.
    assert [type(cause) for cause in causes] == [ConnectionError, ValueError]
    assert scorer.batches == []


async def test_what_is_no_message_is_a_failed_draw():
    result = await run(lambda request: None if request.index else "1", guardrail([2]))
    assert isinstance(result.candidates[1].error, TypeError)
    assert result.decision == "accepted"


async def test_a_generator_that_cancels_itself_is_a_failed_draw():
    async def answer(request):
        if request.index == 0:
            raise asyncio.CancelledError
        return "1"

    result = await asyncio.wait_for(run(answer, guardrail([2])), 60)
    assert (result.decision, result.selected.index) == ("accepted", 1)


# Failed scores


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
async def test_a_score_that_is_no_number_never_passes_and_never_wins(bad):
    scores = {"a": bad, "b": -1.0}
    refused = await run(["a", "b"], guardrail([2], -math.inf), scores)
    assert refused.message.content == "b"
    assert (await run(["a", "b"], accelerator([2]), scores)).message.content == "b"
    assert (await run(["a", "b"], eager([2], -5.0), scores)).message.content == "b"
    assert (await run(["a"], guardrail([1, 1]), scores)).reason == "scorer_failed"
    assert (await run(["a"], accelerator([1, 1]), scores)).decision == "unscored"


def wrong_length(messages, candidates):
    return [9.0] * (len(candidates) + 1)


def raising(messages, candidates):
    raise OSError("the scorer is down")


@pytest.mark.parametrize("scorer", [wrong_length, raising, lambda m, c: ["high"] * len(c), lambda m, c: None])
async def test_a_failing_scorer_closes_the_guardrail_and_leaves_the_accelerator_the_first_draw(scorer):
    fake = FakeRewardModel(scorer)
    refused = await run(["1", "2"], guardrail([2, 2]), fake)
    assert (refused.decision, refused.reason, refused.message, refused.draws) == ("abstained", "scorer_failed", None, 2)
    assert isinstance(refused.scorer_error, Exception)
    served = await run(["1", "2"], accelerator([2, 2]), fake)
    assert (served.decision, served.reason, served.message.content, served.score) == ("unscored", "scorer_failed", "1", None)
    assert fake.open_sessions == 0


async def test_parts_of_scores_that_are_no_mappings_fail_the_scoring():
    class Telling:
        def session(self, messages):
            session = FakeRewardModel({"1": 1.0}).session(messages)
            session.parts = ["polite"]
            return session

    refused = await run(["1"], guardrail([1]), Telling())
    assert (refused.decision, refused.reason) == ("abstained", "scorer_failed")
    assert refused.metadata()["draws"] == 1


async def test_parts_of_scores_are_numbers_that_json_has():
    class Telling:
        def session(self, messages):
            session = FakeRewardModel({"1": 1.0}).session(messages)
            session.parts = [{"whole": Fraction(1, 2), "lost": math.nan, "none": None}]
            return session

    served = (await run(["1"], guardrail([1]), Telling())).metadata()
    assert json.loads(json.dumps(served, allow_nan=False))["parts"] == {"whole": 0.5, "lost": None, "none": None}


async def test_a_scorer_that_fails_later_leaves_the_accelerator_its_best_so_far():
    def fails_later(messages, candidates):
        if any(candidate.content == "later" for candidate in candidates):
            raise OSError
        return [float(candidate.content) for candidate in candidates]

    answers = ["-2", "-1", "later", "later"]
    served = await run(answers, accelerator([2, 2]), fails_later)
    assert (served.decision, served.reason, served.message.content) == ("best_effort", "scorer_failed", "-1")
    refused = await run(answers, guardrail([2, 2]), fails_later)
    assert (refused.decision, refused.reason, refused.message) == ("abstained", "scorer_failed", None)


async def test_a_session_that_cannot_be_opened():
    class Broken:
        def session(self, messages):
            raise OSError("no session")

    assert (await run(["1"], guardrail([1]), Broken())).reason == "scorer_failed"


# Scoring


async def test_equal_texts_are_scored_once_over_all_loops():
    scorer = FakeRewardModel({"same": -1.0, "other": -2.0})
    result = await run(["same", "same", "same", "other"], guardrail([2, 2]), scorer)
    assert [text for batch in scorer.batches for text in batch] == ["same", "other"]
    assert [candidate.score for candidate in result.candidates] == [-1.0, -1.0, -1.0, -2.0]


@pytest.mark.parametrize("schedule", [[1], [4]])
async def test_a_unanimous_or_single_answer_is_scored_all_the_same(schedule):
    scorer = FakeRewardModel({"bad": -3.0})
    assert (await run(["bad"], guardrail(schedule), scorer)).decision == "abstained"
    assert scorer.batches == [["bad"]]


async def test_answers_that_differ_only_in_their_tool_calls_are_two():
    def call(city):
        return AIMessage("", tool_calls=[{"name": "weather", "args": {"city": city}, "id": "1"}])

    seen = []

    def scorer(messages, candidates):
        seen.extend(candidates)
        return [1.0 if c.tool_calls[0]["args"]["city"] == "Paris" else -1.0 for c in candidates]

    result = await run(lambda request: call(["Rome", "Paris", "Rome"][request.index]), guardrail([3]), scorer)
    assert result.selected.index == 1
    assert len(seen) == 2


async def test_what_has_arrived_is_scored_while_the_rest_is_drawn():
    scorer = FakeRewardModel(by_number)
    await run(FakeGenerator(["1", "2", "3"], latency=lambda index: 0.0 if index < 2 else 0.05), guardrail([3]), scorer)
    assert [sorted(batch) for batch in scorer.batches] == [["1", "2"], ["3"]]
    assert scorer.open_sessions == 0


# Limits


async def test_places_come_back_after_failures_and_cancellations():
    limiter = Limiter(2)
    await run(FakeGenerator(["1", "9"], latency=lambda index: index * 30), eager([2]), limiter=limiter)
    await run([ValueError("x"), ValueError("y"), "1"], guardrail([3]), limiter=limiter)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run(FakeGenerator(["1"], latency=30), guardrail([8]), limiter=limiter), 0.02)
    assert limiter.here().free == 2


def test_one_limiter_serves_two_event_loops():
    limiter = Limiter(1)
    for _ in range(2):
        result = asyncio.run(run(["-1", "-2", "1"], guardrail([3]), limiter=limiter))
        assert result.decision == "accepted"


# Seeds


async def test_a_seed_repeats_a_request_and_draws_have_different_ones():
    def answer(request):
        return str((request.seed % 1000) / 1000 - 0.99)

    first, again, other = [await run(answer, guardrail([8, 8]), seed=seed) for seed in (7, 7, 8)]
    assert [c.score for c in first.candidates] == [c.score for c in again.candidates]
    assert [c.seed for c in first.candidates] != [c.seed for c in other.candidates]
    assert len({c.seed for c in first.candidates}) == len(first.candidates)
    assert first.seed == 7


@pytest.mark.parametrize("seed", [0, 1, -5, 2**62, 2**80])
def test_seeds_of_draws_are_different_and_in_range(seed):
    seeds = [draw_seed(seed, index) for index in range(2000)]
    assert len(set(seeds)) >= 1999
    assert all(0 <= value < 2**31 for value in seeds)


def test_the_seed_of_a_draw_is_the_same_in_every_version():
    assert [draw_seed(0, 0), draw_seed(7, 3)] == [1090837056, 1278592933], "a logged request is drawn again by its seed"


# No state


async def test_a_thousand_concurrent_requests_do_not_mix():
    def answer(messages, index):
        return f"{messages[0].content}/{index}"

    def score(messages, candidates):
        assert all(candidate.content.split("/")[0] == messages[0].content for candidate in candidates)
        target = int(messages[0].content) % 8
        return [1.0 if int(candidate.content.split("/")[1]) == target else -1.0 for candidate in candidates]

    generator, scorer = FakeGenerator(answer, latency=lambda index: index % 3 / 2000), FakeRewardModel(score)
    shared = Engine(generator, scorer, guardrail([2, 2, 4]), limiter=Limiter(100), timeout=60)
    results = await asyncio.gather(*(shared.run([HumanMessage(str(i))], seed=i) for i in range(1000)))
    for i, result in enumerate(results):
        target = i % 8
        assert result.message.content == f"{i}/{target}"
        assert result.draws == (2 if target < 2 else 4 if target < 4 else 8)
    assert scorer.open_sessions == 0
    assert others() == set()


async def test_best_of_n_is_one_loop_without_an_exit():
    result = await run(["1", "3", "2"], best_of_n(3))
    assert (result.decision, result.score, result.loops) == ("best_effort", 3.0, 1)
    assert result.metadata()["threshold"] is None
