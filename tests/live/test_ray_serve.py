"""The scoring server on a real, local Ray: the scores of this process, from two replicas. ``make live-ray``."""

import asyncio
import json
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from bonmini_guard.adapters.ray_serve import scoring_application
from bonmini_guard.reward.model import RewardModel
from tests.reward.test_model import CONFIGS, save

pytestmark = pytest.mark.live
MESSAGES = [{"role": "user", "content": "the film"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The model's folder and the application's address."""
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    folder = save(tmp_path_factory.mktemp("served"), CONFIGS["llama"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(scoring_application(folder, replicas=2, most_replicas=2, device="cpu"), route_prefix="/")
    yield folder, f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_replicas_score_as_this_process_does(served):
    folder, url = served
    model = RewardModel.load(folder, device="cpu")
    candidates = [["good", f"fine {number}", "very dull"] for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda texts: post(f"{url}/score", {"messages": MESSAGES, "candidates": texts}), candidates))
    for texts, (status, answer) in zip(candidates, answers, strict=True):
        assert status == 200
        assert answer["scores"] == pytest.approx(model.score("the film", texts), abs=1e-4)
        assert answer["fingerprint"] == model.fingerprint()
    (ids,) = asyncio.run(model.tokenize(["good"]))
    _, classified = post(f"{url}/classify", {"input": [list(ids)], "use_activation": False})
    assert classified["data"][0]["probs"] == pytest.approx(asyncio.run(model.score_tokens([ids])), abs=1e-4)


def test_bad_requests_are_refused_there_too(served):
    _, url = served
    assert post(f"{url}/score", {"messages": [], "candidates": []})[0] == 422
    assert post(f"{url}/nothing", {})[0] == 404
