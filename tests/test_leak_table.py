"""Whatever the face, the nesting, the way to call and the listener: the winner alone is heard, once (peers.md 7.3).

Each case draws a rejected, streamed answer, a worse one, the winner, and one more. What a case hears is everything that
callbacks, tracers, event streams, graph streams, saved states, logs and tracebacks are given.
"""

from __future__ import annotations

import asyncio
import logging
import traceback

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import StructuredTool
from langsmith import Client
from langsmith.run_helpers import tracing_context

pytest.importorskip("langchain.agents")
from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState, StateGraph

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, NoAcceptableResponse
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.testing import FakeChatModel
from tests.test_no_leak import Recorder, Tracer

pytestmark = [
    pytest.mark.filterwarnings("ignore:uncalibrated"),
    pytest.mark.filterwarnings("ignore:astream_events version"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
]

WINNER = "winner takes all"
ANSWERS = ["secret-one secret-two", "secret-three secret-four", WINNER, "secret-five secret-six"]
QUESTION = {"messages": [("human", "q")]}
MODES = ["messages", "updates", "custom", "values", "debug"]

FACES = ["runnable", "chat", "middleware"]
NESTINGS = ["alone", "chain", "tool", "graph", "subgraph"]


JUDGE = FakeChatModel(["fine"])


async def judge(messages, candidates):
    """A language model as reward model: its prompts quote the candidates."""
    for candidate in candidates:
        await JUDGE.ainvoke(f"judge this: {candidate.text}")
    return [1.0 if candidate.text == WINNER else -1.0 for candidate in candidates]


def face(kind, streams, **settings):
    """The guard, taking messages in a state and giving messages in a state."""
    model = FakeChatModel(ANSWERS, disable_streaming=not streams)
    settings = {"reward_model": judge, "schedule": [2, 2], "progress": True, **settings}
    if kind == "middleware":
        return create_agent(model, middleware=[BestOfMiniNMiddleware(**settings)])
    guard = (BestOfMiniN if kind == "runnable" else ChatBestOfMiniN)(generator=model, **settings)
    return guard if kind == "chat" else guard.with_types(input_type=None)


def question(kind):
    return QUESTION if kind == "middleware" else "q"


def text_of(answer):
    # An agent inside a chain streams updates, by node.
    message = answer.get("model", answer)["messages"][-1] if isinstance(answer, dict) else answer
    return message if isinstance(message, str) else str(message.text)


def nested(kind, nesting, sync, streams=True, **settings):
    """A runnable with the guard inside, and its input."""
    guard = face(kind, streams, **settings)
    if nesting == "alone":
        return guard, question(kind)
    if nesting == "chain":
        return RunnableLambda(lambda given: given) | guard | RunnableLambda(text_of), question(kind)
    if nesting == "tool":
        return a_tool(guard, kind), {"about": "q"}
    graph = a_graph(guard, kind, sync)
    return (a_graph(graph, "middleware", sync) if nesting == "subgraph" else graph), QUESTION


def a_tool(guard, kind):
    def answer(about: str) -> str:
        """Answer a question."""
        return text_of(guard.invoke(question(kind)))

    async def answer_later(about: str) -> str:
        return text_of(await guard.ainvoke(question(kind)))

    return StructuredTool.from_function(answer, answer_later)


def a_graph(inner, kind, sync):
    def node(state):
        return {"messages": [AIMessage(text_of(inner.invoke(given(state))), id="answer")]}

    async def anode(state):
        return {"messages": [AIMessage(text_of(await inner.ainvoke(given(state))), id="answer")]}

    def given(state):
        return {"messages": state["messages"]} if kind == "middleware" else state["messages"]

    graph = StateGraph(MessagesState)
    graph.add_node("answer", node if sync else anode)
    graph.set_entry_point("answer")
    return graph.compile(checkpointer=InMemorySaver())


def config_of(*handlers):
    return {"callbacks": list(handlers), "configurable": {"thread_id": "1"}}


class Ear(Client):
    """A LangSmith client that keeps what it is sent."""

    def __init__(self):
        super().__init__(api_url="http://127.0.0.1:9", api_key="none", auto_batch_tracing=False)
        self.heard = []

    def create_run(self, *arguments, **named):
        self.heard.append(repr(arguments) + repr(named))

    def update_run(self, *arguments, **named):
        self.heard.append(repr(arguments) + repr(named))


def assert_clean(*heard):
    text = "".join(item if isinstance(item, str) else repr(item) for item in heard)
    assert WINNER in text
    assert "secret" not in text


each_face = pytest.mark.parametrize("kind", FACES)
each_nesting = pytest.mark.parametrize("nesting", NESTINGS)
each_streaming = pytest.mark.parametrize("streams", [True, False], ids=["streaming", "whole"])
both_ways = pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])


@each_face
@each_nesting
@each_streaming
@both_ways
async def test_callbacks_and_tracers(kind, nesting, streams, sync):
    recorder, tracer = Recorder(), Tracer()
    runnable, given = nested(kind, nesting, sync, streams)
    config = config_of(recorder, tracer)
    answer = await (asyncio.to_thread(runnable.invoke, given, config) if sync else runnable.ainvoke(given, config))
    assert text_of(answer) == WINNER
    assert_clean(recorder.text, tracer.text, answer)
    ends = [text for name, text in recorder.heard if name == "on_llm_end"]
    assert len(ends) == (0 if kind == "runnable" else 1)


@each_face
@each_nesting
@both_ways
async def test_langsmith_tracing(kind, nesting, sync):
    ear = Ear()
    runnable, given = nested(kind, nesting, sync)
    with tracing_context(enabled=True, client=ear):
        config = config_of()
        await (asyncio.to_thread(runnable.invoke, given, config) if sync else runnable.ainvoke(given, config))
    assert_clean(*ear.heard)
    assert "bonmini_guard.draw" in "".join(ear.heard)


@each_face
@each_nesting
@each_streaming
@both_ways
async def test_streams(kind, nesting, streams, sync):
    recorder = Recorder()
    runnable, given = nested(kind, nesting, sync, streams)
    config = config_of(recorder)
    if sync:
        chunks = await asyncio.to_thread(lambda: list(runnable.stream(given, config)))
    else:
        chunks = [chunk async for chunk in runnable.astream(given, config)]
    assert_clean(recorder.text, chunks)
    assert repr(chunks).count(WINNER) == 1


@each_face
@each_nesting
@each_streaming
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_event_streams(kind, nesting, streams, version):
    runnable, given = nested(kind, nesting, False, streams)
    events = [event async for event in runnable.astream_events(given, config_of(), version=version)]
    assert_clean(events)
    tokens = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
    assert tokens in ([], [WINNER])
    assert sum(event["event"] == "on_chat_model_end" for event in events) == (0 if kind == "runnable" else 1)


@pytest.mark.parametrize(
    ("kind", "nesting"),
    [("chat", "alone"), ("middleware", "alone"), *((kind, nesting) for kind in FACES for nesting in ("graph", "subgraph"))],
)
@each_streaming
@both_ways
async def test_event_streams_of_version_3(kind, nesting, streams, sync):
    runnable, given = nested(kind, nesting, sync, streams)
    if sync:
        events = await asyncio.to_thread(lambda: list(runnable.stream_events(given, config_of(), version="v3")))
    else:
        stream = await runnable.astream_events(given, config_of(), version="v3")
        events = [event async for event in stream]
    assert_clean(events)
    assert repr(events).count("'text-delta'") <= 1


@pytest.mark.parametrize(
    ("kind", "nesting"), [("middleware", "alone"), *((kind, nesting) for kind in FACES for nesting in ("graph", "subgraph"))]
)
@each_streaming
@both_ways
async def test_graph_streams_and_saved_states(kind, nesting, streams, sync):
    graph, given = nested(kind, nesting, sync, streams)
    config = config_of()
    if sync:
        parts = await asyncio.to_thread(lambda: list(graph.stream(given, config, stream_mode=MODES, subgraphs=True)))
    else:
        parts = [part async for part in graph.astream(given, config, stream_mode=MODES, subgraphs=True)]
    saved = [] if graph.checkpointer is None else [entry async for entry in graph.checkpointer.alist(None)]
    assert_clean(parts, saved)
    assert {part[1] for part in parts} == set(MODES)
    messages = [part[2][0] for part in parts if part[1] == "messages" and part[2][0].type != "human" and part[2][0].id != "answer"]
    assert [message.text for message in messages] in ([WINNER], [] if kind == "runnable" else [WINNER])
    assert [part[2]["draws"] for part in parts if part[1] == "custom"] == [2, 4]


@each_face
@each_nesting
@both_ways
async def test_exceptions_and_logs(kind, nesting, sync, caplog):
    caplog.set_level(logging.DEBUG)
    recorder, tracer = Recorder(), Tracer()

    def quoting(messages, candidates):
        raise KeyError(candidates[0].text)

    for settings in ({"threshold": 9.0}, {"reward_model": quoting}):
        runnable, given = nested(kind, nesting, sync, **settings)
        config = config_of(recorder, tracer)
        with pytest.raises(NoAcceptableResponse) as caught:
            await (asyncio.to_thread(runnable.invoke, given, config) if sync else runnable.ainvoke(given, config))
        told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.result) + caplog.text
        heard = recorder.text + tracer.text
        assert "abstained" in told
        assert "secret" not in told + heard
        assert WINNER not in told + heard
