"""What needs no Ray: the routes of a replica, and the numbers refused."""

import json
import sys

import pytest
from starlette.requests import Request

from bonmini_guard.adapters.ray_serve import ScoringReplica, scoring_application
from bonmini_guard.errors import ConfigurationError, MissingExtraError
from tests.reward.test_model import CONFIGS, save


def request(method, path, body=b""):
    sent = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        return next(sent, None) or {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"", "scheme": "http"}
    return Request(scope, receive)


async def test_a_replica_answers_the_server_s_routes(tmp_path, monkeypatch):
    monkeypatch.setenv("BONMINI_GUARD_TOKEN", "")
    replica = ScoringReplica(str(save(tmp_path, CONFIGS["llama"])), {"device": "cpu"}, 8)
    assert (await replica(request("GET", "/ready"))).status_code == 200
    assert (await replica(request("GET", "/score"))).status_code == 404
    answer = await replica(request("POST", "/score", b"[]"))
    assert (answer.status_code, json.loads(answer.body)["error_type"]) == (422, "validation")


async def test_a_token_is_read_as_the_command_reads_it_without_the_newline_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("BONMINI_GUARD_TOKEN", "s3cret\n")
    replica = ScoringReplica(str(save(tmp_path, CONFIGS["llama"])), {"device": "cpu"}, 8)
    asked = request("GET", "/metrics")
    assert (await replica(asked)).status_code == 401
    asked.scope["headers"].append((b"authorization", b"Bearer s3cret"))
    assert (await replica(Request(asked.scope))).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 0},
        {"replicas": 3, "most_replicas": 2},
        {"most_replicas": "4"},
        {"gpus_per_replica": -1},
        {"requests_per_replica": 0},
    ],
)
def test_wrong_numbers(wrong):
    with pytest.raises(ConfigurationError, match="must be"):
        scoring_application("model", **wrong)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="ray"):
        scoring_application("model")
