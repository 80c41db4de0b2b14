"""``TGIGenerator``: recorded answers, what is sent, faults, cancellation, secrets. The server is ours, on the loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import subprocess
import sys
import time
import traceback
from pathlib import Path

import jsonschema
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

pytest.importorskip("huggingface_hub")
pytest.importorskip("tenacity")

from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import TGIGenerator
from bonmini_guard.adapters import http_errors as errors
from bonmini_guard.errors import BonMiniGuardError, ConfigurationError
from bonmini_guard.protocols import DrawRequest
from bonmini_guard.testing import FakeRewardModel
from tests.adapters.drawing import guard_of, until
from tests.adapters.tgi_server import TGIServer, chat, events, generated

DATA = Path(__file__).parent.parent / "data" / "tgi"
TOKEN = "hf_secretsecretsecret"


def recorded(name):
    return json.loads((DATA / f"{name}.json").read_text())


def request(seed=7, messages=None, **options):
    return DrawRequest(messages or [HumanMessage("q")], seed, 0, options)


@pytest.fixture(autouse=True)
def no_token_of_mine(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
async def server():
    async with TGIServer() as running:
        yield running


@pytest.fixture
async def make(server):
    made = []

    def build(**settings):
        made.append(TGIGenerator(settings.pop("base_url", server.url), **{"backoff": 0.01, "timeout": 50.0, **settings}))
        return made[-1]

    yield build
    for generator in made:
        await generator.aclose()


# Recorded answers


async def test_the_recorded_chat_answer(server, make):
    server.answer = recorded("chat_completion")
    message = await make().draw(request())
    assert message.content.startswith("As of your last question, the weather in Brooklyn")
    assert message.usage_metadata == {"input_tokens": 61, "output_tokens": 100, "total_tokens": 161}
    model = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    assert message.response_metadata == {"finish_reason": "length", "seed": 7, "model_name": model, "truncated": True}


async def test_the_recorded_tool_call(server, make):
    server.answer = recorded("chat_tools_nostream")
    message = await make().draw(
        request(tools=[{"type": "function", "function": {"name": "get_current_weather", "parameters": {}}}])
    )
    assert message.content == ""
    arguments = {"location": "Brooklyn, NY", "format": "fahrenheit"}
    assert message.tool_calls == [{"name": "get_current_weather", "args": arguments, "id": "0", "type": "tool_call"}]


@pytest.mark.parametrize(
    ("name", "tokens"), [("chat_stream_hfhub_with_usage_chunks", 42), ("chat_stream_hfhub_no_usage_chunks", None)]
)
async def test_the_recorded_streams(server, make, name, tokens):
    server.said = recorded(name)
    message = await make(stream=True).draw(request())
    assert (message.content, message.response_metadata["finish_reason"]) == ("OK!", "stop")
    assert (message.usage_metadata or {}).get("total_tokens") == tokens


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


async def test_a_streamed_generation(server, make):
    server.said = events("four", "stop_sequence")
    message = await make(mode="completion", stream=True, stop=["r"]).draw(request())
    assert message.content == "fou"
    assert message.usage_metadata == {"input_tokens": 7, "output_tokens": 4, "total_tokens": 11}


async def test_arguments_that_are_no_object_are_invalid_tool_calls(server, make):
    server.answer = recorded("chat_tools_nostream")
    server.answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = "{oops"
    message = await make().draw(request())
    assert not message.tool_calls
    assert message.invalid_tool_calls[0]["name"] == "get_current_weather"


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


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize(("mode", "path"), [("chat", "/v1/chat/completions"), ("completion", "/")])
async def test_a_base_url_with_v1_reaches_the_same_routes(server, make, mode, path, suffix):
    await make(base_url=server.url + suffix, mode=mode).draw(request())
    assert server.requests[0][0] == path


@pytest.mark.parametrize("option", ["n", "best_of", "presence_penalty", "seed", "nonsense", "top_k"])
async def test_options_that_would_spoil_a_draw_are_refused(server, make, option):
    with pytest.raises(ConfigurationError, match=option):
        await make().draw(DrawRequest([HumanMessage("q")], 7, 0, {option: 2}))
    with pytest.raises(ConfigurationError, match="temperature"):
        await make().draw(request(temperature=0))
    assert not server.requests


async def test_temperature_0_is_refused_by_the_guard_and_greedy_for_one_draw(server, make):
    generator = make(temperature=0)
    with pytest.raises(ConfigurationError):
        BestOfMiniN(generator=generator, reward_model=FakeRewardModel(len), mode="accelerator", mini_n=2, max_loops=1)
    await generator.draw(request())
    await make(temperature=0, mode="completion").draw(request())
    assert server.requests[0][2]["temperature"] == 0
    assert not {"do_sample", "temperature"} & set(server.requests[1][2]["parameters"])


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "chats"},
        {"temperature": -1},
        {"top_p": 0},
        {"top_k": 3},
        {"max_new_tokens": 0},
        {"timeout": 0},
        {"retries": -1},
        {"max_concurrency": 0},
        {"token": "a\nb"},
        {"base_url": "localhost:8080"},
        {"base_url": "http://user:pass@host"},
        {"base_url": "http://host?token=1"},
    ],
)
async def test_wrong_settings_are_refused(make, settings):
    with pytest.raises(ConfigurationError):
        make(**settings)


# Faults

BODIES = recorded("error_bodies_from_source")


@pytest.mark.parametrize("mode", ["chat", "completion"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "body", "kind", "tries"),
    [
        (429, BODIES["429"], errors.Overloaded, 4),
        (503, BODIES["503_health"], errors.Overloaded, 4),
        (502, "<html>bad gateway</html>", errors.EndpointUnreachable, 4),
        (504, "", errors.EndpointTimeout, 4),
        (424, BODIES["424"], errors.GenerationFailedAtEndpoint, 2),
        (500, BODIES["500"], errors.GenerationFailedAtEndpoint, 2),
        (422, BODIES["422"], errors.RequestRejected, 1),
        (404, "Not Found", errors.RequestRejected, 1),
        (400, {"error": "no", "error_type": "x"}, errors.RequestRejected, 1),
        (401, {"error": "no"}, errors.RequestRejected, 1),
        (307, "", errors.RequestRejected, 1),
    ],
)
async def test_error_bodies_become_typed_errors_and_some_are_tried_again(server, make, mode, stream, status, body, kind, tries):
    server.faults = [(status, body)] * 10
    with pytest.raises(errors.EndpointError) as caught:
        await make(mode=mode, stream=stream).draw(request())
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, BonMiniGuardError)
    assert (error.status, len(server.requests)) == (status, tries)
    assert (error.__cause__ is not None) is (status not in (307, 400))
    if isinstance(body, dict):
        assert (error.error_type, body["error"] in str(error)) == (body.get("error_type"), True)
    assert type(pickle.loads(pickle.dumps(error))) is kind


@pytest.mark.parametrize("mode", ["chat", "completion"])
@pytest.mark.parametrize(
    ("fault", "kind", "tries"),
    [
        ("half", errors.EndpointUnreachable, 4),
        ("reset", errors.EndpointUnreachable, 4),
        ("garbage", errors.MalformedAnswer, 2),
        ("html", errors.MalformedAnswer, 2),
        ((200, "null"), errors.MalformedAnswer, 2),
        ((200, "[]"), errors.MalformedAnswer, 2),
        ((200, "{}"), errors.MalformedAnswer, 2),
        ((200, {"choices": [], "generated_text": 3}), errors.MalformedAnswer, 2),
        ((200, {"choices": [{"index": 0, "message": {"content": 3}, "finish_reason": "stop"}]}), errors.MalformedAnswer, 2),
    ],
)
async def test_broken_answers_are_typed_errors(server, make, mode, fault, kind, tries):
    server.faults = [fault] * 10
    with pytest.raises(errors.EndpointError) as caught:
        await make(mode=mode).draw(request())
    assert (type(caught.value), len(server.requests)) == (kind, tries)


@pytest.mark.parametrize("mode", ["chat", "completion"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("error event", errors.GenerationFailedAtEndpoint),
        ("cut stream", errors.GenerationFailedAtEndpoint),
        ("html", errors.MalformedAnswer),
        ("garbage", errors.MalformedAnswer),
        ("half", errors.EndpointUnreachable),
    ],
)
async def test_a_stream_that_fails_is_no_answer(server, make, mode, fault, kind):
    server.faults = [fault] * 10
    with pytest.raises(kind):
        await make(mode=mode, stream=True).draw(request())
    server.faults = [fault]
    assert (await make(mode=mode, stream=True).draw(request())).content == "answer"


async def test_an_answer_without_a_finish_reason_is_not_accepted(server, make):
    server.answer = chat("half an ans", None)
    with pytest.raises(errors.GenerationFailedAtEndpoint, match="broke off"):
        await make(retries=0).draw(request())


async def test_the_hub_does_not_repeat_a_refused_request_without_its_seed(server, make):
    refusal = {"error": "The following `model_kwargs` are not used by the model: ['seed', 'do_sample']"}
    server.faults = [(400, refusal)]
    with pytest.raises(errors.RequestRejected, match="model_kwargs"):
        await make(mode="completion").draw(request())
    assert len(server.requests) == 1
    await make(mode="completion").draw(request())
    assert server.requests[1][2]["parameters"]["seed"] == 7


@pytest.mark.parametrize("package", ["huggingface_hub", "tenacity"])
def test_a_missing_package_is_named_with_its_extra(package):
    code = f"import sys; sys.modules[{package!r}] = None; from bonmini_guard.adapters import TGIGenerator"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"MissingExtraError: {package} is needed here" in out.stderr
    assert "bonmini-guard[tgi]" in out.stderr


async def test_nobody_listening():
    generator = TGIGenerator("http://127.0.0.1:9", retries=1, backoff=0.01)
    with pytest.raises(errors.EndpointUnreachable):
        await generator.draw(request())
    assert generator.fingerprint().startswith("tgi:unknown:")


@pytest.mark.parametrize("fault", ["stall", "drip"])
async def test_stalls_and_slow_drips_end_with_the_attempt_and_with_the_draw(server, make, fault):
    server.faults = [fault]
    message = await make(attempt_timeout=0.2).draw(request())
    assert message.content == "answer 7"
    server.faults = [fault]
    begun = time.perf_counter()
    with pytest.raises(errors.EndpointTimeout):
        await make(timeout=0.2).draw(request())
    assert time.perf_counter() - begun < 2
    await until(lambda: server.closed_early == 2)


async def test_a_storm_of_429_passes_with_the_draws_seed(server, make):
    server.faults = [429] * 3
    message = await make().draw(request(11))
    assert message.content == "answer 11"
    assert [body["seed"] for _, _, body in server.requests] == [11] * 4


async def test_retry_after_is_honoured_within_the_timeout(server, make):
    server.headers = {"retry-after": "1"}
    server.faults = [429]
    begun = time.perf_counter()
    await make(mode="completion").draw(request())
    assert time.perf_counter() - begun >= 1
    server.headers, server.faults = {"retry-after": "60"}, [429]
    with pytest.raises(errors.Overloaded) as caught:
        await make().draw(request())
    assert caught.value.retry_after == 60
    server.headers, server.faults = {"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}, [503]
    with pytest.raises(errors.Overloaded) as caught:
        await make().draw(request())
    assert caught.value.retry_after > 1e6


async def test_truncated_answers_fail_where_they_are_not_accepted(server, make):
    server.answer = chat("cut", "length")
    assert (await make().draw(request())).response_metadata["truncated"] is True
    with pytest.raises(errors.TruncatedAnswer):
        await make(accept_truncated=False).draw(request())
    server.answer = generated("cut", "length")
    with pytest.raises(errors.TruncatedAnswer):
        await make(accept_truncated=False, mode="completion").draw(request())


# With the guard


@pytest.mark.filterwarnings("ignore:.*uncalibrated.*")
@pytest.mark.parametrize("mode", ["chat", "completion"])
@pytest.mark.parametrize("stream", [False, True])
async def test_on_early_exit_the_server_sees_the_connections_close(server, make, mode, stream):
    seeds = []

    def slow(body):
        seeds.append(None)
        return 0.0 if len(seeds) == 1 else 30.0

    server.slow = slow
    generator = make(mode=mode, stream=stream)
    begun = time.perf_counter()
    result = await guard_of(generator, lambda text: 1.0, exit="eager").arun("q")
    assert (result.decision, time.perf_counter() - begun < 5) == ("accepted", True)
    await until(lambda: server.busy == 0)
    assert server.closed_early == len(server.requests) - 1


async def test_cancelling_in_the_midst_of_a_stream_closes_the_connection(server, make):
    server.pause = 30.0
    drawing = asyncio.create_task(make(stream=True).draw(request()))
    await until(lambda: server.busy == 1)
    await asyncio.sleep(0.1)
    drawing.cancel()
    await until(lambda: server.closed_early == 1)
    assert drawing.done()


@pytest.mark.filterwarnings("ignore:.*uncalibrated.*")
async def test_nothing_is_left_after_a_hundred_requests(server, make):
    generator = make(stream=True)
    guard = guard_of(generator, lambda text: 1.0, exit="eager", mini_n=2)
    before = asyncio.all_tasks()
    for _ in range(100):
        assert (await guard.arun("q")).decision == "accepted"
    await generator.aclose()
    await until(lambda: server.open == 0)
    await until(lambda: asyncio.all_tasks() <= before)
    assert server.info_requests == 1


@pytest.mark.filterwarnings("ignore:.*uncalibrated.*")
async def test_faults_never_become_accepted_answers(server, make):
    server.faults = ["garbage", "html", 422, "half"]
    guard = guard_of(make(retries=0), lambda text: 1.0 if text.startswith("answer") else 9.0)
    with pytest.raises(BonMiniGuardError):
        await guard.arun("q")


@pytest.mark.filterwarnings("ignore:.*uncalibrated.*")
async def test_works_through_the_sync_bridge_and_from_a_loop(server, make):
    generator = make()
    guard = guard_of(generator, lambda text: 1.0)
    assert (await asyncio.to_thread(guard.run, "q")).decision == "accepted"
    assert (await guard.arun("q")).decision == "accepted"
    assert server.info_requests == 2
    await generator.aclose()
    await until(lambda: server.open == 0)
    assert (await guard.arun("q")).decision == "accepted"


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


async def test_more_draws_than_a_connection_pool_holds(server, make):
    server.info = None
    server.slow = 0.05
    generator = make()
    messages = await asyncio.gather(*(generator.draw(request(seed)) for seed in range(1, 201)))
    assert len({message.content for message in messages}) == 200
    assert server.busiest <= 128


async def test_the_fingerprint_names_the_model_and_the_settings(server, make):
    one, other = make(), make(temperature=0.5)
    first = await asyncio.to_thread(one.fingerprint)
    assert first.startswith("tgi:tiny/model@abc123:")
    assert first == one.fingerprint()
    assert first != await asyncio.to_thread(other.fingerprint)


# Secrets


@pytest.mark.filterwarnings("ignore:.*uncalibrated.*")
@pytest.mark.parametrize("mode", ["chat", "completion"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_token_is_sent_and_shows_nowhere(server, make, caplog, mode, stream):
    caplog.set_level(logging.DEBUG)
    generator = make(mode=mode, token=TOKEN, stream=stream, retries=0)
    echo = {"error": "x" * 185 + f" you sent Bearer {TOKEN}", "error_type": "validation"}
    server.faults = [(422, echo), "reset", (429, echo), "garbage"]
    shown = [repr(generator), str(vars(generator)), await asyncio.to_thread(generator.fingerprint)]
    for _ in range(4):
        with pytest.raises(errors.EndpointError) as caught:
            await generator.draw(request())
        shown += ["".join(traceback.format_exception(caught.value)), repr(caught.value)]
    result = await guard_of(generator, lambda text: 1.0).arun("q")
    shown += [repr(result), str(result.candidates)]
    assert {headers["authorization"] for _, headers, _ in server.requests} == {f"Bearer {TOKEN}"}
    for text in [*shown, *(record.getMessage() for record in caplog.records)]:
        assert TOKEN[:12] not in text


async def test_a_token_of_the_environment_and_none(server, make, monkeypatch, tmp_path):
    saved = tmp_path / "token"
    saved.write_text("hf_saved")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(saved))
    await make().draw(request())
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    await make().draw(request())
    await make(token="").draw(request())
    assert [headers.get("authorization") for _, headers, _ in server.requests] == [None, f"Bearer {TOKEN}", None]
