"""``BestOfMiniNMiddleware``: draws through the agent's own handler, decisions in its state, and nothing else of its draws."""

from __future__ import annotations

import asyncio
import importlib
import json
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

pytest.importorskip("langchain.agents")
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelFallbackMiddleware, ModelRetryMiddleware
from langchain.agents.middleware.types import ExtendedModelResponse, ModelResponse
from langchain.agents.structured_output import ProviderStrategy, StructuredOutputValidationError, ToolStrategy
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.types import Command, interrupt

from bonmini_guard import GuardProfile, NoAcceptableResponse, ScorerError
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.adapters.langchain import LangChainGenerator
from bonmini_guard.errors import ConfigurationError, GenerationError, MissingExtraError, ProfileError
from bonmini_guard.testing import FakeChatModel, FakeRewardModel
from tests.test_no_leak import Recorder

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

SCORES = {"good": 2.0, "poor": -1.0, "worse": -2.0, "": 1.0}
USAGE = {"input_tokens": 10, "output_tokens": 1, "total_tokens": 11}
QUESTION = {"messages": [("human", "q")]}

both_ways = pytest.mark.parametrize("sync", [False, True])


def guard(scores=None, **settings):
    return BestOfMiniNMiddleware(reward_model=FakeRewardModel(scores or SCORES), **{"schedule": [2, 2], **settings})


def agent(answers, *middleware, tools=(), **settings):
    model = answers if isinstance(answers, FakeChatModel) else FakeChatModel(answers)
    return create_agent(model, tools=list(tools), middleware=list(middleware), **settings)


async def ask(graph, sync, question=None, config=None):
    question = QUESTION if question is None else question
    return await (asyncio.to_thread(graph.invoke, question, config) if sync else graph.ainvoke(question, config))


def counted(text, **fields):
    return AIMessage(text, usage_metadata=USAGE, **fields)


def about(message):
    return message.response_metadata["bonmini_guard"]


@tool
def search(query: str) -> str:
    """Search the web."""
    return f"found {query}"


def searching(query="x"):
    return counted("", tool_calls=[{"name": "search", "args": {"query": query}, "id": f"call-{query}"}])


class Around(AgentMiddleware):
    """Behind the guard: something before each draw, and after it, which may change the response."""

    def __init__(self, before=lambda: None, after=lambda request, response: response):
        super().__init__()
        self.before, self.after = before, after

    def wrap_model_call(self, request, handler):
        self.before()
        return self.after(request, handler(request))

    async def awrap_model_call(self, request, handler):
        self.before()
        return self.after(request, await handler(request))


class Before(AgentMiddleware):
    """In front of the guard: changes each request to what a function says."""

    def __init__(self, changes):
        super().__init__()
        self.changes = changes

    def wrap_model_call(self, request, handler):
        return handler(request.override(**self.changes()))

    async def awrap_model_call(self, request, handler):
        return await handler(request.override(**self.changes()))


# Answers


@both_ways
async def test_the_winner_alone_gets_into_the_state_with_its_decision(sync):
    out = await ask(agent([counted("poor"), counted("worse"), counted("good"), counted("poor")], guard()), sync)
    question, answer = out["messages"]
    assert (question.content, answer.content) == ("q", "good")
    assert out["bonmini_guard"] == about(answer)
    assert {"decision": "accepted", "draws": 4, "loops": 2}.items() <= about(answer).items()
    assert answer.usage_metadata["total_tokens"] == 44


@both_ways
async def test_draws_of_a_loop_run_at_once(sync):
    together = threading.Barrier(8, timeout=30)

    class Waiting(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            together.wait()
            return handler(request)

        async def awrap_model_call(self, request, handler):
            await asyncio.to_thread(together.wait)
            return await handler(request)

    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(16))
    out = await ask(agent(["good"], guard(schedule=[8]), Waiting()), sync)
    assert about(out["messages"][-1])["draws"] == 8


async def test_an_early_exit_cancels_what_is_not_needed():
    model = FakeChatModel(["good"], latency=lambda number: 0.0 if number == 0 else 60.0)
    out = await agent(model, guard(schedule=[4], exit="eager")).ainvoke(QUESTION)
    assert out["messages"][-1].content == "good"
    assert sorted(model.cancelled) == [1, 2, 3]


async def test_a_cancelled_agent_cancels_its_draws_and_stays_cancelled():
    model = FakeChatModel(["good"], latency=60.0)
    task = asyncio.create_task(agent(model, guard()).ainvoke(QUESTION))
    while len(model.calls) < 2:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert sorted(model.cancelled) == [0, 1]


@both_ways
async def test_the_reward_model_sees_the_system_message_and_the_conversation(sync):
    seen = []

    def score(messages, candidates):
        seen.append(messages)
        return [1.0] * len(candidates)

    graph = agent(["hello"], guard(score, schedule=[1]), system_prompt="be kind")
    await ask(graph, sync, {"messages": [("human", "one"), ("ai", "two"), ("human", "three")]})
    (messages,) = seen
    assert [type(message) for message in messages] == [SystemMessage, HumanMessage, AIMessage, HumanMessage]


async def test_each_draw_gets_a_seed_of_its_own_where_the_model_takes_one_whatever_the_model_is_set_to():
    class Seeded(FakeChatModel):
        seed: int | None = None

    model = Seeded(["poor"], seed=7)
    graph = agent(model, guard(seed_argument="seed", seed=1, mode="accelerator"))
    await graph.ainvoke(QUESTION)
    await graph.ainvoke(QUESTION)
    seeds = [call["seed"] for call in model.calls]
    assert len(set(seeds[:4])) == 4
    assert seeds[:4] == seeds[4:]


async def test_seeds_reach_a_model_that_takes_settings_as_fields_alone():
    seeds = []

    class ChatOllama(FakeChatModel):  # by whose name such a class is known
        seed: int | None = None

        async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
            seeds.append(None if "seed" in kwargs else self.seed)
            return await super()._agenerate(messages, stop, run_manager, **kwargs)

    await agent(ChatOllama(["poor"]), guard(seed_argument="seed", mode="accelerator")).ainvoke(QUESTION)
    assert len({*seeds} - {None}) == 4


@both_ways
async def test_settings_of_the_model_that_ask_for_further_answers_or_a_stream_do_not_reach_it(sync):
    model = FakeChatModel(["good"])
    settings = {"n": 3, "best_of": 4, "stream": True, "top_p": 0.5}
    await ask(agent(model, Before(lambda: {"model_settings": settings}), guard(schedule=[1])), sync)
    assert model.calls == [{"top_p": 0.5}]


async def test_many_agents_at_once_keep_their_answers_apart():
    graph = agent(lambda messages, number: f"answer to {messages[-1].content}", guard(lambda text: 1.0, schedule=[2]))
    outs = await asyncio.gather(*(graph.ainvoke({"messages": [("human", str(i))]}) for i in range(30)))
    assert [out["messages"][-1].content for out in outs] == [f"answer to {i}" for i in range(30)]


@both_ways
async def test_usage_counters_count_all_draws_once(sync):
    with get_usage_metadata_callback() as counter:
        await ask(agent([counted("poor"), OSError("down"), counted("good"), counted("poor")], guard()), sync)
    assert counter.usage_metadata["fake-chat-model"]["total_tokens"] == 33


async def test_explored_draws_are_made_after_the_answer():
    done = asyncio.Event()
    complete = []

    def keep(result):
        complete.append(result)
        done.set()

    model = FakeChatModel(lambda messages, number: "good" if number < 2 else "poor")
    await agent(model, guard(explore=1.0, on_explored=keep)).ainvoke(QUESTION)
    await asyncio.wait_for(done.wait(), 30)
    assert [candidate.score for candidate in complete[0].candidates] == [2.0, 2.0, -1.0, -1.0]


async def test_guarded_answers_are_traced_by_conversation_and_tool_turns_are_not(tmp_path):
    def answer(messages, number):
        return "good" if isinstance(messages[-1], ToolMessage) else searching()

    middleware = guard(trace_to=tmp_path / "traces.jsonl")
    await agent(answer, middleware, tools=[search]).ainvoke(QUESTION, {"configurable": {"thread_id": "7"}})
    await middleware.guard.afinish()
    (row,) = map(json.loads, (tmp_path / "traces.jsonl").read_text().splitlines())
    assert (row["group"], row["decision"], len(row["prompt"])) == ("7", "accepted", 3)


# Abstention


@both_ways
async def test_an_abstention_raises_by_default_and_leaves_no_message(sync):
    graph = agent(["poor"], guard(), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    with pytest.raises(NoAcceptableResponse) as caught:
        await ask(graph, sync, config=config)
    assert caught.value.result.draws == 4
    assert [message.content for message in graph.get_state(config).values["messages"]] == ["q"]


@both_ways
async def test_an_abstention_is_final_where_the_model_is_built_anew_for_each_call(sync):
    built = []

    def anew():
        built.append(FakeChatModel(["poor"] if len(built) < 2 else ["good"]))
        return {"model": built[-1]}

    graph = agent(["unused"], Before(anew), guard())
    for _ in range(2):
        with pytest.raises(NoAcceptableResponse):
            await ask(graph, sync, config={"configurable": {"thread_id": "1"}})
    assert (await ask(graph, sync, config={"configurable": {"thread_id": "1"}}))["bonmini_guard"]["decision"] == "accepted"
    assert [len(model.calls) for model in built] == [4, 0, 2]


@both_ways
async def test_an_abstention_may_continue_with_a_message(sync):
    out = await ask(agent(["poor"], guard(on_abstain="continue", abstain_message="sorry")), sync)
    assert out["messages"][-1].content == "sorry"
    assert out["bonmini_guard"]["decision"] == "abstained"


@both_ways
async def test_a_callable_gets_the_error_and_gives_the_text(sync):
    async def later(error):
        return AIMessage(f"{type(error).__name__} after {error.result.draws}")

    for on_abstain in (later, lambda error: f"{type(error).__name__} after {error.result.draws}"):
        out = await ask(agent(["poor"], guard(on_abstain=on_abstain)), sync)
        assert out["messages"][-1].content == "NoAcceptableResponse after 4"
        assert out["bonmini_guard"]["decision"] == "fallback"


@both_ways
async def test_an_abstention_may_ask_a_person(sync):
    graph = agent(["poor"], guard(on_abstain=lambda error: interrupt(error.result.reason)), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    paused = await ask(graph, sync, config=config)
    assert [pause.value for pause in paused["__interrupt__"]] == ["budget_spent"]
    out = await ask(graph, sync, Command(resume="a person's answer"), config)
    assert out["messages"][-1].content == "a person's answer"
    assert out["bonmini_guard"]["decision"] == "fallback"


async def test_a_failing_scorer_serves_nothing_in_a_guardrail():
    def fails(messages, candidates):
        raise RuntimeError

    with pytest.raises(ScorerError):
        await agent(["good"], guard(fails)).ainvoke(QUESTION)
    out = await agent(["good"], guard(fails, mode="accelerator")).ainvoke(QUESTION)
    assert out["bonmini_guard"]["decision"] == "unscored"


@both_ways
async def test_langchains_retry_middleware_behind_the_guard_retries_each_draw(sync):
    failed = set()

    def flaky(messages, number):
        if number < 2:
            failed.add(number)
            raise OSError("down")
        return "good"

    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0.0, on_failure="error")
    out = await ask(agent(flaky, guard(), retry), sync)
    assert out["bonmini_guard"]["draws"] == 2
    assert failed == {0, 1}


@both_ways
async def test_langchains_retry_middleware_before_the_guard_leaves_an_abstention_and_retries_an_outage(sync):
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False, on_failure="error")
    poor = FakeChatModel(["poor"] * 12)
    with pytest.raises(NoAcceptableResponse) as abstained:
        await ask(agent(poor, retry, guard()), sync)
    assert len(poor.calls) == 4
    assert not abstained.value.is_retryable
    asked = []

    def down(messages, candidates):
        asked.append(len(candidates))
        raise OSError("down")

    with pytest.raises(ScorerError) as outage:
        await ask(agent(FakeChatModel(["poor"] * 12), retry, guard(down)), sync)
    assert outage.value.is_retryable
    assert len(asked) == 3  # the draws that had not begun when it failed are not made


@both_ways
async def test_if_every_draw_fails_the_causes_are_told(sync):
    with pytest.raises(GenerationError) as caught:
        await ask(agent([OSError("down")], guard()), sync)
    assert isinstance(caught.value.__cause__, ExceptionGroup)


@both_ways
async def test_an_answer_of_several_messages_is_none_for_only_one_is_scored(sync):
    adding = Around(after=lambda request, response: ModelResponse([*response.result, AIMessage("unscored")]))
    with pytest.raises(GenerationError, match="TypeError"):
        await ask(agent(["good"], guard(), adding), sync)


# Interrupts


class Interrupting(AgentMiddleware):
    """Behind the guard: the second draw interrupts, the others never end."""

    def __init__(self):
        super().__init__()
        self.begun = 0
        self.cancelled = 0
        self.released = threading.Event()

    def wrap_model_call(self, request, handler):
        self.begun += 1
        if self.begun == 2:
            interrupt("ask a person")
        self.released.wait(60)
        return handler(request)

    async def awrap_model_call(self, request, handler):
        self.begun += 1
        if self.begun == 2:
            interrupt("ask a person")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@both_ways
async def test_an_interrupt_of_one_draw_is_passed_on_at_once(sync):
    inner = Interrupting()
    graph = agent(["good"], guard(), inner, checkpointer=InMemorySaver())
    out = await ask(graph, sync, config={"configurable": {"thread_id": "1"}})
    inner.released.set()
    assert [pause.value for pause in out["__interrupt__"]] == ["ask a person"]
    assert [message.content for message in out["messages"]] == ["q"]
    if not sync:
        assert inner.cancelled == 1


@both_ways
async def test_an_interrupt_is_passed_on_even_where_the_scorer_fails(sync):
    def fails(messages, candidates):
        raise RuntimeError

    asking = Around(before=lambda: interrupt("ask a person"))
    graph = agent(["good"], guard(fails, mode="accelerator"), asking, checkpointer=InMemorySaver())
    out = await ask(graph, sync, config={"configurable": {"thread_id": "1"}})
    assert "__interrupt__" in out


async def test_an_interrupt_survives_a_scorer_that_makes_an_error_of_a_cancellation():
    scoring = asyncio.Event()

    async def stubborn(messages, candidates):
        scoring.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RuntimeError("the client was cancelled") from None

    class Second(AgentMiddleware):
        begun = 0

        async def awrap_model_call(self, request, handler):
            self.begun += 1
            if self.begun == 2:
                await scoring.wait()
                interrupt("ask a person")
            return await handler(request)

    graph = agent(["good"], guard(stubborn), Second(), checkpointer=InMemorySaver())
    out = await ask(graph, False, config={"configurable": {"thread_id": "1"}})
    assert [pause.value for pause in out["__interrupt__"]] == ["ask a person"]


# Tools


@both_ways
async def test_a_turn_that_calls_tools_is_served_as_it_is_and_the_final_answer_is_guarded(sync):
    def answer(messages, number):
        return counted("good") if isinstance(messages[-1], ToolMessage) else searching()

    out = await ask(agent(answer, guard(), tools=[search]), sync)
    _, calling, result, final = out["messages"]
    assert result.content == "found x"
    assert {"decision": "unscored", "reason": "tool_call", "score": None}.items() <= about(calling).items()
    assert about(final)["decision"] == "accepted"


async def test_the_first_draw_decides_and_the_others_are_cancelled():
    model = FakeChatModel(lambda messages, number: searching("first"), latency=lambda number: 0.0 if number == 0 else 60.0)
    graph = agent(model, guard(schedule=[4]), tools=[search], interrupt_before=["tools"], checkpointer=InMemorySaver())
    out = await graph.ainvoke(QUESTION, {"configurable": {"thread_id": "1"}})
    calling = out["messages"][-1]
    assert (calling.tool_calls[0]["args"], about(calling)["draws"]) == ({"query": "first"}, 4)
    assert calling.usage_metadata["total_tokens"] == 11
    assert sorted(model.cancelled) == [1, 2, 3]


@pytest.mark.parametrize("first", ["poor", OSError("down")])
async def test_an_answer_first_makes_tool_calls_no_candidates_and_a_failed_draw_decides_nothing(first):
    answers = [first, searching("second"), counted("good"), counted("poor")]
    graph = agent(answers, guard(), tools=[search], interrupt_before=["tools"], checkpointer=InMemorySaver())
    out = await graph.ainvoke(QUESTION, {"configurable": {"thread_id": "1"}})
    last = out["messages"][-1]
    assert bool(last.tool_calls) is isinstance(first, OSError)
    assert last.content == ("" if last.tool_calls else "good")


@both_ways
async def test_tool_calls_are_guarded_where_asked_for(sync):
    def judged(messages, candidates):
        return [2.0 if c.content or c.tool_calls[0]["args"]["query"] == "apt" else -1.0 for c in candidates]

    def answer(messages, number):
        return "good" if isinstance(messages[-1], ToolMessage) else searching("apt" if number == 2 else "inept")

    out = await ask(agent(answer, guard(judged, tool_turns="judge"), tools=[search]), sync)
    calling = out["messages"][1]
    assert calling.tool_calls[0]["args"] == {"query": "apt"}
    assert {"decision": "accepted", "draws": 4}.items() <= about(calling).items()


async def test_a_tool_call_that_cannot_be_read_does_not_pass():
    broken = AIMessage("", invalid_tool_calls=[{"name": "search", "args": "{", "id": "1", "error": None}])
    out = await agent([broken, "good"], guard(), tools=[search]).ainvoke(QUESTION)
    assert out["messages"][-1].content == "good"


# Structured output


class Film(BaseModel):
    """A film."""

    title: str
    year: int


def film(title, year):
    return counted("", tool_calls=[{"name": "Film", "args": {"title": title, "year": year}, "id": title}])


@both_ways
@pytest.mark.parametrize("handle_errors", [True, False])
async def test_an_answer_that_cannot_be_parsed_does_not_pass(sync, handle_errors):
    answers = [film("Alien", "secret"), film("Alien", "secret"), film("Alien", 1979), film("Alien", "secret")]
    out = await ask(agent(answers, guard(), response_format=ToolStrategy(Film, handle_errors=handle_errors)), sync)
    assert out["structured_response"] == Film(title="Alien", year=1979)
    assert out["bonmini_guard"]["decision"] == "accepted"
    assert out["messages"][1].usage_metadata["total_tokens"] == 44
    assert [type(message) for message in out["messages"]] == [HumanMessage, AIMessage, ToolMessage]
    assert "secret" not in repr(out)


async def test_words_in_place_of_structured_output_do_not_pass():
    answers = ["in words", film("Alien", 1979)]
    out = await agent(answers, guard(lambda text: 1.0), response_format=ToolStrategy(Film)).ainvoke(QUESTION)
    assert out["structured_response"] == Film(title="Alien", year=1979)


@both_ways
async def test_an_abstention_ends_an_agent_that_is_to_give_structured_output(sync):
    model = FakeChatModel(["in words"])
    graph = agent(model, guard(on_abstain="continue", abstain_message="sorry"), response_format=ToolStrategy(Film))
    out = await ask(graph, sync, config={"recursion_limit": 20})
    assert (out["messages"][-1].text, len(model.calls)) == ("sorry", 4)


async def test_where_an_abstention_cannot_end_the_agent_it_is_told_and_nothing_is_drawn_again():
    class After(AgentMiddleware):
        def after_model(self, state, runtime):
            """It lets LangChain forget that the agent is to end."""

    model = FakeChatModel(["in words"])
    graph = agent(model, guard(on_abstain="continue"), After(), response_format=ToolStrategy(Film))
    with pytest.raises(ConfigurationError, match="on_abstain='error'"):
        await graph.ainvoke(QUESTION, {"recursion_limit": 20})
    assert len(model.calls) == 4


async def test_native_structured_output_is_parsed_draw_by_draw():
    answers = ["not json secret", '{"title": "Alien", "year": 1979}']
    out = await agent(answers, guard(lambda text: 1.0), response_format=ProviderStrategy(Film)).ainvoke(QUESTION)
    assert out["structured_response"] == Film(title="Alien", year=1979)


async def test_if_no_answer_can_be_parsed_a_guardrail_abstains_and_quotes_nothing():
    graph = agent([film("Alien", "secret")], guard(), response_format=ToolStrategy(Film, handle_errors=False))
    with pytest.raises(NoAcceptableResponse, match="invalid_output") as caught:
        await graph.ainvoke(QUESTION)
    assert "secret" not in str(caught.value)
    assert not isinstance(caught.value, ScorerError)
    accelerator = guard(mode="accelerator")
    with pytest.raises(StructuredOutputValidationError):
        await agent([film("Alien", "secret")], accelerator, response_format=ToolStrategy(Film, handle_errors=False)).ainvoke(
            QUESTION
        )


# What inner middleware does


def tell(request, response):
    """Tells the state and the stream what every draw said."""
    text = f"a draw said {response.result[0].content}"
    request.runtime.stream_writer(text)
    get_stream_writer()(text)
    return ExtendedModelResponse(response, Command(update={"messages": [AIMessage(text)]}))


@both_ways
async def test_inner_middleware_can_neither_stream_nor_store_what_was_rejected(sync):
    graph = agent(["poor", "good"], guard(), Around(after=tell))
    if sync:
        parts = await asyncio.to_thread(lambda: list(graph.stream(QUESTION, stream_mode=["custom", "values"])))
    else:
        parts = [part async for part in graph.astream(QUESTION, stream_mode=["custom", "values"])]
    assert "a draw said" not in repr(parts)
    assert [message.content for message in parts[-1][1]["messages"]] == ["q", "good"]


async def test_a_graph_inside_a_draw_neither_streams_nor_saves():
    saver = InMemorySaver()
    helper = create_agent(FakeChatModel(["secret plan"]), name="helper")

    class Planning(AgentMiddleware):
        async def awrap_model_call(self, request, handler):
            await helper.ainvoke(QUESTION)
            return await handler(request)

    graph = agent(["poor", "good"], guard(), Planning(), checkpointer=saver)
    config: dict[str, Any] = {"configurable": {"thread_id": "1"}}
    modes = ["messages", "updates", "custom", "values", "debug"]
    parts = [part async for part in graph.astream(QUESTION, config, stream_mode=modes, subgraphs=True)]
    saved = [entry async for entry in saver.alist(None)]
    assert "secret plan" not in repr(parts) + repr(saved)
    assert "good" in repr(parts)


@both_ways
async def test_callbacks_of_the_model_itself_hear_nothing_and_the_model_is_left_as_it_was(sync):
    heard = Recorder()
    model = FakeChatModel(["poor", "good"], callbacks=[heard])
    assert (await ask(agent(model, guard()), sync))["messages"][-1].content == "good"
    assert heard.heard == []
    assert model.callbacks == [heard]


# Construction


@both_ways
async def test_a_copy_by_pickle_asks_a_function_of_ones_own_too(sync):
    copied = pickle.loads(pickle.dumps(guard(on_abstain=str)))
    assert (await ask(agent(["poor"], copied), sync))["messages"][-1].text.startswith("abstained after 4 draws")


@both_ways
async def test_a_copy_by_pickle_holds_no_model_whose_answers_were_refused(sync):
    refusing = guard()
    with pytest.raises(NoAcceptableResponse):
        await ask(agent(lambda messages, number: "poor", refusing), sync)
    assert (await ask(agent(["good"], pickle.loads(pickle.dumps(refusing))), sync))["messages"][-1].text == "good"


def test_arguments_are_checked():
    with pytest.raises(ConfigurationError, match="ModelFallbackMiddleware"):
        guard(on_abstain="message")
    with pytest.raises(ConfigurationError, match="max_loop"):
        guard(max_loop=3)
    with pytest.raises(ConfigurationError, match="generator= is the agent's own model"):
        guard(generator=FakeChatModel(["good"]))
    for not_taken in ({"temperature": 0.2}, {"cache": True}, {"name": "mine"}):  # of a chat model: no draw would have them
        with pytest.raises(ConfigurationError, match=f"unknown argument '{next(iter(not_taken))}'"):
            guard(**not_taken)
    with pytest.raises(TypeError):
        BestOfMiniNMiddleware(FakeRewardModel(SCORES))


@both_ways
async def test_a_model_at_temperature_zero_is_refused(sync):
    class Sampled(FakeChatModel):
        temperature: float = 0.0

    with pytest.raises(ConfigurationError, match="temperature 0"):
        await ask(agent(Sampled(["good"]), guard()), sync)


async def test_a_profile_is_bound_to_the_agents_model():
    model = FakeChatModel(["good"])
    prints = {"generator": LangChainGenerator(model).fingerprint(), "reward_model": "fake-reward-model"}
    shape = {"mode": "guardrail", "schedule": [2], "thresholds": [0.0]}
    bound = GuardProfile(**shape, fingerprints=prints)
    out = await agent(model, guard(profile=bound, schedule=None)).ainvoke(QUESTION)
    assert out["messages"][-1].content == "good"
    other = GuardProfile(**shape, fingerprints=prints | {"generator": "another"})
    with pytest.raises(ProfileError, match="another"):
        await agent(model, guard(profile=other, schedule=None)).ainvoke(QUESTION)
    lax = agent(model, guard(profile=other, schedule=None, strict=False))
    with pytest.warns(UserWarning, match="another"):
        await lax.ainvoke(QUESTION)


@both_ways
@pytest.mark.parametrize("pinned", [True, False])
async def test_a_fallbacks_answer_carries_no_profile_of_another_model(sync, pinned):
    small, large = FakeChatModel(["poor"], model_name="small"), FakeChatModel(["good"], model_name="large")
    prints = {"generator": LangChainGenerator(small).fingerprint()} if pinned else {}
    profile = GuardProfile(mode="guardrail", schedule=[2], thresholds=[0.0], fingerprints=prints)
    middleware = [ModelFallbackMiddleware(large), guard(profile=profile, schedule=None)]
    graph = create_agent(small, middleware=middleware)
    for _ in range(2):
        out = await ask(graph, sync)
        about = out["bonmini_guard"]
        assert out["messages"][-1].text == "good"
        assert (about["decision"], about["profile"], about["score"]) == ("fallback", None, None)
    alone = await ask(create_agent(FakeChatModel(["good"], model_name="small"), middleware=middleware), sync)
    assert (alone["bonmini_guard"]["decision"], alone["bonmini_guard"]["profile"]) == ("accepted", "guardrail")
    if pinned:
        with pytest.raises(ProfileError, match="large"):
            await ask(create_agent(large, middleware=middleware[1:]), sync)


@both_ways
async def test_a_fallbacks_answer_has_to_pass_as_well(sync):
    profile = GuardProfile(mode="guardrail", schedule=[2], thresholds=[0.0])
    middleware = [
        ModelFallbackMiddleware(FakeChatModel(["poor"])),
        BestOfMiniNMiddleware(reward_model=FakeRewardModel(SCORES), profile=profile),
    ]
    with pytest.raises(NoAcceptableResponse):
        await ask(create_agent(FakeChatModel(["poor"]), middleware=middleware), sync)


def test_without_langchain_the_cure_is_named(monkeypatch):
    for name in ("bonmini_guard.adapters.agents", "bonmini_guard.adapters.agent_calls"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "langchain.agents.middleware.types", None)
    with pytest.raises(MissingExtraError, match=r"bonmini-guard\[agents\]"):
        importlib.import_module("bonmini_guard.adapters.agents")
