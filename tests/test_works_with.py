"""Every face inside LangChain's and LangGraph's constructions, and a thousand requests at a time."""

from __future__ import annotations

import asyncio
import gc
import inspect
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel

pytest.importorskip("langchain.agents")
from langchain.agents import create_agent
from langgraph.graph import MessagesState, StateGraph
from langgraph.types import RetryPolicy

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, NoAcceptableResponse
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.engine.held import BEAT
from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.errors import GenerationError
from bonmini_guard.testing import FakeChatModel, FakeRewardModel
from tests.test_no_leak import Tracer
from tests.test_processes import forks, in_a_child

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

FACES = ["runnable", "chat", "middleware"]
each_face = pytest.mark.parametrize("kind", FACES)
both_ways = pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])


def echo(messages, number):
    """Every second draw belongs to the prompt and passes."""
    return f"answer to {messages[-1].text}" if number % 2 else f"rejected for {messages[-1].text}"


def by_prompt(messages, candidates):
    return [1.0 if candidate.text == f"answer to {messages[-1].text}" else -1.0 for candidate in candidates]


def face(kind, source=echo, **settings):
    """A runnable from a string to a string with the guard inside."""
    settings = {"reward_model": FakeRewardModel(by_prompt), "mini_n": 2, "max_loops": 20, **settings}
    model = FakeChatModel(source) if inspect.isfunction(source) else source
    if kind == "middleware":
        agent = create_agent(model, middleware=[BestOfMiniNMiddleware(**settings)])
        return RunnableLambda(lambda text: {"messages": [("human", text)]}) | agent | (lambda out: out["messages"][-1].text)
    guard = (BestOfMiniN if kind == "runnable" else ChatBestOfMiniN)(generator=model, **settings)
    return guard | (lambda message: message.text)


async def call(runnable, given, sync, config=None):
    return await (asyncio.to_thread(runnable.invoke, given, config) if sync else runnable.ainvoke(given, config))


@each_face
@both_ways
async def test_in_a_runnable_parallel(kind, sync):
    branches = RunnableParallel({name: RunnableLambda(lambda text, name=name: f"{text} {name}") | face(kind) for name in "abc"})
    assert await call(branches, "q", sync) == {name: f"answer to q {name}" for name in "abc"}


@each_face
@both_ways
async def test_with_retry(kind, sync):
    failures = iter([OSError("down"), OSError("down")])

    def flaky(messages, number):
        return next(failures, None) or "answer to q"

    patient = face(kind, flaky, max_loops=1).with_retry(retry_if_exception_type=(GenerationError,), wait_exponential_jitter=False)
    assert await call(patient, "q", sync) == "answer to q"
    assert next(failures, None) is None


@each_face
@both_ways
async def test_a_graphs_retry_policy_leaves_an_abstention_as_it_is(kind, sync):
    asked = []

    def poor(messages, number):
        asked.append(number)
        return "rejected"

    node = RunnableLambda(lambda state: state["messages"][-1].text) | face(kind, poor, max_loops=1) | AIMessage
    builder = StateGraph(MessagesState)
    policy = RetryPolicy(max_attempts=3, initial_interval=0.0)
    builder.add_node("answer", node | (lambda message: {"messages": [message]}), retry_policy=policy)
    graph = builder.set_entry_point("answer").compile()
    with pytest.raises(NoAcceptableResponse):
        await call(graph, {"messages": [("human", "q")]}, sync)
    assert len(asked) == 2


@each_face
@both_ways
async def test_with_fallbacks(kind, sync):
    careful = face(kind, lambda messages: "rejected", max_loops=1)
    stronger = FakeListChatModel(responses=["stronger"]) | (lambda message: message.text)
    chain = careful.with_fallbacks([stronger], exceptions_to_handle=(NoAcceptableResponse,))
    assert await call(chain, "q", sync) == "stronger"


@pytest.mark.parametrize("kind", ["runnable", "chat"])
@both_ways
async def test_with_config(kind, sync):
    tracer = Tracer()
    named = face(kind).with_config(tags=["mine"], metadata={"team": "a"}, callbacks=[tracer], run_name="guarded")
    assert await call(named, "q", sync) == "answer to q"
    (root,) = tracer.roots
    assert (root.name, root.tags, root.metadata["team"]) == ("guarded", ["mine"], "a")


async def test_configurable_alternatives():
    options = {"reward_model": FakeRewardModel(lambda text: 1.0), "mini_n": 1, "max_loops": 1}
    chat = ChatBestOfMiniN(generator=FakeChatModel(["guarded"]), **options)
    plain = FakeChatModel(["plain"])
    either = chat.configurable_alternatives(ConfigurableField(id="llm"), default_key="guarded", plain=plain)
    prompted = ChatPromptTemplate.from_template("{q}") | either
    assert (await prompted.ainvoke({"q": "?"})).text == "guarded"
    assert (await prompted.with_config(configurable={"llm": "plain"}).ainvoke({"q": "?"})).text == "plain"


@each_face
@both_ways
async def test_a_batch_of_a_hundred_with_a_limit(kind, sync):
    most = 0

    def watched(messages, candidates):
        nonlocal most
        most = max(most, scorer.open_sessions)
        return by_prompt(messages, candidates)

    scorer = FakeRewardModel(watched, latency=0.001)
    runnable, prompts, config = face(kind, reward_model=scorer), [str(number) for number in range(100)], {"max_concurrency": 8}
    answers = await (asyncio.to_thread(runnable.batch, prompts, config) if sync else runnable.abatch(prompts, config))
    assert answers == [f"answer to {prompt}" for prompt in prompts]
    assert 1 < most <= 8


@each_face
async def test_sync_calls_inside_a_running_loop_as_in_a_notebook(kind):
    runnable = face(kind)
    assert runnable.invoke("q") == "answer to q"
    assert runnable.batch(["a", "b"]) == ["answer to a", "answer to b"]


@each_face
def test_from_many_threads(kind):
    runnable = face(kind)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(runnable.invoke, map(str, range(64)))) == [f"answer to {number}" for number in range(64)]


@each_face
@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork(kind):
    runnable = face(kind, max_concurrency=1)
    runnable.invoke("before")
    assert in_a_child(lambda: (runnable.invoke("q"), asyncio.run(runnable.ainvoke("q"))) == ("answer to q",) * 2)
    assert runnable.invoke("again") == "answer to again"


@each_face
@both_ways
async def test_in_a_graph_with_parallel_nodes(kind, sync):
    guard = face(kind)
    graph = StateGraph(MessagesState)

    def node(name):
        async def answer(state):
            return {"messages": [AIMessage(await guard.ainvoke(name))]}

        return RunnableLambda(lambda state: {"messages": [AIMessage(guard.invoke(name))]}, afunc=answer)

    for name in "abc":
        graph.add_node(name, node(name))
        graph.add_edge("__start__", name)
    out = await call(graph.compile(), {"messages": [("human", "q")]}, sync)
    assert sorted(message.text for message in out["messages"][1:]) == [f"answer to {name}" for name in "abc"]


# Hundreds at a time


class Shuffled:
    """Draws of uneven length; every answer names its prompt, and three in five pass. Keeps nothing."""

    async def draw(self, request):
        await asyncio.sleep(random.random() / 1000)
        return AIMessage(f"answer to {request.messages[-1].text}" if random.random() < 0.6 else "rejected")


class ShuffledModel(FakeListChatModel):
    """The same as a chat model."""

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        message = await Shuffled().draw(DrawRequest(messages, 0))
        return ChatResult(generations=[ChatGeneration(message=message)])


async def judged(messages, candidates):
    return by_prompt(messages, candidates)


@each_face
async def test_hundreds_of_requests_at_a_time_keep_apart_and_leave_nothing_behind(kind):
    source = ShuffledModel(responses=[]) if kind == "middleware" else Shuffled()
    runnable = face(kind, source, reward_model=judged, max_concurrency=64)
    before, objects = asyncio.all_tasks(), []
    for requests in (300, 100, 100):
        prompts = [str(number) for number in range(requests)]
        answers = await asyncio.gather(*(runnable.ainvoke(prompt) for prompt in prompts))
        assert answers == [f"answer to {prompt}" for prompt in prompts]
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        del answers, prompts
        # A cancelled timer is kept until those before it are due, the last of which tells that the loop turns; then one more turn.
        await asyncio.sleep(3 * BEAT)
        await asyncio.sleep(0)
        # Were one object of each request kept, a round would add a hundred. What the loop or a thread still holds goes in a moment.
        for _ in range(40):
            gc.collect()
            if not objects or len(gc.get_objects()) - objects[-1] < 50:
                break
            await asyncio.sleep(BEAT)
        objects.append(len(gc.get_objects()))
    assert objects[2] - objects[1] < 50
