"""A checkpoint on a hub that speaks the routes of huggingface_hub's client which an upload needs."""

import base64
import json

import pytest
from huggingface_hub import constants
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.reward.model import RewardModel
from bonmini_guard.training.choices import choice_row
from bonmini_guard.training.run import train_reward_model
from tests.reward.tiny import simulated_rows
from tests.served import Served


class Hub:
    """Repositories in memory: ``made`` (what was asked for) and ``files`` by name."""

    def __init__(self):
        self.made, self.files, self.full = [], {}, False
        routes = [
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route("/api/validate-yaml", self.card, methods=["POST"]),
            Route("/api/models/{repo:path}/preupload/main", self.preupload, methods=["POST"]),
            Route("/api/models/{repo:path}/commit/main", self.commit, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def create(self, request):
        if request.headers.get("authorization") != "Bearer hf_right":
            return JSONResponse({"error": "Invalid credentials"}, status_code=401)
        self.made.append(await request.json())
        return JSONResponse({"url": f"{constants.ENDPOINT}/owner/guard"})

    async def card(self, request):
        assert "library_name: transformers" in (await request.json())["content"]
        return JSONResponse({"errors": [], "warnings": []})

    async def preupload(self, request):
        paths = [file["path"] for file in (await request.json())["files"]]
        return JSONResponse({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})

    async def commit(self, request):
        if self.full:
            return JSONResponse({"error": "no room"}, status_code=403)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        for line in lines:
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        where = f"{constants.ENDPOINT}/{request.path_params['repo']}/commit/0"
        return JSONResponse({"commitUrl": where, "commitOid": "0" * 40, "success": True})


@pytest.fixture
def hub(monkeypatch):
    found = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with Served(found.app) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        yield found


def train(base, output, rows):
    rows = [choice_row(row) for row in rows]
    return train_reward_model(rows[20:], base, output, eval_rows=rows[:20], epochs=0.2, device="cpu", push_to_hub="owner/guard")


def test_a_checkpoint_and_its_card_are_pushed_as_they_lie_beside_the_model(tmp_path, base, hub):
    train(base, tmp_path / "m", simulated_rows(80, seed=1))
    assert hub.made[0]["name"] == "guard"
    assert hub.made[0]["organization"] == "owner"
    assert hub.made[0].get("private") or hub.made[0].get("visibility") == "private"
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == hub.files
    (tmp_path / "pulled").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "pulled" / name).write_bytes(content)
    assert RewardModel.load(tmp_path / "pulled", device="cpu").has_zero
    card = hub.files["README.md"].decode()
    for said in ("## Trained on\n\n60 judgements", "| acceptance AUC |", "Score 0 is the outside option", "## Limits"):
        assert said in card
    assert 'model = RewardModel.load("owner/guard")' in card


def test_a_hub_that_refuses_is_told_before_the_training_and_one_that_breaks_leaves_the_model(tmp_path, base, hub, monkeypatch):
    rows = simulated_rows(80, seed=1)
    hub.full = True
    with pytest.raises(ConfigurationError, match=r"--push-to-hub owner/guard: .*; the model is in .*'hf upload owner/guard"):
        train(base, tmp_path / "m", rows)
    assert RewardModel.load(tmp_path / "m", device="cpu").has_zero
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConfigurationError, match=r"--push-to-hub owner/guard: .*; log in with 'hf auth login'"):
        train(base, tmp_path / "n", rows)
    assert not (tmp_path / "n").exists()
