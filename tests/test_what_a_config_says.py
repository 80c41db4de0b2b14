"""What a call's config says reaches generator, scorer and fallback, whatever the face; only callbacks and streams stay outside."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid

import anyio
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, trim_messages
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.runnables.config import ensure_config
from langchain_core.runnables.history import RunnableWithMessageHistory

pytest.importorskip("langchain.agents")
from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_config, get_store
from langgraph.func import entrypoint, task
from langgraph.graph import MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore
from langgraph.types import interrupt

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, GenerationError, NoAcceptableResponse, ShadowBestOfMiniN
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.testing import FakeChatModel, FakeGenerator

pytestmark = [
    pytest.mark.filterwarnings("ignore:uncalibrated"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning"),
]

FACES = {"runnable": BestOfMiniN, "chat": ChatBestOfMiniN}
QUESTION = {"messages": [("human", "q")]}


def good(messages, candidates):
    return [1.0] * len(candidates)


class Runs(BaseCallbackHandler):
    """Which run began in which."""

    def __init__(self):
        self.parents = {}

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, **kwargs):
        self.parents[run_id] = parent_run_id

    def on_chat_model_start(self, serialized, messages, *, run_id, parent_run_id=None, **kwargs):
        self.parents[run_id] = parent_run_id

    def roots(self, run):
        """The runs around one, itself included."""
        found = []
        while run is not None:
            found.append(run)
            run = self.parents.get(run)
        return found


class Notes:
    """A generator, a scorer and a fallback that note the config that they find."""

    def __init__(self):
        self.found = {}

    def note(self, who, stored):
        config = ensure_config()
        self.found[who] = {
            "configurable": config["configurable"].get("tenant"),
            "thread": config["configurable"].get("thread_id"),
            "metadata": config["metadata"].get("customer"),
            "tags": "mine" in config["tags"],
            "run": getattr(config["callbacks"], "parent_run_id", None),
            "store": get_store().get(("a",), "b").value["c"] if stored else None,
        }

    def parts(self, stored):
        def draw(messages):
            self.note("generator", stored)
            return "poor"

        def score(messages, candidates):
            self.note("scorer", stored)
            return [-1.0] * len(candidates)

        def fallback(result):
            self.note("on_abstain", stored)
            return "instead"

        return FakeChatModel(draw), {"reward_model": score, "on_abstain": fallback, "schedule": [2]}


def guarded(face, parts):
    model, settings = parts
    if face == "middleware":
        return create_agent(model, middleware=[BestOfMiniNMiddleware(**settings)])
    return FACES[face](generator=model, **settings)


async def events_of(guard, given, config):
    async for _ in await guard.astream_events(given, config, version="v3"):
        pass


async def stream_of(guard, given, config):
    async for _ in guard.astream(given, config):
        pass


WAYS = {
    "invoke": lambda guard, given, config: asyncio.to_thread(guard.invoke, given, config),
    "ainvoke": lambda guard, given, config: guard.ainvoke(given, config),
    "stream": lambda guard, given, config: asyncio.to_thread(lambda: list(guard.stream(given, config))),
    "astream": stream_of,
    "batch": lambda guard, given, config: asyncio.to_thread(guard.batch, [given], config),
    "abatch": lambda guard, given, config: guard.abatch([given], config),
    "with_config": lambda guard, given, config: guard.with_config(config).ainvoke(given),
    "events": events_of,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("face", [*FACES, "middleware"])
async def test_generator_scorer_and_fallback_find_the_config_of_the_call(face, way):
    notes, runs, own = Notes(), Runs(), uuid.uuid4()
    config = {
        "configurable": {"tenant": "acme", "thread_id": "7"},
        "metadata": {"customer": "c1"},
        "tags": ["mine"],
        "run_id": own,
        "callbacks": [runs],
    }
    if way == "events" and face == "runnable":
        pytest.skip("version 3 is of models and graphs")
    await WAYS[way](guarded(face, notes.parts(False)), QUESTION if face == "middleware" else "q", config)
    assert set(notes.found) == {"generator", "scorer", "on_abstain"}
    for found in notes.found.values():
        assert own in runs.roots(found.pop("run"))
        assert found == {"configurable": "acme", "thread": "7", "metadata": "c1", "tags": True, "store": None}


@pytest.mark.parametrize("face", [*FACES, "middleware"])
@pytest.mark.parametrize("sync", [True, False])
async def test_inside_a_graph_they_find_its_store_and_its_thread(face, sync):
    notes, store = Notes(), InMemoryStore()
    store.put(("a",), "b", {"c": 3})
    model, settings = notes.parts(True)
    if face == "middleware":
        graph = create_agent(model, middleware=[BestOfMiniNMiddleware(**settings)], store=store, checkpointer=InMemorySaver())
    else:
        guard = guarded(face, (model, settings))
        node = RunnableLambda(
            lambda state: {"messages": [guard.invoke(state["messages"])]},
            afunc=lambda state: _answered(guard, state),
        )
        builder = StateGraph(MessagesState).add_node("answer", node).set_entry_point("answer")
        graph = builder.compile(store=store, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "7"}}
    await (asyncio.to_thread(graph.invoke, QUESTION, config) if sync else graph.ainvoke(QUESTION, config))
    assert {name: (found["store"], found["thread"]) for name, found in notes.found.items()} == {
        "generator": (3, "7"),
        "scorer": (3, "7"),
        "on_abstain": (3, "7"),
    }


async def _answered(guard, state):
    return {"messages": [await guard.ainvoke(state["messages"])]}


async def test_a_draw_writes_nothing_to_the_state_of_its_graph():
    def draw(messages):
        get_config()["configurable"]["__pregel_send"]([("messages", [AIMessage("rejected")])])
        return "poor"

    guard = BestOfMiniN(
        generator=FakeChatModel(draw), reward_model=lambda m, c: [-1.0] * len(c), schedule=[2], on_abstain="message"
    )

    async def node(state):
        return {"messages": [await guard.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("answer", node).set_entry_point("answer").compile()
    out = await graph.ainvoke(QUESTION)
    assert "rejected" not in repr(out)
    assert len(out["messages"]) == 2


@pytest.mark.parametrize("face", FACES)
async def test_a_draw_is_no_task_of_its_graph(face):
    """What a task returns is streamed and saved, whoever calls it."""

    @task
    async def draft(messages):
        return "rejected"

    def guarded(call):
        return FACES[face](generator=RunnableLambda(call), reward_model=lambda m, c: [-1.0] * len(c), schedule=[2])

    guards = {"task": guarded(draft), "function": guarded(draft.func)}

    @entrypoint(checkpointer=InMemorySaver())
    async def flow(which):
        with pytest.raises((GenerationError, NoAcceptableResponse)) as caught:
            await guards[which].ainvoke("q")
        return str(caught.value)

    async def heard(which):
        config = {"configurable": {"thread_id": which}}
        return [repr(step) async for step in flow.astream(which, config, stream_mode=["updates", "tasks", "debug", "custom"])]

    steps = await heard("task")
    assert "rejected" not in str(steps)
    assert "the task draft() returns: call its function, .func" in str(steps)
    assert "abstained after 2 draws" in str(await heard("function"))


def ask_a_person(*_):
    return interrupt("a person")


@pytest.mark.parametrize("who", ["generator", "reward_model", "on_abstain"])
@pytest.mark.parametrize("face", FACES.values())
async def test_every_part_of_every_face_may_ask_a_person(face, who):
    parts = {"generator": FakeGenerator(["poor"]), "reward_model": lambda m, c: [-1.0] * len(c), "on_abstain": "error"}
    parts[who] = RunnableLambda(ask_a_person) if who == "generator" else ask_a_person
    guard = face(**parts, schedule=[2])

    async def node(state):
        return {"messages": [await guard.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState).add_node("answer", node).set_entry_point("answer")
    out = await builder.compile(checkpointer=InMemorySaver()).ainvoke(QUESTION, {"configurable": {"thread_id": "1"}})
    assert [pause.value for pause in out["__interrupt__"]] == ["a person"]


@pytest.mark.parametrize("way", ["run", "arun", "invoke", "ainvoke"])
async def test_the_run_has_the_id_and_the_name_of_its_config(way):
    seen, own = [], uuid.uuid4()

    class Seen(BaseCallbackHandler):
        def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, name=None, **kwargs):
            if parent_run_id is None:
                seen.append((run_id, name))

    guard = BestOfMiniN(generator=FakeGenerator(["a"]), reward_model=good, schedule=[1])
    config = {"callbacks": [Seen()], "run_id": own, "run_name": "mine"}
    call = getattr(guard, way)
    await (call("q", config) if way.startswith("a") else asyncio.to_thread(call, "q", config))
    assert seen == [(own, "mine")]


async def test_arun_in_a_chain_is_a_run_of_that_chain():
    runs = Runs()
    guard = BestOfMiniN(generator=FakeGenerator(["a"]), reward_model=good, schedule=[1])

    async def step(given):
        return await guard.arun(given)

    await RunnableLambda(step).ainvoke("q", {"callbacks": [runs]})
    assert len(runs.parents) == 4  # the chain, the request, its draw and its score
    assert list(runs.parents.values()).count(None) == 1


class History(BaseChatMessageHistory):
    def __init__(self):
        self.messages = [HumanMessage("before"), AIMessage("said")]

    def add_messages(self, messages):
        self.messages = [*self.messages, *messages]

    def clear(self):
        self.messages = []


@pytest.mark.parametrize("face", FACES.values())
def test_a_history_is_that_of_the_calls_session_and_belongs_around_the_guard(face):
    histories, seen = {"s": History()}, []

    def draw(messages):
        seen.append([message.text for message in messages])
        return "draft"

    model = RunnableWithMessageHistory(FakeChatModel(draw), histories.get)
    with pytest.warns(UserWarning, match="put RunnableWithMessageHistory around the guard"):
        guard = face(generator=model, reward_model=good, schedule=[2])
    session = {"configurable": {"session_id": "s"}}
    guard.invoke([HumanMessage("q")], session)
    assert seen[0] == ["before", "said", "q"]
    histories["s"] = History()
    guard = face(generator=FakeChatModel(draw), reward_model=good, schedule=[2])
    RunnableWithMessageHistory(guard, histories.get).invoke([HumanMessage("q")], session)
    assert [message.text for message in histories["s"].messages] == ["before", "said", "q", "draft"]


CHOICE = {"configurable": {"llm": "big"}}


def alternatives():
    return FakeChatModel(["small"]).configurable_alternatives(
        ConfigurableField(id="llm"), default_key="small", big=FakeChatModel(["big"])
    )


@pytest.mark.parametrize("face", FACES.values())
@pytest.mark.parametrize("around", [lambda m: m, lambda m: m.bind(stop=["x"]), lambda m: RunnableLambda(lambda x: x) | m])
async def test_the_model_that_the_config_names_answers(face, around):
    model = around(alternatives())
    guard = face(generator=model, reward_model=good, schedule=[2])
    assert guard.invoke("q").text == "small"
    assert guard.invoke("q", CHOICE).text == "big"
    assert (await guard.with_config(CHOICE).ainvoke("q")).text == "big"
    shadow = ShadowBestOfMiniN(BestOfMiniN(generator=model, reward_model=good, schedule=[2]))
    assert shadow.invoke("q", CHOICE).text == "big"


class Crowd:
    """A model that notes how many ask it at a time; the first wait until so many are there."""

    def __init__(self, expected):
        self.changed, self.now, self.most, self.expected = threading.Condition(), 0, 0, expected

    def __call__(self, given):
        with self.changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= self.expected, 30)
        time.sleep(0.02)
        with self.changed:
            self.now -= 1
        return "a"


BATCHES = {
    "invoke": lambda guard, config: asyncio.to_thread(guard.invoke, "q", config),
    "ainvoke": lambda guard, config: guard.ainvoke("q", config),
    "batch": lambda guard, config: asyncio.to_thread(guard.batch, ["q"] * 3, config),
    "abatch": lambda guard, config: guard.abatch(["q"] * 3, config),
    "batch, configs": lambda guard, config: asyncio.to_thread(guard.batch, ["q"] * 3, [config] * 3),
    "chain": lambda guard, config: (RunnableLambda(lambda x: x) | guard).abatch(["q"] * 3, config),
    "as completed": lambda guard, config: asyncio.to_thread(lambda: list(guard.batch_as_completed(["q"] * 3, config))),
}


@pytest.mark.parametrize("face", FACES.values())
@pytest.mark.parametrize("way", BATCHES)
@pytest.mark.parametrize("own", [None, 1, 8])
async def test_max_concurrency_bounds_the_draws_of_all_requests_of_a_call(face, way, own):
    crowd = Crowd(min(2, own or 2))
    guard = face(generator=RunnableLambda(crowd), reward_model=good, schedule=[4], max_concurrency=own)
    await BATCHES[way](guard, {"max_concurrency": 2})
    assert crowd.most == crowd.expected


async def test_the_limit_of_a_call_ends_with_it():
    crowd = Crowd(1)
    guard = BestOfMiniN(generator=RunnableLambda(crowd), reward_model=good, schedule=[4])
    await guard.arun("q", {"max_concurrency": 1})
    assert crowd.most == 1
    crowd.expected = 4
    await guard.arun("q")
    assert crowd.most == 4


async def test_a_guard_in_a_draw_does_not_wait_for_the_place_of_that_draw():
    inner = BestOfMiniN(generator=FakeGenerator(["a"]), reward_model=good, schedule=[2])
    outer = BestOfMiniN(generator=inner, reward_model=good, schedule=[2], timeout=10)
    assert (await outer.ainvoke("q", {"max_concurrency": 1})).text == "a"


async def test_who_gives_up_waiting_for_the_second_limit_gives_the_first_back():
    outer, inner = Limiter(2), Limiter(1)
    here = outer.here(inner=inner.here())
    await here.acquire()
    waiting = asyncio.create_task(here.acquire())
    await asyncio.sleep(0)
    assert outer.here().free == 0
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (outer.here().free, inner.here().free) == (1, 0)
    here.release()
    assert (outer.here().free, inner.here().free) == (2, 1)


class Slow:
    """A scorer whose sessions take their time, to score and to close."""

    has_zero = True

    def __init__(self):
        self.begun = self.closed = 0
        self.scoring = asyncio.Event()

    def session(self, messages):
        return self

    async def score(self, candidates):
        self.scoring.set()
        await asyncio.sleep(60)
        return [1.0] * len(candidates)

    async def aclose(self):
        self.begun += 1
        await asyncio.sleep(0.01)
        self.closed += 1


async def by_asyncio(guard, scoring):
    async def limited():
        async with asyncio.timeout(None) as limit:
            asyncio.create_task(scoring.wait()).add_done_callback(lambda _: limit.reschedule(0))
            await guard.ainvoke("q")

    with pytest.raises(TimeoutError):
        await limited()


async def by_anyio(guard, scoring):
    with anyio.CancelScope() as scope:
        asyncio.create_task(scoring.wait()).add_done_callback(lambda _: setattr(scope, "deadline", 0))
        await guard.ainvoke("q")


async def by_a_group(guard, scoring):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guard.ainvoke, "q")
        await scoring.wait()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("way", [by_asyncio, by_anyio, by_a_group])
@pytest.mark.parametrize("face", FACES.values())
async def test_clean_up_goes_to_its_end_however_the_request_is_cancelled(face, way):
    scorer = Slow()
    await way(face(generator=FakeGenerator(["a"]), reward_model=scorer, schedule=[1]), scorer.scoring)
    assert (scorer.begun, scorer.closed) == (1, 1)


class Counting(FakeChatModel):
    def get_token_ids(self, text):
        return [1] * 7

    def get_num_tokens(self, text):
        return 7

    def get_num_tokens_from_messages(self, messages, tools=None):
        return 100 * len(messages)


HISTORY = [SystemMessage("s"), HumanMessage("a"), AIMessage("b"), HumanMessage("c"), AIMessage("d"), HumanMessage("e")]


@pytest.mark.parametrize(
    "around", [lambda m: m, lambda m: m.bind(stop=["x"]), lambda m: m.with_retry(), lambda m: RunnableLambda(lambda x: x) | m]
)
def test_tokens_are_counted_as_the_wrapped_model_counts_them(around):
    model = ChatBestOfMiniN(generator=around(Counting(["a"])), reward_model=good, schedule=[1])
    assert (model.get_num_tokens("a b"), model.get_token_ids("a b")) == (7, [1] * 7)
    trimmed = trim_messages(HISTORY, max_tokens=300, token_counter=model, strategy="last", include_system=True)
    assert [message.text for message in trimmed] == ["s", "d", "e"]


def test_a_counter_given_to_the_guard_comes_first():
    model = ChatBestOfMiniN(generator=Counting(["a"]), reward_model=good, schedule=[1], custom_get_token_ids=lambda text: [1, 2])
    assert model.get_num_tokens("a b") == 2
