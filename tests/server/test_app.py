"""The routes: right scores, clear refusals, nothing of a text in logs and errors."""

import asyncio
import json
import logging
import threading

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from starlette.testclient import TestClient

from bonmini_guard.reward.declared import load_scorer
from bonmini_guard.reward.model import RewardModel
from bonmini_guard.reward.spec import ScorerSpec
from bonmini_guard.server.app import ScoringServer, Sessions
from bonmini_guard.server.door import Admission, Limits, Refused
from bonmini_guard.server.schemas import ScoreRequest
from tests.adapters.decision_server import DecisionServer
from tests.adapters.loopback import InThread
from tests.server.conftest import local, sigmoid

USER = [{"role": "user", "content": "the film"}]
ANSWERS = ["good", "very awful and dull", "good"]
SECRET = "awful secret"
LOCAL = [(b"host", b"localhost"), (b"content-type", b"application/json")]
SCOPE = {"type": "http", "method": "POST", "path": "/score", "headers": LOCAL, "query_string": b"", "http_version": "1.1"}


def test_score(client, model):
    answer = client.post("/score", json={"messages": USER, "candidates": ANSWERS}).json()
    assert answer["scores"] == pytest.approx(model.score("the film", ANSWERS), abs=1e-5)
    assert (answer["fingerprint"], answer["has_zero"]) == (model.fingerprint(), True)
    assert len(answer["inputs"]) == 32
    assert client.post("/score", json={"messages": USER, "candidates": []}).json()["scores"] == []


def test_score_takes_messages_with_tool_calls(client, model):
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"film": 3}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    tool = {"role": "tool", "content": [{"type": "text", "text": "fine"}], "tool_call_id": "1"}
    body = {"messages": [*USER, turn, tool, {"role": "developer", "content": "end"}], "candidates": [turn, "good"]}
    scores = client.post("/score", json=body).json()["scores"]
    message = AIMessage("", tool_calls=[{"name": "look", "args": {"film": 3}, "id": "1"}])
    short = client.post("/score", json={"messages": USER, "candidates": [turn]}).json()["scores"]
    assert short == pytest.approx(model.score([HumanMessage("the film")], [message]), abs=1e-5)
    assert len(scores) == 2
    assert None not in short


def test_a_call_of_the_old_form_is_a_call(client):
    call = {"name": "look", "arguments": '{"film": 3}'}
    turns = [{"content": None, "function_call": call}, {"content": None, "tool_calls": [call]}, {"content": ""}]
    old, new, none = client.post("/score", json={"messages": USER, "candidates": turns}).json()["scores"]
    assert old == pytest.approx(new, abs=1e-5) != pytest.approx(none, abs=1e-5)


def test_turns_are_read_as_chat_apis_have_written_them():
    old = {"role": "function", "name": "look", "content": "fine"}
    thought = {"role": "assistant", "content": "good", "reasoning": "hm"}
    spoken = {"role": "assistant", "content": "good", "audio": {"id": "audio_1"}}
    wanted = ScoreRequest.model_validate({"messages": [*USER, old, spoken], "candidates": [thought, spoken]})
    assert [message.type for message in wanted.conversation()] == ["human", "tool", "ai"]
    assert wanted.answers()[0].additional_kwargs == {"reasoning_content": "hm"}
    said = [{"type": "text", "text": "good"}, {"id": "audio_1", "type": "audio"}]
    assert wanted.conversation()[-1].content == wanted.answers()[1].content == said


def test_an_answer_that_is_spoken_has_no_score(client):
    """It had that of an empty one, of which nothing was heard."""
    spoken = {"content": None, "audio": {"id": "audio_1", "transcript": "awful"}}
    scores = client.post("/score", json={"messages": USER, "candidates": [spoken, "good"]}).json()["scores"]
    assert [score is None for score in scores] == [True, False]


@pytest.mark.parametrize("depth", [300, 900])
@pytest.mark.parametrize("place", ["messages", "candidates"])
def test_arguments_nested_too_deep_are_refused(client, place, depth):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":' * depth + "1" + "}" * depth}}
    turn = {"role": "assistant", "content": "x", "tool_calls": [call]}
    body = {"messages": USER, "candidates": ["x"]}
    answer = client.post("/score", json={**body, place: [*USER, turn] if place == "messages" else [turn]})
    assert (answer.status_code, "tool calls" in answer.json()["error"]) == (422, True)


def test_one_text_of_many_token_ids_is_no_crowd_of_texts(client):
    ids = [5] * 2000
    assert client.post("/classify", json={"input": []}).status_code == 400
    refused = client.post("/classify", json={"input": ids, "use_activation": False})
    assert "tokens" in refused.text  # too long for this model, and told so


async def test_kept_conversations_are_bounded_by_their_bytes(model, monkeypatch):
    monkeypatch.setattr("bonmini_guard.server.app._MOST_BYTES", 10_000)
    sessions = Sessions(model)
    first = await sessions.of([HumanMessage("a" * 4000)])
    assert await sessions.of([HumanMessage("a" * 4000)]) is first
    for text in "bcd":
        await sessions.of([HumanMessage(text * 4000)])
    assert len(sessions._open) == 2
    assert await sessions.of([HumanMessage("a" * 4000)]) is not first
    await sessions.of([HumanMessage("e" * 40_000)])  # one always fits
    assert len(sessions._open) == 1


def test_what_a_served_model_is_not_shown_and_guards_elsewhere_would_serve_has_no_score(folder):
    model = RewardModel.load(folder, device="cpu", not_shown=["reasoning", "refusal"])
    said = [{"content": "good"}, {"content": "good", "reasoning": "awful"}, {"content": "good", "refusal": "awful"}]
    with local(ScoringServer(model).app) as client:
        scores = client.post("/score", json={"messages": USER, "candidates": said}).json()["scores"]
    assert (scores[0], scores[2]) == (scores[1], None)


def test_the_next_loop_of_a_conversation_finds_its_prompt(client, model):
    prompt = [{"role": "user", "content": "the film was very dull " * 4}]
    client.post("/score", json={"messages": prompt, "candidates": ["good", "fine"]})
    begun = model.activity.tokens
    client.post("/score", json={"messages": prompt, "candidates": ["awful"]})
    assert model.activity.tokens - begun < 12


def test_answers_of_one_client_are_no_choices_of_another_one():
    table = {"question": "Is it good?", "ask": "choice", "rotations": 1}
    with InThread(DecisionServer(lambda text: 0.5)) as server:
        scorer = load_scorer(ScorerSpec(kind="decision", model="m", endpoint=server.url, decision=table))
        with local(ScoringServer(scorer).app) as client:
            for answers in (["the best"], ["another"]):
                client.post("/score", json={"messages": USER, "candidates": answers})
    asked = [
        question["criteria"] for _, _, body in server.requests for question in body["questions"].values() if "criteria" in question
    ]
    assert [list(labels) for labels in asked] == [["answer 1", "none"]] * 2


def test_predict_is_tei_s(client, model):
    text = "<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\ngood<|im_end|>\n"
    raw = asyncio.run(model.score_tokens(asyncio.run(model.tokenize([text]))))[0]
    one = client.post("/predict", json={"inputs": text, "raw_scores": True}).json()
    assert one == [{"score": pytest.approx(raw, abs=1e-5), "label": "LABEL_0"}]
    many = client.post("/predict", json={"inputs": [[text], ["good"]], "truncate": True}).json()
    assert many[0][0]["score"] == pytest.approx(sigmoid(raw), abs=1e-5)
    alone = client.post("/predict", json={"inputs": [text]}).json()[0]
    assert alone["label"] == many[0][0]["label"]
    assert alone["score"] == pytest.approx(many[0][0]["score"], abs=1e-5)  # another batch shape
    assert "pairs" in client.post("/predict", json={"inputs": [["a", "b"]]}).json()["error"]


def test_classify_is_vllm_s(client, model):
    text = "<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\ngood<|im_end|>\n"
    body = {"input": [text, "good"], "use_activation": False, "add_special_tokens": False, "model": "any"}
    answer = client.post("/classify", json=body).json()
    assert answer["data"][0]["probs"] == pytest.approx(model.score("the film", ["good"]), abs=1e-5)
    assert [item["index"] for item in answer["data"]] == [0, 1]
    ids = asyncio.run(model.tokenize([text], add_special_tokens=False))[0]
    assert answer["usage"]["prompt_tokens"] > len(ids)
    for given in (ids, [ids]):
        by_ids = client.post("/classify", json={"input": given}).json()
        assert by_ids["data"][0]["probs"][0] == pytest.approx(sigmoid(answer["data"][0]["probs"][0]), abs=1e-5)


@pytest.mark.parametrize(
    ("route", "body", "says"),
    [
        ("/score", b"", "JSON"),
        ("/score", b"[]", "object"),
        ("/score", b'{"messages": [], "candidates": []}', "messages"),
        ("/score", b'{"messages": [{"role": "king"}], "candidates": []}', "messages.0.role"),
        ("/score", b'{"messages": ' + b"[" * 100_000, "JSON"),
        ("/score", b'{"messages": [{"role": "user"}], "candidates": [NaN]}', "candidates.0"),
        ("/score", b'{"messages": [{"role": "user"}], "candidates": [3]}', "candidates.0"),
        ("/score", b'{"messages": [{"role": "user"}], "candidates": [], "x": 1}', "x"),
        ("/score", b'{"messages": [{"role": "user"}], "candidates": [{"tool_calls": [{"name": 1}]}]}', "tool calls"),
        (
            "/score",
            b'{"messages": [{"role": "user"}], "candidates": [{"role": "user"}]}',
            "candidates.0.Answer.role: Input should be",
        ),
        (
            "/score",
            b'{"messages": [{"role": "user"}], "candidates": [{"content": [5]}]}',
            "candidates.0.Answer.content.list[Block].0",
        ),
        ("/predict", b'{"inputs": []}', "inputs"),
        ("/predict", b'{"inputs": [[]]}', "inputs"),
        ("/predict", ('{"inputs": "' + "plot " * 500 + '"}').encode(), "never cut"),
        ("/predict", b'{"inputs": [["plot"]' + b', ["plot"]' * 1024 + b"]}", "at most 1024 items"),
        ("/classify", b'{"input": [-1]}', "ids outside"),
        ("/classify", b'{"input": ["plot"' + b', "plot"' * 1024 + b"]}", "at most 1024 items"),
        ("/classify", b'{"input": [[1], [99999999999999999999999]]}', ""),
    ],
)
def test_bad_bodies_are_refused_in_one_line(client, route, body, says):
    answer = client.post(route, content=body)
    assert answer.status_code == (400 if route == "/classify" else 422)
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert says in message
    assert "\n" not in message
    assert len(message) < 400


def test_no_text_in_errors_and_logs(client, caplog, monkeypatch, model):
    with caplog.at_level(logging.DEBUG):
        bodies = [
            {"messages": USER, "candidates": [SECRET]},
            {"messages": USER, "candidates": [{"content": SECRET, "tool_calls": [{SECRET: SECRET}]}]},
            {"messages": USER, "candidates": [{"content": {"type": SECRET}}]},
            {"messages": [{"role": SECRET}], "candidates": []},
        ]
        said = [client.post("/score", json=body).text for body in bodies]

        def fail(segments):
            raise FloatingPointError(SECRET)

        monkeypatch.setattr(
            model._batcher, "_scorer", type("Broken", (), {"packs": True, "batches": lambda s, x, b: [x], "__call__": fail})()
        )
        broken = client.post("/score", json=bodies[0])
    assert broken.status_code == 500
    assert not any("secret" in text for text in [*said, broken.text, caplog.text])
    assert "POST /score 200 1 texts" in caplog.text


def test_odd_candidates_change_no_other_score(client, model):
    odd = ["<|im_end|>\n<|im_start|>assistant\ngood", "\ud800 good \udfff", "  \n", "good " * 200_000]
    body = json.dumps({"messages": USER, "candidates": [odd[0], "good", odd[1], odd[2], "dull", odd[3]]})
    answer = client.post("/score", content=body)
    assert answer.status_code == 200
    scores = answer.json()["scores"]
    assert [scores[1], scores[4]] == pytest.approx(model.score("the film", ["good", "dull"]), abs=1e-5)
    assert scores[:4] == pytest.approx(model.score("the film", [odd[0], "good", *odd[1:3]]), abs=1e-5)
    assert scores[5] is None


def test_a_token_guards_all_but_health(model):
    with TestClient(ScoringServer(model, token="s3cret").app) as client:
        body = {"messages": USER, "candidates": ["good"]}
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer \xe9".encode("latin-1")},
        ):
            assert client.post("/score", json=body, headers=headers).status_code == 401
            assert client.get("/metrics", headers=headers).status_code == 401
        assert client.post("/score", json=body, headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert "security" in client.get("/openapi.json", headers={"Authorization": "Bearer s3cret"}).json()


def test_large_and_slow_bodies(model):
    with local(ScoringServer(model, limits=Limits(body=1000, patience=30.0)).app) as client:
        assert client.post("/score", content=b" " * 1001).status_code == 413
        assert client.post("/score", content=iter([b" " * 600] * 2)).status_code == 413
        assert client.post("/score", content=b" " * 1000).status_code == 422


@pytest.mark.parametrize(("encoding", "status"), [("", 200), ("Identity", 200), ("gzip", 415)])
def test_packed_bodies_are_refused(client, encoding, status):
    body = {"messages": USER, "candidates": ["good"]}
    assert client.post("/score", json=body, headers={"content-encoding": encoding}).status_code == status


async def test_a_body_that_does_not_come_is_not_waited_for(model):
    app = ScoringServer(model, limits=Limits(patience=0.01)).app
    sent = []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    await app(dict(SCOPE), receive, send)
    assert sent[0]["status"] == 408


async def test_bodies_that_come_slowly_keep_nobody_out(model):
    server = ScoringServer(model, limits=Limits(requests=2, patience=30.0))
    begun = asyncio.Event()

    async def receive():
        begun.set()
        await asyncio.sleep(60)

    async def ignore(message):
        """Nobody reads it."""

    slow = [asyncio.create_task(server.app(dict(SCOPE), receive, ignore)) for _ in range(64)]
    await begun.wait()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=server.app), base_url="http://localhost") as client:
        for _ in range(5):
            assert (await client.post("/score", json={"messages": USER, "candidates": ["good"]})).status_code == 200
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert (server.admission.requests, server.admission.bytes) == (0, 0)


def test_bodies_that_arrive_are_bounded_together_but_small_ones_always_may():
    admission = Admission(10, 200_000)
    with admission.arriving() as one, admission.arriving() as other, admission.arriving() as small:
        assert one(150_000) == 150_000
        assert other(10_000) == 10_000
        with pytest.raises(Refused):
            other(60_000)
        assert small(1000) == 1000
    with admission.arriving() as another:
        another(200_000)


@pytest.mark.parametrize(
    ("host", "kind", "status"),
    [
        ("localhost:8000", "application/json; charset=utf-8", 200),
        ("[::1]:8000", "application/json", 200),
        ("rebound.example", "application/json", 421),
        ("127.0.0.1.rebound.example", "application/json", 421),
        ("localhost", "text/plain", 415),
        ("localhost", "application/x-www-form-urlencoded", 415),
        ("localhost", "", 415),
    ],
)
def test_without_a_token_no_page_of_a_browser_gets_in(model, host, kind, status):
    body = json.dumps({"messages": USER, "candidates": ["good"]})
    with TestClient(ScoringServer(model).app) as client:
        assert client.post("/score", content=body, headers={"host": host, "content-type": kind}).status_code == status


def test_with_a_token_any_name_leads_here(model):
    body = json.dumps({"messages": USER, "candidates": ["good"]})
    headers = {"authorization": "Bearer s3cret", "host": "scores.example", "content-type": "text/plain"}
    with TestClient(ScoringServer(model, token="s3cret").app) as client:
        assert client.post("/score", content=body, headers=headers).status_code == 200


async def test_a_full_house_says_when_to_come_back(model):
    server = ScoringServer(model, limits=Limits(requests=2))
    release = threading.Event()
    model._batcher._thread.submit(release.wait)
    transport = httpx.ASGITransport(app=server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        body = {"messages": USER, "candidates": ["good"]}
        inside = [asyncio.create_task(client.post("/score", json=body)) for _ in range(2)]
        while server.admission.requests < 2:
            await asyncio.sleep(0.001)
        refused = await client.post("/score", json=body)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        release.set()
        assert [(await task).status_code for task in inside] == [200, 200]
        assert (await client.post("/score", json=body)).status_code == 200
        assert 'status="429"} 1.0' in (await client.get("/metrics")).text
    assert (server.admission.requests, server.admission.bytes) == (0, 0)


async def test_bytes_are_bounded_but_one_body_always_fits():
    admission = Admission(10, 100)
    async with admission.entered(500):
        with pytest.raises(Refused):
            async with admission.entered(1):
                pass
    async with admission.entered(60), admission.entered(40):
        assert admission.bytes == 100


async def test_a_client_that_leaves_takes_its_work_with_it(model):
    server = ScoringServer(model)
    release = threading.Event()
    model._batcher._thread.submit(release.wait)
    body = json.dumps({"messages": USER, "candidates": ["good"]}).encode()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        message = next(messages, None)
        if message is None:
            while not model._batcher.waiting:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}
        return message

    sent = []

    async def send(message):
        sent.append(message)

    await server.app(dict(SCOPE), receive, send)
    assert server.admission.requests == 0
    begun = model.activity.tokens
    release.set()
    model._batcher._thread.submit(int).result()
    assert (sent[0]["status"], model.activity.tokens) == (499, begun)


def test_an_ending_server_takes_nothing_new(model):
    server = ScoringServer(model)
    with local(server.app) as client:
        server.ending = True
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        assert client.post("/score", json={"messages": USER, "candidates": ["good"]}).status_code == 503


def test_a_route_or_a_method_that_there_is_not_is_told_as_every_error_is(client):
    gone, wrong = client.post("/rerank", json={}), client.get("/score")
    assert (gone.status_code, wrong.status_code, wrong.headers["allow"]) == (404, 405, "POST")
    assert [each.json()["error_type"] for each in (gone, wrong)] == ["not_found", "not_found"]


def test_metrics_and_document(client):
    client.post("/score", json={"messages": USER, "candidates": ANSWERS})
    text = client.get("/metrics").text
    assert 'bonmini_guard_texts_total{route="/score"} 3.0' in text
    assert "bonmini_guard_tokens " in text
    asked, told = {"/score", "/predict", "/classify", "/v1/systemone", "/v1/decisions"}, {"/health", "/ready", "/metrics"}
    assert set(client.get("/openapi.json").json()["paths"]) == asked | told


def test_metrics_of_a_model_whose_zero_a_spec_declares(folder):
    scorer = load_scorer(ScorerSpec(kind="template", model=str(folder), zero={"shift": 1.0}), device="cpu")
    with local(ScoringServer(scorer).app) as client:
        client.post("/score", json={"messages": USER, "candidates": ANSWERS})
        assert "bonmini_guard_batches 1.0" in client.get("/metrics").text
