"""A gateway on a real socket, between real clients and loopback servers: an upstream, and a reward server."""

from __future__ import annotations

import contextlib
import json
import time

import httpx
import pytest

pytest.importorskip("openai")
import openai

from bonmini_guard.gateway.app import Gateway
from bonmini_guard.gateway.config import Configuration
from bonmini_guard.server.door import Limits
from tests.adapters.loopback import InThread
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.reward_server import RewardServer
from tests.served import Served

KEY = "sk-gateway-key"
#: Drawn and never served: no byte of it may reach a client.
REJECTED = "REJECTED-TEXT"


def score(asked):
    """Answers that say so are bad."""
    _, candidate = asked
    text = candidate if isinstance(candidate, str) else json.dumps(candidate)
    return -3.0 if REJECTED in text else 2.0 + len(text) % 7 / 100


class House:
    """A running gateway.

    Attributes:
        url: of it.
        upstream: the loopback server that it draws from.
        scorer: the loopback server that scores.
    """

    def __init__(self, folder, upstream, scorer):
        self.folder, self.upstream, self.scorer = folder, upstream, scorer

    def write(self, guards, more="unguarded = true"):
        """The file, with guards as given."""
        head = 'keys_env = ["GATEWAY_KEY"]\n[upstreams.plain]\nmodel = "tiny"\nbackoff = 0.01\n'
        head += f'base_url = "{self.upstream.url}"\n{more}\n'
        table = f'upstream = "plain"\nreward_model = {{ endpoint = "{self.scorer.url}", kind = "bonmini", retries = 0 }}\n'
        text = head + "".join(f"[guards.{name}]\n{table}{options}\n" for name, options in guards.items())
        (self.folder / "guards.toml").write_text(text)
        return self.folder / "guards.toml"

    @contextlib.contextmanager
    def open(self, guards, more="unguarded = true", limits=None, keep_alive=0.1):
        self.gateway = Gateway(Configuration(self.write(guards, more)), limits or Limits(), keep_alive)
        with Served(self.gateway.app) as served:
            self.port, self.url = served.port, served.url
            yield self

    @property
    def client(self):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def post(self, route="/v1/chat/completions", key=KEY, **body):
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(self.url + route, json=body, headers=headers, timeout=60)

    def metrics(self):
        return httpx.get(f"{self.url}/metrics", headers={"authorization": f"Bearer {KEY}"}).text


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.setenv("GATEWAY_KEY", KEY)
    monkeypatch.delenv("BONMINI_GUARD_TOKEN", raising=False)
    with InThread(OpenAIServer()) as upstream, InThread(RewardServer(score)) as scorer:
        yield House(tmp_path, upstream, scorer)


def alternating(body, index):
    """By seed: some draws are rejected."""
    return f"{REJECTED} {body.get('seed')}" if body.get("seed", 0) % 2 else f"served answer {body.get('seed')}"


def always(text):
    return lambda body, index: text


def patiently(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
