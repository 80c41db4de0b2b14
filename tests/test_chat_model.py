"""``ChatBestOfMiniN`` as a chat model: answers, abstentions, tools, structured output, and nothing of what was rejected."""

from __future__ import annotations

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from langchain_core.tools import StructuredTool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, GuardProfile, NoAcceptableResponse, ScorerError
from bonmini_guard.adapters import LangChainGenerator
from bonmini_guard.errors import ConfigurationError, GenerationError, InputError
from bonmini_guard.testing import FakeChatModel, FakeGenerator, FakeRewardModel
from tests.test_no_leak import Recorder, Tracer

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

SCORES = {"good": 2.0, "rejected": -1.0, "worse rejected": -2.0}
USAGE = {"input_tokens": 10, "output_tokens": 1, "total_tokens": 11}


def make(answers=("rejected", "good"), scores=None, **settings):
    settings = {"mini_n": 2, "max_loops": 2, **settings}
    generator = FakeGenerator(answers) if isinstance(answers, list | tuple) or callable(answers) else answers
    return ChatBestOfMiniN(generator=generator, reward_model=FakeRewardModel(scores or SCORES), **settings)


def counted(text, **fields):
    return AIMessage(text, usage_metadata=USAGE, response_metadata={"model_name": "billed"}, **fields)


def about(message):
    return message.response_metadata["bonmini_guard"]


class ToolModel(FakeChatModel):
    """It translates tools its own way, and has a secret."""

    model_name: str = "billed"
    api_key: str = "sk-secret"

    def bind_tools(self, tools, *, tool_choice=None, **kwargs):
        return self.bind(
            functions=[convert_to_openai_tool(tool)["function"]["name"] for tool in tools], choice=tool_choice, **kwargs
        )


# Answers


def test_what_is_bound_to_a_guard_holds_in_its_copies():
    """As a model inside another guard, or one that somebody configures anew, it is copied."""
    bad, good = (AIMessage("", tool_calls=[{"name": "Answer", "args": {"text": text}, "id": "1"}]) for text in ("bad", "good"))
    inner = ChatBestOfMiniN(
        generator=FakeGenerator([bad, good]),
        reward_model=lambda messages, candidates: [1.0 if "good" in str(each.tool_calls) else -1.0 for each in candidates],
        mini_n=2,
    )
    tool = StructuredTool(name="Answer", description="a", args_schema={"type": "object", "properties": {}})
    for bound in (inner.bind_tools([tool]), inner.with_structured_output(convert_to_openai_tool(tool)).steps[0]):
        copies = [bound.bound.model_copy(update=update) for update in ({"callbacks": None}, {"threshold": 0.5})]
        assert copies[0].guard is inner.guard
        outer = BestOfMiniN(generator=bound, reward_model=lambda messages, candidates: [1.0], mini_n=1, tool_turns="judge")
        for model in (*copies, outer):
            message = model.invoke("q", **bound.kwargs)
            assert message.tool_calls[0]["args"] == {"text": "good"}


def test_another_reward_model_judges_what_is_parsed_in_a_copy():
    asking = make([film("poor", 1), film("good", 1999)], lambda messages, candidates: [1.0, -1.0]).with_structured_output(Film)
    bound = asking.steps[0]
    other = bound.bound.model_copy(update={"reward_model": lambda messages, candidates: [-1.0, 1.0]})
    titles = [model.invoke("q", **bound.kwargs).tool_calls[0]["args"]["title"] for model in (bound.bound, other)]
    assert titles == ["poor", "good"]


@pytest.mark.parametrize("update", [{"profile": None}, {"guard_profile": None}, {"profile": None, "threshold": 0.5}])
def test_a_copy_without_a_profile_has_none(update):
    profile = GuardProfile(mode="accelerator", schedule=[1], thresholds=[1.0])
    model = ChatBestOfMiniN(generator=FakeGenerator(["good"]), reward_model=FakeRewardModel(SCORES), profile=profile)
    assert model.model_copy(update={"profile": {"max_input_tokens": 9}}).guard.engine.policy == profile.policy()
    other = model.model_copy(update=update)
    assert (other.guard_profile, other.guard.engine.policy.mode) == (None, "guardrail")
    assert model.guard_profile is profile


def test_arguments_are_those_of_the_runnable():
    for name, field in BestOfMiniN.model_fields.items():
        if name not in ("name", "profile"):
            assert ChatBestOfMiniN.model_fields[name].default == field.default
    with pytest.raises(ConfigurationError, match="max_loop"):
        make(max_loop=3)
    with pytest.raises(ConfigurationError, match="positive"):
        make(timeout=-1)
    for temperature in (0, "0"):
        with pytest.raises(ConfigurationError, match="temperature 0"):
            make(temperature=temperature)
    with pytest.raises(ValueError, match="frozen"):
        make().threshold = 3.0


async def test_every_way_to_call_it_gives_the_winner():
    model = make()
    answers = [model.invoke("q"), await model.ainvoke("q"), *model.batch(["q"] * 2), *await model.abatch(["q"] * 2)]
    assert [answer.content for answer in answers] == ["good"] * 6
    assert about(answers[0])["decision"] == "accepted"
    chain = ChatPromptTemplate.from_messages([("human", "{q}")]) | model | StrOutputParser()
    assert chain.invoke({"q": "?"}) == "good"
    assert "".join([piece async for piece in chain.astream({"q": "?"})]) == "good"


async def test_streams_are_one_whole_chunk_which_is_the_last():
    model = make([counted("rejected"), counted("good")])
    for chunks in (list(model.stream("q")), [chunk async for chunk in model.astream("q")]):
        (chunk,) = chunks
        assert isinstance(chunk, AIMessageChunk)
        assert (chunk.content, chunk.chunk_position) == ("good", "last")
        assert chunk.usage_metadata["total_tokens"] == 22
        assert about(chunk)["draws"] == 2


def test_options_and_seed_reach_the_draws():
    generator = FakeGenerator(["good"])
    make(generator, stop=["a"], max_tokens=7, temperature=0.5, max_loops=1).invoke("q", seed=3)
    make(generator, stop=["a"], max_loops=1).invoke("q", stop=["b"], seed=3)
    first, _, third, _ = generator.requests
    assert dict(first.options) == {"stop": ["a"], "max_tokens": 7, "temperature": 0.5}
    assert dict(third.options) == {"stop": ["b"]}
    assert first.seed == third.seed


def test_bad_prompts_and_failed_draws_raise_as_the_runnable_does():
    with pytest.raises(InputError):
        make().invoke("  ")
    with pytest.raises(GenerationError):
        make([OSError("down")]).invoke("q")


# Abstention


async def test_abstentions_raise_by_default_and_fallbacks_catch_them():
    with pytest.raises(NoAcceptableResponse) as caught:
        make([counted("rejected")]).invoke("q")
    assert caught.value.result.usage["total_tokens"] == 44
    with pytest.raises(ScorerError):
        await make(scores=lambda messages, candidates: 1 / 0).ainvoke("q")
    spare = FakeListChatModel(responses=["spare"])
    assert make(["rejected"]).with_fallbacks([spare], exceptions_to_handle=(NoAcceptableResponse,)).invoke("q").content == "spare"


def test_abstention_as_a_message_counts_its_tokens():
    with get_usage_metadata_callback() as counter:
        message = make([counted("rejected")], on_abstain="message", abstain_message="Sorry.").invoke("q")
    assert (message.content, about(message)["decision"], message.usage_metadata["total_tokens"]) == ("Sorry.", "abstained", 44)
    assert [usage["total_tokens"] for usage in counter.usage_metadata.values()] == [44]


@pytest.mark.parametrize("kind", ["runnable", "callable"])
async def test_a_fallbacks_text_and_tokens_appear_once_on_this_models_run(kind):
    spare, heard = ToolModel([counted("spare")]), Recorder()
    fallback = spare if kind == "runnable" else lambda result: spare.ainvoke("again")
    model = make([counted("rejected")], on_abstain=fallback)
    with get_usage_metadata_callback() as counter:
        message = await model.ainvoke("q", {"callbacks": [heard]})
    assert (message.content, about(message)["decision"]) == ("spare", "fallback")
    assert counter.usage_metadata["billed"]["total_tokens"] == message.usage_metadata["total_tokens"] == 55
    assert [name for name, _ in heard.heard].count("on_llm_end") == 1
    assert "rejected" not in heard.text


# Usage and cache


@pytest.mark.parametrize("sync", [False, True])
async def test_streams_count_the_usage_of_all_draws_once(sync):
    model = make(ToolModel([counted("rejected"), counted("worse rejected"), counted("rejected"), counted("good")]))
    with get_usage_metadata_callback() as counter:
        _ = list(model.stream("q")) if sync else [chunk async for chunk in model.astream("q")]
    assert counter.usage_metadata["billed"]["total_tokens"] == 44


def test_a_cache_keeps_the_models_apart_that_a_config_names():
    model = FakeChatModel(["small"]).configurable_alternatives(
        ConfigurableField(id="model"), default_key="small", large=FakeChatModel(["large"], model_name="large")
    )
    guard = ChatBestOfMiniN(generator=model, reward_model=lambda m, c: [1.0] * len(c), schedule=[2], cache=InMemoryCache())
    asked = [guard.invoke("q", {"configurable": {"model": name}}).text for name in ("small", "large", "small", "large")]
    assert asked == ["small", "large", "small", "large"]


@pytest.mark.parametrize("how", ["assigned", "copied"])
def test_a_cache_that_comes_later_keeps_generators_apart(how):
    answers, cache = [], InMemoryCache()
    for answer in ("one", "two"):
        llm = ChatBestOfMiniN(generator=FakeGenerator([answer]), reward_model=lambda m, c: [1.0] * len(c), schedule=[1])
        llm.invoke("before")
        if how == "assigned":
            llm.cache = cache
        answers.append((llm if how == "assigned" else llm.model_copy(update={"cache": cache})).invoke("q").text)
    assert answers == ["one", "two"]


def test_the_global_cache_that_is_asked_for_by_none_keeps_generators_apart():
    judge = FakeRewardModel(lambda text: 1.0)
    set_llm_cache(InMemoryCache())
    try:
        made = [
            ChatBestOfMiniN(generator=FakeListChatModel(responses=[answer]), reward_model=judge, schedule=[1], cache=None)
            for answer in ("one", "two")
        ]
        assert [llm.invoke("q").text for llm in made] == ["one", "two"]
    finally:
        set_llm_cache(None)


def test_a_cache_is_used_only_when_asked_for():
    generator = FakeGenerator(["good"])
    set_llm_cache(InMemoryCache())
    try:
        model = make(generator, max_loops=1)
        model.invoke("q")
        model.invoke("q")
        assert len(generator.requests) == 4
    finally:
        set_llm_cache(None)
    cache = InMemoryCache()
    cached = make(generator, max_loops=1, cache=cache)
    assert about(cached.invoke("q")) == about(cached.invoke("q"))
    assert len(generator.requests) == 6
    others = [{"threshold": 1.0}, {"tool_turns": "judge"}, {"budget": 1000}, {"on_abstain": "message"}]
    others += [{"on_abstain": "message", "abstain_message": "no"}, {"on_abstain": str}, {"on_abstain": repr}]
    for number, other in enumerate(others, start=4):
        make(generator, max_loops=1, cache=cache, **other).invoke("q")
        assert len(generator.requests) == 2 * number, other


@pytest.mark.parametrize("ask", ["with_structured_output", "bind_tools"])
def test_a_cache_keeps_calls_that_were_passed_on_unscored_from_structured_output(ask):
    class Film(BaseModel):
        """A film."""

        title: str

    film = AIMessage("", tool_calls=[{"name": "Film", "args": {"title": "bad"}, "id": "1"}])
    model = make(FakeChatModel([film]), lambda messages, candidates: [-1.0] * len(candidates), cache=InMemoryCache())
    assert model.bind_tools([Film], tool_choice="any").invoke("q").tool_calls
    hollow = StructuredTool(name="Film", description="A film.", args_schema=Film)
    asking = model.with_structured_output(Film) if ask != "bind_tools" else model.bind_tools([hollow], tool_choice="any")
    with pytest.raises(NoAcceptableResponse):
        asking.invoke("q")


# Identity


def test_identity_holds_no_secret_and_traces_name_the_wrapped_model():
    heard = Recorder()
    model = make(ToolModel([counted("good")]))
    model.invoke("q", {"callbacks": [heard]})
    assert "sk-secret" not in heard.text + repr(model) + repr(model.asdict())
    assert model._get_ls_params(stop=["x"])["ls_model_name"] == "billed"
    assert make()._get_ls_params()["ls_model_name"] == "FakeGenerator"
    assert model.asdict() | {"_type": "bonmini-guard", "schedule": [2, 2], "mode": "guardrail"} == model.asdict()


def test_a_guards_profile_and_langchains_are_told_apart(tmp_path):
    inner = ToolModel([counted("good")], profile={"tool_calling": True})
    assert make(inner).profile == {"tool_calling": True}
    assert make(inner, profile={"tool_calling": False}).profile == {"tool_calling": False}
    with pytest.raises(ConfigurationError, match="no-such-file"):
        make(inner, profile=tmp_path / "no-such-file.json", mini_n=None, max_loops=None)


# Tools


@tool
def search(query: str) -> str:
    """Search the web."""
    return query


def call(query):
    return counted("", tool_calls=[{"name": "search", "args": {"query": query}, "id": query}])


def by_query(messages, candidates):
    return [SCORES[candidate.tool_calls[0]["args"]["query"]] for candidate in candidates]


async def test_candidates_with_tool_calls_are_scored_as_what_they_are():
    model = make(ToolModel([call("rejected"), call("good")]), by_query, tool_turns="judge").bind_tools([search])
    assert model.invoke("q").tool_calls[0]["args"] == {"query": "good"}
    (chunk,) = [chunk async for chunk in model.astream("q")]
    assert chunk.tool_calls[0]["args"] == {"query": "good"}


def test_tools_are_translated_by_the_wrapped_model_or_become_call_options():
    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("messages")])
    spare = ToolModel(["no"])
    for around in (
        lambda m: m,
        lambda m: m.with_retry(),
        lambda m: m.with_retry().with_fallbacks([spare]),
        lambda m: prompt | m,
        lambda m: (prompt | m.with_retry()).with_config(tags=["mine"]),
    ):
        inner = ToolModel([call("good")])
        made = make(around(inner), by_query, max_loops=1)
        answer = made.bind_tools([search], tool_choice="any").invoke("q")
        assert inner.calls[0] == {"functions": ["search"], "choice": "any"}
        assert answer.response_metadata["model_name"] == "billed"
    asking, inner = ToolModel(["rewritten"]), ToolModel([call("good")])
    for first in (asking, {"rewritten": asking}):
        made = make(first | RunnableLambda(lambda said: "q") | inner, by_query, max_loops=1)
        made.bind_tools([search], tool_choice="any").invoke("q")
    assert not any(asking.calls)
    assert all(each == {"functions": ["search"], "choice": "any"} for each in inner.calls)
    own = RunnableLambda(lambda messages: call("good")).with_fallbacks([spare])
    assert make(own, by_query, max_loops=1).bind_tools([search]).invoke("q").tool_calls[0]["args"] == {"query": "good"}
    several = FakeChatModel([OSError("down")]), ToolModel([call("good")])
    make(several[0].with_retry(stop_after_attempt=1).with_fallbacks([several[1]]), by_query).bind_tools(
        [search], tool_choice="any"
    ).invoke("q")
    assert several[0].calls[0]["tools"][0]["function"]["name"] == "search"
    assert several[1].calls[0] == {"functions": ["search"], "choice": "any"}
    generator = FakeGenerator([call("good")])
    make(generator, by_query, max_loops=1).bind_tools([search], tool_choice="any").invoke("q")
    options = generator.requests[0].options
    assert (options["tools"][0]["function"]["name"], options["tool_choice"]) == ("search", "any")
    mute = FakeListChatModel(responses=["good"])
    for without, why in ((mute, None), (prompt | mute, "FakeListChatModel takes no tools")):
        with pytest.raises(NotImplementedError, match=why):
            make(without).bind_tools([search])


class Elsewhere(Runnable):
    """What answers and is no language model, such as a chain on another server."""

    def invoke(self, input, config=None, **kwargs):
        self.asked = kwargs
        return AIMessage("good")


def test_call_options_reach_a_fallback_that_is_no_model():
    elsewhere, plain = Elsewhere(), RunnableLambda(lambda messages: AIMessage("plain"))
    broken = FakeChatModel([ConnectionError("down")] * 4)
    for fallback, served in ((elsewhere, "good"), (plain, "plain")):
        made = make(broken.with_fallbacks([fallback]), lambda messages, candidates: [1.0], mini_n=1)
        assert made.invoke("q", temperature=0.3).text == served
    assert elsewhere.asked == {"temperature": 0.3}


@pytest.mark.parametrize("bound", [{}, {"temperature": 0.9}])
def test_call_options_of_a_chain_reach_the_model_that_answers(bound):
    prompt, inner = ChatPromptTemplate.from_messages([MessagesPlaceholder("messages")]), FakeChatModel([counted("good")])
    generator = LangChainGenerator((prompt | inner).bind(**bound).with_retry(), seed_argument="seed", options={"top_p": 0.5})
    made = make(generator, lambda messages, candidates: [1.0], mini_n=1, max_tokens=7)
    made.invoke("q", temperature=0.3)
    made.invoke("q")
    first, second = [{name: value for name, value in each.items() if name != "seed"} for each in inner.calls]
    assert (first, second) == ({"temperature": 0.3, "top_p": 0.5, "max_tokens": 7}, {"top_p": 0.5, "max_tokens": 7, **bound})
    assert inner.calls[0]["seed"] != inner.calls[1]["seed"]
    own = {"tools": [{"functionDeclarations": [{"name": "search"}]}]}  # as Gemini's are written
    make(prompt | inner.bind(**own), lambda messages, candidates: [1.0], mini_n=1).invoke("q", temperature=0.3)
    assert inner.calls[2] == {**own, "temperature": 0.3}
    described = generator.describe({"temperature": 0.3})["generator"]["steps"]
    assert "options" not in described[0]
    assert described[1]["settings"]["temperature"] == 0.3


# Structured output


class Film(BaseModel):
    """A film."""

    title: str
    year: int


def film(title, year):
    return counted("", tool_calls=[{"name": "Film", "args": {"title": title, "year": year}, "id": "1"}])


def by_title(messages, candidates):
    return [{"best": 3.0, "good": 2.0, "poor": -1.0}[candidate.tool_calls[0]["args"]["title"]] for candidate in candidates]


INVALID = film("best", "no year")


@pytest.mark.parametrize("wrap", [ToolModel, FakeGenerator])
async def test_invalid_structured_output_did_not_pass_and_is_not_scored(wrap):
    model = make(wrap([INVALID, counted("no call"), film("poor", 1), film("good", 1999)]), by_title).with_structured_output(Film)
    with get_usage_metadata_callback() as counter:
        assert await model.ainvoke("q") == Film(title="good", year=1999)
        assert model.invoke("q") == Film(title="good", year=1999)
    assert counter.usage_metadata["billed"]["total_tokens"] == 88


def test_structured_output_with_its_raw_message_and_as_a_dict():
    model = make([INVALID, film("good", 1999)], by_title)
    both = model.with_structured_output(Film, include_raw=True).invoke("q")
    assert both["parsed"] == Film(title="good", year=1999)
    assert both["parsing_error"] is None
    assert about(both["raw"])["draws"] == 2
    schema = {"title": "Film", "description": "A film.", "type": "object", "properties": {"title": {"type": "string"}}}
    assert model.with_structured_output(schema).invoke("q")["title"] == "best"


@pytest.mark.parametrize("on_abstain", ["error", "message"])
def test_only_invalid_output_is_an_abstention_and_no_failure_of_the_scorer(on_abstain):
    model = make([INVALID], by_title, on_abstain=on_abstain).with_structured_output(Film, include_raw=True)
    if on_abstain == "message":
        out = model.invoke("q")
        assert (about(out["raw"])["reason"], out["parsed"]) == ("invalid_output", None)
        return
    with pytest.raises(NoAcceptableResponse, match="invalid_output") as caught:
        model.invoke("q")
    assert not isinstance(caught.value, ScorerError)
    assert caught.value.result.usage["total_tokens"] == 44


def test_a_scorer_that_fails_under_structured_output_still_says_so():
    with pytest.raises(ScorerError):
        make([film("good", 1)], lambda messages, candidates: 1 / 0).with_structured_output(Film).invoke("q")


# What listeners hear; of what was rejected, tests/test_leak_table.py


def leaky():
    return make(FakeListChatModel(responses=["rejected", "worse rejected", "rejected", "good"]))


async def test_under_its_one_run_stands_a_run_for_each_draw():
    heard = Tracer()
    await leaky().ainvoke("q", {"callbacks": [heard]})
    (root,) = heard.roots
    assert root.run_type in ("llm", "chat_model")
    assert [child.name for child in root.child_runs].count("bonmini_guard.draw") == 4


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
async def test_events_of_version_3_end_in_the_winner():
    stream = await leaky().astream_events("q", version="v3")
    assert (await stream.output).text == "good"
    assert "".join(leaky().stream_events("q", version="v3").text) == "good"


async def test_streaming_false_sends_no_token_event():
    heard = Recorder()
    model = make(streaming=False)
    await model.ainvoke("q", {"callbacks": [heard]})
    assert "on_llm_new_token" not in [name for name, _ in heard.heard]
