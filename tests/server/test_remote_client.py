"""RemoteRewardModel against our own server, through each of its routes: the same scores as in this process."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import RemoteRewardModel
from bonmini_guard.adapters.http_errors import RequestRejected
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.server.app import ScoringServer
from bonmini_guard.server.door import Limits
from bonmini_guard.testing import FakeGenerator
from tests.served import Served

PROMPT = [HumanMessage("the film was")]
ANSWERS = [AIMessage(text) for text in (" good", " awful plot", "", " fine </s> end", " very dull and very long")]


@pytest.fixture
def served(model):
    with Served(ScoringServer(model, token="s3cret").app) as running:
        yield running


def remote(served, kind, folder, **settings):
    tokenizer = None if kind == "bonmini" else str(folder)
    return RemoteRewardModel(served.url, kind=kind, tokenizer=tokenizer, api_key="s3cret", backoff=0.01, **settings)


@pytest.mark.parametrize(("kind", "inputs"), [("bonmini", None), ("vllm", None), ("vllm", "text")])
async def test_scores_over_the_wire_are_scores_in_this_process(served, model, folder, kind, inputs):
    expected = model.score(PROMPT, ANSWERS)
    async with remote(served, kind, folder, inputs=inputs) as scorer:
        found = await scorer.session(PROMPT).score(ANSWERS)
    if inputs == "text":
        # The answer that spells a control token is not sent where the server would read it as one.
        expected[3] = None
    assert found == pytest.approx(expected, abs=1e-5)


async def test_a_template_that_texts_cannot_carry_is_refused(served, folder):
    """This tokenizer puts <s> before a text, and the template does not: as text, the server would score something else."""
    async with remote(served, "tei", folder) as scorer:
        with pytest.raises(ConfigurationError, match="use a kind that takes token ids"):
            await scorer.session(PROMPT).score(ANSWERS)


def test_its_fingerprint_and_its_zero_are_the_models(served, model, folder):
    scorer = remote(served, "bonmini", folder)
    assert (scorer.fingerprint(), scorer.has_zero) == (model.fingerprint(), True)


async def test_a_wrong_key_is_told_once_and_never_tried_again(served):
    async with RemoteRewardModel(served.url, kind="bonmini", api_key="wrong") as scorer:
        with pytest.raises(RequestRejected) as caught:
            await scorer.session(PROMPT).score(ANSWERS)
    assert caught.value.status == 401


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_a_server_that_dies_fails_a_guardrail_closed(served, folder):
    scorer = remote(served, "bonmini", folder, retries=1)
    guard = BestOfMiniN(generator=FakeGenerator([" good"]), reward_model=scorer, schedule=[2], threshold=-100.0)
    assert guard.run("the film was").decision == "accepted"
    served.stop()
    result = guard.run("the film was")
    assert (result.decision, result.reason, result.message) == ("abstained", "scorer_failed", None)


async def test_a_full_server_is_waited_for(model):
    with Served(ScoringServer(model, limits=Limits(requests=1)).app) as running:
        async with RemoteRewardModel(running.url, kind="bonmini", batch_size=1, retries=50, backoff=0.05) as scorer:
            found = await scorer.session(PROMPT).score(ANSWERS)
        assert found == pytest.approx(model.score(PROMPT, ANSWERS), abs=1e-5)


@pytest.mark.parametrize("arguments", ["", "{bad", "[1]", "null"])
async def test_calls_that_are_no_json_are_read_over_the_wire_as_in_this_process(served, model, folder, arguments):
    call = {"name": "look", "args": arguments, "id": "1", "error": None, "type": "invalid_tool_call"}
    broken = AIMessage("", invalid_tool_calls=[call])
    prompt = [*PROMPT, broken, ToolMessage("no JSON", tool_call_id="1")]
    async with remote(served, "bonmini", folder) as scorer:
        found = [await scorer.session(messages).score([broken, *ANSWERS[:2]]) for messages in (PROMPT, prompt)]
    assert None not in found[0] + found[1]
    for scores, messages in zip(found, (PROMPT, prompt), strict=True):
        assert scores == pytest.approx(model.score(messages, [broken, *ANSWERS[:2]]), abs=1e-5)
