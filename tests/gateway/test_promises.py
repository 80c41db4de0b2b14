"""Nothing rejected in any byte (over raw sockets), clients that hang up, outages, overload, keys, wrong files, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest

from bonmini_guard.cli import main
from bonmini_guard.gateway.app import Gateway
from bonmini_guard.gateway.config import Configuration
from bonmini_guard.server.door import Limits
from tests.adapters.loopback import storm
from tests.adapters.openai_server import TOO_LONG
from tests.gateway.conftest import KEY, REJECTED, always, patiently

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

ASKED = [{"role": "user", "content": "q"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": f"{REJECTED}-tool", "arguments": "{}"}}


def send(house, **body):
    """A socket on which a request was sent."""
    said = json.dumps({"messages": ASKED, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
    connection = socket.create_connection(("127.0.0.1", house.port), timeout=60)
    connection.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(said) + said)
    return connection


def everything(connection):
    received = b""
    with connection:
        while piece := connection.recv(65536):
            received += piece
    return received


def mixed(body, index):
    """The first loop is rejected, one draw of the second is served."""
    number = mixed.drawn.setdefault(body["seed"], len(mixed.drawn))
    return "served answer" if number == 5 else f"{REJECTED} {number}"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("slow", [0.0, 0.2], ids=["at once", "kept alive"])
def test_no_byte_of_what_was_rejected_reaches_a_client(house, stream, slow, caplog):
    caplog.set_level("DEBUG", "bonmini_guard")
    guards = {name: f'schedule = [2, 4]\non_abstain = "{name}"' for name in ("refusal", "message", "error")}
    guards |= {"eager": 'schedule = [2, 4]\nexit = "eager"', "best": 'schedule = [2]\nmode = "accelerator"\nthreshold = 5.0'}
    guards = {name: f'{options}\ntool_turns = "judge"' for name, options in guards.items()}
    house.upstream.slow, mixed.drawn = slow, {}
    with house.open(guards, keep_alive=0.05 if slow else 60.0):
        house.upstream.text = mixed
        served = everything(send(house, model="refusal", stream=stream))
        raw = b""
        for text, message in (
            (always(REJECTED), {}),
            (always(""), {"tool_calls": [CALL]}),
            (always("x"), {"reasoning_content": REJECTED}),
        ):
            house.upstream.text, house.upstream.message = text, message
            for name in ("refusal", "message", "error", "eager"):
                raw += everything(send(house, model=name, stream=stream))
        house.upstream.text, house.upstream.message, house.scorer.faults = always(REJECTED), {}, lambda path, body: 500
        raw += everything(send(house, model="refusal", stream=stream))
        raw += everything(send(house, model="best", stream=stream, n=3))
        house.scorer.faults = []
        raw += house.metrics().encode()
    assert b"served answer" in served
    assert (b"data: [DONE]" in served, b": keep-alive" in served) == (stream, stream and slow > 0)
    assert REJECTED.encode() not in served + raw
    assert REJECTED not in caplog.text
    assert raw.count(b"content_filter") >= 9


@pytest.mark.parametrize("how", [{}, {"stream": True}], ids=["whole", "stream"])
def test_a_client_that_hangs_up_ends_its_draws_at_the_upstream(house, how):
    house.upstream.slow = 60.0
    with house.open({"guarded": "schedule = [3]"}, keep_alive=0.05):
        connection = send(house, model="guarded", **how)
        patiently(lambda: house.upstream.busy == 3)
        if how:
            assert b"keep-alive" in connection.recv(4096) + connection.recv(4096)
        connection.close()
        patiently(lambda: house.upstream.busy == 0)
        patiently(lambda: "requests_in_flight 0.0" in house.metrics())
    assert house.upstream.closed_early == 3


REFUSED = [
    (503, openai.InternalServerError, "outage", True),
    (500, openai.InternalServerError, "outage", True),
    (429, openai.RateLimitError, "overloaded", True),
    ((401, {"error": {"message": "no such key"}}), openai.InternalServerError, "outage", True),
    ((400, TOO_LONG), openai.BadRequestError, "invalid_request", False),
]


@pytest.mark.parametrize(
    ("fault", "kind", "name", "later"), REFUSED, ids=["down", "failing", "full", "its key is wrong", "too long"]
)
def test_what_is_no_answer_is_told_apart(house, fault, kind, name, later):
    house.upstream.faults = lambda path, body: fault
    with house.open({"guarded": "schedule = [2]"}, more="retries = 0"), pytest.raises(kind) as caught:
        house.client.chat.completions.create(model="guarded", messages=ASKED)
    assert caught.value.type == name
    assert ("retry-after" in caught.value.response.headers) is later


@pytest.mark.parametrize("options", ["schedule = [2]", "schedule = [2]\nshadow = 1.0"])
def test_an_upstream_that_the_file_does_not_describe_is_no_fault_of_the_clients(house, options):
    house.upstream.models = {"data": [{"id": "one"}, {"id": "another"}]}
    path = house.write({"guarded": options})
    with house.open({"guarded": options}):
        path.write_text(path.read_text().replace('model = "tiny"\n', ""))
        house.gateway._configuration.load()
        answer = house.post(model="guarded", messages=ASKED)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "outage")
    assert "2 models: name one" in answer.json()["error"]["message"]


def test_a_scorer_that_is_down_is_an_outage_and_no_refusal(house):
    with house.open({"guarded": "schedule = [2]"}):
        house.scorer.faults = storm(50, status=503)
        with pytest.raises(openai.InternalServerError) as caught:
            house.client.chat.completions.create(model="guarded", messages=ASKED)
    assert (caught.value.type, caught.value.response.status_code) == ("outage", 503)


def test_an_outage_behind_a_stream_that_has_begun_is_an_error_event(house):
    house.upstream.faults = lambda path, body: "stall"
    with house.open({"guarded": "schedule = [2]\ntimeout = 0.5"}, keep_alive=0.05):
        with pytest.raises(openai.APIError) as caught:
            list(house.client.chat.completions.create(model="guarded", messages=ASKED, stream=True))
        assert caught.value.type == "outage"


def test_who_finds_no_place_is_told_when_to_come_back(house):
    house.upstream.slow = 1.0
    with house.open({"guarded": "schedule = [1]"}, limits=Limits(requests=1)):
        first = threading.Thread(target=lambda: answers.append(house.post(model="guarded", messages=ASKED)))
        answers = []
        first.start()
        patiently(lambda: house.upstream.busy == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            house.client.chat.completions.create(model="guarded", messages=ASKED)
        first.join()
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert answers[0].status_code == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "model"),
        ({"model": "guarded", "messages": []}, "messages"),
        ({"model": "guarded", "messages": [{"role": "king", "content": "q"}]}, "messages.0.role"),
        ({"model": "guarded", "messages": [{"role": "user", "content": ""}]}, "empty"),
        ({"model": "guarded", "messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"model": "guarded", "messages": ASKED, "n": 2}, "n: one answer"),
        ({"model": "guarded", "messages": ASKED, "n": True}, "n: Input should be a valid integer"),
        ({"model": "guarded", "messages": ASKED, "seed": True}, "seed: Input should be a valid integer"),
        ({"model": "guarded", "messages": ASKED, "tools": 5}, "cannot send this request"),
        ({"model": "guarded", "messages": ASKED, "tools": [5]}, "cannot send this request"),
        ({"model": "guarded", "messages": ASKED, "response_format": 5}, "cannot send this request"),
        ({"model": "free", "messages": ASKED, "best_of": 3}, "best_of"),
        ({"model": "free", "messages": ASKED, "temperature": 0}, "temperature 0"),
    ],
)
def test_a_wrong_body_gets_one_line(house, body, says):
    with house.open({"guarded": "schedule = [1]", "free": "schedule = [1]\nclient_sampling = true"}):
        answer = house.post(**body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
    assert "\n" not in answer.json()["error"]["message"]


def test_a_route_or_a_method_that_there_is_not_is_told_as_every_error_is(house):
    with house.open({"guarded": "schedule = [1]"}):
        gone, wrong = house.post("/v1/completions", model="guarded"), httpx.get(f"{house.url}/v1/chat/completions")
    assert (gone.status_code, wrong.status_code, wrong.headers["allow"]) == (404, 405, "POST")
    assert [each.json()["error"]["type"] for each in (gone, wrong)] == ["not_found", "not_found"]


def test_an_answer_that_was_spoken_stays_in_the_history(house):
    spoken = {"role": "assistant", "content": None, "audio": {"id": "audio_1"}}
    with house.open({"guarded": "schedule = [1]"}):
        assert house.post(model="guarded", messages=[*ASKED, spoken, *ASKED]).status_code == 200
    assert "audio_1" in str(house.upstream.requests[0][2]["messages"][1])


def test_keys_metrics_and_health(house):
    with house.open({"guarded": "schedule = [2, 2]\nabstain_message = ''"}):
        assert house.post(key="wrong", model="guarded", messages=ASKED).status_code == 401
        for route in ("/v1/models", "/metrics"):
            assert httpx.get(house.url + route).status_code == 401
            for shown, status in ((f"bearer {KEY}", 200), (f"BEARER  {KEY}", 200), (KEY, 401), (f"Basic {KEY}", 401)):
                assert httpx.get(house.url + route, headers={"authorization": shown}).status_code == status
        assert [httpx.get(house.url + route).status_code for route in ("/health", "/ready")] == [200, 200]
        house.post(model="guarded", messages=ASKED)
        house.upstream.text = always(REJECTED)
        house.post(model="guarded", messages=ASKED)
        told = house.metrics()
        house.gateway.ending = True
        assert httpx.get(f"{house.url}/ready").status_code == 503
        assert house.post(model="guarded", messages=ASKED).status_code == 503
    assert 'decisions_total{decision="accepted",guard="guarded",reason="passed"} 1.0' in told
    assert 'decisions_total{decision="abstained",guard="guarded",reason="budget_spent"} 1.0' in told
    assert 'bonmini_guard_draws_total{guard="guarded"} 6.0' in told
    assert 'bonmini_guard_draws_saved_total{guard="guarded"} 2.0' in told
    assert 'bonmini_guard_upstream_up{upstream="plain"} 1.0' in told


UPSTREAM = '[upstreams.plain]\nbase_url = "http://127.0.0.1:1"\n'
TABLE = 'upstream = "plain"\nreward_model = { endpoint = "http://127.0.0.1:1", kind = "bonmini" }\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("[upstreams", "Expected ']'"),
        ("[upstreams]", "upstreams"),
        (UPSTREAM + "[guard.x]", "guard"),
        (UPSTREAM + "[guards.x]\n" + TABLE.replace("plain", "plane"), "did you mean 'plain'"),
        (UPSTREAM + "[guards.x]\n" + TABLE + "schedul = [1]", "did you mean 'schedule'"),
        (UPSTREAM + "[guards.x]\n" + TABLE + 'on_abstain = "shout"', "guards.x: on_abstain"),
        (UPSTREAM + "[guards.x]\n" + TABLE + 'profile = "gone.json"', "gone.json"),
        (UPSTREAM + "retrys = 3", "did you mean 'retries'"),
        (UPSTREAM + "tempreature = 0.7", "did you mean 'temperature'"),
        (UPSTREAM + 'api_key = "sk-secret"', "as api_key_env"),
        (UPSTREAM + 'api_key_env = "NO_SUCH_KEY"', "NO_SUCH_KEY"),
        (UPSTREAM + 'api_key_env = ""', "api_key_env is empty"),
        ('keys_env = ["NO_SUCH_KEY"]\n' + UPSTREAM, "NO_SUCH_KEY"),
        ("[upstreams.plain]\nmodel = 'x'", "base_url"),
        (UPSTREAM + "circuit = 3", "circuit must be a CircuitBreaker"),
        (UPSTREAM + "extra_body = 5", "extra_body must be a table"),
        (UPSTREAM + "stop = 5", "stop must be a text"),
        (UPSTREAM + "stop = [1]", "stop must be a text"),
        (UPSTREAM + "stop = { a = 1 }", "stop must be a text"),
        (UPSTREAM + "[guards.x]\n" + TABLE + "threshold = true", "must be a number"),
        (UPSTREAM + "split_reasoning = 5", "split_reasoning is True"),
        (UPSTREAM + "self = 5", "self"),
        (UPSTREAM + "[guards.x]\n" + TABLE.replace("kind", 'api_key = "sk-secret", kind'), "as api_key_env"),
        (UPSTREAM + "[guards.x]\n" + TABLE.replace('"http://127.0.0.1:1"', "5"), "guards.x.reward_model: base_url is no address"),
        (UPSTREAM + "[guards.x]\n" + TABLE + "profile = 5", "profile is a int"),
        (UPSTREAM + "[guards.x]\n" + TABLE + f'profile = "{"x" * 300}"', "File name too long"),
        (f'[upstreams.plain]\nfolder = "{"x" * 300}"', "File name too long"),
        *((f'[upstreams.plain]\nfolder = "x"\n{further}', "go with base_url") for further in ("unguarded = true", 'model = "x"')),
        ('[upstreams.plain]\nfolder = "x"\napi_key_env = "PATH"', "go with base_url"),
        (UPSTREAM + "[guards.x]\n" + TABLE + "telemetry = true", "no file can hold telemetry"),
        (UPSTREAM + "[guards.x]\n" + TABLE + 'on_explored = "x"', "no file can hold on_explored"),
        (UPSTREAM + "[guards.x]\n" + TABLE + "generator = 5", "unknown argument 'generator'"),
        (UPSTREAM + "[guards.x]\n" + TABLE + "standing = { n = 5 }", "unknown argument 'standing'"),
        (UPSTREAM + "[guards.x]\n" + TABLE + 'trace_candidates = "no"', "trace_candidates must be True or False"),
        (UPSTREAM + "[guards.x]\n" + TABLE + "abstain_message = 5", "abstain_message must be a text"),
    ],
)
def test_a_wrong_file_gets_one_line(tmp_path, capsys, text, says):
    path = tmp_path / "guards.toml"
    if text is not None:
        path.write_text(text)
    assert main(["gateway", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "guards.toml" in said
    assert says in said


def test_a_reload_keeps_what_has_not_changed(house):
    profile = house.folder / "guardrail.json"
    profile.write_text('{"mode": "guardrail", "schedule": [1], "thresholds": [0.5]}')
    guards = {"same": "schedule = [1]", "profiled": 'profile = "guardrail.json"', "changed": "schedule = [1]"}
    configuration = Configuration(house.write(guards))
    before, loaded = dict(configuration.models), len(house.scorer.requests)
    configuration.load()
    house.write(guards | {"changed": "schedule = [2]"})
    profile.write_text('{"mode": "guardrail", "schedule": [1], "thresholds": [0.7]}')
    configuration.load()
    after = configuration.models
    assert after["same"] is before["same"]
    assert after["changed"].guard.engine.policy.schedule == (2,)
    assert after["profiled"].guard.engine.policy.thresholds == (0.7,)
    assert after["changed"].guard.generator is before["changed"].guard.generator
    assert len(house.scorer.requests) == loaded  # the reward model was not built, and probed, again


def test_a_scorer_spec_that_was_written_anew_is_taken_up(house):
    path, spec = house.write({"guarded": "schedule = [1]"}), house.folder / "scorer.toml"
    text = path.read_text()
    path.write_text(re.sub(r"reward_model = .*", 'reward_model = "scorer.toml"', text))
    scorers = []
    for number, pattern in enumerate("abb"):
        spec.write_text(f'kind = "check"\ncheck = {{ type = "regex", pattern = "{pattern}" }}')
        os.utime(spec, (1, 1 + (pattern == "b")))
        if not number:
            configuration = Configuration(path)
        configuration.load()
        scorers.append(configuration.models["guarded"].guard.reward_model)
    assert [scorer.spec.check.pattern for scorer in scorers] == ["a", "b", "b"]
    assert scorers[1] is scorers[2]


def test_what_the_file_no_longer_names_is_no_longer_told_of(house):
    shadow = "schedule = [1]\nshadow = 1.0"
    with house.open({"first": shadow, "second": shadow}):
        assert {"first", "second"} <= set(re.findall(r'bonmini_guard_shadow{guard="(\w+)"', house.metrics()))
        path = house.write({"second": shadow})
        path.write_text(path.read_text().replace("plain", "renamed"))
        house.gateway._configuration.load()
        told = house.metrics()
    assert set(re.findall(r'bonmini_guard_shadow{guard="(\w+)"', told)) == {"second"}
    assert re.findall(r'upstream_up{upstream="(\w+)"', told) == ["renamed"]


def test_what_was_found_of_drift_holds_while_another_process_looks(house, monkeypatch):
    looks, found = [], iter([{"labels": 0.5}])
    monkeypatch.setattr("bonmini_guard.gateway.app._LOOK", 0.01)
    monkeypatch.setattr("bonmini_guard.gateway.app.p_values", lambda _: looks.append(0) or next(found, {}))
    with house.open({"guarded": "schedule = [1]"}):
        patiently(lambda: len(looks) > 2)
        assert 'drift_p_value{guard="guarded",what="labels"} 0.5' in house.metrics()


def test_the_network_needs_keys(tmp_path, capsys):
    (tmp_path / "guards.toml").write_text(UPSTREAM)
    assert main(["gateway", str(tmp_path / "guards.toml"), "--host", "0.0.0.0"]) == 2
    assert "keys_env" in capsys.readouterr().err


@contextlib.contextmanager
def started(path, meanwhile=lambda process: None):
    """The command as a process: it, the lines of its log so far, its address."""
    command = [sys.executable, "-m", "bonmini_guard.cli", "gateway", str(path), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")))
    reader.start()
    try:
        meanwhile(process)
        patiently(lambda: any("startup complete" in line for line in lines), 300)  # from here on it knows its signals
        yield process, lines, re.search(r"http://127\.0\.0\.1:\d+", "".join(lines)).group()
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def test_the_command_takes_up_a_changed_file_and_ends_in_order(house):
    with started(house.write({"first": "schedule = [1]"})) as (process, lines, house.url):
        house.write({"second": "schedule = [1]"})
        process.send_signal(signal.SIGHUP)
        patiently(lambda: "second" in [model.id for model in house.client.models.list()])
        for wrong in ("[nonsense", (house.folder / "guards.toml").read_text() + f'profile = "{"x" * 300}"'):
            (house.folder / "guards.toml").write_text(wrong)
            told = len(lines)
            process.send_signal(signal.SIGHUP)
            patiently(lambda told=told: any("refused" in line for line in lines[told:]))
        house.upstream.slow, answers = 1.0, []
        asking = threading.Thread(target=lambda: answers.append(house.post(model="second", messages=ASKED)))
        asking.start()
        patiently(lambda: house.upstream.busy == 1)
        process.send_signal(signal.SIGTERM)
        asking.join()
        assert process.wait(60) == 0
        assert answers[0].json()["bonmini_guard"]["decision"] == "accepted"
    noted = json.loads(next(line for line in lines if '"decision"' in line).partition("INFO ")[2])
    assert (noted["status"], noted["model"], noted["draws"]) == (200, "second", 1)
    assert not any("answer " in line for line in lines)


def without_socket(**body):
    """A request to an ASGI app, whose client stays: its scope, receive and send; and what is sent."""
    came, sent = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]), []

    async def receive():
        return next(came, None) or await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    headers = [(b"authorization", f"Bearer {KEY}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    return (scope, receive, send), sent


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream that has begun"])
async def test_who_is_not_answered_before_the_end_is_told_so(house, stream, caplog):
    caplog.set_level("INFO", "bonmini_guard.gateway")
    house.upstream.faults = lambda path, body: "stall"
    gateway = Gateway(Configuration(house.write({"guarded": "schedule = [1]"})), keep_alive=0.01)
    call, sent = without_socket(model="guarded", messages=ASKED, stream=stream)
    asking = asyncio.ensure_future(gateway.app(*call))
    async with asyncio.timeout(60):
        while not house.upstream.busy or (stream and not sent):
            await asyncio.sleep(0.01)
        gateway.ending = True
        asking.cancel()  # as uvicorn does to what runs when the time to finish it is over
        await asking
    assert sent[0]["status"] == (200 if stream else 503)
    assert json.loads(sent[-1]["body"].removeprefix(b"data: "))["error"]["type"] == "ending"
    assert stream or (b"retry-after", b"1") in sent[0]["headers"]
    assert json.loads(caplog.messages[-1])["status"] == 503


def test_two_processes_write_the_traces_of_all_they_answered_to_one_file(house):
    path = house.write({"guarded": 'schedule = [1]\ntrace_to = "traces.jsonl"'})
    with started(path) as (one, _, first), started(path) as (other, _, second), ThreadPoolExecutor(8) as pool:

        def ask(number):
            headers = {"authorization": f"Bearer {KEY}"}
            url = (first, second)[number % 2]
            return httpx.post(
                f"{url}/v1/chat/completions", json={"model": "guarded", "messages": ASKED}, headers=headers, timeout=60
            )

        asked = [answer.json()["bonmini_guard"]["request_id"] for answer in pool.map(ask, range(40))]
        for process in (one, other):
            process.send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in (one, other)] == [0, 0]
    rows = [json.loads(line) for line in (house.folder / "traces.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == sorted(asked)


def test_a_dead_upstream_gets_one_line(house):
    with house.open({"guarded": "schedule = [2]"}, more="unguarded = true\nretries = 0"):
        house.upstream.faults = lambda path, body: "reset"
        guarded, plain = (house.post(model=name, messages=ASKED) for name in ("guarded", "plain"))
    for answer in (guarded, plain):
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "outage")
        assert int(answer.headers["retry-after"]) >= 1
        assert "check base_url and the server" in answer.json()["error"]["message"]
        assert "\n" not in answer.json()["error"]["message"]


def test_the_page_names_what_prometheus_is_told(house):
    with house.open({"guarded": "schedule = [1]"}):
        told = set(re.findall(r"^# TYPE (\w+) (?:counter|gauge|histogram)$", house.metrics(), re.MULTILINE))
    page = Path("docs/gateway.md").read_text(encoding="utf-8")
    assert {name for name in told if not name.endswith("_created")} == set(re.findall(r"bonmini_guard_[a-z_]+", page))


@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_a_guard_explores_that_a_changed_file_removed_is_finished_before_the_end(house, when):
    house.upstream.slow = 0.5
    options = 'schedule = [1, 1]\nexplore = 1.0\ntrace_to = "traces.jsonl"'
    gateway = Gateway(Configuration(house.write({"guarded": options, "other": "schedule = [1]"})))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), headers={"authorization": f"Bearer {KEY}"}, timeout=60)
    async with client, gateway.app.router.lifespan_context(gateway.app), asyncio.timeout(60):
        body = {"model": "guarded", "messages": ASKED}
        asking = asyncio.ensure_future(client.post("http://127.0.0.1/v1/chat/completions", json=body))
        while not (asking.done() if when == "before" else house.upstream.busy):
            await asyncio.sleep(0.01)
        house.write({"other": "schedule = [1]"})
        gateway.renew()
        while "guarded" in gateway._configuration.models:
            await asyncio.sleep(0.01)
        answer = await asking
    assert answer.json()["bonmini_guard"]["draws"] == 1
    (row,) = map(json.loads, (house.folder / "traces.jsonl").read_text().splitlines())
    assert (row["complete"], len(row["candidates"])) == (True, 2)


@pytest.mark.parametrize("said", ["text/event-stream; charset=utf-8", "application/json"])
async def test_an_answer_that_is_passed_through_and_cut_has_an_error_event_only_where_it_is_a_stream(house, said, monkeypatch):
    async def pass_on(self, body, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", said.encode())]})
        await send({"type": "http.response.body", "body": b"half of it", "more_body": True})
        raise asyncio.CancelledError

    monkeypatch.setattr("bonmini_guard.gateway.models.Upstream.pass_on", pass_on)
    gateway = Gateway(Configuration(house.write({})))
    call, sent = without_socket(model="plain", messages=ASKED)
    await gateway.app(*call)
    assert len(sent) == 2 + said.startswith("text/event-stream")  # a JSON body stays without its end: no client takes it for whole
    assert sent[-1].get("more_body", False) is not said.startswith("text/event-stream")


def test_a_body_that_is_packed_and_a_setting_that_no_json_has_are_named(house):
    body = json.dumps({"model": "free", "messages": ASKED, "temperature": float("nan"), "logit_bias": {"5": float("inf")}})
    with house.open({"free": "schedule = [1]\nclient_sampling = true", "bound": "schedule = [1]"}):
        ask = partial(httpx.post, f"{house.url}/v1/chat/completions", timeout=60)
        headers = {"authorization": f"Bearer {KEY}"}
        packed = ask(content=gzip.compress(body.encode()), headers=headers | {"content-encoding": "gzip"})
        plain = ask(content=json.dumps({"model": "bound", "messages": ASKED}), headers=headers | {"content-encoding": "identity"})
        odd = ask(content=body, headers=headers)
    assert (packed.status_code, plain.status_code, odd.status_code) == (415, 200, 400)
    assert "without content-encoding" in packed.json()["error"]["message"]
    assert "temperature" in odd.json()["error"]["message"]
    assert len(house.upstream.requests) == 1


def test_a_sighup_that_comes_while_the_gateway_still_loads_has_the_file_read_again_once_it_serves(house):
    loading, sent = threading.Event(), threading.Event()
    house.scorer.faults = lambda path, body: loading.set() or (None if sent.wait(60) else 500)

    def hang_up(process):
        assert loading.wait(300)
        process.send_signal(signal.SIGHUP)
        sent.set()

    with started(house.write({"guarded": "schedule = [1]"}), hang_up) as (process, lines, _):
        patiently(lambda: any("in force" in line for line in lines), 300)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


async def test_a_guard_that_a_changed_file_removed_is_held_no_longer(house):
    gateway = Gateway(Configuration(house.write({"guarded": "schedule = [1]", "other": "schedule = [1]"})))
    async with gateway.app.router.lifespan_context(gateway.app), asyncio.timeout(60):
        while not gateway._metrics.drift:  # the first look is over
            await asyncio.sleep(0.01)
        removed = weakref.ref(gateway._configuration.guards["guarded"])
        house.write({"other": "schedule = [1]"})
        gateway.renew()
        while removed() is not None:
            await asyncio.sleep(0.01)
            gc.collect()
