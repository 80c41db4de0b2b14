"""What was scored is what is served: an answer is frozen when it arrives, and only equal answers share a score."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage

from bonmini_guard.conversation import Turn
from bonmini_guard.engine.engine import Engine
from bonmini_guard.engine.snapshot import frozen, identity
from bonmini_guard.policy.policy import guardrail
from bonmini_guard.runnables.structured import ValidatingScorer
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

PROMPT = [HumanMessage("q")]
CALL = {"name": "look", "args": {"at": [1]}, "id": "1"}


async def run(generator, scorer, schedule):
    generator = generator if hasattr(generator, "draw") else FakeGenerator(generator)
    scorer = scorer if hasattr(scorer, "session") else FakeRewardModel(scorer)
    return await Engine(generator, scorer, guardrail(schedule)).run(PROMPT, seed=1)


# Frozen


async def test_a_generator_that_reuses_a_message_cannot_swap_what_was_scored():
    class Reusing:
        message = AIMessage("")

        async def draw(self, request):
            await asyncio.sleep(0.01 * request.index)
            self.message.content = ["bad", "good", "worse"][request.index]
            self.message.response_metadata["number"] = request.index
            return self.message

    result = await run(Reusing(), {"bad": -1.0, "good": 1.0, "worse": -2.0}, [3])
    assert (result.decision, result.message.text, result.message.response_metadata["number"]) == ("accepted", "good", 1)
    assert [candidate.message.text for candidate in result.candidates] == ["bad", "good", "worse"]


@pytest.mark.parametrize("hands_over", [True, False])
async def test_a_generator_that_says_that_it_hands_answers_over_has_them_served_themselves(hands_over):
    class Kept:
        message = AIMessage("good", response_metadata={"number": 1})

        async def draw(self, request):
            return self.message

    generator, Kept.hands_over = Kept(), hands_over
    result = await run(generator, lambda messages, candidates: [1.0], [1])
    assert (result.message is generator.message) == hands_over
    assert result.message == generator.message


@pytest.mark.parametrize("around", ["subclass", "wrapper"])
async def test_what_is_around_a_generator_that_hands_answers_over_may_keep_them(around):
    class HandsOver:
        hands_over = True

        async def draw(self, request):
            return AIMessage(["good", "late"][request.index])

    class Keeps(HandsOver if around == "subclass" else object):
        kept: ClassVar = []

        def __getattr__(self, name):
            return getattr(HandsOver(), name)

        async def draw(self, request):
            self.kept.append(await HandsOver().draw(request))
            return self.kept[-1]

    async def scorer(messages, candidates):
        Keeps.kept[0].content = "never judged"
        return [1.0 if candidate.text == "good" else -1.0 for candidate in candidates]

    assert (await run(Keeps(), scorer, [2])).message.text == "good"


async def test_a_chunk_is_served_as_a_message():
    """A chunk is none to serializers, nor to some parsers."""
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    parts = {"tool_calls": [CALL | {"type": "tool_call"}], "usage_metadata": usage, "response_metadata": {"finish_reason": "stop"}}
    result = await run([AIMessageChunk("good", **parts, id="7")], lambda messages, candidates: [1.0], [1])
    assert type(result.message) is AIMessage
    assert result.message == AIMessage("good", **parts, id="7")


async def test_a_scorer_cannot_change_what_is_served():
    def spoil(messages, candidates):
        for candidate in candidates:
            candidate.content = "spoilt"
            candidate.tool_calls[0]["args"]["at"].append("spoilt")
        return [1.0] * len(candidates)

    result = await run([AIMessage("good", tool_calls=[CALL])], spoil, [1])
    assert (result.message.text, result.message.tool_calls[0]["args"]) == ("good", {"at": [1]})


async def test_a_scorer_cannot_change_what_is_asked_of_later_draws_or_held_by_the_caller():
    def spoil(messages, candidates):
        messages[0].content = "spoilt"
        return [-1.0] * len(candidates)

    prompt, generator = [HumanMessage("q")], FakeGenerator(lambda messages, number: f"{messages[0].content} {number}")
    await Engine(generator, FakeRewardModel(spoil), guardrail([1, 1])).run(prompt, seed=1)
    assert [request.messages[0].content for request in generator.requests] == ["q", "q"]
    assert prompt[0].content == "q"


class Told(FakeRewardModel):
    """Keeps what it is given."""

    def __init__(self, only_reads):
        super().__init__(lambda messages, candidates: self.told.extend(candidates) or [1.0] * len(candidates))
        self.only_reads, self.told = only_reads, []


@pytest.mark.parametrize("only_reads", [True, False])
async def test_a_scorer_that_says_that_it_only_reads_is_given_what_is_served(only_reads):
    scorer = Told(only_reads)
    result = await run(["good"], scorer, [1])
    assert (result.message is scorer.told[0]) == only_reads
    assert result.message == scorer.told[0]


async def test_what_parses_answers_before_such_a_scorer_gets_copies():
    async def spoil(candidate):
        candidate.content = "spoilt"
        return True

    result = await run(["good"], ValidatingScorer(Told(True), spoil), [1])
    assert (result.decision, result.message.text) == ("accepted", "good")


def test_a_copy_shares_nothing_that_can_change():
    call = {**CALL, "args": {"at": [1]}}
    message = AIMessage([{"type": "text", "text": "a"}], additional_kwargs={"a": {}}, tool_calls=[call], extra=["b"])
    twin = frozen(message)
    assert twin == message
    assert type(twin) is AIMessage
    message.content[0]["text"] = message.additional_kwargs["a"]["b"] = message.tool_calls[0]["args"]["at"][0] = "spoilt"
    message.response_metadata["a"] = "spoilt"
    message.extra.append("spoilt")
    message.name = "spoilt"
    assert "spoilt" not in repr(twin)


async def test_a_generator_that_lengthens_the_conversation_changes_nothing_of_what_is_judged():
    seen = []

    class Appending:
        async def draw(self, request):
            request.messages.append(HumanMessage("Everything is fine."))
            return AIMessage("answer")

    def scores(messages, candidates):
        seen.append(len(messages))
        return [-1.0] * len(candidates)

    await run(Appending(), scores, [2, 2])
    assert set(seen) == {1}


async def test_an_answer_that_cannot_be_copied_is_a_failed_draw():
    deep: dict = {}
    inner = deep
    for _ in range(5000):
        inner["a"] = {}
        inner = inner["a"]
    answers = [AIMessage("", tool_calls=[{"name": "look", "args": deep, "id": "1"}]), "good"]
    result = await run(answers, lambda text: 1.0, [2])
    assert (result.decision, result.message.text) == ("accepted", "good")
    assert isinstance(result.candidates[0].error, RecursionError)


# Equal


def plain(**fields):
    return AIMessage(**{"content": "same", **fields})


DIFFERENT = [
    plain(),
    plain(content="other"),
    plain(response_metadata={"finish_reason": "length"}),
    plain(response_metadata={"finish_reason": "stop"}),
    plain(response_metadata={"stop_reason": "stop"}),
    plain(tool_calls=[CALL]),
    plain(tool_calls=[CALL, CALL]),
    plain(tool_calls=[CALL], response_metadata={"finish_reason": "tool_calls"}),
    plain(tool_calls=[{**CALL, "args": {"at": [2]}}]),
    plain(tool_calls=[{**CALL, "args": {"x": {1: 2, "a": 3}}}]),
    plain(invalid_tool_calls=[{"name": "look", "args": "{", "id": "1", "error": "x"}]),
    plain(additional_kwargs={"reasoning_content": "thought"}),
    plain(additional_kwargs={"refusal": "no"}),
    plain(additional_kwargs={"citations": ["x"]}),
    plain(content=[{"type": "text", "text": "same"}, {"type": "image_url", "image_url": {"url": "x"}}]),
    plain(content=[{"type": "text", "text": "same"}, {"type": "image_url", "image_url": {"url": "y"}}]),
    plain(content=[{"type": "text", "text": "same"}, {"type": "reasoning", "reasoning": "thinks"}]),
]


def test_answers_that_somebody_could_tell_apart_share_no_score():
    assert len({identity(message) for message in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize("message", DIFFERENT)
def test_ids_times_and_tokens_make_no_difference(message):
    calls = [{**call, "id": "another"} for call in message.tool_calls]
    about = {
        "id": "run-1",
        "name": "x",
        "tool_calls": calls,
        "usage_metadata": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
    }
    other = message.model_copy(update={**about, "response_metadata": {**message.response_metadata, "created": 7, "seed": 8}})
    assert identity(other) == identity(message)
    assert identity(frozen(message)) == identity(message)


def test_a_text_that_spells_the_key_of_a_call_is_another_answer():
    called = AIMessage("", tool_calls=[CALL])
    keys = [str(identity(called)[0]), "\0" + Turn.of(called).digest(), Turn.of(called).digest()]
    assert identity(called) not in {identity(AIMessage(key)) for key in keys}


async def test_each_of_two_that_differ_in_their_end_alone_has_its_own_score():
    def scores(messages, candidates):
        return [2.0 if candidate.response_metadata["finish_reason"] == "stop" else -5.0 for candidate in candidates]

    answers = [plain(response_metadata={"finish_reason": end}) for end in ("length", "stop")]
    result = await run(answers, scores, [2])
    assert [candidate.score for candidate in result.candidates] == [-5.0, 2.0]
    assert result.message.response_metadata["finish_reason"] == "stop"
