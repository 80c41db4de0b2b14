"""The routes of decision models: right probabilities for every client, and no answer to another question."""

from __future__ import annotations

import math

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from bonmini_guard.engine.scorers import FunctionSession
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.reward.model import RewardModel
from bonmini_guard.reward.questions import QUESTION
from bonmini_guard.server.app import ScoringServer
from bonmini_guard.server.decisions import turns_of
from tests.adapters.decision_server import langchains
from tests.server.conftest import local, sigmoid

STATE = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "good"}]
ANSWERS = {"a": "good", "b": "very awful and dull", "none": "None is acceptable."}


def shares(model):
    powers = {"none": 1.0} | {label: math.exp(model.score("the film", [ANSWERS[label]])[0]) for label in "ab"}
    return {label: power / sum(powers.values()) for label, power in powers.items()}


def test_both_routes_give_the_probability_of_the_one_question(client, model):
    wanted = sigmoid(model.score("the film", ["good"])[0])
    noul = {"type": "noul", "instructions": QUESTION}
    said = client.post("/v1/systemone", json={"model": "m", "state": STATE, "questions": {"ok": noul}}).json()
    assert said["answers"]["ok"] == {"type": "noul", "noul": pytest.approx(wanted, abs=1e-5)}
    predicate = {"type": "predicate", "name": "ok", "instructions": f" {QUESTION.upper()} "}
    said = client.post("/v1/decisions", json={"model": "m", "input": STATE, "questions": [predicate, predicate]}).json()
    assert said["answers"] == [{"type": "predicate", "name": "ok", "probability": pytest.approx(wanted, abs=1e-5)}] * 2


def test_a_choice_is_the_softmax_with_the_outside_option_at_zero(client, model):
    choice = {"type": "choice", "instructions": QUESTION, "criteria": ANSWERS}
    said = client.post("/v1/systemone", json={"state": STATE[:1], "questions": {"best": choice}}).json()["answers"]["best"]
    assert said["probabilities"] == pytest.approx(shares(model), abs=1e-5)
    assert said["choice"] == max(shares(model), key=shares(model).get)
    listed = [{"value": label, "description": text} for label, text in ANSWERS.items()]
    choice = {"type": "choice", "name": "best", "instructions": QUESTION, "choices": listed}
    said = client.post("/v1/decisions", json={"input": STATE[:1], "questions": [choice]}).json()["answers"][0]
    assert {one["value"]: one["probability"] for one in said["probabilities"]} == pytest.approx(shares(model), abs=1e-5)


@pytest.mark.parametrize("given", [5, 0])
def test_labels_of_a_choice_may_stand_for_any_json_as_langchain_s_do(client, model, given):
    choice = {"type": "choice", "instructions": QUESTION, "criteria": {"a": given, "none": True}}
    said = client.post("/v1/systemone", json={"state": STATE[:1], "questions": {"best": choice}}).json()["answers"]["best"]
    assert said["probabilities"]["a"] == pytest.approx(sigmoid(model.score("the film", [str(given)])[0]), abs=1e-5)


ASKED = {"type": "noul", "instructions": QUESTION}
REFUSED = [
    ({"state": STATE, "questions": {"q": {**ASKED, "instructions": "Is it short?"}}}, QUESTION),
    ({"state": STATE[:1], "questions": {"q": ASKED}}, "must end in an assistant's turn"),
    ({"state": "good", "questions": {"q": ASKED}}, "must end in an assistant's turn"),
    ({"state": [], "questions": {"q": ASKED}}, "conversation"),
    ({"state": [1], "questions": {"q": ASKED}}, "state"),
    ({"state": [{"role": "good", "content": "x"}], "questions": {"q": ASKED}}, "state: a message is malformed"),
    ({"state": [{"role": "user", "content": '[{"role": "good"}]'}], "questions": {"q": ASKED}}, "state: a message is malformed"),
    ({"state": STATE, "questions": {}}, "questions"),
    ({"state": STATE, "questions": {"q": {"type": "score", "instructions": QUESTION, "criteria": ["a", "b"]}}}, "questions"),
    ({"state": STATE, "questions": {"q": {"type": "choice", "instructions": QUESTION, "criteria": {"a": "good"}}}}, "label 'none'"),
    ({"state": [*STATE[:1], {"role": "assistant", "content": "good " * 3000}], "questions": {"q": ASKED}}, "no score"),
    (
        {"state": "film", "questions": {"q": {**ASKED, "type": "choice", "criteria": {"none": None, "good " * 3000: None}}}},
        "answer 1 of the choice has no score",
    ),
]


@pytest.mark.parametrize(("body", "says"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_what_cannot_be_answered_is_a_400_that_says_why(client, body, says):
    answer = client.post("/v1/systemone", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
    assert "good" not in answer.text


def test_in_openais_protocol_an_answer_without_a_score_is_a_refusal(client):
    body = {"input": [*STATE[:1], {"role": "assistant", "content": "good " * 3000}], "questions": [{**ASKED, "type": "predicate"}]}
    assert client.post("/v1/decisions", json=body).json()["answers"] == [{"type": "refusal", "name": None}]


@pytest.mark.parametrize("route", ["/v1/systemone", "/v1/decisions"])
@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_none(client, model, monkeypatch, route, score):
    async def scores(candidates):
        return [score for _ in candidates]

    monkeypatch.setattr(model, "session", lambda messages: FunctionSession(scores))
    ask = {**ASKED, "type": "predicate"}
    bodies = {"/v1/systemone": {"state": STATE, "questions": {"q": ASKED}}, "/v1/decisions": {"input": STATE, "questions": [ask]}}
    answer = client.post(route, json=bodies[route])
    assert answer.status_code == {"/v1/systemone": 400, "/v1/decisions": 200}[route]
    assert "no score" in answer.text or "refusal" in answer.text


OTHER = {"state": STATE, "questions": {"q": {**ASKED, "instructions": "Is it short?"}}}


def test_what_the_model_is_not_shown_and_guards_elsewhere_would_serve_has_no_score(folder):
    model = RewardModel.load(folder, device="cpu", not_shown=["reasoning", "refusal"])
    state = [STATE[0], {"role": "assistant", "content": "good", "refusal": "awful"}]
    with local(ScoringServer(model).app) as client:
        told = client.post("/v1/systemone", json={"state": state, "questions": {"ok": ASKED}})
        assert (told.status_code, "the answer has no score" in told.text) == (400, True)
        told = client.post("/v1/decisions", json={"input": state, "questions": [ASKED]}).json()["answers"]
        assert [each["type"] for each in told] == ["refusal"]


def test_the_question_stands_in_the_models_route(model):
    with local(ScoringServer(model, question="Is it a good review?").app) as client:
        assert client.get("/v1/models").json()["data"][0]["question"] == "Is it a good review?"
        assert client.post("/v1/systemone", json=OTHER).status_code == 400


@pytest.mark.parametrize("asked", [{"question": "Is it short?"}, {"any_question": True}])
def test_a_model_without_a_zero_is_asked_nothing(model, asked):
    model.has_zero = False
    assert ScoringServer(model)._asked is None
    with pytest.raises(ConfigurationError, match="has no zero"):
        ScoringServer(model, **asked)


def test_choices_of_one_value_are_refused(client):
    choices = [{"value": "a", "description": "good"}, {"value": "a", "description": "dull"}, {"value": "none"}]
    body = {"input": STATE[:1], "questions": [{"type": "choice", "instructions": QUESTION, "choices": choices}]}
    answer = client.post("/v1/decisions", json=body)
    assert answer.status_code == 400
    assert "two choices have one value" in answer.text


def test_any_question_where_that_is_said(model):
    with local(ScoringServer(model, any_question=True).app) as client:
        assert client.post("/v1/systemone", json=OTHER).status_code == 200


def test_conversations_as_either_protocol_writes_them():
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Where?"}]},
        {"role": "assistant", "content": "", "tool_calls": None},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "there"},
        {"type": "custom_tool_call", "call_id": "2", "name": "run", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": "ran"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "3", "function": {"name": "look", "arguments": "{}"}}]},
        {"role": "tool", "content": "", "tool_call_id": "3"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "There."}]},
    ]
    assert [(turn.role, turn.text, len(turn.calls), turn.reasoning) for turn in turns_of(items)] == [
        ("user", "Where?", 0, ""),
        ("assistant", "", 1, ""),
        ("tool", "there", 0, ""),
        ("assistant", "", 0, ""),
        ("tool", "ran", 0, ""),
        ("assistant", "", 1, ""),
        ("tool", "", 0, ""),
        ("assistant", "There.", 0, "hm"),
    ]
    with pytest.raises(InputError, match="a message is malformed"):
        turns_of([{"type": "image"}])


def test_what_a_message_says_beside_its_content_is_read_among_items_too():
    call, given = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}, {"role": "user", "content": "?"}
    beside = {"reasoning_content": "hm", "refusal": "No.", "audio": {"id": "audio_1"}}
    [_, said] = turns_of([given, call, {"role": "assistant", "content": "Well.", **beside}])
    assert (said.text, said.reasoning, said.refusal, said.kinds, len(said.calls)) == ("Well.", "hm", "No.", {"audio"}, 1)
    assert [turn.text for turn in turns_of([given, {"role": "assistant", "content": "Well.", "parts": []}])] == ["?", "Well."]
    assert turns_of([given, {"role": "assistant", "parts": ["Well."]}])[1].text == "Well."


# Real clients


def test_openais_client(client, model):
    openai = pytest.importorskip("openai")
    asking = openai.OpenAI(api_key="x", base_url="http://127.0.0.1/v1", http_client=client, max_retries=0)
    if not hasattr(asking, "decisions"):
        pytest.skip("this version has no decisions")
    items = [{"type": "message", **turn} for turn in STATE]
    said = asking.decisions.create(
        model="m", input=items, questions=[{"type": "predicate", "name": "ok", "instructions": QUESTION}]
    )
    assert said.answers[0].probability == pytest.approx(sigmoid(model.score("the film", ["good"])[0]), abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="trained for"):
        asking.decisions.create(model="m", input=items, questions=[{"type": "predicate", "instructions": "Is it kind?"}])


@pytest.mark.filterwarnings("ignore:The class .OpenAIDecisions. is in beta")
def test_langchains_openai_decisions(client, model):
    types = pytest.importorskip("langchain_openai.decisions")
    asking = types.OpenAIDecisions(model="m", api_key="x", base_url="http://127.0.0.1/v1", http_client=client, max_retries=0)
    state = [HumanMessage("the film"), AIMessage("good")]
    said = asking.invoke({"input": state, "questions": {"ok": types.Predicate(instructions=QUESTION)}})
    assert said.predicates["ok"].probability == pytest.approx(sigmoid(model.score("the film", ["good"])[0]), abs=1e-5)


def test_a_decision_model_of_langchain_over_system_one(client, model):
    types = pytest.importorskip("langchain_core.decisions")

    def classify(state, questions):
        turns = [{"role": {"human": "user", "ai": "assistant"}[turn.type], "content": turn.text} for turn in state]
        asked = {name: question.model_dump(exclude_none=True) for name, question in questions.items()}
        return client.post("/v1/systemone", json={"model": "m", "state": turns, "questions": asked}).json()

    state = [HumanMessage("the film"), AIMessage("good")]
    said = langchains(classify).invoke({"state": state, "questions": {"ok": types.Noul(instructions=QUESTION)}})
    assert said.nouls["ok"].noul == pytest.approx(sigmoid(model.score("the film", ["good"])[0]), abs=1e-5)


async def test_a_reward_model_as_a_decision_model(model):
    types = pytest.importorskip("langchain_core.decisions")
    asking = model.as_decision_model()
    state = [HumanMessage("the film"), AIMessage("good")]
    request = {"state": state, "questions": {"ok": types.Noul(instructions=QUESTION)}}
    wanted = sigmoid(model.score("the film", ["good"])[0])
    assert asking.invoke(request).nouls["ok"].noul == pytest.approx(wanted, abs=1e-5)
    assert (await asking.ainvoke(request)).nouls["ok"].noul == pytest.approx(wanted, abs=1e-5)
    choice = types.Choice(instructions=QUESTION, criteria=ANSWERS)
    said = asking.invoke({"state": state[:1], "questions": {"best": choice}})
    assert said.choices["best"].probabilities == pytest.approx(shares(model), abs=1e-5)
    with pytest.raises(InputError, match="trained for"):
        asking.invoke({"state": state, "questions": {"ok": types.Noul(instructions="Is it kind?")}})
