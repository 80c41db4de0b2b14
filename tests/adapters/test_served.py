"""What every generator that asks a server does, whatever its dialect: faults, retries, cancellation, limits, secrets."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import logging
import pickle
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import MappingProxyType

import pytest
from langchain_core.messages import HumanMessage

pytest.importorskip("httpx")
pytest.importorskip("huggingface_hub")

from bonmini_guard.adapters import OpenAICompatibleGenerator, TGIGenerator
from bonmini_guard.adapters import http_errors as errors
from bonmini_guard.adapters.circuit import CircuitBreaker, CircuitOpen
from bonmini_guard.engine.held import BEAT
from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.errors import BonMiniGuardError, ConfigurationError, GenerationError
from tests.adapters.drawing import building, guard_of, lasting_threads, open_files, request, until
from tests.adapters.loopback import storm
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.tgi_server import TGIServer, generated

DATA = Path(__file__).parent.parent / "data" / "tgi"
BODIES = json.loads((DATA / "error_bodies_from_source.json").read_text())
SECRET = "sk-secretsecretsecret"
#: By generator: its class, its server, the argument and the variable that hold its secret, what it names.
FAMILIES = {
    "openai": (OpenAICompatibleGenerator, OpenAIServer, "api_key", "OPENAI_API_KEY", {"model": "tiny"}),
    "tgi": (TGIGenerator, TGIServer, "token", "HF_TOKEN", {}),
}
#: By dialect: the generator, its mode, the route.
DIALECTS = {
    "openai-chat": ("openai", "chat", "/v1/chat/completions"),
    "openai-completion": ("openai", "completion", "/v1/completions"),
    "tgi-chat": ("tgi", "chat", "/v1/chat/completions"),
    "tgi-completion": ("tgi", "completion", "/"),
}

uncalibrated = pytest.mark.filterwarnings("ignore:.*uncalibrated.*")
streams = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def recorded(name):
    return json.loads((DATA / f"{name}.json").read_text())


@pytest.fixture(params=DIALECTS)
def dialect(request):
    return DIALECTS[request.param]


@pytest.fixture
def family(dialect):
    return FAMILIES[dialect[0]]


@pytest.fixture(autouse=True)
def no_secret_of_mine(monkeypatch):
    for _, _, _, variable, _ in FAMILIES.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
async def server(family):
    async with family[1]() as running:
        yield running


@pytest.fixture
async def make(server, dialect, family):
    async for build in building(family[0], server.url, mode=dialect[1], **family[4]):
        yield build


def seed_of(body):
    return body.get("seed") or body["parameters"]["seed"]


def saying(dialect, text, reason):
    """An answer of a dialect's server."""
    if dialect[2] == "/":
        return generated(text, "eos_token" if reason == "stop" else reason)
    said = {"text": text} if dialect[1] == "completion" else {"message": {"role": "assistant", "content": text}}
    return {"model": "m", "choices": [{"index": 0, "finish_reason": reason, **said}]}


# What comes back


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("answer", "stream", "text", "usage", "calls"),
    [
        ("chat_completion", False, "As of your last question, the weather in Brooklyn", 161, []),
        ("chat_tools_nostream", False, "", 530, [{"location": "Brooklyn, NY", "format": "fahrenheit"}]),
        ("chat_stream_hfhub_with_usage_chunks", True, "OK!", 42, []),
        ("chat_stream_hfhub_no_usage_chunks", True, "OK!", None, []),
    ],
)
async def test_recorded_chats(name, answer, stream, text, usage, calls):
    kind, serve, _, _, names = FAMILIES[name]
    async with serve() as server, kind("http://placeholder", **names) as generator:
        generator.base_url = server.url + ("/v1" if name == "openai" else "")
        generator.stream = stream
        server.answer, server.said = (None, recorded(answer)) if stream else (recorded(answer), None)
        message = await generator.draw(request())
    assert message.text.startswith(text)
    assert (message.usage_metadata or {}).get("total_tokens") == usage
    assert [call["args"] for call in message.tool_calls] == calls
    assert message.response_metadata["seed"] == 7


@streams
async def test_a_draw_is_one_request_with_its_seed(server, make, dialect, stream):
    generator = make(stream=stream)
    for seed, sent in ((7, 7), (0, 2**31)):
        await generator.draw(request(seed))
        path, _, body = server.requests[-1]
        assert (path, seed_of(body)) == (dialect[2], sent)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/\n", "/v1/chat/completions"])
async def test_a_base_url_reaches_its_route_with_v1_or_a_whole_route_at_its_end(server, make, dialect, suffix):
    await make(base_url=server.url + suffix).draw(request())
    assert server.requests[0][0] == dialect[2]


async def test_half_a_surrogate_pair_is_sent_as_a_replacement(server, make):
    await make().draw(DrawRequest([HumanMessage("cut \ud83d here")], 7))
    assert "cut \ufffd here" in json.dumps(server.requests[0][2], ensure_ascii=False)


@uncalibrated
async def test_the_body_is_rendered_once_a_request(server, make, monkeypatch):
    generator, rendered = make(), []
    render = type(generator._dialect).render
    monkeypatch.setattr(type(generator._dialect), "render", lambda *given: rendered.append(1) or render(*given))
    guard = guard_of(generator, lambda text: -1.0, mode="accelerator", max_loops=2)
    await asyncio.gather(guard.arun("one"), guard.arun("two"))
    assert (len(rendered), len(server.requests)) == (2, 16)
    assert len({seed_of(body) for _, _, body in server.requests}) == 16
    # A cancelled timer, with its context, stays with the loop until earlier ones are due, such as that of what watches the loop.
    await asyncio.sleep(4 * BEAT)
    gc.collect()
    assert len(generator._bodies) == 0


@pytest.mark.parametrize("option", ["n", "best_of", "seed", "stream", "nonsense"])
async def test_options_that_would_spoil_a_draw_are_refused(server, make, option):
    with pytest.raises(ConfigurationError, match=option):
        await make().draw(DrawRequest([HumanMessage("q")], 7, 0, {option: 2}))
    with pytest.raises(ConfigurationError, match="temperature"):
        await make().draw(request(temperature=0))
    assert not server.requests


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
async def test_what_json_has_no_words_for_is_refused_and_not_sent(server, make, value):
    with pytest.raises(ConfigurationError, match="cannot send this request as JSON"):
        await make().draw(request(frequency_penalty=value))
    assert not server.requests


async def test_temperature_0_is_refused_by_the_guard_and_greedy_for_one_draw(server, make):
    with pytest.raises(ConfigurationError, match="deterministic"):
        guard_of(make(temperature=0), len)
    assert (await make(temperature=0).draw(request())).text


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "chats"},
        {"temperature": -1},
        {"temperature": "0.7"},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"accept_truncated": "no"},
        {"stream": "false"},
        {"timeout": 0},
        {"retries": -1},
        {"max_concurrency": 0},
        {"base_url": "localhost:8080"},
        {"base_url": "http://user:pass@host"},
        {"base_url": "http://host?token=1"},
        {"base_url": "http://host:port"},
        {"base_url": "http://host:99999"},
        {"base_url": "http://[::1/v1"},
        {"base_url": "http://ho st"},
    ],
)
async def test_wrong_settings_are_refused(make, family, settings):
    with pytest.raises(ConfigurationError):
        make(**settings)
    with pytest.raises(ConfigurationError, match="did you mean 'retries'"):
        make(retry=3)
    with pytest.raises(ConfigurationError, match="did you mean 'temperature'"):
        make(tempreature=0.7)
    for unusable in ("a\nb", 5, b"key"):
        with pytest.raises(ConfigurationError, match="no HTTP header"):
            make(**{family[2]: unusable})


@pytest.mark.parametrize(
    ("said", "text", "thought"),
    [
        ("<think>\nhm\n</think>\n\nIt is 42.", "It is 42.", "hm"),
        ("hm\n</think>\nIt is 42.", "It is 42.", "hm"),
        ("<think></think>It is 42.", "It is 42.", None),
        ("It is <think> 42.", "It is <think> 42.", None),
    ],
)
async def test_thoughts_in_the_text_are_moved_where_that_is_asked_for(server, make, dialect, said, text, thought):
    server.answer = saying(dialect, said, "stop")
    assert (await make().draw(request())).text == said
    message = await make(split_reasoning=True).draw(request())
    assert (message.text, message.additional_kwargs.get("reasoning_content")) == (text, thought)
    server.answer = saying(dialect, said.replace("think>", "t>"), "stop")
    assert (await make(split_reasoning=("<t>", "</t>")).draw(request())).text == text.replace("think>", "t>")
    server.answer = saying(dialect, "<t>hm</t> It is 42.", "stop")
    message = await make(split_reasoning=["<t>", "</t>"]).draw(request())
    assert (message.text, message.additional_kwargs["reasoning_content"]) == ("It is 42.", "hm")
    with pytest.raises(ConfigurationError, match="two tags"):
        make(split_reasoning=("<t>",))
    prints = {await asyncio.to_thread(make(split_reasoning=split).fingerprint) for split in (False, True, ("<t>", "</t>"))}
    assert len(prints) == 3


async def test_thoughts_that_the_limit_cut_are_no_answer(server, make, dialect):
    server.answer = saying(dialect, "<think>and then", "length")
    with pytest.raises(errors.TruncatedAnswer, match="nothing but reasoning"):
        await make(split_reasoning=True).draw(request())


async def test_a_generator_can_be_copied_and_moved_between_processes(server, make, family):
    generator = make(**{family[2]: SECRET}, max_concurrency=3)
    await generator.draw(request())
    for other in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
        async with other:
            assert "answer" in (await other.draw(request())).text
    assert {headers["authorization"] for _, headers, _ in server.requests} == {f"Bearer {SECRET}"}


# Faults


@streams
@pytest.mark.parametrize(
    ("status", "body", "kind", "tries"),
    [
        (429, BODIES["429"], errors.Overloaded, 4),
        (429, {"error": {"message": "slow down", "type": "requests"}}, errors.Overloaded, 4),
        (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, errors.RequestRejected, 1),
        (503, BODIES["503_health"], errors.Overloaded, 4),
        (503, {"detail": "loading"}, errors.Overloaded, 4),
        (502, "<html>bad gateway</html>", errors.EndpointUnreachable, 4),
        (504, "", errors.EndpointTimeout, 4),
        (409, {"error": {"message": "died"}}, errors.GenerationFailedAtEndpoint, 2),
        (424, BODIES["424"], errors.GenerationFailedAtEndpoint, 2),
        (500, BODIES["500"], errors.GenerationFailedAtEndpoint, 2),
        (500, {"object": "error", "message": "died", "type": "InternalServerError"}, errors.GenerationFailedAtEndpoint, 2),
        (422, BODIES["422"], errors.RequestRejected, 1),
        (422, {"detail": [{"loc": ["body", "top_k"], "msg": "no", "input": "the prompt"}]}, errors.RequestRejected, 1),
        (404, "Not Found", errors.RequestRejected, 1),
        (404, {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError"}}, errors.RequestRejected, 1),
        (400, {"error": "no", "error_type": "x"}, errors.RequestRejected, 1),
        (400, [{"error": {"code": 400, "message": "in a list", "status": "INVALID_ARGUMENT"}}], errors.RequestRejected, 1),
        (401, {"error": {"message": "bad key"}}, errors.RequestRejected, 1),
        (307, "", errors.RequestRejected, 1),
    ],
)
async def test_error_bodies_become_typed_errors_and_some_are_tried_again(server, make, stream, status, body, kind, tries):
    server.faults = [(status, body)] * 10
    with pytest.raises(errors.EndpointError) as caught:
        await make(stream=stream).draw(request())
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, BonMiniGuardError)
    assert (error.status, len(server.requests)) == (status, tries)
    said = {"slow down", "pay", "loading", "died", "no", "in a list", "bad key"} & set(_strings(body))
    assert all(text in str(error) for text in said)
    assert "the prompt" not in str(error)
    if isinstance(body, dict) and "error_type" in body:
        assert (error.error_type, body["error"] in str(error)) == (body["error_type"], True)
    assert type(pickle.loads(pickle.dumps(error))) is kind


def _strings(body):
    several = body.values() if isinstance(body, dict) else body if isinstance(body, list) else ()
    return [body] if isinstance(body, str) else [text for each in several for text in _strings(each)]


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
    ],
)
async def test_broken_answers_are_typed_errors(server, make, fault, kind, tries):
    server.faults = [fault] * 10
    with pytest.raises(errors.EndpointError) as caught:
        await make().draw(request())
    assert (type(caught.value), len(server.requests)) == (kind, tries)


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
async def test_a_stream_that_fails_is_no_answer(server, make, fault, kind):
    server.text = lambda body, index: "a long answer of many words"
    server.faults = [fault] * 10
    with pytest.raises(kind) as caught:
        await make(stream=True).draw(request())
    assert "long" not in str(caught.value)
    server.faults = [fault]
    assert "answer" in (await make(stream=True).draw(request())).text


async def test_nobody_listening(dialect, family):
    generator = family[0]("http://127.0.0.1:9", **{"retries": 1, "backoff": 0.01, **family[4]})
    with pytest.raises(errors.EndpointUnreachable):
        await generator.draw(request())
    nameless = family[0]("http://127.0.0.1:9")
    assert nameless.describe()["model"] == "unknown"
    assert nameless.earlier_fingerprint().startswith(f"{dialect[0]}:unknown:")


@streams
@pytest.mark.parametrize("fault", ["stall", "drip"])
async def test_stalls_and_slow_drips_end_with_the_attempt_and_with_the_draw(server, make, fault, stream):
    server.faults = [fault]
    assert "answer" in (await make(attempt_timeout=0.6, stream=stream).draw(request())).text
    server.faults = [fault]
    begun = time.perf_counter()
    with pytest.raises(errors.EndpointTimeout):
        await make(timeout=0.6, stream=stream).draw(request())
    assert time.perf_counter() - begun < 20
    await until(lambda: server.closed_early == 2)


async def test_a_server_that_never_answers_opens_the_circuit(server, make):
    server.faults = ["stall"] * 3
    generator = make(timeout=1.0, circuit=CircuitBreaker(failures=2))
    for kind in (errors.EndpointTimeout, errors.EndpointTimeout, CircuitOpen):
        with pytest.raises(kind, match=r"^no answer within timeout=1.0 s"):
            await generator.draw(request())
    assert len(server.requests) == 2


async def test_a_storm_of_429_passes_with_the_draws_seed(server, make):
    server.faults = storm(3)
    assert "answer" in (await make().draw(request(11))).text
    assert [seed_of(body) for _, _, body in server.requests] == [11] * 4


async def test_retry_after_is_honoured_within_the_timeout(server, make):
    server.faults = storm(1, retry_after="0.4")
    begun = time.perf_counter()
    await make().draw(request())
    assert time.perf_counter() - begun >= 0.4
    server.faults = storm(1, retry_after="60")
    with pytest.raises(errors.Overloaded) as caught:
        await make().draw(request())
    assert caught.value.retry_after == 60


async def test_truncated_answers_fail_where_they_are_not_accepted(server, make, dialect):
    server.answer = saying(dialect, "cut", "length")
    assert (await make().draw(request())).response_metadata["truncated"] is True
    with pytest.raises(errors.TruncatedAnswer):
        await make(accept_truncated=False).draw(request())


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("OpenAICompatibleGenerator", "httpx", "openai"),
        ("TGIGenerator", "huggingface_hub", "tgi"),
        ("RemoteRewardModel", "httpx", "remote"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(name, package, extra):
    code = f"import sys; sys.modules[{package!r}] = None; from bonmini_guard.adapters import {name}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"MissingExtraError: {package} is needed here" in out.stderr
    assert f"bonmini-guard[{extra}]" in out.stderr


# With the guard


@uncalibrated
@streams
async def test_on_early_exit_the_server_sees_the_connections_close(server, make, stream):
    seen = []
    # By then the others have arrived.
    server.slow = lambda body: seen.append(None) or (0.0 if len(seen) == 4 else 60.0)
    begun = time.perf_counter()
    result = await guard_of(make(stream=stream), lambda text: 1.0, exit="eager").arun("q")
    assert (result.decision, result.draws, time.perf_counter() - begun < 30) == ("accepted", 4, True)
    await until(lambda: server.busy == 0)
    assert server.closed_early == len(server.requests) - 1 == 3


@uncalibrated
@streams
async def test_a_cancelled_request_closes_its_connections(server, make, stream):
    server.slow, server.pause = (30.0, 0.0) if not stream else (0.0, 30.0)
    running = asyncio.create_task(guard_of(make(stream=stream), lambda text: 1.0).arun("q"))
    await until(lambda: server.busy == 4)
    running.cancel()
    await until(lambda: server.busy == 0)
    assert server.closed_early == len(server.requests)
    with pytest.raises(asyncio.CancelledError):
        await running


@uncalibrated
async def test_faults_never_become_accepted_answers(server, make):
    server.faults = ["garbage", "html", 422, "half"]
    with pytest.raises(GenerationError):
        await guard_of(make(retries=0), lambda text: 9.0).arun("q")


@uncalibrated
async def test_works_through_the_sync_bridge_and_from_a_loop(server, make):
    generator = make()
    guard = guard_of(generator, lambda text: 1.0)
    assert (await asyncio.to_thread(guard.run, "q")).decision == "accepted"
    assert (await guard.arun("q")).decision == "accepted"
    await generator.aclose()
    await until(lambda: server.open == 0)
    assert (await guard.arun("q")).decision == "accepted"


@uncalibrated
async def test_nothing_is_left_after_a_hundred_requests(server, make):
    generator = make(stream=True)
    guard = guard_of(generator, lambda text: 1.0, exit="eager", mini_n=2)
    await guard.arun("q")
    before = asyncio.all_tasks(), lasting_threads(), open_files("socket")
    for _ in range(4):
        results = await asyncio.gather(*(guard.arun("q") for _ in range(25)))
        assert {result.decision for result in results} == {"accepted"}
    await generator.aclose()
    await until(lambda: server.open == 0)
    await until(lambda: asyncio.all_tasks() <= before[0])
    assert lasting_threads() <= before[1]
    gc.collect()
    assert open_files("socket") <= before[2]


# Connections


async def test_max_concurrency_is_kept(server, make):
    server.slow = 0.02
    generator = make(max_concurrency=3)
    await asyncio.gather(*(generator.draw(request(seed)) for seed in range(12)))
    assert server.busiest == 3


async def test_connections_of_another_loop_that_runs_are_closed_too(server, make):
    generator = make()
    await generator.draw(request())
    assert server.open
    await asyncio.to_thread(asyncio.run, generator.aclose())
    assert server.open == 0


async def test_few_requests_share_few_connections_and_many_have_one_each(server, make):
    generator = make()
    for _ in range(5):
        await generator.draw(request())
    # TGI's description is looked at once, on the same connection.
    assert server.connections == 1
    server.slow = 0.05
    messages = await asyncio.gather(*(generator.draw(request(seed)) for seed in range(1, 201)))
    assert len({message.text for message in messages}) == 200
    assert server.busiest <= 128
    (clients,) = generator._clients.values()
    assert len(clients.free) == len(clients._all) <= 128
    assert server.connections <= 128
    await generator.aclose()
    await until(lambda: server.open == 0)


# Secrets


@uncalibrated
@streams
async def test_the_secret_is_sent_and_shows_nowhere(server, make, family, caplog, stream):
    caplog.set_level(logging.DEBUG)
    generator = make(**{family[2]: SECRET}, stream=stream, retries=0)
    echo = {"error": "x" * 165 + f" you sent Bearer {SECRET}", "error_type": "validation"}
    nested = {"error": {"message": "x" * 155 + f" Incorrect API key provided: {SECRET}", "type": "invalid"}}
    server.faults = [(422, echo), "reset", (429, nested), "garbage", (401, nested), (200, nested)]
    shown = [repr(generator), str(vars(generator)), await asyncio.to_thread(generator.fingerprint)]
    for _ in range(6):
        with pytest.raises(errors.EndpointError) as caught:
            await generator.draw(request())
        shown += ["".join(traceback.format_exception(caught.value)), repr(caught.value)]
    result = await guard_of(generator, lambda text: 1.0).arun("q")
    shown += [repr(result), str(result.candidates)]
    assert {headers["authorization"] for _, headers, _ in server.requests} == {f"Bearer {SECRET}"}
    for text in [*shown, *(record.getMessage() for record in caplog.records)]:
        assert SECRET[:12] not in text


@uncalibrated
@streams
async def test_rejected_text_is_in_no_log(server, make, dialect, caplog, stream):
    caplog.set_level(logging.DEBUG)
    server.answer = saying(dialect, "a very rude word", "stop")
    with pytest.raises(BonMiniGuardError) as caught:
        await guard_of(make(stream=stream), lambda text: -1.0).ainvoke("q")
    shown = ["".join(traceback.format_exception(caught.value)), *(record.getMessage() for record in caplog.records)]
    assert not any("rude" in text for text in shown)


async def test_a_secret_of_the_environment_and_none(server, make, family, monkeypatch, tmp_path):
    saved = tmp_path / "token"
    saved.write_text("hf_saved")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(saved))
    await make().draw(request())
    monkeypatch.setenv(family[3], SECRET)
    await make().draw(request())
    await make(**{family[2]: ""}).draw(request())
    assert [headers.get("authorization") for _, headers, _ in server.requests] == [None, f"Bearer {SECRET}", None]


async def test_the_fingerprint_names_the_model_and_the_settings(make, dialect):
    several = [make(), make(temperature=0.5), make(accept_truncated=False), make(stream=True)]
    prints = [await asyncio.to_thread(generator.fingerprint) for generator in several]
    assert {json.loads(each)["model"] for each in prints} == {"tiny/model@abc123" if dialect[0] == "tgi" else "tiny"}
    assert all(json.loads(each)["server"].startswith("http://127.0.0.1:") for each in prints)
    assert len(set(prints[:3])) == 3
    assert prints[3] == prints[0]


async def test_a_call_option_stands_in_for_the_setting(make):
    async def described(options=MappingProxyType({}), **settings):
        # In a thread: it may ask the server, which lives on this loop.
        return await asyncio.to_thread(make(**settings).describe, options)

    told, meant = await described({"temperature": 0.5, "tools": ["of the question"]}), await described(temperature=0.5)
    assert told == meant != await described()
    assert await described({"stop": "x"}) == await described(stop=["x"])
