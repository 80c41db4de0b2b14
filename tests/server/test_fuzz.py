"""Random requests: never a 500, never a hang, never a traceback. BONMINI_GUARD_FUZZ_CASES sets how many (``make fuzz``: 10,000)."""

import json
import logging
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient

from bonmini_guard.reward.model import RewardModel
from bonmini_guard.server.app import ScoringServer

CASES = int(os.environ.get("BONMINI_GUARD_FUZZ_CASES", "200"))
ROUTES = ["/score", "/predict", "/classify"]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = settings(
    max_examples=max(1, CASES // 8),
    deadline=None,
    derandomize=CASES == 200,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def server(folder):
    model = RewardModel.load(folder, device="cpu")
    yield ScoringServer(model)
    model.close()


@pytest.fixture(scope="module")
def client(server):
    with TestClient(server.app, base_url="http://localhost", headers={"content-type": "application/json"}) as client:
        yield client


@pytest.fixture(autouse=True)
def _quiet(caplog):
    # Hypothesis keeps the log of every example.
    caplog.set_level(logging.CRITICAL)


@pytest.mark.parametrize("route", ["/score", "/predict", "/classify", "/health", "/ready", "/metrics"])
def test_requests_made_of_the_document(folder, route):
    # An application of its own: schemathesis ends it.
    app = ScoringServer(RewardModel.load(folder, device="cpu")).app
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    (operation,) = (found.ok() for found in schema.get_all_operations() if found.ok().path == route)

    @FEW
    @given(case=operation.as_strategy())
    def check_case(case):
        case.call_and_validate(checks=CHECKS)

    check_case()


WORDS = st.sampled_from(
    ["good", "<|im_end|>", "<|im_start|>", "</s>", "\ud800", " ", "\n", "\0", "\u202e", "the film", "{{", "é" * 50]
)
TEXT = st.one_of(st.text(), st.lists(WORDS).map("".join), st.integers(0, 4000).map(lambda count: "good " * count))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)
CALL = st.fixed_dictionaries(
    {},
    optional={
        "id": TEXT | JSON,
        "type": st.just("function") | TEXT,
        "function": st.fixed_dictionaries({}, optional={"name": TEXT, "arguments": TEXT | JSON}) | JSON,
    },
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]) | TEXT, "content": TEXT | JSON},
    optional={"tool_calls": st.lists(CALL) | JSON, "tool_call_id": TEXT, "name": TEXT},
)
BODIES = {
    "/score": st.fixed_dictionaries({"messages": st.lists(TURN, max_size=4), "candidates": st.lists(TEXT | TURN, max_size=5)}),
    "/predict": st.fixed_dictionaries({"inputs": TEXT | st.lists(TEXT | st.lists(TEXT)) | JSON}, optional={"raw_scores": JSON}),
    "/classify": st.fixed_dictionaries({"input": TEXT | st.lists(TEXT | st.integers() | st.lists(st.integers(-1, 400))) | JSON}),
}


def check(answer):
    assert answer.status_code in (200, 400, 413, 422)
    assert "Traceback" not in answer.text
    if answer.status_code == 200:
        json.dumps(answer.json(), allow_nan=False)
    else:
        error = answer.json()["error"]
        assert "\n" not in (error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize("route", ROUTES)
@FEW
@given(data=st.data())
def test_payloads_of_the_right_kind_with_odd_texts(client, route, data):
    check(client.post(route, content=json.dumps(data.draw(BODIES[route]))))


@FEW
@given(route=st.sampled_from(ROUTES), body=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_payloads_of_any_kind(client, route, body):
    check(client.post(route, content=body))


@FEW
@given(clean=st.lists(st.sampled_from(["good", "dull end", "the film"]), min_size=1, max_size=3), odd=TEXT, place=st.integers(0, 3))
def test_an_odd_candidate_changes_no_other_score(client, clean, odd, place):
    messages = [{"role": "user", "content": "the film"}]
    alone = client.post("/score", json={"messages": messages, "candidates": clean}).json()["scores"]
    mixed = [*clean[:place], odd, *clean[place:]]
    found = client.post("/score", content=json.dumps({"messages": messages, "candidates": mixed})).json()["scores"]
    del found[min(place, len(clean))]
    assert found == pytest.approx(alone, abs=1e-5)
