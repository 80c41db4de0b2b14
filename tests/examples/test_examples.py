"""The examples run, and do what they say."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest

from bonmini_guard import BestOfMiniN, GuardProfile
from bonmini_guard.demo import room
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")
FOLDER = Path(__file__).parents[2] / "examples"


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_guardrail_in_a_retrieval_chain(capsys):
    from examples import rag_guardrail

    rag_guardrail.main()
    answered, refused = lines(capsys)
    assert answered == "When does the library open? The library opens at nine."
    assert refused == "Who founded the library? (no answer: 4 drafts, none supported by the sources)"


def test_an_agent(capsys):
    pytest.importorskip("langchain.agents")
    from examples import agent

    agent.main()
    said = lines(capsys)
    assert said[0] == "model: order_status unscored"
    assert said[1] == "tools: order 7: shipped, expected on Friday "
    assert said[-1] == "model: Your order is on its way, and it should arrive on Friday. accepted"
    assert any(line.startswith("  loop ") for line in said)


def test_a_fallback_to_a_stronger_model(capsys):
    from examples import fallback

    fallback.main()
    said = lines(capsys)
    assert [line.split(": ")[1].split(" (")[0] for line in said] == ["What is 7 + 5? 12", "What is 17 * 23? 391"] * 3
    assert said[1].endswith("(fallback)")


def test_scorers_that_mark_steps_or_compare_pairs(capsys):
    from examples import your_scorers

    your_scorers.main()
    said = lines(capsys)
    assert said[0] == "steps: '12 * 3 = 36\\n36 + 4 = 40' after 2 draws, 0.95"
    assert said[1].startswith("pairs: ")
    assert your_scorers.better_than_barely.has_zero


def test_conversations(capsys):
    from examples import conversations

    conversations.main()
    said = capsys.readouterr().out
    assert "Number 7 is in the depot." in said
    assert said.rstrip().endswith("(a person takes over)")
    assert "Who knows" not in said


def test_conversations_are_the_unit_of_the_promise(tmp_path):
    from examples import conversations

    assert isinstance(conversations.calibrated(tmp_path), GuardProfile)
    evidence = GuardProfile.load(tmp_path / "guardrail.json").evidence
    assert (evidence["rows"], evidence["units"]) == (1800, 600)


async def events(app, prompt):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/chat", json={"prompt": prompt})
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.text)
    return [(name, json.loads(data)) for name, data in found], answer


@pytest.mark.skipif(room.missing() is not None, reason=f"the desk's model: {room.missing()}")
async def test_an_endpoint_with_server_sent_events():
    pytest.importorskip("fastapi")
    from examples import sse_endpoint

    note = "Refund notice.\nCustomer: Omar\nItem: 3 bath towels\nRefund: $24"
    told, answer = await events(sse_endpoint.build(sse_endpoint.desk()), note)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *progress, (name, last) = told
    assert name == "answer"
    assert last["text"]
    assert {name for name, _ in progress} == {"progress"}
    assert [data["loop"] for _, data in progress] == list(range(1, last["loops"] + 1))


@pytest.mark.parametrize(("answers", "expected"), [(["secret"], "refused"), ([OSError("secret")], "error")])
async def test_the_endpoint_tells_a_refusal_and_an_error_without_text(answers, expected):
    pytest.importorskip("fastapi")
    from examples import sse_endpoint

    guard = BestOfMiniN(generator=FakeGenerator(answers), reward_model=FakeRewardModel(lambda text: -1.0), mini_n=1, max_loops=1)
    told, answer = await events(sse_endpoint.build(guard), "q")
    assert [name for name, _ in told] == [expected]
    assert "secret" not in answer.text
    _, refused = await events(sse_endpoint.build(guard), "")
    assert refused.status_code == 422


async def test_a_client_that_goes_away_cancels_its_draws():
    pytest.importorskip("fastapi")
    from examples import sse_endpoint

    generator = FakeGenerator(["never"], latency=60.0)
    guard = BestOfMiniN(generator=generator, reward_model=FakeRewardModel(lambda text: 1.0), mini_n=2, max_loops=1, progress=True)
    reading = asyncio.create_task(anext(sse_endpoint.tell(guard, "q")))
    while len(generator.requests) < 2:
        await asyncio.sleep(0.001)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    for _ in range(1000):
        if len(generator.cancelled) == 2:
            break
        await asyncio.sleep(0.001)
    assert sorted(generator.cancelled) == [0, 1]


def test_from_shadow_mode_to_a_calibrated_guardrail(capsys):
    from examples import shadow_to_guardrail

    shadow_to_guardrail.main()
    watched, promise, _, live = lines(capsys)
    assert watched.startswith("In shadow: 300 answers served, 300 scored")
    assert "of 300 explored" in watched
    assert "with 90 % confidence" in promise
    served, bad, refused = map(int, re.findall(r"(\d+) (?:served|of them bad|refused)", live))
    assert served + refused == 200
    assert min(served, refused) > 0
    assert bad < 0.2 * 200  # twice what is promised on average


def test_every_example_is_listed():
    listed = set(re.findall(r"`(\w+)\.py`", (FOLDER / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
