"""What users say of an answer is kept beside its trace, and nothing is certified on it."""

from __future__ import annotations

import json

import pytest

from bonmini_guard.gateway.feedback import Feedback, join
from bonmini_guard.logs.trace_files import forget
from tests.adapters.drawing import open_files
from tests.gateway.conftest import REJECTED, always, patiently

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

ASKED = [{"role": "user", "content": "q"}]


def test_a_thumb_joins_the_trace_of_its_request(house):
    with house.open({"guarded": 'schedule = [2]\ntrace_to = "traces.jsonl"', "silent": "schedule = [2]"}):
        first = house.client.chat.completions.create(model="guarded", messages=ASKED)
        name = first.bonmini_guard["request_id"]
        assert house.post("/v1/feedback", request_id=name, thumbs="down").json() == {"status": "noted"}
        assert house.post("/v1/feedback", request_id=first.id, thumbs="up").status_code == 200
        silent = house.client.chat.completions.create(model="silent", messages=ASKED)
        house.upstream.text = always(REJECTED)
        abstained = house.client.chat.completions.create(model="guarded", messages=ASKED)
        assert house.post("/v1/feedback", request_id=silent.id, thumbs="up").status_code == 404
        refused = house.post("/v1/feedback", request_id=abstained.id, thumbs="up")
        assert (refused.status_code, "not answered" in refused.text) == (400, True)
        assert house.post("/v1/feedback", request_id="../x", thumbs="up").status_code == 400
        assert house.post("/v1/feedback", key="wrong", request_id=name, thumbs="up").status_code == 401
        assert 'bonmini_guard_feedback_total{thumbs="down"} 1.0' in house.metrics()
        before = open_files("lock")
        assert house.post("/v1/feedback", request_id=name, thumbs="up").status_code == 200
        assert open_files("lock") == before
    rows = [json.loads(line) for line in (house.folder / "traces.feedback.jsonl").read_text().splitlines()]
    traced = [json.loads(line) for line in (house.folder / "traces.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [name] * 3 == [traced[0]["id"]] * 3
    assert [row["candidates"][row["selected"]]["acceptable"] for row in rows] == [False, True, True]
    assert {row["label_sampling"] for row in rows} == {"volunteered"}


def test_damaged_lines_hold_no_rows(tmp_path):
    traces, name = tmp_path / "traces.jsonl", "a" * 32
    row = {"id": name, "selected": 0, "candidates": [{"text": "x"}]}
    traces.write_text(f'{{"id": "{name}", "pro\n["{name}"]\n{json.dumps(row)}\n')
    assert join(traces, Feedback(request_id=name, thumbs="up"))


def test_who_is_forgotten_is_forgotten_in_the_thumbs_too(tmp_path):
    traces, thumbs = tmp_path / "traces.jsonl", tmp_path / "traces.feedback.jsonl"
    row = {"id": "a" * 32, "group": "user 7", "selected": 0, "candidates": [{"text": "x"}]}
    traces.write_text(f"{json.dumps(row)}\n")
    assert join(traces, Feedback(request_id="a" * 32, thumbs="up"))
    assert forget(traces, groups=["user 7"]) == 2
    assert (traces.read_text(), thumbs.read_text()) == ("", "")


def test_a_conversation_is_the_group_of_its_trace(house):
    with house.open({"guarded": 'schedule = [1]\ntrace_to = "traces.jsonl"'}):
        client = house.client
        client.chat.completions.create(model="guarded", messages=ASKED, metadata={"conversation_id": "c-1"})
        client.chat.completions.create(model="guarded", messages=ASKED, extra_headers={"x-conversation-id": "c-2"})
        client.chat.completions.create(model="guarded", messages=ASKED, metadata={"conversation_id": ""})
    rows = [json.loads(line) for line in (house.folder / "traces.jsonl").read_text().splitlines()]
    assert [row.get("group") for row in rows] == ["c-1", "c-2", None], "nameless ones are not one conversation"
    assert all("metadata" not in body for _, _, body in house.upstream.requests)


def test_an_abstention_is_final_for_its_conversation(house):
    house.upstream.text = always(REJECTED)
    with house.open({"guarded": "schedule = [2]"}):
        asked = [
            house.client.chat.completions.create(model="guarded", messages=ASKED, extra_headers={"x-conversation-id": name})
            for name in ("c-1", "c-1", "c-2")
        ]
        told = house.metrics()
    first, again, other = (answer.bonmini_guard["request_id"] for answer in asked)
    assert first == again != other
    assert {answer.choices[0].finish_reason for answer in asked} == {"content_filter"}
    assert len(house.upstream.requests) == 4  # two a conversation
    assert asked[1].usage.total_tokens == 0  # billed once
    assert 'bonmini_guard_draws_total{guard="guarded"} 4.0' in told


def test_in_shadow_the_upstreams_answer_is_served_and_judged_afterwards(house):
    house.upstream.text = always(REJECTED)
    options = 'schedule = [2, 2]\nshadow = 1.0\nexplore = 1.0\ntrace_to = "traces.jsonl"'
    with house.open({"guarded": options}):
        answer = house.client.chat.completions.create(model="guarded", messages=ASKED, seed=5)
        assert answer.choices[0].message.content == REJECTED
        assert (answer.bonmini_guard["decision"], answer.bonmini_guard["ignored"]) == ("shadow", ["seed"])
        # Judged in the background; its trace is known by the name that the client has.
        patiently(lambda: house.post("/v1/feedback", request_id=answer.id, thumbs="down").status_code == 200)
    (row,) = [json.loads(line) for line in (house.folder / "traces.jsonl").read_text().splitlines()]
    assert (row["shadow"], row["served"], row["complete"], len(row["candidates"])) == (True, 0, True, 4)
    assert row["id"] == answer.bonmini_guard["request_id"] == answer.id.removeprefix("chatcmpl-")
    (said,) = [json.loads(line) for line in (house.folder / "traces.feedback.jsonl").read_text().splitlines()]
    assert said["candidates"][0]["acceptable"] is False


def test_a_thumb_that_cannot_be_kept_is_an_outage_and_says_so(house):
    with house.open({"guarded": 'schedule = [1]\ntrace_to = "traces.jsonl"'}):
        answer = house.client.chat.completions.create(model="guarded", messages=ASKED)
        (house.folder / "traces.feedback.jsonl").mkdir()
        refused = house.post("/v1/feedback", request_id=answer.id, thumbs="up")
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "outage")
    assert str(house.folder) not in refused.text
