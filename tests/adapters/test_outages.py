"""A server in trouble meets few requests, and whoever asked is told what is wrong."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import AIMessage

pytest.importorskip("huggingface_hub")

from bonmini_guard.adapters import OpenAICompatibleGenerator, TGIGenerator
from bonmini_guard.adapters.circuit import CircuitBreaker, CircuitOpen
from bonmini_guard.errors import ConfigurationError, GenerationError
from bonmini_guard.testing import FakeGenerator
from tests.adapters.drawing import guard_of
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.tgi_server import TGIServer

pytestmark = pytest.mark.filterwarnings("ignore:.*uncalibrated.*")
DEAD = {
    401: (4, "the endpoint answered 401.*check the key"),
    403: (4, "the endpoint answered 403.*check the key"),
    404: (4, "the endpoint answered 404.*check base_url and the model's name"),
    429: (8, "the endpoint answered 429.*draw less at a time"),
    500: (8, "the endpoint answered 500"),
    502: (8, "the endpoint answered 502.*check that the server runs"),
    503: (8, "the endpoint answered 503.*check that the server runs"),
    "reset": (8, "the connection to the endpoint failed.*check base_url"),
    "html": (8, "with no JSON|could not be read"),
}


def generators(**settings):
    settings = {"timeout": 20.0, "backoff": 0.02, **settings}
    return {
        "openai": (OpenAIServer, lambda url: OpenAICompatibleGenerator(url, model="tiny", api_key="", **settings)),
        "tgi": (TGIServer, lambda url: TGIGenerator(url, token="", **settings)),
    }


@pytest.mark.parametrize("retries", [0, 3])
@pytest.mark.parametrize("family", ["openai", "tgi"])
@pytest.mark.parametrize("fault", DEAD)
async def test_a_request_against_a_dead_server_is_few_http_requests_and_one_clear_line(family, fault, retries):
    most, said = DEAD[fault]
    serve, build = generators(retries=retries)[family]
    async with serve() as server, build(server.url) as generator:
        server.faults = lambda path, body: fault
        guard = guard_of(generator, lambda text: 1.0, mini_n=4, max_loops=8)
        with pytest.raises(GenerationError, match=said) as caught:
            await guard.arun("q")
        assert "\n" not in str(caught.value)
        assert len(server.requests) <= most
        assert len(caught.value.__cause__.exceptions) <= 2


async def test_many_requests_against_a_dead_server_open_the_circuit_that_they_share():
    serve, build = generators()["openai"]
    async with serve() as server, build(server.url) as generator:
        server.faults = lambda path, body: 503
        guard = guard_of(generator, lambda text: 1.0, mini_n=4, max_loops=8)
        outcomes = await asyncio.gather(*(guard.arun("q") for _ in range(50)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {GenerationError}
        assert len(server.requests) <= 50 * 4
        before = len(server.requests)
        with pytest.raises(GenerationError, match=r"CircuitOpen: the endpoint answered 503.*; it keeps failing") as caught:
            await guard.arun("q")
        assert isinstance(caught.value.__cause__.exceptions[0], CircuitOpen)
        assert len(server.requests) == before


@pytest.mark.parametrize("retries", [0, 3])
@pytest.mark.parametrize("fault", [(429, {}), (429, {"error": "slow"}, {"retry-after": "0.1"}), 503])
async def test_once_the_circuit_is_open_a_dead_server_meets_one_trial_in_each_cooldown(fault, retries):
    circuit, loop, times = CircuitBreaker(cooldown=0.5), asyncio.get_running_loop(), []

    def failing(path, body):
        times.append(loop.time())
        return fault

    serve, build = generators(circuit=circuit, retries=retries)["openai"]
    async with serve() as server, build(server.url) as generator:
        server.faults, opened = failing, []
        guard = guard_of(generator, lambda text: 1.0, mini_n=4, max_loops=8)

        async def ask():
            while not opened or loop.time() < opened[0][0] + 2:
                with pytest.raises(GenerationError):
                    await guard.arun("q")
                if not opened and circuit.times_opened:
                    opened.append((loop.time(), len(times)))
                await asyncio.sleep(0.01)

        await asyncio.wait_for(asyncio.gather(*(ask() for _ in range(50))), 60)
    (_, before), lasted = opened[0], loop.time() - opened[0][0]
    assert before <= 50 * 4
    # What was under way may fail a little later.
    assert 1 <= len(times) - before <= lasted / circuit.cooldown + 2


async def test_a_server_that_recovers_serves_who_waited():
    serve, build = generators(backoff=0.2)["openai"]
    async with serve() as server, build(server.url) as generator:
        server.faults = [429] * 4
        result = await guard_of(generator, lambda text: 1.0, mini_n=4, max_loops=2).arun("q")
        assert (result.decision, result.metadata()["failed_draws"], len(server.requests)) == ("accepted", 0, 8)


# Whatever the generator


def failing(*outcomes):
    return FakeGenerator([outcome if isinstance(outcome, Exception) else AIMessage(outcome) for outcome in outcomes])


async def test_a_cause_that_cannot_pass_ends_the_request_after_its_loop():
    generator = failing(ConfigurationError("no such option"))
    with pytest.raises(GenerationError, match="none of 2 draws arrived: ConfigurationError: no such option"):
        await guard_of(generator, len, mini_n=2, max_loops=8).arun("q")
    assert len(generator.requests) == 2


async def test_loops_that_fail_are_followed_by_others_later_and_not_for_ever():
    generator, loop = failing(ConnectionError("down")), asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(GenerationError, match="none of 8 draws arrived"):
        await guard_of(generator, len, mini_n=4, max_loops=8).arun("q")
    assert loop.time() - begun >= 0.25


@pytest.mark.parametrize(("mode", "decision"), [("guardrail", "abstained"), ("accelerator", "best_effort")])
async def test_where_failures_decided_the_reason_says_so(mode, decision):
    def answer(request):
        if request.index:
            raise ConnectionError("down")
        return "no"

    guard = guard_of(FakeGenerator(answer), lambda text: -1.0, mode=mode, mini_n=3, max_loops=8)
    result = await guard.arun("q")
    assert (result.decision, result.reason, result.metadata()["failed_draws"]) == (decision, "generator_failed", 8)
    short = await guard_of(FakeGenerator(answer), lambda text: -1.0, mini_n=3, max_loops=1).arun("q")
    assert (short.decision, short.reason, short.metadata()["failed_draws"]) == ("abstained", "generator_failed", 2)


async def test_a_few_failures_decide_nothing():
    def answer(request):
        if request.index == 1:
            raise ConnectionError("down")
        return "no"

    result = await guard_of(FakeGenerator(answer), lambda text: -1.0, mini_n=4, max_loops=2).arun("q")
    assert (result.reason, result.metadata()["failed_draws"]) == ("budget_spent", 1)
