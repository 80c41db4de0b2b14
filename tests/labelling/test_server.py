"""The server: who may ask, what is told, what is refused."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re

import pytest
from starlette.testclient import TestClient

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.labelling.items import Plan
from bonmini_guard.labelling.rows import read_rows
from bonmini_guard.labelling.server import LARGEST_BODY, LabelServer
from bonmini_guard.labelling.session import Session
from bonmini_guard.server.running import address, listen
from tests.labelling.helpers import log_file, row, session_of

SECRET = {"decision": "accepted", "scored_by": "rm-secret", "generated_by": "lm-secret", "selected": 0}
ROWS = [row(f"gpt-secret-{i}", scores=[0.1234567, 0.7654321], **SECRET) for i in range(4)]
ONE = "1" * 32


@pytest.fixture
def server(tmp_path):
    return LabelServer(session_of(tmp_path, ROWS))


@pytest.fixture
def client(server):
    return TestClient(server.app, base_url=f"http://127.0.0.1/{server.key}/")


def ask(client, **body):
    return client.post("api", json={"annotator": "ann", **body})


def test_without_the_key_nothing_is_told(server):
    stranger = TestClient(server.app)
    for path in ("/", "/x/", f"/{server.key[:-1]}/", f"/{server.key}x/", "/favicon.ico", "/é/"):
        answer = stranger.get(path)
        assert (answer.status_code, answer.content) in [(404, b""), (404, b"Not Found")]
    assert stranger.post("/x/api", json={"do": "next", "annotator": "ann"}).status_code == 404
    assert len(server.key) >= 32
    assert LabelServer(server.session).key != server.key


def test_a_cut_emoji_in_an_answer_a_prompt_or_the_question_is_shown(tmp_path):
    rows = [{**row("a", ("good \ud83d", "bad")), "prompt": "q \ud83d"}]
    path = log_file(tmp_path / "log.jsonl", rows)
    server = LabelServer(Session(read_rows([path]), tmp_path / "out.jsonl", Plan(), "which \ud83d?"))
    client = TestClient(server.app, base_url=f"http://127.0.0.1/{server.key}/")
    assert ask(client, do="hello").json()["question"] == "which \ud83d?"
    assert "good \ud83d" in ask(client, do="next").json()["item"]["answers"]


def test_labellers_see_no_score_model_decision_row_or_order(server, client):
    told = ask(client, do="next")
    for secret in ("secret", "model-x", "1234567", "7654321", "accepted", "score", "sampling", "random"):
        assert secret not in told.text.replace('"question gpt-secret', "")
    assert set(told.json()["item"]) == {"key", "turns", "answers"}


def test_the_policy_allows_the_pages_own_script_and_nothing_else(client):
    page = client.get("")
    policy = page.headers["content-security-policy"]
    for tag in ("script", "style"):
        source = re.search(f"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    for rule in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "form-action 'none'", "base-uri 'none'"):
        assert rule in policy
    assert "require-trusted-types-for 'script'" in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"


def test_the_page_loads_nothing_and_makes_no_markup_of_text(client):
    page = client.get("").text
    assert not re.search(r"https?://|//[a-z]", page.replace("// ", ""))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|\son[a-z]+=", page)


def test_a_label_is_on_disk_before_the_next_item_is_told(server, client):
    item = ask(client, do="next").json()["item"]
    told = ask(client, do="label", item=item["key"], answer="a", event=ONE, seconds=1.23456).json()
    assert (told["done"], told["total"], told["undoable"]) == (1, 4, True)
    assert told["item"]["key"] != item["key"]
    label = json.loads(server.session.path.read_text().splitlines()[-1])
    chosen = ROWS[int(label["row"][-1])]["candidates"][label["chosen"]]["text"]
    assert chosen == item["answers"][0]
    assert label["seconds"] == 1.23
    back = ask(client, do="undo", event="2" * 32).json()
    assert (back["item"], back["done"], back["undoable"]) == (item, 0, False)


@pytest.mark.parametrize("seconds", ["x", -1, 1e9, True, None, {}])
def test_a_time_that_is_none_is_left_out(server, client, seconds):
    item = ask(client, do="next").json()["item"]
    assert ask(client, do="label", item=item["key"], answer="a", event=ONE, seconds=seconds).status_code == 200
    assert json.loads(server.session.path.read_text().splitlines()[-1])["seconds"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"do": "dance"},
        {"do": ["next"]},
        {"do": "next", "annotator": ""},
        {"do": "next", "annotator": "x" * 81},
        {"do": "next", "annotator": "a\u202eb"},
        {"do": "next", "annotator": None},
        {"do": "label", "item": "x", "answer": "a", "event": ONE},
        {"do": "label", "item": ["x"], "answer": "a", "event": ONE},
        {"do": "label", "item": "KEY", "answer": "c", "event": ONE},
        {"do": "label", "item": "KEY", "answer": ["a"], "event": ONE},
        {"do": "label", "item": "KEY", "answer": "a", "event": "1"},
        {"do": "label", "item": "KEY", "answer": "a", "event": None},
        {"do": "skip", "item": "x", "event": ONE},
        {"do": "undo"},
    ],
)
def test_requests_that_make_no_sense_change_nothing(server, client, body):
    if body.get("item") == "KEY":
        body = {**body, "item": ask(client, do="next").json()["item"]["key"]}
    before = server.session.path.read_bytes()
    answer = ask(client, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert server.session.path.read_bytes() == before


@pytest.mark.parametrize("data", [b"", b"x", b"[]", b"\xff", b"[" * 10_000, b'{"do":"' + b"x" * LARGEST_BODY + b'"}'])
def test_bodies_that_are_no_object_or_too_large(client, data):
    assert client.post("api", content=data).status_code == (413 if len(data) > LARGEST_BODY else 400)


def test_a_full_disk_is_told_and_nothing_is_lost(server, client, monkeypatch):
    item, before = ask(client, do="next").json()["item"], server.session.path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        answer = ask(client, do="label", item=item["key"], answer="a", event=ONE)
    assert answer.status_code == 507
    assert "could not be written to disk (No space left on device)" in answer.json()["error"]
    assert server.session.path.read_bytes() == before
    told = ask(client, do="next").json()
    assert (told["item"], told["done"]) == (item, 0)
    assert ask(client, do="label", item=item["key"], answer="a", event=ONE).json()["done"] == 1
    assert server.session.path.read_bytes().count(b"\n") == 2


def test_addresses():
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert address(listening) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1 port {port}"):
            listen("127.0.0.1", port)
    with pytest.raises(ConfigurationError, match="give another --host or --port"):
        listen("127.0.0.1", 99_999)
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        listen("no.such.host.invalid", 0)
