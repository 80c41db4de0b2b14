"""Progress events: after each loop, to callbacks and to LangGraph's custom stream, and never with text."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.runnables import RunnableLambda

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN
from bonmini_guard.runnables.callbacks import PROGRESS
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

ANSWERS = ["secret one", "secret two", "winner", "secret three"]
EXPECTED = [
    {"loop": 1, "loops": 2, "draws": 2, "budget": 4, "best_score": -1.0, "threshold": 0.0},
    {"loop": 2, "loops": 2, "draws": 4, "budget": 4, "best_score": 1.0, "threshold": 0.0},
]


def make(face, answers=ANSWERS, **settings):
    scorer = FakeRewardModel(lambda text: 1.0 if text == "winner" else -1.0)
    settings = {"schedule": [2, 2], "progress": True, **settings}
    return face(generator=FakeGenerator(answers), reward_model=scorer, **settings)


class Listener(AsyncCallbackHandler):
    def __init__(self):
        self.events = []

    async def on_custom_event(self, name, data, *, run_id, **kwargs):
        self.events.append((name, data, run_id))


faces = pytest.mark.parametrize("face", [BestOfMiniN, ChatBestOfMiniN])


@faces
@pytest.mark.parametrize("sync", [False, True])
async def test_callbacks_hear_of_each_loop(face, sync):
    listener = Listener()
    guard, config = make(face), {"callbacks": [listener]}
    await (asyncio.to_thread(guard.invoke, "q", config) if sync else guard.ainvoke("q", config))
    assert [data for _, data, _ in listener.events] == EXPECTED
    assert {name for name, _, _ in listener.events} == {PROGRESS}
    assert len({run_id for _, _, run_id in listener.events}) == 1


@faces
async def test_event_streams_carry_progress_before_the_answer(face):
    chain = RunnableLambda(lambda text: text) | make(face)
    events = [event async for event in chain.astream_events("q", version="v2")]
    progress = [event["data"] for event in events if event["event"] == "on_custom_event"]
    assert progress == EXPECTED
    last = max(index for index, event in enumerate(events) if event["event"] == "on_custom_event")
    answer = min(index for index, event in enumerate(events) if "winner" in repr(event))
    assert last < answer


async def test_arun_tells_progress_too():
    listener = Listener()
    await make(BestOfMiniN).arun("q", {"callbacks": [listener]})
    assert [data for _, data, _ in listener.events] == EXPECTED


@faces
async def test_it_is_off_by_default(face):
    listener = Listener()
    await make(face, progress=False).ainvoke("q", {"callbacks": [listener]})
    assert listener.events == []


@faces
async def test_what_does_not_exist_yet_is_null(face):
    listener = Listener()
    guard = make(face, [OSError("down"), OSError("down"), "winner", "winner"], threshold=[float("inf"), 0.0])
    await guard.ainvoke("q", {"callbacks": [listener]})
    first = listener.events[0][1]
    assert (first["best_score"], first["threshold"]) == (None, None)


@faces
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("heard", [False, True])
async def test_langgraphs_custom_stream_carries_progress(face, sync, heard):
    graph_module = pytest.importorskip("langgraph.graph")
    guard = make(face)

    async def anode(state):
        return {"messages": [await guard.ainvoke(state["messages"])]}

    def node(state):
        return {"messages": [guard.invoke(state["messages"])]}

    graph = graph_module.StateGraph(graph_module.MessagesState)
    graph.add_node("answer", node if sync else anode)
    graph.set_entry_point("answer")
    compiled, prompt = graph.compile(), {"messages": [("human", "q")]}
    config = {"callbacks": [Listener()]} if heard else None
    if sync:
        out = await asyncio.to_thread(lambda: list(compiled.stream(prompt, config, stream_mode="custom")))
    else:
        out = [chunk async for chunk in compiled.astream(prompt, config, stream_mode="custom")]
    assert out == [{"type": PROGRESS, **data} for data in EXPECTED]
