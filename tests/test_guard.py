"""``BestOfMiniN`` as a LangChain runnable: messages, abstentions, composition, usage, and the sampling of LangChain models."""

from __future__ import annotations

import json
import pickle

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, NoAcceptableResponse, ScorerError
from bonmini_guard.errors import BonMiniGuardError, ConfigurationError, GenerationError, InputError
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

KEYS = {
    *("decision", "reason", "score", "raw_score", "acceptance_probability", "threshold"),
    *("draws", "draws_started", "failed_draws", "loops", "profile"),
}
SCORES = {"good": 2.0, "bad": -1.0, "worse": -2.0}


def make(answers=("bad", "good"), scores=None, **settings):
    settings = {"mini_n": 2, "max_loops": 2, **settings}
    generator = FakeGenerator(answers) if isinstance(answers, list | tuple) or callable(answers) else answers
    return BestOfMiniN(generator=generator, reward_model=FakeRewardModel(scores or SCORES), **settings)


def counted(text, tokens):
    usage = {"input_tokens": 10, "output_tokens": tokens, "total_tokens": 10 + tokens}
    return AIMessage(text, usage_metadata=usage, response_metadata={"finish_reason": "stop"})


def about(message):
    return message.response_metadata["bonmini_guard"]


# Messages


def test_a_served_message_carries_exactly_the_contracts_keys():
    message = make().invoke("question")
    assert message.content == "good"
    assert set(about(message)) == KEYS
    assert about(message) == {
        "decision": "accepted",
        "reason": "passed",
        "score": 2.0,
        "raw_score": 2.0,
        "acceptance_probability": pytest.approx(0.8807970779778823),
        "threshold": 0.0,
        "draws": 2,
        "draws_started": 2,
        "failed_draws": 0,
        "loops": 1,
        "profile": None,
    }


@pytest.mark.parametrize("mode", ["guardrail", "accelerator"])
def test_usage_is_the_sum_over_all_draws_and_the_candidate_is_not_touched(mode):
    candidates = [counted("bad", 1), counted("good", 20), counted("worse", 300)]
    before = [candidate.model_copy(deep=True) for candidate in candidates]
    message = make(candidates, schedule=[3], mini_n=None, max_loops=None, mode=mode).invoke("question")
    assert message.usage_metadata == {"input_tokens": 30, "output_tokens": 321, "total_tokens": 351}
    assert message.response_metadata["finish_reason"] == "stop"
    assert candidates == before
    assert message is not candidates[1]


def test_run_gives_the_record_and_an_abstention_is_no_error():
    result = make(["bad"]).run("question")
    assert (result.decision, result.reason, result.draws, result.served) == ("abstained", "budget_spent", 4, False)


def test_call_options_reach_the_generator_and_the_seed_does_not():
    generator = FakeGenerator(["good"])
    guard = make(generator)
    guard.bind(stop=["."]).invoke("question", seed=3)
    guard.run("question", seed=3, stop=["."])
    assert {tuple(request.options["stop"]) for request in generator.requests} == {(".",)}
    assert all("seed" not in request.options for request in generator.requests)
    assert generator.requests[0].seed == generator.requests[2].seed


def test_a_guards_seed_repeats_requests_and_without_one_they_differ():
    generator = FakeGenerator(["bad"])
    seeded, free = make(generator, seed=5), make(generator)
    assert seeded.run("q").candidates[0].seed == seeded.run("q").candidates[0].seed
    assert seeded.run("q", seed=6).seed == 6
    assert free.run("q").seed != free.run("q").seed


@pytest.mark.parametrize(
    "prompt",
    [
        "hi",
        [HumanMessage("hi")],
        HumanMessage("hi"),
        [("human", "hi")],
        ChatPromptTemplate.from_messages([("human", "hi")]).invoke({}),
    ],
)
def test_every_kind_of_prompt_is_one_conversation(prompt):
    generator = FakeGenerator(["good"])
    make(generator).invoke(prompt)
    assert [message.content for message in generator.requests[0].messages] == ["hi"]
    assert generator.requests[0].messages[0].type == "human"


@pytest.mark.parametrize(
    "prompt", ["", "  \n", [], [HumanMessage("")], [SystemMessage(" ")], None, 3, {"text": "hi"}, [object()], b"hi"]
)
async def test_an_empty_or_unreadable_prompt_is_an_input_error(prompt):
    generator = FakeGenerator(["good"])
    guard = make(generator)
    with pytest.raises(InputError):
        guard.invoke(prompt)
    with pytest.raises(InputError):
        await guard.arun(prompt)
    assert generator.requests == []


def test_all_draws_failed_is_a_generation_error_through_invoke():
    with pytest.raises(GenerationError):
        make([OSError("down")]).invoke("question")


# Abstention


def test_an_abstention_raises_by_default_and_carries_the_result():
    with pytest.raises(NoAcceptableResponse, match="after 4 draws in 2 loops: budget_spent") as caught:
        make(["bad", "worse"]).invoke("question")
    assert caught.value.result.score == -1.0
    assert not isinstance(caught.value, ScorerError)
    assert isinstance(caught.value, BonMiniGuardError)
    assert pickle.loads(pickle.dumps(caught.value)).result.score == -1.0


def test_a_failed_scorer_raises_scorer_error():
    with pytest.raises(ScorerError, match="scorer_failed") as caught:
        make(scores=lambda messages, candidates: 1 / 0).invoke("question")
    assert isinstance(caught.value, NoAcceptableResponse)
    assert isinstance(caught.value.result.scorer_error, ZeroDivisionError)


def test_an_abstention_as_a_message():
    message = make(["bad"], on_abstain="message", abstain_message="Sorry.").invoke("question")
    assert message.content == "Sorry."
    assert (about(message)["decision"], about(message)["score"], set(about(message))) == ("abstained", -1.0, KEYS)


@pytest.mark.parametrize("kind", ["chat model", "lambda", "async callable", "callable"])
async def test_a_fallback_answers_outside_any_promise(kind):
    seen = []

    async def answer_later(result):
        seen.append(result.decision)
        return AIMessage("other")

    fallback = {
        "chat model": FakeListChatModel(responses=["other"]),
        "lambda": RunnableLambda(lambda original: seen.append(original) or AIMessage("other")),
        "async callable": answer_later,
        "callable": lambda result: "other",
    }[kind]
    guard = make(["bad"], on_abstain=fallback)
    for message in (guard.invoke("question"), await guard.ainvoke("question")):
        assert message.content == "other"
        assert set(about(message)) == KEYS
        assert about(message)["decision"] == "fallback"
        assert about(message)["reason"] == "budget_spent"
        assert [about(message)[key] for key in ("score", "raw_score", "acceptance_probability")] == [None] * 3
    assert seen == {"lambda": ["question"] * 2, "async callable": ["abstained"] * 2}.get(kind, [])


def test_no_score_is_said_of_a_fallback_in_parts_either():
    class Judge:
        def session(self, messages):
            judged = FakeRewardModel(lambda text: -1.0).session(messages)
            judged.parts = [{"polite": 2.0, "correct": -1.0}]
            return judged

    def said(on_abstain):
        guard = BestOfMiniN(generator=FakeGenerator(["bad"]), reward_model=Judge(), schedule=[1], on_abstain=on_abstain)
        return about(guard.invoke("q"))

    assert said("message")["parts"] == {"polite": 2.0, "correct": -1.0}
    assert said(lambda result: "other").keys() == said("message").keys() - {"parts"}


def test_usage_of_a_fallback_is_that_of_all_draws_and_its_own():
    guard = make([counted("bad", 1)], on_abstain=lambda result: counted("other", 5))
    assert guard.invoke("q").usage_metadata == {"input_tokens": 50, "output_tokens": 9, "total_tokens": 59}


def test_a_fallback_bills_nothing_that_nobody_reports():
    for fallback in ("other", AIMessageChunk("other")):
        message = make(["bad"], on_abstain=lambda result, fallback=fallback: fallback).invoke("q")
        assert (message.content, type(message), message.usage_metadata) == ("other", AIMessage, None)


def test_a_fallback_must_give_a_message():
    with pytest.raises(ConfigurationError, match="an AIMessage or a string"):
        make(["bad"], on_abstain=lambda result: 7).invoke("q")


# Composition


async def test_abatch_returns_exceptions():
    guard = make(lambda request: request.messages[0].content, mini_n=1, max_loops=1)
    out = await guard.abatch(["good", "bad"] * 20, {"max_concurrency": 4}, return_exceptions=True)
    assert [type(o) for o in out] == [AIMessage, NoAcceptableResponse] * 20


def test_fallbacks_for_a_refusal_are_for_that_alone():
    spare = RunnableLambda(lambda _: AIMessage("spare"))
    with pytest.raises(GenerationError):
        make([OSError()]).with_fallbacks([spare], exceptions_to_handle=(NoAcceptableResponse,)).invoke("q")


def test_the_configuration_is_frozen():
    guard = make()
    with pytest.raises(ValueError, match="frozen"):
        guard.threshold = 99.0


# What a message says, and what a call may say


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("mode", ["guardrail", "accelerator"])
def test_metadata_are_strict_json_whatever_a_scorer_says(score, mode):
    message = make(["a", "b"], lambda messages, candidates: [score] * len(candidates), mode=mode, on_abstain="message").invoke("hi")
    json.dumps(message.response_metadata, allow_nan=False)
    assert message.response_metadata["bonmini_guard"]["raw_score"] is None


async def test_call_options_may_have_any_name():
    seen = []
    generator = FakeGenerator(lambda request: seen.append(dict(request.options)) or "1")
    guard = BestOfMiniN(generator=generator, reward_model=FakeRewardModel(float), schedule=[1])
    options = dict.fromkeys(("final", "spent", "messages", "caller", "group", "observer", "promised"), 7)
    guard.invoke("q", **options, seed=3)
    await guard.ainvoke("q", **options, seed=3)
    await guard.arun("q", {"tags": ["any"]}, **options, seed=3)
    assert seen == [options] * 3


@pytest.mark.parametrize(
    "option", [{"threshold": 9.0}, {"on_abstain": "message"}, {"profile": "guardrail.json"}, {"mode": "accelerator"}]
)
@pytest.mark.parametrize("face", [BestOfMiniN, ChatBestOfMiniN])
async def test_what_the_guard_decides_by_is_no_call_option(face, option):
    guard = face(generator=FakeGenerator(["good"]), reward_model=FakeRewardModel(SCORES), mini_n=1)
    for call in (guard.ainvoke("q", **option), guard.bind(**option).ainvoke("q")):
        with pytest.raises(ConfigurationError, match=f"{next(iter(option))}= is the guard's.*model_copy"):
            await call
    assert not guard.generator.requests
