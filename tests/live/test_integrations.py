"""Other makers' LangChain clients as generators, each on its own protocol over the loopback. ``make live-integrations``."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.runnables import ConfigurableField

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN
from bonmini_guard.adapters import LangChainGenerator
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.errors import GenerationError
from bonmini_guard.testing import FakeRewardModel
from tests.adapters.loopback import InThread
from tests.live.vendors import VENDORS, Form

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore::UserWarning")]

ACCEPTS = FakeRewardModel(lambda messages, candidates: [1.0] * len(candidates))
each_vendor = pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.name)
FORMS = [pytest.param(vendor, form, id=f"{vendor.name}, {form.name}") for vendor in VENDORS for form in vendor.forms]


@pytest.fixture
def serve():
    """Serves a form of a vendor."""
    running = []

    def begin(vendor, form=None) -> Any:
        server = vendor.server()
        server.form = form or vendor.forms[0]
        if server.form.status != 200:
            server.faults = lambda path, body: (server.form.status, server.form.whole)
        running.append(InThread(server))
        return running[-1].__enter__()

    yield begin
    for each in running:
        each.__exit__()


def guard(model, **settings):
    return BestOfMiniN(generator=model, reward_model=ACCEPTS, **{"schedule": [1], "retry_memory": 0, **settings})


def streamed(vendor):
    return {"streaming": True} if vendor.streaming else {}


def by_turns(guarded, question="What time is it?", **options):
    """What it says to async and sync calls by turns, each async one on a new loop, and at once within one loop."""
    said = []
    for _ in range(2):
        said += [outcome(lambda: asyncio.run(guarded.ainvoke(question, **options)))]
        said += [outcome(lambda: guarded.invoke(question, **options))]

    async def both():
        return await asyncio.gather(guarded.ainvoke(question, **options), asyncio.to_thread(guarded.invoke, question, **options))

    return said + (outcome(lambda: asyncio.run(both())) if not isinstance(said[0], Exception) else [])


def outcome(call):
    """A message, or the error."""
    try:
        return call()
    except Exception as error:
        return error


def told(message):
    """What a caller reads of a message."""
    about = message.response_metadata
    calls = [(call["name"], call["args"]) for call in message.tool_calls]
    reason = next((about[name] for name in ("finish_reason", "stop_reason", "done_reason") if about.get(name)), None)
    return message.text, calls, len(message.invalid_tool_calls), (message.usage_metadata or {}).get("total_tokens"), reason


@pytest.mark.parametrize(("vendor", "form"), FORMS)
def test_what_the_client_serves_the_guard_serves(vendor, form, serve):
    server = serve(vendor, form)
    bare = outcome(lambda: vendor.build(server.url).invoke("What time is it?"))
    if form.text is not None:
        assert bare.text == form.text
    said = []
    for more in ({}, streamed(vendor)):
        guarded = guard(vendor.build(server.url, **more))
        said += [outcome(partial(asyncio.run, guarded.ainvoke("q"))), outcome(partial(guarded.invoke, "q"))]
    for each in said:
        if isinstance(bare, Exception):
            assert isinstance(each, GenerationError), each
        elif form.stricter and isinstance(each, GenerationError):
            assert "Unanswered" in repr(each.__cause__), each.__cause__
        else:
            assert told(each) == told(bare)


@each_vendor
def test_options_of_a_call_reach_the_server(vendor, serve):
    server = serve(vendor)
    guarded = guard(LangChainGenerator(vendor.build(server.url), seed_argument=vendor.seed), schedule=[2])
    options = {name: value for name, (value, _) in vendor.options.items()}
    assert {each.text for each in by_turns(guarded, stop=["no"], **options)} == {"It is 42."}
    bodies = [vendor.said(body) for _, _, body in server.requests]
    assert len(bodies) == 12
    assert all(body[place] == value for body in bodies for value, place in vendor.options.values())
    assert all(["no"] in (body.get("stop"), body.get("stop_sequences")) for body in bodies)
    if vendor.seed is not None:
        assert len({body[vendor.seed] for body in bodies}) == 12


@each_vendor
def test_fields_of_the_chat_model_reach_the_server(vendor, serve):
    server = serve(vendor)
    settings = {"temperature": 0.5, "max_tokens": 9}
    chat = ChatBestOfMiniN(generator=vendor.build(server.url), reward_model=ACCEPTS, schedule=[1], retry_memory=0, **settings)
    assert {each.text for each in by_turns(chat)} == {"It is 42."}
    wanted = [vendor.options[name] for name in settings]
    assert all(vendor.said(body)[place] == value for _, _, body in server.requests for value, place in wanted)


def test_options_as_ollama_has_them(serve):
    vendor = next(each for each in VENDORS if each.name == "ChatOllama")
    server = serve(vendor)
    assert {each.text for each in by_turns(guard(vendor.build(server.url)), options={"mirostat": 1})} == {"It is 42."}
    assert all(body["options"] == {"mirostat": 1} for _, _, body in server.requests)


@each_vendor
@pytest.mark.parametrize("name", ["n", "best_of", "stream"])
def test_options_that_would_spoil_draws_are_refused(vendor, name, serve):
    server = serve(vendor)
    for said in by_turns(guard(vendor.build(server.url)), **{name: 2}):
        assert isinstance(said, GenerationError), said
        assert f"the call holds {name!r}" in str(said)
    assert server.requests == []


@each_vendor
@pytest.mark.parametrize("wrap", ["bound", "retried", "chained", "fallback", "configurable", "alternative"])
def test_models_below_bindings_fallbacks_and_configurations(vendor, wrap, serve):
    broken = serve(vendor, Form("broken", "", {"error": {"message": "no"}}, [], 500))
    server = serve(vendor)
    model = vendor.build(server.url, **streamed(vendor))
    first = vendor.build(broken.url, **streamed(vendor))
    wrapped = {
        "bound": model.bind(stop=["no"]),
        "retried": model.with_retry(),
        "chained": (lambda messages: messages) | model,
        "fallback": first.with_fallbacks([model]),
        "configurable": model.configurable_fields(temperature=ConfigurableField("warmth")),
        "alternative": first.configurable_alternatives(ConfigurableField("which"), default_key="broken", whole=model),
    }[wrap]
    chosen = {"configurable": {"warmth": 0.5, "which": "whole"}}
    guarded = guard(wrapped, schedule=[2])
    assert {each.text for each in by_turns(guarded.with_config(chosen))} == {"It is 42."}
    if wrap == "configurable":
        assert {vendor.said(body)["temperature"] for _, _, body in server.requests} == {0.5}


@each_vendor
def test_in_the_middleware(vendor, serve):
    server = serve(vendor)
    middleware = BestOfMiniNMiddleware(reward_model=ACCEPTS, schedule=[2], retry_memory=0)
    agent = create_agent(vendor.build(server.url, **streamed(vendor)), middleware=[middleware])
    asked = {"messages": [("human", "What time is it?")]}
    for _ in range(3):
        answers = [agent.invoke(asked), asyncio.run(in_one_loop(agent, asked))]
        assert {each["messages"][-1].text for each in answers} == {"It is 42."}
        # The agent's own sync and async calls share the model's connections, as without a guard: each loop has a model.
        agent = create_agent(vendor.build(server.url), middleware=[middleware])


async def in_one_loop(agent, asked):
    return await agent.ainvoke(asked)


@each_vendor
def test_an_abstention_asks_the_model_too(vendor, serve):
    server = serve(vendor)
    refuses = FakeRewardModel(lambda messages, candidates: [-1.0] * len(candidates))
    model = vendor.build(server.url)
    guarded = BestOfMiniN(generator=model, reward_model=refuses, schedule=[1], on_abstain=model, retry_memory=0)
    said = by_turns(guarded)
    assert {(each.text, each.response_metadata["bonmini_guard"]["decision"]) for each in said} == {("It is 42.", "fallback")}


@each_vendor
def test_many_at_once(vendor, serve):
    server = serve(vendor)
    guarded = guard(vendor.build(server.url), schedule=[2])

    async def several():
        return await asyncio.gather(*(guarded.ainvoke(f"q {number}") for number in range(20)))

    with ThreadPoolExecutor(20) as pool:
        sync = [pool.submit(guarded.invoke, f"s {number}") for number in range(20)]
        loops = [pool.submit(asyncio.run, several()) for _ in range(2)]
        said = [each.result() for each in sync] + [answer for each in loops for answer in each.result()]
    assert {each.text for each in said} == {"It is 42."}
    assert len(server.requests) == 120


@each_vendor
@pytest.mark.parametrize("sync", [False, True])
def test_a_draw_that_is_given_up_stops_at_the_server(vendor, sync, serve):
    server, lock, number = serve(vendor), threading.Lock(), iter(range(9))

    def slow(body):
        with lock:
            return 0.0 if next(number) == 0 else 30.0

    server.slow = slow
    guarded = guard(vendor.build(server.url), schedule=[3], exit="eager")
    said = guarded.invoke("q") if sync else asyncio.run(guarded.ainvoke("q"))
    assert said.text == "It is 42."
    for _ in range(100):
        if server.closed_early == 2:
            break
        threading.Event().wait(0.05)
    assert (len(server.requests), server.closed_early) == (3, 2)
