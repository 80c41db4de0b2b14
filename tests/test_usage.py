"""Usage is reported once, and it is what the back end billed: also for draws that failed or were cancelled."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, NoAcceptableResponse
from bonmini_guard.errors import GenerationError
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")


def tokens(output: int) -> dict[str, int]:
    return {"input_tokens": 10, "output_tokens": output, "total_tokens": 10 + output}


class TruncatedError(Exception):
    def __init__(self, usage):
        self.usage_metadata = usage
        super().__init__("cut")


class BillingBackEnd:
    """Writes down what it bills: a token each millisecond or so, for a draw that is cancelled too.

    Args:
        script: what each draw does: a score to answer with, "truncated", "broken" or "slow".
    """

    model_name = "billed"

    def __init__(self, script):
        self.script = script
        self.billed = 0

    async def draw(self, request):
        kind, output = self.script[request.index], 0
        try:
            while output < 3 + 30_000 * (kind == "slow"):
                await asyncio.sleep(0.001)
                output += 1
        except asyncio.CancelledError as error:
            error.usage_metadata = self.bill(output)
            raise
        if kind == "truncated":
            raise TruncatedError(self.bill(output))
        if kind == "broken":
            raise ConnectionError("nothing came back, nothing was billed")
        about = {"model_name": self.model_name}
        return AIMessage(kind, usage_metadata=self.bill(output), response_metadata=about)

    def bill(self, output):
        self.billed += 10 + output
        return tokens(output)


SCRIPTS = {
    "all answered": (["-1", "1"], {}),
    "some failed": (["truncated", "broken", "1", "-1"], {}),
    "siblings of an eager exit": (["1", "slow", "slow"], {"exit": "eager"}),
    "siblings of a rolling exit": (["1", "slow", "slow"], {"schedule": None, "max_draws": 3, "in_flight": 3}),
    "draws launched ahead": (["1", "slow", "slow"], {"schedule": [1, 1, 1], "lookahead": 2}),
    "a deadline": (["-1", "slow", "slow"], {"timeout": 1.0, "mode": "accelerator"}),
    "an abstention": (["-1", "truncated"], {"on_abstain": "message"}),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("sync", [False, True])
async def test_what_is_reported_is_what_was_billed(script, sync):
    answers, settings = SCRIPTS[script]
    back_end = BillingBackEnd(answers)
    settings = {"schedule": [len(answers)], **settings}
    model = ChatBestOfMiniN(generator=back_end, reward_model=FakeRewardModel(float), **settings)
    with get_usage_metadata_callback() as counter:
        message = await asyncio.to_thread(model.invoke, "q") if sync else await model.ainvoke("q")
    assert back_end.billed > 20
    assert message.usage_metadata["total_tokens"] == back_end.billed
    assert counter.usage_metadata["billed"]["total_tokens"] == back_end.billed


async def test_an_abstention_that_raises_carries_it():
    back_end = BillingBackEnd(["-1", "slow"])
    guard = BestOfMiniN(generator=back_end, reward_model=FakeRewardModel(float), schedule=[2], timeout=1.0)
    with pytest.raises(NoAcceptableResponse) as caught:
        await guard.ainvoke("q")
    assert caught.value.result.usage["total_tokens"] == back_end.billed


@pytest.mark.parametrize("settings", [{}, {"timeout": 1.0}], ids=["failed", "out of time"])
async def test_a_request_without_an_answer_carries_it(settings):
    back_end = BillingBackEnd(["slow" if settings else "truncated", "truncated"])
    guard = BestOfMiniN(generator=back_end, reward_model=FakeRewardModel(float), schedule=[2], mode="accelerator", **settings)
    with pytest.raises(GenerationError) as caught:
        await guard.arun("q")
    assert back_end.billed
    assert caught.value.usage["total_tokens"] == back_end.billed


async def test_the_error_of_a_whole_group_is_counted_once():
    class Group:
        async def draw_group(self, requests):
            yield 0, AIMessage("1", usage_metadata=tokens(5))
            raise TruncatedError(tokens(7))

    result = await BestOfMiniN(generator=Group(), reward_model=FakeRewardModel(float), schedule=[3]).arun("q")
    assert [candidate.failed for candidate in result.candidates] == [False, True, True]
    assert result.usage["total_tokens"] == 15 + 17


@pytest.mark.parametrize("usage", [object(), {"prompt_token_count": 3}, {**tokens(1), "input_tokens": None}])
async def test_what_an_error_of_another_package_calls_so_is_no_usage(usage):
    answers = [TruncatedError(usage), TruncatedError(usage), AIMessage("1", usage_metadata=tokens(5))]
    guard = BestOfMiniN(generator=FakeGenerator(answers), reward_model=FakeRewardModel(float), schedule=[2, 1], budget=1000)
    assert (await guard.ainvoke("q")).usage_metadata["total_tokens"] == 15
