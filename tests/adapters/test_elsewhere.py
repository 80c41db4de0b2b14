"""One model for sync calls, async calls and several event loops: each has connections of its own, or sync methods are called."""

from __future__ import annotations

import asyncio
import gc
import threading
from itertools import count

import pytest
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import LangChainGenerator
from bonmini_guard.testing import FakeRewardModel
from tests.adapters.loopback import InThread
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.test_langchain import ManyChoices

openai = pytest.importorskip("langchain_openai")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ACCEPTS = FakeRewardModel(lambda messages, candidates: [1.0] * len(candidates))
REFUSES = FakeRewardModel(lambda messages, candidates: [-1.0] * len(candidates))


class Mine(openai.ChatOpenAI):
    """A user's class, of which nobody else knows how it is made."""


@pytest.fixture
def server():
    with InThread(OpenAIServer()) as running:
        yield running


def model(server, kind=openai.ChatOpenAI, **settings):
    return kind(base_url=f"{server.url}/v1", model="tiny", api_key="none", max_retries=0, **settings)


def guard(generator, **settings):
    return BestOfMiniN(**{"generator": generator, "reward_model": ACCEPTS, "schedule": [2], "retry_memory": 0, **settings})


def by_turns(guarded, turns=3):
    for _ in range(turns):
        yield asyncio.run(guarded.ainvoke("q"))
        yield guarded.invoke("q")

    async def both():
        return await asyncio.gather(guarded.ainvoke("q"), asyncio.to_thread(guarded.invoke, "q"), guarded.ainvoke("q"))

    yield from asyncio.run(both())


@pytest.mark.parametrize("kind", [openai.ChatOpenAI, Mine])
@pytest.mark.parametrize("streaming", [False, True])
def test_sync_and_async_calls_by_turns_and_at_once(server, kind, streaming):
    guarded = guard(model(server, kind, streaming=streaming))
    # A class of one's own is used on the loops of callers as it is, so on one alone.
    said = by_turns(guarded, 3 if kind is openai.ChatOpenAI else 0)
    assert all(answer.text.startswith("answer") for answer in said)


def test_a_class_that_does_not_keep_its_settings_is_not_made_again(server):
    numbers = count(1)

    class Counted(openai.ChatOpenAI):
        def __init__(self, **settings):
            super().__init__(**settings | {"temperature": next(numbers)})

    Counted.__module__ = "langchain_counted"
    assert guard(model(server, Counted)).invoke("q").text.startswith("answer")
    assert {body["temperature"] for _, _, body in server.requests} == {1}


def test_what_an_abstention_asks_is_asked_by_turns_too(server):
    other = model(server)
    guarded = guard(model(server), reward_model=REFUSES, on_abstain=other | (lambda message: f"instead: {message.text}"))
    assert all(answer.text.startswith("instead: answer") for answer in by_turns(guarded))


def test_two_guards_of_one_server_share_its_connections_on_each_loop(server):
    for guarded in (guard(model(server)), guard(model(server, temperature=0.5))):
        for _ in range(3):
            guarded.invoke("q")
    assert server.connections == 2


def test_a_sync_draw_that_is_given_up_stops_at_the_server(server):
    numbers, lock = iter(range(9)), threading.Lock()

    def slow(body):
        with lock:
            return 30.0 if next(numbers) else 0.0

    server.slow = slow
    guard(model(server), schedule=[3], exit="eager").invoke("q")
    for _ in range(1200):
        if server.closed_early == 2:
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"{server.closed_early} of 2 draws were stopped")


def test_a_models_connections_end_with_it(server):
    import openai as sdk

    # Such a timeout gives a model connections that it shares with no other.
    guarded = guard(model(server, timeout=sdk.Timeout(9.0)))
    guarded.invoke("q")
    assert server.open == 2
    del guarded
    for _ in range(1200):
        gc.collect()
        if server.open == 0:
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"{server.open} connections are open")


class Both(ManyChoices):
    """Has async methods of its own."""

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=AIMessage("async"))])


class OnlyAsync(Both):
    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        raise NotImplementedError


@pytest.mark.parametrize(("kind", "sync"), [(Both, "answer"), (OnlyAsync, "async")])
def test_sync_calls_use_the_sync_methods_of_an_unknown_class_where_it_has_some(kind, sync):
    guarded = guard(kind().bind(user="me").with_retry())
    assert guarded.invoke("q").text.startswith(sync)
    assert asyncio.run(guarded.ainvoke("q")).text == "async"


def test_settings_that_a_class_takes_as_fields_alone_reach_its_sync_methods():
    class ChatOllama(Both):  # by whose name such a class is known
        seed: int | None = None

        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            return ChatResult(generations=[ChatGeneration(message=AIMessage(f"seed {self.seed}"))])

    guarded = guard(LangChainGenerator(ChatOllama(), seed_argument="seed"))
    assert guarded.invoke("q").text != "seed None"


def test_clients_of_the_users_own_are_kept(server):
    import openai as sdk

    named = {"x-of": "mine"}
    clients = {
        "http_client": sdk.DefaultHttpxClient(headers=named),
        "http_async_client": sdk.DefaultAsyncHttpxClient(headers=named),
    }
    guarded = guard(model(server, **clients))
    guarded.invoke("q")
    asyncio.run(guarded.ainvoke("q"))
    assert [headers.get("x-of") for _, headers, _ in server.requests] == ["mine"] * 4


async def test_the_first_loop_has_the_model_itself(server):
    generator = LangChainGenerator(model(server))
    assert generator.here() is generator.chat_model
