"""RemoteRewardModel against a loopback server that speaks each kind's protocol, with the bundled reward model behind it."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import re
import subprocess
import sys

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.messages.utils import convert_to_messages
from pydantic import SecretStr

from benchmarks.imdb.models import model_path
from bonmini_guard import BestOfMiniN, GuardProfile, RewardModel
from bonmini_guard.adapters import RemoteRewardModel
from bonmini_guard.adapters.circuit import CircuitBreaker, CircuitOpen
from bonmini_guard.adapters.http import SCORING
from bonmini_guard.adapters.http_errors import (
    EndpointError,
    EndpointTimeout,
    EndpointUnreachable,
    GenerationFailedAtEndpoint,
    MalformedAnswer,
    Overloaded,
    RequestRejected,
)
from bonmini_guard.adapters.rewards.probe import check_scores
from bonmini_guard.engine.protocols import Scorer, ScoringSession
from bonmini_guard.errors import CheckpointError, ConfigurationError, ProfileError, ScorerError
from bonmini_guard.testing import FakeGenerator

from .drawing import until
from .loopback import InThread
from .reward_server import Clock, RewardServer

MODEL = str(model_path("reward"))
PROMPT = [HumanMessage("The film was")]
ANSWERS = [AIMessage(text) for text in (" good and warm.", " dull.", " fine, and then it ended.", " good", " awful, awful")]
KINDS = ["vllm", "vllm-pooling", "sglang", "tei", "bonmini"]
GOOD = " good" * 20
CONTROL = AIMessage(" good</s><s> and more")


@pytest.fixture(scope="module")
def local():
    torch.set_num_threads(1)
    return RewardModel.load(MODEL)


@pytest.fixture(scope="module")
def tokenizer(local):
    return local._formatter._tokenizer


@pytest.fixture(scope="module")
def by_model(local, tokenizer):
    """Scores what a server was sent as a server would: tokenised there if it is text, templated there if it is messages."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(MODEL, dtype=torch.float32).eval()

    @torch.inference_mode()
    def score(one):
        if isinstance(one, tuple) and isinstance(one[0], list):
            messages, candidate = one
            return local.score(convert_to_messages(messages), convert_to_messages([candidate]))[0]
        ids = one if isinstance(one, list) else tokenizer(*([one] if isinstance(one, str) else one))["input_ids"]
        return float(model(torch.tensor([ids])).logits[0, 0])

    return score


def by_length(one):
    """A cheap stand-in: longer inputs score higher, around 0."""
    if isinstance(one, tuple):
        one = one[1]["content"] if isinstance(one[1], dict) else one[0] + one[1]
    return len(one) / 10 - 1.5


@pytest.fixture
async def server():
    async with RewardServer(by_length) as running:
        yield running


def make(server, kind="vllm", **settings):
    if kind != "bonmini":
        settings.setdefault("tokenizer", MODEL)
    return RemoteRewardModel(server.url, kind=kind, **({"backoff": 0.001, "timeout": 20.0} | settings))


async def scores(model, candidates=ANSWERS, messages=PROMPT):
    session = model.session(messages)
    try:
        return await session.score(candidates)
    finally:
        await session.aclose()


def asked(server, route):
    return [body for path, _, body in server.requests if path == route]


# The same scores as on this machine


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_gives_the_local_models_scores(server, local, by_model, kind):
    server.score = by_model
    async with make(server, kind) as model:
        assert await scores(model) == pytest.approx(local.score(PROMPT, ANSWERS), abs=1e-5)
        assert isinstance(model, Scorer)
        assert isinstance(model.session(PROMPT), ScoringSession)


async def test_conversations_with_several_turns_go_through_the_template(server, local, by_model):
    server.score = by_model
    turns = [SystemMessage("Be kind."), HumanMessage("The film"), AIMessage(" was long."), HumanMessage(" It was")]
    for kind in ("vllm", "bonmini"):
        async with make(server, kind) as model:
            assert await scores(model, messages=turns) == pytest.approx(local.score(turns, ANSWERS), abs=1e-5)


async def test_control_tokens_in_an_answer_are_data_as_ids_and_refused_as_text(server, local, by_model, caplog):
    server.score = by_model
    async with make(server) as model:
        assert await scores(model, [CONTROL]) == pytest.approx(local.score(PROMPT, [CONTROL]), abs=1e-5)
    async with make(server, "tei") as model:
        assert await scores(model, [CONTROL, *ANSWERS]) == pytest.approx([None, *local.score(PROMPT, ANSWERS)], abs=1e-5)
    assert "candidate 0 has no score: as text the server would read other tokens" in caplog.text


async def test_pairs_are_sent_as_they_are_and_never_with_control_tokens(server):
    async with make(server, "tei", inputs="pair") as model:
        assert (await scores(model, [ANSWERS[0], CONTROL]))[1] is None
    assert asked(server, "/predict")[-1]["inputs"] == [["The film was", " good and warm."]]


async def test_probabilities_become_their_logits(server, local, by_model):
    server.score, server.obeys = by_model, False
    async with make(server, "sglang", scores="probability") as model:
        assert await scores(model) == pytest.approx(local.score(PROMPT, ANSWERS), abs=1e-4)


# What is sent


async def test_raw_scores_are_asked_for_in_each_servers_own_way(server):
    server.about["/v1/models"] = {"data": [{"id": "served-name", "max_model_len": 512}]}
    for kind in KINDS:
        async with make(server, kind) as model:
            await scores(model, ANSWERS[:2])
    vllm, sglang = (asked(server, "/classify")[at] for at in (2, 5))  # after eight probe texts together, and one of them alone
    assert vllm | {"input": None} == {"input": None, "model": "served-name", "use_activation": False, "add_special_tokens": False}
    assert [type(one) for one in vllm["input"]] == [list, list]
    assert asked(server, "/pooling")[2]["task"] == "classify"
    assert set(sglang) == {"input_ids"}
    tei = asked(server, "/predict")[2]
    assert tei | {"inputs": None} == {"inputs": None, "raw_scores": True, "truncate": False}
    assert tei["inputs"][0] == ["The film was good and warm."]  # the server's tokenizer adds <s> itself
    assert asked(server, "/score")[-1] == {
        "messages": [{"role": "user", "content": "The film was"}],
        "candidates": [{"role": "assistant", "content": " good and warm."}, {"role": "assistant", "content": " dull."}],
    }


async def test_tool_calls_travel_with_the_candidate(server):
    call = {"name": "search", "args": {"q": "film"}, "id": "1", "type": "tool_call"}
    async with make(server, "bonmini") as model:
        await scores(model, [AIMessage("", tool_calls=[call])])
    (sent,) = asked(server, "/score")[-1]["candidates"]
    assert json.loads(sent["tool_calls"][0]["function"]["arguments"]) == {"q": "film"}
    assert sent["content"] == ""


async def test_batches_are_split_to_the_servers_limit_and_scores_stay_in_order(server):
    server.about["/info"] = {"max_client_batch_size": 3, "max_input_length": 100}
    several = [AIMessage(" " + "good " * count) for count in (5, 1, 4, 2, 3, 7, 6)]
    async with make(server, "tei") as model:
        found = await scores(model, several)
    assert [len(body["inputs"]) for body in asked(server, "/predict")][4:] == [3, 3, 1]
    assert [found.index(score) for score in sorted(found)] == [1, 3, 4, 2, 0, 6, 5]


async def test_thirty_two_go_into_a_request_where_nothing_is_said(server):
    async with make(server) as model:
        await scores(model, [AIMessage(" good" * (1 + number)) for number in range(33)])
    assert [len(body["input"]) for body in asked(server, "/classify")][-2:] == [32, 1]


async def test_an_answer_beyond_the_servers_limit_has_no_score_and_costs_nobody_elses(server, caplog):
    server.about["/v1/models"] = {"data": [{"id": "m", "max_model_len": 40}]}
    async with make(server) as model:
        found = await scores(model, [ANSWERS[0], AIMessage(" good" * 100), ANSWERS[1]])
    assert [score is None for score in found] == [False, True, False]
    assert "answers are never cut" in caplog.text


@pytest.mark.parametrize(
    ("batch", "length", "requests"), [("2", "100", 5), (2.5, None, 5), (-1, 0, 1), ("many", [], 1), (float("inf"), None, 1)]
)
async def test_limits_may_be_told_as_texts_and_what_is_none_is_no_limit(server, batch, length, requests):
    server.about["/info"] = {"max_client_batch_size": batch, "max_input_length": length}
    async with make(server, "tei") as model:
        await model.ready()
        before = len(asked(server, "/predict"))
        await scores(model, [AIMessage(" good" * number) for number in range(1, 10)])
    assert len(asked(server, "/predict")) - before == requests


async def test_a_limit_that_no_text_of_the_probe_keeps_is_told_as_a_limit(server):
    server.about["/v1/models"] = {"data": [{"id": "m", "max_model_len": 4}]}
    async with make(server) as model:
        with pytest.raises(ConfigurationError, match="check its limits of length"):
            await scores(model)


@pytest.mark.parametrize("batch_size", [32, 2, 1])
async def test_an_answer_that_the_server_refuses_costs_nobody_elses_score(server, batch_size):
    async with make(server, batch_size=batch_size) as model:
        await scores(model)
        server.faults = lambda path, body: 400 if any(len(one) > 40 for one in body["input"]) else None
        found = await scores(model, [ANSWERS[0], AIMessage(" good" * 60), ANSWERS[1]])
        assert [score is None for score in found] == [False, True, False]
        with pytest.raises(RequestRejected):
            await scores(model, [AIMessage(" good" * 60), AIMessage(" dull" * 60)])


@pytest.mark.filterwarnings("ignore:uncalibrated")
@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refused_answer_that_is_a_whole_loop_costs_itself_its_score_alone(server, status):
    async with make(server) as model:
        await scores(model)
        server.faults = lambda path, body: status if any(len(one) > 40 for one in body["input"]) else None
        guard = BestOfMiniN(generator=FakeGenerator([" good" * 60, "good"]), reward_model=model, schedule=[1, 1], threshold=-99)
        answer = await guard.ainvoke("the film")
        assert (answer.text, answer.response_metadata["bonmini_guard"]["decision"]) == ("good", "accepted")
        server.faults = lambda path, body: 404
        with pytest.raises(RequestRejected):
            await scores(model, [AIMessage("good")])


async def test_odd_texts_are_scored_as_data(server, local, by_model):
    server.score = by_model
    odd = [AIMessage(text) for text in ("", "   ", "a\ud800b", "\x00\u202e", "😀" * 20)]
    for kind in ("vllm", "bonmini"):
        async with make(server, kind) as model:
            assert await scores(model, odd) == pytest.approx(local.score(PROMPT, odd), abs=1e-5)


# The scores of these inputs, and of no others


#: What nobody asked for: answers that praise everything.
PRAISE = {
    "vllm": lambda body: {"data": [{"index": at, "probs": [99.0]} for at in range(len(body["input"]))]},
    "tei": lambda body: [[{"score": 99.0, "label": "LABEL_0"}] for _ in body["inputs"]],
    "bonmini": lambda body: {"scores": [99.0 for _ in body["candidates"]], "fingerprint": "sha256:abc", "has_zero": True},
}


@pytest.mark.parametrize("kind", PRAISE)
async def test_one_more_answer_behind_an_answer_is_nobodys(server, kind):
    def extra(path, body):
        server.extra = PRAISE[kind](body)
        return "extra"

    async with make(server, kind, retries=2) as model:
        expected = await scores(model)
        server.faults = extra
        for _ in range(20):
            assert await scores(model) == pytest.approx(expected, abs=1e-6)
        assert max(expected) < 99


async def test_an_answer_to_another_request_is_refused(server):
    async with make(server, "bonmini", retries=0) as model:
        await scores(model)
        server.inputs = "0" * 32
        with pytest.raises(MalformedAnswer, match="another request"):
            await scores(model)
        server.inputs = None
        assert None not in await scores(model)


# The key


async def test_a_probe_before_the_first_request_leaves_no_connection(server):
    model = make(server)
    await model.ready()
    await until(lambda: server.open == 0)
    assert asked(server, "/classify")
    probed = len(server.requests)
    await model.ready()
    assert len(server.requests) == probed
    breaker = CircuitBreaker(failures=1)
    breaker.trip(EndpointTimeout("it stalls"))
    with pytest.raises(CircuitOpen):
        await make(server, circuit=breaker).ready()


def test_timeout_waits_and_places_are_as_documented():
    told = dict(re.findall(r"(timeout|backoff|max_concurrency) \(([\d.]+)\)", str(RemoteRewardModel.__doc__)))
    assert {name: float(value) for name, value in told.items()} == SCORING


async def test_the_key_is_sent_and_shows_nowhere(server, monkeypatch, caplog):
    model = make(server, "bonmini", api_key=SecretStr("s3cret-key"))
    server.faults = lambda path, body: (422, {"error": "bad key s3cret-key"})
    with pytest.raises(RequestRejected) as caught:
        await scores(model)
    assert server.requests[-1][1]["authorization"] == "Bearer s3cret-key"
    shown = f"{model!r} {vars(model)} {caught.value!r} {caught.value.__cause__!r} {caplog.text}"
    assert "s3cret" not in shown
    assert "bad key ***" in str(caught.value)  # the probe holds no candidate: there the server's words help
    await model.aclose()
    monkeypatch.setenv("BONMINI_GUARD_TOKEN", "from-environment")
    assert make(server, "bonmini")._secret() == "from-environment"
    assert make(server, "bonmini", api_key="")._secret() is None


async def test_what_a_server_says_of_a_failure_does_not_reach_the_error_for_it_may_quote_a_candidate(server):
    async with make(server, "bonmini", retries=0) as model:
        await scores(model)
        server.faults = lambda path, body: (500, {"error": body["candidates"][0]["content"], "error_type": "rejected text"})
        with pytest.raises(GenerationFailedAtEndpoint) as caught:
            await scores(model, [AIMessage("rejected text")])
        assert "rejected text" not in f"{caught.value} {caught.value!r} {vars(caught.value)} {caught.value.__cause__}"


# Answers that are none


def answering(change):
    """Faults for a vLLM server: every answer but the probe's is changed."""

    def fault(path, body):
        if len(body["input"]) in (8, 1):  # together, and one of them alone
            return None
        data = [{"index": at, "probs": [0.5 + at]} for at in range(len(body["input"]))]
        return (200, change(data))

    return fault


def replace_first(value):
    return lambda data: {"data": [{"index": 0, "probs": value}, *data[1:]]}


@pytest.mark.parametrize(
    "change",
    [
        replace_first([None]),
        replace_first(["2.0"]),
        replace_first([True]),
        replace_first([]),
        replace_first([0.3, 0.7]),
        replace_first(None),
        lambda data: {"data": data[:-1]},
        lambda data: {"data": [*data, data[-1]]},
        lambda data: {"data": [data[0], *data[:-1]]},
        lambda data: {"data": []},
        lambda data: {"data": None},
        lambda data: {},
        lambda data: [],
        lambda data: None,
        lambda data: "garbage",
    ],
)
async def test_a_missing_or_unusable_score_is_an_error_and_never_a_score(server, change):
    async with make(server, retries=0) as model:
        server.faults = answering(change)
        with pytest.raises(MalformedAnswer) as caught:
            await scores(model)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("tei", [[{"score": 1.0}, {"score": 2.0}]]),
        ("tei", [{"score": 1.0}]),
        ("sglang", [{"embedding": [1.0, 2.0]}]),
        ("sglang", {"embedding": []}),
        ("vllm-pooling", {"data": [{"index": 0, "data": "AAAA"}]}),
        ("bonmini", {"scores": [1.0], "fingerprint": "sha256:abc"}),
        ("bonmini", {"scores": [1.0], "fingerprint": None, "has_zero": True}),
        ("bonmini", {"scores": 1.0, "fingerprint": "sha256:abc", "has_zero": True}),
    ],
)
async def test_each_kinds_malformed_answers(server, kind, answer):
    async with make(server, kind, retries=0) as model:
        await scores(model)
        server.faults = [(200, answer)]
        with pytest.raises(MalformedAnswer):
            await scores(model, ANSWERS[:1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -(10**400)])
async def test_a_score_that_is_not_finite_costs_one_candidate_its_score(server, value, caplog):
    async with make(server, retries=0) as model:
        server.faults = answering(replace_first([value]))
        assert await scores(model) == [None, 1.5, 2.5, 3.5, 4.5]
    assert "gave 1 of 5 candidates no finite score" in caplog.text


async def test_our_own_server_may_say_that_a_candidate_does_not_fit(server):
    server.score = lambda one: None if one[1]["content"] == " dull." else by_length(one)
    async with make(server, "bonmini") as model:
        assert [score is None for score in await scores(model)] == [False, True, False, False, False]


# Faults


@pytest.mark.parametrize(
    ("fault", "error", "requests"),
    [
        (429, Overloaded, 4),
        (500, GenerationFailedAtEndpoint, 2),
        (400, RequestRejected, 3),  # together, then each alone
        ("half", EndpointUnreachable, 4),
        ("html", MalformedAnswer, 2),
        ("drip", EndpointTimeout, 4),
    ],
)
async def test_what_is_tried_again_and_what_is_not(server, monkeypatch, fault, error, requests):
    made, once = [], RemoteRewardModel._once

    def counted(*arguments):  # here, for one that is given up may never have reached the server
        made.append(arguments)
        return once(*arguments)

    async with make(server, attempt_timeout=10.0, circuit=CircuitBreaker(failures=100)) as model:
        await scores(model)
        monkeypatch.setattr(RemoteRewardModel, "_once", counted)
        model.http = dataclasses.replace(model.http, attempt_timeout=0.3 if fault == "drip" else 10.0)
        server.faults = lambda path, body: fault
        with pytest.raises(error) as caught:
            await scores(model, ANSWERS[:2])
    assert isinstance(caught.value, EndpointError)
    assert len(made) == requests


@pytest.mark.parametrize("fault", [429, 503, 502, 500, "half", "reset", "garbage", "stall"])
async def test_a_fault_that_passes_costs_nothing_but_time(server, fault):
    async with make(server, attempt_timeout=1.0 if fault == "stall" else 10.0) as model:
        expected = await scores(model)
        server.faults = [fault]
        assert await scores(model) == expected


async def test_a_dead_server_is_not_asked_again_until_the_circuit_lets_one_through(server):
    clock = Clock()
    circuit = CircuitBreaker(failures=4, cooldown=10, clock=clock)
    async with make(server, circuit=circuit) as model:
        expected = await scores(model)
        before = len(server.requests)
        server.faults = lambda path, body: 502
        with pytest.raises(EndpointUnreachable):
            await scores(model)
        assert circuit.state == "open"
        for _ in range(20):
            with pytest.raises(CircuitOpen):
                await scores(model)
        assert len(server.requests) - before == 4
        clock.advance(10)
        with pytest.raises(EndpointError):
            await scores(model)
        assert len(server.requests) - before == 5
        server.faults = []
        clock.advance(10)
        assert await scores(model) == expected
        assert circuit.state == "closed"


async def test_a_cancelled_request_closes_its_connections(server):
    async with make(server, batch_size=1) as model:
        await scores(model)
        server.slow = 30
        task = asyncio.create_task(scores(model))
        while server.busy < 5:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while server.busy:
            await asyncio.sleep(0.005)
    assert server.closed_early == 5
    assert model.circuit.state == "closed"


# The probe


@pytest.mark.parametrize("kind", ["vllm", "sglang", "tei"])
async def test_probabilities_that_nobody_declared_are_refused(server, kind):
    server.obeys = False
    async with make(server, kind) as model:
        with pytest.raises(ConfigurationError, match="lies between 0 and 1: these look like probabilities"):
            await scores(model)
        assert len(server.requests) == 1  # nothing but the probe
    async with make(server, kind, scores="raw") as model:
        assert all(0 < score < 1 for score in await scores(model))


async def test_a_softmax_of_one_label_is_found_out(server):
    server.score = lambda one: 1.0
    for declared in (None, "raw", "probability"):
        async with make(server, "sglang", scores=declared) as model:
            with pytest.raises(ConfigurationError, match="scores 1 whatever the text"):
                await scores(model)


async def test_a_check_behind_our_own_server_may_find_the_same_of_all_fixed_texts(server):
    server.score = lambda one: -6.0
    async with make(server, "bonmini") as model:
        assert set(await scores(model)) == {-6.0}
    server.score = lambda one: None
    async with make(server, "bonmini") as model:
        with pytest.raises(ConfigurationError, match="left a probe text without a score"):
            await scores(model)


async def test_declared_probabilities_must_be_some(server):
    async with make(server, scores="probability") as model:
        with pytest.raises(ConfigurationError, match="gives other numbers"):
            await scores(model)


def test_saturated_probabilities_are_probabilities():
    with pytest.raises(ConfigurationError, match="look like probabilities"):
        check_scores([0.0, 1.0], None, "ask for raw scores")
    check_scores([0.0, 1.0], "probability", "")


async def test_the_probe_is_made_once_for_many_requests(server):
    async with make(server) as model:
        await asyncio.gather(*(scores(model, ANSWERS[:1]) for _ in range(10)))
    assert [len(body["input"]) for body in asked(server, "/classify")] == [8, 1, *[1] * 10]


async def test_another_model_after_a_lost_connection_is_found_out(server):
    clock = Clock()
    async with make(server, circuit=CircuitBreaker(clock=clock)) as model:
        await scores(model)
        clock.advance(60)
        server.score, server.faults = (lambda one: by_length(one) + 1), ["reset"]
        with pytest.raises(ConfigurationError, match="another model is served there"):
            await scores(model)
        clock.advance(60)
        with pytest.raises(ConfigurationError, match="another model is served there"):
            await scores(model)
        server.score = by_length
        assert None not in await scores(model)


async def test_another_model_that_took_its_place_while_nobody_asked_is_found_out(server):
    clock = Clock()
    async with make(server, circuit=CircuitBreaker(clock=clock)) as model:
        await scores(model)
        for serving in list(server._serving):
            serving.cancel()  # the server ends, and its idle connections with it
        await until(lambda: not server.open)
        server.score = lambda one: by_length(one) + 1
        clock.advance(60)
        with pytest.raises(ConfigurationError, match="another model is served there"):
            await scores(model)
        assert model._lost == 0


async def test_connections_that_are_kept_need_no_further_probe(server):
    clock = Clock()
    async with make(server, circuit=CircuitBreaker(clock=clock)) as model:
        for _ in range(5):
            clock.advance(60)
            await scores(model)
        assert server.connections == 1
    assert [len(body["input"]) for body in asked(server, "/classify")].count(8) == 1


async def test_our_own_server_names_its_model_with_every_answer(server):
    async with make(server, "bonmini") as model:
        await scores(model)
        server.fingerprint = "sha256:def"
        with pytest.raises(ConfigurationError, match="now scores like sha256:def, and it was sha256:abc"):
            await scores(model)


# In a guard, which is built by blocking code


@pytest.fixture
def apart():
    with InThread(RewardServer(by_length)) as running:
        yield running


def guard(model, **settings):
    settings = settings if "profile" in settings else {"mode": "guardrail", "schedule": [2, 2]} | settings
    return BestOfMiniN(generator=FakeGenerator([GOOD, " dull"]), reward_model=model, **settings)


def profile(fingerprint):
    shape = {"mode": "guardrail", "schedule": [2, 2], "thresholds": [0.0, 0.0]}
    return GuardProfile(**shape, fingerprints={"reward_model": fingerprint})


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_a_guard_is_served_by_a_remote_scorer(apart):
    result = guard(make(apart)).run("The film was")
    assert (result.decision, result.message.content) == ("accepted", GOOD)


def test_a_server_of_probabilities_is_refused_when_the_guard_is_built(apart):
    apart.obeys = False
    with pytest.raises(ConfigurationError, match="look like probabilities"):
        guard(make(apart))


def test_a_server_of_another_kind_is_refused_when_the_guard_is_built(apart):
    apart.faults = lambda path, body: (404, {"error": "no such route"})
    with pytest.raises(ConfigurationError, match="no reward server of kind vllm: the endpoint answered 404: no such route"):
        guard(make(apart))


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_a_server_that_is_not_up_yet_is_probed_before_its_first_score(apart, caplog):
    apart.faults = lambda path, body: 503
    built = guard(make(apart, retries=0, has_zero=True), on_abstain="error")
    assert "does not answer yet" in caplog.text
    with pytest.raises(ScorerError) as caught:
        built.invoke("The film was")
    assert caught.value.__cause__ is None
    apart.obeys, apart.faults = False, []
    assert built.run("The film was").reason == "scorer_failed"
    apart.obeys = True
    assert built.run("The film was").decision == "accepted"


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_building_a_guard_waits_for_one_attempt_at_most(apart, caplog):
    apart.faults = lambda path, body: "stall"
    guard(make(apart, timeout=60, attempt_timeout=0.2))
    assert "does not answer yet: no answer within 0.2 s" in caplog.text


def test_a_profile_is_bound_to_the_probes_scores_within_the_tolerance(apart):
    model = make(apart)
    fingerprint = model.fingerprint()
    assert fingerprint.startswith("probe:")
    near, far = (_moved(fingerprint, by) for by in (0.03, 0.2))
    for accepted in (fingerprint, near):
        guard(make(apart), profile=profile(accepted))
    for refused in (far, "sha256:abc", fingerprint.rpartition(",")[0], "probe:x,y"):
        with pytest.raises(ProfileError, match="its promise does not hold here"):
            guard(make(apart), profile=profile(refused))
    guard(make(apart, tolerance=0.5), profile=profile(far))


def test_a_pinned_fingerprint_is_kept_word_for_word_if_the_probe_agrees(apart):
    before = _moved(make(apart).fingerprint(), 0.02)
    assert make(apart, pinned=before).fingerprint() == before
    with pytest.raises(ConfigurationError, match="another model is served there"):
        make(apart, pinned=_moved(before, 1.0)).fingerprint()


def test_our_own_server_brings_its_zero_and_its_own_fingerprint(apart):
    model = make(apart, "bonmini")
    assert (model.has_zero, model.fingerprint()) == (True, "sha256:abc")
    guard(model, profile=profile("sha256:abc"))
    apart.has_zero = False
    with pytest.raises(ConfigurationError, match="its scores have no zero"):
        guard(make(apart, "bonmini"))


def test_the_zero_of_a_checkpoint_or_as_declared(apart, tokenizer):
    assert make(apart).has_zero is True
    assert make(apart, tokenizer=tokenizer).has_zero is False
    assert make(apart, tokenizer=tokenizer, has_zero=True).has_zero is True


def test_a_server_that_is_down_has_no_fingerprint(apart):
    apart.faults = lambda path, body: 503
    with pytest.raises(ConfigurationError, match="start it first"):
        make(apart, retries=0).fingerprint()


def _moved(fingerprint, by):
    return "probe:" + ",".join(f"{float(score) + by:.2f}" for score in fingerprint.removeprefix("probe:").split(","))


# Settings


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"kind": "other"}, "kind must be 'vllm', "),
        ({"scores": "logit"}, "scores must be 'raw' or 'probability'"),
        ({"tokenizer": None}, "needs tokenizer="),
        ({"inputs": "messages"}, "takes inputs 'ids' or 'text'"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"tolerance": -1}, "tolerance must be a number of 0 or more"),
        ({"timeout": 5, "attempt_timeout": 5}, "must be less than timeout"),
        ({"tokenizer": object()}, "no chat template"),
        ({"base_url": "http://127.0.0.1:1?"}, "query or fragment"),
        ({"base_url": "http://127.0.0.1:1/#"}, "query or fragment"),
    ],
)
def test_wrong_settings_are_refused_with_a_cure(settings, problem):
    with pytest.raises(ConfigurationError, match=problem):
        RemoteRewardModel(**({"base_url": "http://127.0.0.1:1", "kind": "vllm", "tokenizer": MODEL} | settings))


@pytest.mark.parametrize(("timeout", "seconds"), [(60, 10), (None, 10), (5, 2.5)])
def test_an_attempt_takes_ten_seconds_or_half_of_the_timeout(timeout, seconds):
    assert RemoteRewardModel("http://h", kind="bonmini", timeout=timeout).http.attempt_timeout == seconds


def test_a_broken_chat_template_is_nothing_to_pairs(tokenizer):
    broken = copy.copy(tokenizer)
    broken.chat_template = "{% for"
    assert RemoteRewardModel("http://127.0.0.1:1", kind="vllm-score", tokenizer=broken)._writer.make(PROMPT, ANSWERS[1:2])
    with pytest.raises(CheckpointError, match="the chat template is broken"):
        RemoteRewardModel("http://127.0.0.1:1", kind="vllm", tokenizer=broken)


def test_without_a_tokenizer_nothing_heavy_is_loaded():
    code = (
        "import sys; from bonmini_guard.adapters import RemoteRewardModel; RemoteRewardModel('http://h', kind='bonmini');"
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'openai'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


async def test_a_server_whose_padding_shows_is_asked_text_by_text(server, caplog):
    """As one would that reads the padding of shorter texts: they score otherwise beside longer ones."""
    plain = server.reply

    def padded(path, body):
        longest = max(map(len, body["input"]))
        said = plain(path, body)
        for one in said["data"]:
            one["probs"] = [one["probs"][0] + 0.05 * (longest - len(body["input"][one["index"]]))]
        return said

    async with make(server) as model:
        expected = await scores(model)
    server.reply = padded
    server.requests.clear()
    async with make(server) as model:
        assert await scores(model) == pytest.approx(expected)
    assert [len(body["input"]) for body in asked(server, "/classify")] == [8, 1, *[1] * (8 + len(ANSWERS))]
    assert "texts are sent one by one" in caplog.text
