"""``TGIGenerator``: recorded answers, what is sent, faults, cancellation, secrets. The server is ours, on the loopback."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import httpx
import jsonschema
import pytest
from huggingface_hub.errors import HfHubHTTPError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

pytest.importorskip("huggingface_hub")

from bonmini_guard.adapters import TGIGenerator
from bonmini_guard.adapters import http_errors as errors
from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.errors import ConfigurationError
from tests.adapters.drawing import building, request
from tests.adapters.tgi_server import INFO, TGIServer, chat_chunks, events, generated

DATA = Path(__file__).parent.parent / "data" / "tgi"
TOKEN = "hf_secretsecretsecret"


def recorded(name):
    return json.loads((DATA / f"{name}.json").read_text())


@pytest.fixture(autouse=True)
def no_token_of_mine(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
async def server():
    async with TGIServer() as running:
        yield running


@pytest.fixture
async def make(server):
    async for build in building(TGIGenerator, server.url):
        yield build


# Recorded answers


@pytest.mark.parametrize("as_list", [True, False])
async def test_the_recorded_generations(server, make, as_list):
    server.headers = {"x-prompt-tokens": "4"}
    for name, text, reason, tokens in [
        ("generate_details_simple", " for /api/v1/projects/1", "length", 10),
        ("generate_details_all_params", "Test request failed: Error in test", "stop_sequence", 5),
    ]:
        server.answer = [recorded(name)] if as_list else recorded(name)
        message = await make(mode="completion").draw(request())
        assert (message.content, message.response_metadata["finish_reason"]) == (text, reason)
        assert message.response_metadata.get("truncated", False) is (reason == "length")
        assert message.usage_metadata == {"input_tokens": 4, "output_tokens": tokens, "total_tokens": 4 + tokens}


@pytest.mark.parametrize(("told", "tokens"), [("7", 7), (math.inf, 0), (10**30, 0)])
async def test_what_is_no_number_of_tokens_costs_no_draw(server, make, told, tokens):
    server.answer = generated("good")
    server.answer[0]["details"]["generated_tokens"] = told
    message = await make(mode="completion").draw(request())
    assert (message.content, message.usage_metadata["output_tokens"]) == ("good", tokens)


async def test_a_streamed_generation(server, make):
    server.said = events("four", "stop_sequence")
    message = await make(mode="completion", stream=True, stop=["r"]).draw(request())
    assert message.content == "fou"
    assert message.usage_metadata == {"input_tokens": 7, "output_tokens": 4, "total_tokens": 11}


@pytest.mark.parametrize("mode", ["chat", "completion"])
async def test_lines_of_a_stream_end_where_its_protocol_says_and_a_mark_of_byte_order_may_come_first(server, make, mode):
    said = "a\u2028b\u2029c\x85d"  # after which Unicode ends lines, and JSON does not
    server.opening, server.said = b"\xef\xbb\xbf", (chat_chunks if mode == "chat" else events)(said)
    server.event = lambda chunk: b"data:" + json.dumps(chunk, ensure_ascii=False).encode() + b"\r\n\r\n"
    assert (await make(mode=mode, stream=True).draw(request())).content == said


# What is sent


def check(body, name):
    """The body fits the schema and has no key that it does not name. Null does not fit, though TGI would take it."""
    components = recorded("openapi")["components"]
    jsonschema.validate(body, {"$ref": f"#/components/schemas/{name}", "components": components})
    assert set(body) <= set(components["schemas"][name]["properties"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", [0, 7])
async def test_a_chat_request_fits_the_schema(server, make, stream, seed):
    generator = make(stream=stream, top_p=1.0, stop=["END"], temperature=0.7, max_new_tokens=9, model="mine")
    await generator.draw(request(seed, [SystemMessage("s"), HumanMessage("q")], frequency_penalty=0.5))
    path, _, body = server.requests[0]
    assert path == "/v1/chat/completions"
    check(body, "ChatRequest")
    assert body["seed"] == (seed or 2**31)
    assert (body["temperature"], body["max_tokens"], body["stop"], body["model"]) == (0.7, 9, ["END"], "mine")
    assert not {"top_p", "n", "presence_penalty"} & set(body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", [0, 7])
async def test_a_generate_request_fits_the_schema_and_samples(server, make, stream, seed):
    generator = make(mode="completion", stream=stream, top_p=0.9, top_k=5, stop=["a", "b"], max_new_tokens=9)
    await generator.draw(request(seed, [HumanMessage("one "), HumanMessage("two")]))
    path, _, body = server.requests[0]
    assert (path, body["inputs"]) == ("/", "one two")
    check(body, "CompatGenerateRequest")
    parameters = body["parameters"]
    check(parameters, "GenerateParameters")
    assert parameters["do_sample"] is True
    assert (parameters["temperature"], parameters["top_p"], parameters["top_k"], parameters["seed"]) == (1.0, 0.9, 5, seed or 2**31)
    assert "best_of" not in parameters


async def test_a_turn_with_tool_calls_has_no_content_which_would_hide_them(server, make):
    call = {"name": "f", "args": {"a": 1}, "id": "0"}
    await make().draw(request(1, [HumanMessage("q"), AIMessage("", tool_calls=[call]), ToolMessage("r", tool_call_id="0")]))
    turns = server.requests[0][2]["messages"]
    assert [sorted(turn) for turn in turns] == [["content", "role"], ["role", "tool_calls"], ["content", "role", "tool_call_id"]]


@pytest.mark.parametrize("option", ["presence_penalty", "top_k"])
async def test_options_that_its_routes_do_not_know_are_refused(server, make, option):
    with pytest.raises(ConfigurationError, match=option):
        await make().draw(DrawRequest([HumanMessage("q")], 7, 0, {option: 2}))
    assert not server.requests


async def test_a_greedy_draw_is_asked_for_as_each_route_has_it(server, make):
    await make(temperature=0).draw(request())
    await make(temperature=0, mode="completion").draw(request())
    assert server.requests[0][2]["temperature"] == 0
    assert not {"do_sample", "temperature"} & set(server.requests[1][2]["parameters"])


@pytest.mark.parametrize("info", [None, "a page for people", ["no", "object"]])
async def test_a_server_that_does_not_describe_itself_is_asked_once(server, make, info):
    server.info = info
    generator = make()
    await generator.draw(request())
    assert {await asyncio.to_thread(generator.fingerprint) for _ in range(3)} == {generator.fingerprint()}
    assert server.info_requests == 1
    server.info, server.no_info = None, 429  # for now
    generator = make()
    await generator.draw(request())
    server.info = INFO
    assert str(INFO["model_id"]) in await asyncio.to_thread(generator.fingerprint)


async def test_what_is_left_to_the_server_is_not_sent_and_draws_are_samples(server, make):
    left = {"temperature": None, "max_new_tokens": None}
    await make(**left).draw(request())
    await make(mode="completion", **left).draw(request())
    body, parameters = server.requests[0][2], server.requests[1][2]["parameters"]
    check(body, "ChatRequest")
    check(parameters, "GenerateParameters")
    assert not {"temperature", "max_tokens"} & set(body)
    assert parameters["do_sample"] is True
    assert not {"temperature", "max_new_tokens"} & set(parameters)


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"max_new_tokens": 0}])
async def test_wrong_settings_are_refused(make, settings):
    with pytest.raises(ConfigurationError):
        make(**settings)


# Faults


async def test_the_hub_does_not_repeat_a_refused_request_without_its_seed(server, make):
    refusal = {"error": "The following `model_kwargs` are not used by the model: ['seed', 'do_sample']"}
    server.faults = [(400, refusal)]
    with pytest.raises(errors.RequestRejected, match="model_kwargs"):
        await make(mode="completion").draw(request())
    assert len(server.requests) == 1
    await make(mode="completion").draw(request())
    assert server.requests[1][2]["parameters"]["seed"] == 7


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("overloaded", errors.Overloaded),
        ("validation", errors.RequestRejected),
        ("generation", errors.GenerationFailedAtEndpoint),
        (None, errors.GenerationFailedAtEndpoint),
    ],
)
async def test_an_error_inside_a_stream_is_told_by_its_name(server, make, name, kind):
    server.said = [{"error": "no luck", "error_type": name}]
    with pytest.raises(kind, match="no luck") as caught:
        await make(mode="completion", stream=True, retries=0).draw(request())
    assert (caught.value.status, caught.value.error_type) == (200, name)


# With the guard


async def test_the_servers_limit_on_concurrent_requests_is_kept(server, make):
    server.info = {**server.info, "max_concurrent_requests": 3}
    server.slow = 0.02
    generator = make()
    await asyncio.gather(*(generator.draw(request(seed)) for seed in range(12)))
    assert server.busiest == 3


@pytest.mark.parametrize("mode", ["chat", "completion"])
async def test_what_the_servers_limits_rule_out_is_said_and_not_sent(server, make, mode):
    server.info = {**server.info, "max_total_tokens": 20, "max_stop_sequences": 2}
    with pytest.raises(ConfigurationError, match="max_total_tokens is 20"):
        await make(mode=mode, max_new_tokens=20).draw(request())
    with pytest.raises(ConfigurationError, match="max_stop_sequences is 2"):
        await make(mode=mode, max_new_tokens=10).draw(request(stop=["a", "b", "c"]))
    assert not server.requests
    await make(mode=mode, max_new_tokens=19, stop=["a", "b"]).draw(request())
    assert len(server.requests) == 1


def test_no_message_of_an_error_that_is_chained_holds_the_key():
    said = "bad key k-1234"
    error = HfHubHTTPError(said, response=httpx.Response(401, request=httpx.Request("POST", "http://h")), server_message=said)
    error.message = said  # where other clients keep it
    error.__cause__ = ValueError(said)
    errors.classify(error, "k-1234")
    assert {error.args[0], error.message, error.server_message, str(error.__cause__)} == {"bad key ***"}
