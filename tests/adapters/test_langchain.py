"""``LangChainGenerator``: any model as it is, quietly."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel, BaseLLM, FakeListChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult, Generation, LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    RouterRunnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from pydantic import Field

from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import LangChainGenerator
from bonmini_guard.adapters.langchain import MalformedGenerations, as_message
from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.errors import ConfigurationError, GenerationError
from bonmini_guard.testing import FakeChatModel, FakeRewardModel
from tests.adapters.drawing import request

CALLS = []
say = ChatPromptTemplate.from_messages([("human", "{q}")])


class Recording(FakeListChatModel):
    temperature: float = 0.5
    seed: int | None = None
    extra_body: dict[str, Any] | None = None

    def _call(self, messages, stop=None, run_manager=None, **kwargs):
        CALLS.append({"stop": stop, **kwargs})
        return super()._call(messages, stop, run_manager, **kwargs)


@pytest.mark.parametrize("model", [FakeListChatModel(responses=["a", "b"]), FakeListLLM(responses=["a", "b"])])
async def test_a_cache_does_not_repeat_the_first_candidate(model):
    model = model.model_copy(update={"cache": InMemoryCache()})
    generator = LangChainGenerator(model)
    assert [(await generator.draw(request())).content for _ in range(2)] == ["a", "b"]


async def test_options_and_seed_reach_the_model():
    CALLS.clear()
    model = Recording(responses=["a"])
    generator = LangChainGenerator(model, seed_argument="seed", options={"top_p": 0.9})
    await generator.draw(request(seed=11, stop=["."]))
    assert CALLS[-1] == {"stop": ["."], "seed": 11, "top_p": 0.9}
    await LangChainGenerator(model).draw(request(seed=11))
    assert "seed" not in CALLS[-1]
    await generator.draw(request(top_p=0.1))
    assert CALLS[-1]["top_p"] == 0.1  # the call's own options come last


async def test_the_users_model_is_left_as_it_was():
    model = FakeListChatModel(responses=["a"], callbacks=[], cache=True)
    quiet = LangChainGenerator(model)._model
    assert (model.cache, model.disable_streaming) == (True, False)
    assert (quiet.cache, quiet.disable_streaming) == (False, True)


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (Recording(responses=["a"]), {}, False),
        (Recording(responses=["a"], temperature=0), {}, True),
        (Recording(responses=["a"]).bind(temperature=0), {}, True),
        (Recording(responses=["a"], temperature=0), {"temperature": 0.7}, False),
        (Recording(responses=["a"], seed=7), {}, True),
        (Recording(responses=["a"], seed=-1), {}, False),
        (Recording(responses=["a"]).bind(random_seed=7), {}, True),
        (Recording(responses=["a"]), {"seed": 7}, True),
        (RunnableLambda(lambda _: "a"), {}, False),
        (say | Recording(responses=["a"], temperature=0) | StrOutputParser(), {}, True),
        (say | Recording(responses=["a"]).bind(temperature=0), {}, True),
        (say | Recording(responses=["a"]), {}, False),
        (RunnableLambda(lambda said: said) | Recording(responses=["a"], temperature=0), {}, False),  # it may say what it likes
        (Recording(responses=["a"], temperature=0).with_fallbacks([Recording(responses=["a"])]), {}, True),
        (Recording(responses=["a"], temperature=0).with_fallbacks([Recording(responses=["a"])]).bind(temperature=1), {}, False),
        (Recording(responses=["a"]).with_fallbacks([Recording(responses=["a"], temperature=0)]), {}, False),
        (Recording(responses=["a"], extra_body={"temperature": 0}), {}, True),
        (Recording(responses=["a"], extra_body={"temperature": 0}).bind(extra_body={"temperature": 1}), {}, False),
        (Recording(responses=["a"]).bind(extra_body={"seed": 4}), {}, True),
        (Recording(responses=["a"]), {"model_kwargs": {"temperature": 0}}, True),
    ],
)
def test_temperature_zero_and_a_fixed_seed_are_seen(model, options, expected):
    assert LangChainGenerator(model, options=options).deterministic is expected


async def test_an_argument_of_a_function_may_be_called_n():
    repeated = RunnableLambda(lambda messages, n: messages[0].text * n).bind(n=2).with_config(tags=["mine"])
    assert (await LangChainGenerator(repeated).draw(request())).text == request().messages[0].text * 2


def test_a_seed_that_each_draw_has_in_its_stead_is_none():
    assert not LangChainGenerator(Recording(responses=["a"], seed=7), seed_argument="seed").deterministic


def test_answers_become_messages():
    assert as_message("a") == AIMessage("a")
    assert type(as_message(AIMessageChunk("a"))) is AIMessage
    with pytest.raises(ConfigurationError, match="HumanMessage"):
        as_message(HumanMessage("a"))


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_a_model_that_parses_its_answers_is_told_where_structured_output_is_guarded():
    parsing = RunnableLambda(lambda messages: {"year": 1979})
    guard = BestOfMiniN(generator=parsing, reward_model=FakeRewardModel({}), threshold=0.0)
    with pytest.raises(
        GenerationError, match=r"none of 4 draws arrived: ConfigurationError: a draw gave a dict.*with_structured_output"
    ):
        guard.invoke("q")


def test_what_is_no_runnable_is_refused():
    with pytest.raises(ConfigurationError, match="runnable"):
        LangChainGenerator(lambda messages: "a")


# Models of every kind


class ManyChoices(BaseChatModel):
    """A chat model with ``n`` that repeats the call's usage on each message, as widely used integrations do."""

    honours_n: bool = True
    asked: list = Field(default_factory=list)

    @property
    def _llm_type(self):
        return "many"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.asked.append(kwargs)
        count = kwargs.get("n", 1) if self.honours_n else 1
        usage = {"input_tokens": 5, "output_tokens": 2 * count, "total_tokens": 5 + 2 * count}
        said = [AIMessage(f"answer {kwargs.get('seed')}.{index}", usage_metadata=usage) for index in range(count)]
        bill = {"prompt_tokens": 5, "completion_tokens": 2 * count, "total_tokens": 5 + 2 * count}
        return ChatResult(generations=[ChatGeneration(message=each) for each in said], llm_output={"token_usage": bill})

    def _combine_llm_outputs(self, llm_outputs):
        return llm_outputs[0]


class AsyncOnly(ManyChoices):
    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        raise NotImplementedError

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        await asyncio.sleep(0)
        return super()._generate(messages, stop, **kwargs)


class Completion(BaseLLM):
    """A completion LLM with ``n``, which has its usage and what it says about each text beside them."""

    @property
    def _llm_type(self):
        return "completion"

    told: Any = None

    def _generate(self, prompts, stop=None, run_manager=None, **kwargs):
        count = kwargs.get("n", 1)
        texts = [Generation(text=f" text {index}", generation_info={"finish_reason": "stop"}) for index in range(count)]
        bill = self.told or {"prompt_tokens": 7, "completion_tokens": 4 * count}
        return LLMResult(generations=[texts], llm_output={"token_usage": bill})


async def group(generator, count=4):
    requests = [DrawRequest([HumanMessage("q")], 10 + index, index, {}) for index in range(count)]
    outcomes = {position: outcome async for position, outcome in generator.draw_group(requests)}
    return [outcomes[position] for position in range(count)]


def bill(messages):
    usages = [message.usage_metadata for message in messages]
    return sum(usage["input_tokens"] for usage in usages), sum(usage["output_tokens"] for usage in usages)


@pytest.mark.parametrize("kind", [ManyChoices, AsyncOnly])
async def test_a_model_with_n_is_called_once_for_a_loop_and_billed_once(kind):
    model = kind()
    messages = await group(LangChainGenerator(model, n_argument="n", seed_argument="seed"))
    assert [message.text for message in messages] == [f"answer 10.{index}" for index in range(4)]
    assert bill(messages) == (5, 8)
    assert [call["n"] for call in model.asked] == [4]


def test_a_draw_is_one_answer_whatever_the_model_is_set_to():
    model = pytest.importorskip("langchain_openai").OpenAI(api_key="none", n=3, best_of=4, extra_body={"n": 3, "top_k": 5})
    drawing = LangChainGenerator(model).chat_model
    assert (drawing.n, drawing.best_of, drawing.extra_body, model.n) == (1, 1, {"top_k": 5}, 3)


@pytest.mark.parametrize("retried", [False, True])
async def test_a_draw_is_one_answer_whatever_is_bound_to_the_model(retried):
    model = ManyChoices()
    bound = model.bind(n=3, stream=True, top_p=0.9)
    further = {"n": 3, "extra_body": {"n": 3, "top_k": 5}}
    for generator in (LangChainGenerator(bound.with_retry() if retried else bound), LangChainGenerator(model, options=further)):
        answer = await generator.draw(DrawRequest([HumanMessage("q")], 7, 0, {}))
        assert answer.usage_metadata["total_tokens"] == 7
    assert model.asked == [{"top_p": 0.9}, {"extra_body": {"top_k": 5}}]


async def test_n_goes_through_bindings():
    model = ManyChoices()
    bound = model.bind(top_p=0.9).with_config(tags=["mine"])
    messages = await group(LangChainGenerator(bound, n_argument="n", options={"user": "me"}), 3)
    assert len({message.text for message in messages}) == 3
    assert model.asked == [{"n": 3, "top_p": 0.9, "user": "me"}]


async def test_a_model_that_ignores_n_is_called_for_what_is_missing():
    model = ManyChoices(honours_n=False)
    messages = await group(LangChainGenerator(model, n_argument="n", seed_argument="seed"))
    assert [message.text for message in messages] == [f"answer {seed}.0" for seed in (10, 11, 12, 13)]
    assert bill(messages) == (20, 8)
    assert [call.get("n") for call in model.asked] == [4, None, None, None]


async def test_a_model_without_generations_is_a_failed_draw():
    class Mute(ManyChoices):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            return ChatResult(generations=[])

    with pytest.raises(MalformedGenerations):
        await LangChainGenerator(Mute()).draw(request())


async def test_a_completion_llm_keeps_its_usage_and_metadata():
    message = await LangChainGenerator(Completion()).draw(request())
    assert (message.text, message.response_metadata) == (" text 0", {"finish_reason": "stop"})
    assert bill([message]) == (7, 4)
    messages = await group(LangChainGenerator(Completion(), n_argument="n"), 3)
    assert ([m.text for m in messages], bill(messages)) == ([" text 0", " text 1", " text 2"], (7, 12))
    # What nobody can count costs no draw.
    for told in ("12", object(), {"prompt_tokens": -1, "completion_tokens": True}):
        assert (await LangChainGenerator(Completion(told=told)).draw(request())).usage_metadata is None


@pytest.mark.parametrize("kind", [ManyChoices, AsyncOnly])
async def test_sync_only_and_async_only_models_draw(kind):
    generator = LangChainGenerator(kind(), seed_argument="seed")
    assert generator.draw_group is None
    messages = await asyncio.gather(*(generator.draw(request(seed)) for seed in range(3)))
    assert [message.text for message in messages] == ["answer 0.0", "answer 1.0", "answer 2.0"]
    assert messages[0].usage_metadata["total_tokens"] == 7


async def test_a_sync_only_model_does_not_hold_the_loop():
    class Slow(ManyChoices):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            assert threading.current_thread() is not threading.main_thread()
            return super()._generate(messages, stop, **kwargs)

    assert (await LangChainGenerator(Slow()).draw(request())).text == "answer None.0"


async def test_everything_that_an_answer_holds_is_kept():
    blocks = [{"type": "reasoning", "reasoning": "2 + 2"}, {"type": "text", "text": "four"}]
    said = AIMessage(
        blocks,
        tool_calls=[{"name": "f", "args": {"a": 1}, "id": "0"}],
        additional_kwargs={"reasoning_content": "2 + 2"},
        response_metadata={"finish_reason": "tool_calls"},
        usage_metadata={
            "input_tokens": 3,
            "output_tokens": 4,
            "total_tokens": 7,
            "output_token_details": {"reasoning": 2},
        },
    )
    message = await LangChainGenerator(GenericFakeChatModel(messages=iter([said]))).draw(request())
    assert (message.content, message.tool_calls) == (blocks, said.tool_calls)
    assert message.additional_kwargs == said.additional_kwargs
    assert message.usage_metadata == said.usage_metadata
    assert message.response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.filterwarnings("ignore:.*uncalibrated.*")
@pytest.mark.parametrize("honours_n", [True, False])
async def test_the_guards_usage_is_the_bill(honours_n):
    model = ManyChoices(honours_n=honours_n)
    generator = LangChainGenerator(model, n_argument="n", seed_argument="seed")
    scores = FakeRewardModel(lambda text: -1.0)
    guard = BestOfMiniN(generator=generator, reward_model=scores, mode="guardrail", schedule=[4, 3], threshold=0.0)
    result = await guard.arun("q")
    made = sum(2 * (call.get("n", 1) if honours_n else 1) for call in model.asked)
    assert (result.draws, result.usage["total_tokens"]) == (7, 5 * len(model.asked) + made)
    assert len({candidate.message.text for candidate in result.candidates}) == 7


@pytest.mark.parametrize("name", ["temperature", "n"])
@pytest.mark.parametrize("body", [None, "extra_body", "model_kwargs"])
async def test_call_options_that_would_spoil_the_draws_are_refused(name, body):
    model, options = ManyChoices(), {name: 0}
    with pytest.raises(ConfigurationError, match=name):
        await LangChainGenerator(model, n_argument="n").draw(request(**{body: options} if body else options))
    assert not model.asked


@pytest.mark.parametrize("model", [RunnableLambda(lambda _: "a"), ManyChoices().with_retry()])
def test_n_needs_a_model_that_gives_its_generations(model):
    with pytest.raises(ConfigurationError, match="n_argument"):
        LangChainGenerator(model, n_argument="n")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        lambda model: model.bind(top_p=1),
        lambda model: model.with_retry(stop_after_attempt=2),
        lambda model: model.with_fallbacks([model]),
        lambda model: RunnableLambda(lambda messages: messages) | model.bind(seed=1),
        lambda model: model.with_retry().bind(top_p=1),
        lambda model: RunnableBranch((lambda _: False, AsyncOnly()), (lambda _: True, model), AsyncOnly()),
        lambda model: RunnableBranch((lambda _: False, AsyncOnly()), model.with_retry()),
        lambda model: RunnableParallel(answer=model) | RunnableLambda(lambda answers: answers["answer"]),
        lambda model: RunnableLambda(lambda q: {"key": "it", "input": q}) | RouterRunnable({"it": model}),
        lambda model: (
            RunnableLambda(lambda q: {"q": q})
            | RunnablePassthrough.assign(answer=RunnableLambda(lambda given: given["q"]) | model)
            | RunnableLambda(lambda given: given["answer"])
        ),
        lambda model: model.configurable_fields(honours_n=ConfigurableField(id="n")),
        lambda model: (
            AsyncOnly()
            .configurable_alternatives(ConfigurableField(id="which"), mine=model)
            .with_config(configurable={"which": "mine"})
        ),
    ],
)
async def test_callbacks_and_caches_below_wrappers_are_silent_too(wrap):
    class Nosy(AsyncCallbackHandler):
        seen = 0

        async def on_chat_model_start(self, *args, **kwargs):
            self.seen += 1

    nosy = Nosy()
    model = ManyChoices(callbacks=[nosy], cache=InMemoryCache())
    generator = LangChainGenerator(wrap(model))
    assert all([(await generator.draw(request())).text.startswith("answer") for _ in range(2)])
    assert (nosy.seen, len(model.asked)) == (0, 2)


async def test_a_model_of_init_chat_model_is_silent_too(monkeypatch):
    base = pytest.importorskip("langchain.chat_models.base")
    model = ManyChoices(cache=InMemoryCache())
    monkeypatch.setattr(base, "_init_chat_model_helper", lambda **_: model)
    generator = LangChainGenerator(base.init_chat_model("openai:any", configurable_fields=("model",)).with_config(tags=["mine"]))
    assert len({(await generator.draw(request())).id for _ in range(2)}) == 2
    assert len(model.asked) == 2


async def test_retries_and_fallbacks_still_work():
    class Broken(ManyChoices):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            self.asked.append(kwargs)
            raise ValueError("no")

    broken, whole = Broken(), ManyChoices()
    message = await LangChainGenerator(broken.with_retry(stop_after_attempt=2).with_fallbacks([whole])).draw(request())
    assert (message.text, len(broken.asked)) == ("answer None.0", 2)


async def test_thoughts_in_the_text_are_moved_where_that_is_asked_for():
    model = FakeChatModel(["<think>hm</think>\nIt is 42."])
    request = DrawRequest([HumanMessage("q")], 1)
    assert (await LangChainGenerator(model).draw(request)).text.startswith("<think>")
    message = await LangChainGenerator(model, split_reasoning=True).draw(request)
    assert (message.text, message.additional_kwargs["reasoning_content"]) == ("It is 42.", "hm")
    assert message.content_blocks[0] == {"type": "reasoning", "reasoning": "hm"}


async def test_thoughts_in_a_text_among_several_blocks_are_moved_too():
    cited = {"type": "text", "text": "<think>hm</think>\nIt is 42.", "annotations": []}  # output_version="v1"
    cases = [
        ([cited], [cited | {"text": "It is 42."}]),
        (["<think>hm</think>Yes", cited], ["Yes", cited]),
        ([{"type": "text", "text": "<think>hm"}], []),
    ]
    for content, left in cases:
        model = RunnableLambda(lambda _, content=content: AIMessage(content))
        message = await LangChainGenerator(model, split_reasoning=True).draw(DrawRequest([HumanMessage("q")], 1))
        assert (message.content, message.additional_kwargs["reasoning_content"]) == (left, "hm")
