"""Without any server: a language model and a reward model from folders, as in the page's first five minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

pytest.importorskip("transformers")
from bonmini_guard.gateway.app import Gateway
from bonmini_guard.gateway.config import Configuration

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

MODELS = Path(__file__).parent.parent / "models"
FILE = f"""
[upstreams.local]
folder = "{MODELS / "lm"}"
device = "cpu"
max_new_tokens = 6
temperature = 0.9

[guards.film]
upstream = "local"
reward_model = {{ model = "{MODELS / "reward"}", device = "cpu" }}
schedule = [2, 2]
mode = "accelerator"
"""


def test_folders_are_enough(tmp_path):
    (tmp_path / "guards.toml").write_text(FILE)
    with TestClient(Gateway(Configuration(tmp_path / "guards.toml")).app, base_url="http://127.0.0.1") as client:
        asked = {
            "model": "film",
            "messages": [{"role": "user", "content": "the film was very"}],
            "temperature": 0,
            "max_tokens": 40,
            "user": "me",
            "logprobs": False,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "response_format": {"type": "text"},
        }
        answer = client.post("/v1/chat/completions", json=asked).json()
        refused = client.post("/v1/chat/completions", json=asked | {"response_format": {"type": "json_object"}})
    assert answer["bonmini_guard"]["decision"] in ("accepted", "best_effort")
    assert answer["bonmini_guard"]["ignored"] == ["max_tokens", "temperature"]
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] <= 24
    assert (refused.status_code, "response_format" in refused.text) == (400, True)
