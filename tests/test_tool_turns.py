"""Turns that call tools: what is guarded of them, on every face; and messages that are no answer at all."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, NoAcceptableResponse
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.engine.snapshot import calls, words
from bonmini_guard.errors import ConfigurationError, GenerationError
from bonmini_guard.testing import FakeChatModel, FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

CALL = {"name": "look", "args": {"at": "x"}, "id": "1", "type": "tool_call"}
SCORES = {"good": 2.0, "bad": -1.0, "final": 1.0}


@tool
def look(at: str) -> str:
    """Look at something."""
    return f"seen {at}"


class Film(BaseModel):
    """A film."""

    title: str


def calling(text="", **fields):
    return AIMessage(text, tool_calls=[CALL], **fields)


def made(face, answers, scores=SCORES, **options):
    return face(generator=FakeGenerator(answers), reward_model=FakeRewardModel(scores), **{"schedule": [2], **options})


runnable, chat_model = partial(made, BestOfMiniN), partial(made, ChatBestOfMiniN)


class agent:  # noqa: N801 - a face like the two above
    """An agent whose first model call is what the others' only one is."""

    def __init__(self, answers, scores=SCORES, **options):
        def speak(messages, number):
            return "final" if isinstance(messages[-1], ToolMessage) else answers[number % len(answers)]

        middleware = BestOfMiniNMiddleware(reward_model=FakeRewardModel(scores), **{"schedule": [2], **options})
        self._graph = create_agent(FakeChatModel(speak), tools=[look], middleware=[middleware])

    def invoke(self, question):
        return self._graph.invoke({"messages": [HumanMessage(question)]})["messages"][1]

    async def ainvoke(self, question):
        return (await self._graph.ainvoke({"messages": [HumanMessage(question)]}))["messages"][1]


FACES = pytest.mark.parametrize("face", [runnable, chat_model, agent])


def about(message):
    return message.response_metadata["bonmini_guard"]


# text


@FACES
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize(("said", "shown"), [("good", "good"), ("bad", ""), ("", "")])
async def test_calls_go_on_and_text_beside_them_only_if_it_passes(face, sync, said, shown):
    made = face([calling(said)])
    message = await (asyncio.to_thread(made.invoke, "q") if sync else made.ainvoke("q"))
    assert (message.text, message.tool_calls) == (shown, [CALL])
    assert about(message)["reason"] == "tool_call"
    assert about(message).get("withheld") == ("text" if said == "bad" else None)
    assert about(message)["score"] == SCORES.get(said)


@FACES
async def test_text_that_could_not_be_scored_is_withheld(face):
    def fail(text):
        if text == "unknown":
            raise RuntimeError("down")
        return 1.0

    message = await face([calling("unknown")], fail).ainvoke("q")
    assert (message.text, message.tool_calls, about(message)["withheld"]) == ("", [CALL], "text")


@pytest.mark.parametrize("part", ["chunk", "token", "event"])
async def test_withheld_text_is_in_no_stream(part):
    made = chat_model([calling("bad secret")], {"bad secret": -1.0})
    if part == "chunk":
        seen = [chunk async for chunk in made.astream("q")]
    elif part == "event":
        seen = [event async for event in made.astream_events("q", version="v2")]
    else:
        graph = create_agent(made, tools=[])
        seen = [step async for step in graph.astream({"messages": [("human", "q")]}, stream_mode="messages")]
    assert seen
    assert "secret" not in str(seen)


def test_nothing_that_can_be_read_is_left_beside_withheld_text():
    blocks = [{"type": "thinking", "thinking": "secret"}, {"type": "text", "text": "secret"}, {"type": "tool_use", **CALL}]
    more = {"reasoning_content": "secret", "refusal": "secret", "tool_calls": [1], "__signature": "kept"}
    spelled = {"logprobs": "secret", "logprobs_result": [{"token": "secret"}], "grounding_metadata": {"segment": "secret"}}
    spelled["message"] = HumanMessage("secret")  # an object of a client, kept whole
    message = calling(blocks, additional_kwargs=more, response_metadata={**spelled, "finish_reason": "tool_calls"})
    left = calls(message)
    assert "secret" not in str(left)
    assert (left.content, left.tool_calls) == ([blocks[2]], [CALL])
    assert left.additional_kwargs == {"tool_calls": [1], "__signature": "kept"}
    assert left.response_metadata == {"finish_reason": "tool_calls"}


def test_what_is_said_beside_calls_is_what_is_left_without_them():
    assert words(calling("  ")) is None
    assert words(calling("good")).tool_calls == []
    text = {"type": "text", "text": "good"}
    assert words(calling([text, {"type": "tool_use", **CALL}])).content == [text]
    assert words(calling("", additional_kwargs={"reasoning_content": "thought"})) is not None


@FACES
async def test_the_first_draw_decides_and_calls_among_answers_do_not_pass(face):
    made = face(["bad", calling("good")])
    with pytest.raises(NoAcceptableResponse):
        await made.ainvoke("q")


# judge


def by_text_and_call(messages, candidates):
    return [1.0 if each.tool_calls or each.text == "final" else -1.0 for each in candidates]


@FACES
async def test_calls_have_to_pass_where_they_are_judged(face):
    def against(messages, candidates):
        return [1.0 if each.text == "final" else -1.0 for each in candidates]

    with pytest.raises(NoAcceptableResponse):
        await face([calling("good")], against, tool_turns="judge").ainvoke("q")
    message = await face(["bad", calling("good")], by_text_and_call, tool_turns="judge").ainvoke("q")
    assert (message.text, about(message)["decision"], message.tool_calls) == ("good", "accepted", [CALL])


@FACES
async def test_a_reward_model_that_reads_no_calls_cannot_judge_them(face):
    made = face([calling("good")], tool_turns="judge")
    with pytest.raises(ConfigurationError, match="tool_turns='text'"):
        await made.ainvoke("q")


# pass


@FACES
@pytest.mark.parametrize("options", [{"tool_turns": "pass"}, {"mode": "accelerator"}])
async def test_calls_and_text_go_on_as_drawn_where_that_is_said_or_in_an_accelerator(face, options):
    message = await face([calling("bad")], **options).ainvoke("q")
    assert (message.text, message.tool_calls, about(message)["score"]) == ("bad", [CALL], None)
    assert "withheld" not in about(message)


@FACES
def test_other_values_are_refused(face):
    with pytest.raises(ConfigurationError, match="tool_turns must be 'text', 'judge' or 'pass'"):
        face(["good"], tool_turns="all")


async def test_an_explored_request_is_complete_although_draws_call_tools():
    results = []
    made = runnable(["good", calling("good"), "bad", calling()], schedule=[1, 3], explore=1.0, on_explored=results.append)
    await made.ainvoke("q")
    await made.afinish()
    assert [candidate.score for candidate in results[0].candidates] == [2.0, 2.0, None, -1.0]


# No answer


NONE = [
    AIMessage("", additional_kwargs={"reasoning_content": "thoughts"}),
    AIMessage([{"type": "thinking", "thinking": "thoughts"}]),
    AIMessage([{"type": "reasoning", "id": "rs_1", "summary": []}], response_metadata={"status": "completed"}),
    AIMessage("", additional_kwargs={"reasoning": {"id": "rs_1", "summary": []}}),
    AIMessage("", response_metadata={"finish_reason": "length"}),
    AIMessage("Half of it", response_metadata={"finish_reason": "content_filter"}),
    AIMessage("Half of it", response_metadata={"finish_reason": "SAFETY"}),
    AIMessage("", additional_kwargs={"function_call": {"name": "look", "arguments": "{}"}}),
    # Bedrock's Converse, and OpenAI's Responses API.
    AIMessage("Half of it", response_metadata={"stopReason": "content_filtered"}),
    AIMessage("Half of it", response_metadata={"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}),
    AIMessage("Half of it", response_metadata={"status": "failed"}),
    AIMessage([], response_metadata={"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}),
]


@pytest.mark.parametrize("message", NONE)
@pytest.mark.parametrize("mode", ["guardrail", "accelerator"])
def test_what_is_no_answer_is_never_scored_and_never_served(message, mode):
    scorer = FakeRewardModel(lambda text: 9.0)
    made = BestOfMiniN(generator=FakeGenerator([message]), reward_model=scorer, schedule=[2], mode=mode)
    with pytest.raises(GenerationError, match="Unanswered"):
        made.run("q")
    assert scorer.batches == []


def test_its_tokens_are_counted():
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    result = runnable([NONE[0].model_copy(update={"usage_metadata": usage}), "good"]).run("q")
    assert (result.message.text, result.usage["total_tokens"], result.candidates[0].failed) == ("good", 7, True)


@pytest.mark.parametrize("message", [AIMessage(""), AIMessage("", additional_kwargs={"refusal": "no"}), AIMessage("x")])
def test_an_empty_text_or_a_refusal_is_an_answer(message):
    assert runnable([message], lambda text: 1.0).run("q").decision == "accepted"


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("generator", [FakeGenerator, FakeChatModel])
@pytest.mark.parametrize(("score", "title"), [(1.0, "Alien"), (-1.0, None)])
async def test_an_agents_response_format_is_an_answer_of_its_chat_model(sync, generator, score, title):
    """The chat model itself in an agent, without the middleware."""

    def speak(messages):
        return calling() if not isinstance(messages[-1], ToolMessage) else AIMessage("", tool_calls=[film])

    film = {"name": "Film", "args": {"title": "Alien"}, "id": "2"}
    source = speak if generator is FakeChatModel else lambda request: speak(request.messages)
    guard = ChatBestOfMiniN(
        generator=generator(source), reward_model=lambda messages, candidates: [score] * len(candidates), schedule=[2]
    )
    agent = create_agent(guard, tools=[look], response_format=ToolStrategy(Film))
    answer = asyncio.to_thread(agent.invoke, {"messages": ["q"]}) if sync else agent.ainvoke({"messages": ["q"]})
    if title is None:
        with pytest.raises(NoAcceptableResponse, match="budget_spent"):
            await answer
    else:
        assert (await answer)["structured_response"] == Film(title=title)
