"""Accepted under a profile means: drawn and scored by what was calibrated; what nobody can know is not vouched for, and said."""

from __future__ import annotations

import asyncio
import json
import threading
import warnings

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableBranch, RunnableGenerator, RunnableLambda, RunnableParallel
from langchain_core.runnables.base import RunnableBindingBase
from pydantic import ConfigDict, Field, SecretStr

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, GuardProfile
from bonmini_guard.adapters import LangChainGenerator, OpenAICompatibleGenerator
from bonmini_guard.calibration.drift import same_marks
from bonmini_guard.calibration.traces import Counter
from bonmini_guard.engine.fingerprints import compare, text_of
from bonmini_guard.engine.protocols import NO_OPTIONS
from bonmini_guard.errors import ProfileError
from bonmini_guard.testing import FakeChatModel, FakeGenerator, FakeRewardModel
from tests.own_time import OwnTime

SHAPE = {"mode": "guardrail", "schedule": [2], "thresholds": [0.0], "risk": "served_and_bad", "alpha": 0.05, "delta": 0.1}


class Model(BaseChatModel):
    """As integrations are written: its identifying parameters say nothing."""

    model_name: str = Field(default="small", alias="model")
    temperature: float | None = 0.7
    base_url: str | None = None
    reasoning: bool | None = None
    api_key: SecretStr | None = None
    default_headers: dict = Field(default_factory=dict)
    model_config = ConfigDict(populate_by_name=True)

    @property
    def _llm_type(self):
        return "model"

    def _generate(self, messages, stop=None, run_manager=None, **options):
        name = options.get("model", self.model_name)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"from {name}"))])


class Binding(RunnableBindingBase):
    """As chat histories bind."""


def fix(messages):
    return messages


def say(prompt):
    return ChatPromptTemplate.from_messages([("system", prompt), ("human", "{q}")])


def ask(model):
    return RunnableLambda(lambda messages: model.invoke(list(messages)))


def side_by_side(model):
    return RunnableParallel({str(number): ask(ONE if number < 4 else model) for number in range(5)}) | fix


ONE, OTHER = Model(), Model(model="large")
#: Pairs of generators that draw otherwise.
DIFFERENT = {
    "class": (ONE, type("Another", (Model,), {})()),
    "model": (ONE, OTHER),
    "setting": (ONE, Model(temperature=0.3)),
    "server": (ONE, Model(base_url="http://elsewhere/v1")),
    "header": (ONE, Model(default_headers={"x-version": "2"})),
    "bound option": (ONE, ONE.bind(temperature=0.3)),
    "bound model": (ONE, ONE.bind(model="large")),
    "bound model of a binding of one's own": (Binding(bound=ONE), Binding(bound=OTHER)),
    "another option": (ONE, ONE.bind(top_k=4)),
    "no in a body": (ONE, ONE.bind(extra_body={"chat_template_kwargs": {"enable_thinking": False}})),
    "no where the server decides": (ONE, Model(reasoning=False)),
    "retries": (ONE.with_retry(), OTHER.with_retry()),
    "first of fallbacks": (ONE.with_fallbacks([ONE]), OTHER.with_fallbacks([ONE])),
    "second of fallbacks": (ONE.with_fallbacks([ONE]), ONE.with_fallbacks([OTHER])),
    "step": (RunnableLambda(fix) | ONE, RunnableLambda(fix) | OTHER),
    "template": (say("Be brief.") | ONE, say("Be kind.") | ONE),
    "long template": (say("Be brief. " * 50) | ONE, say("Be brief. " * 50 + "!") | ONE),
    "partial": (say("Be {how}.").partial(how="brief") | ONE, say("Be {how}.").partial(how="kind") | ONE),
    "branch": (RunnableBranch((fix, ONE), ONE), RunnableBranch((fix, ONE), OTHER)),
    "parallel": (RunnableParallel(a=ONE) | fix, RunnableParallel(a=OTHER) | fix),
    "model in a function": (ask(ONE), ask(OTHER)),
    "model in the fifth of functions": (side_by_side(ONE), side_by_side(OTHER)),
    "function": (RunnableLambda(fix) | ONE, RunnableLambda(say) | ONE),
}


def print_of(model, **settings):
    return LangChainGenerator(model, **settings).fingerprint()


@pytest.mark.parametrize("kind", DIFFERENT)
def test_different_generators_have_different_fingerprints(kind):
    one, other = DIFFERENT[kind]
    assert print_of(one) != print_of(other)
    assert print_of(one) == print_of(one)
    assert compare(print_of(one), print_of(other)).differing


def test_a_function_without_a_source_is_unknown():
    assert '"source":"unknown"' in print_of(RunnableLambda(eval("lambda messages: messages")) | ONE)


def test_the_same_generator_however_it_is_put_together():
    meant = print_of(Model(temperature=0.3))
    assert print_of(ONE.bind(temperature=0.3)) == meant
    assert print_of(ONE, options={"temperature": 0.3}) == meant
    assert print_of(ONE.with_retry().bind(temperature=0.3).with_config(tags=["t"])) == meant
    assert print_of(Model(temperature=0.3, name="mine", verbose=True, cache=False)) == meant
    assert text_of(LangChainGenerator(ONE).describe({"temperature": 0.3, "tools": [1], "seed": 4})) == meant
    assert print_of(ONE.bind(model="large")) == print_of(OTHER)
    strict, lax = ({"type": "object", "properties": {}} | more for more in ({}, {"additionalProperties": False}))
    for name in ("response_format", "response_schema", "response_json_schema", "output_format"):
        assert print_of(ONE.bind(**{name: strict})) == print_of(ONE.bind(**{name: lax}))
    assert print_of(ONE.bind(extra_body={"guided_json": strict})) == print_of(ONE.bind(extra_body={"guided_json": lax}))


def test_a_profile_tells_a_model_that_thinks_from_one_that_does_not():
    thinking, not_thinking = (
        OpenAICompatibleGenerator("http://here", model="m", extra_body=body)
        for body in (None, {"chat_template_kwargs": {"enable_thinking": False}})
    )
    with pytest.raises(ProfileError, match="enable_thinking"):
        guarded(not_thinking, profile(generator=thinking.fingerprint()))


def test_no_secret_and_no_credentials():
    model = Model(
        base_url="https://me:sesame@host:8000/v1?api-key=sesame",
        api_key=SecretStr("sesame"),
        default_headers={"Authorization": "Bearer sesame", "X-API-Key": "sesame", "x-version": "2"}
        | dict.fromkeys(
            ("authToken", "secretKey", "azure_ad_token", "hf_token", "X-Token", "private-token", "pwd", "passphrase"), "sesame"
        ),
    ).bind(api_key="sesame", max_tokens=5)
    told = print_of(model)
    assert "sesame" not in told
    assert json.loads(told)["generator"]["settings"] == {
        "base_url": "https://host:8000/v1",
        "default_headers": {"x-version": "2"},
        "max_tokens": 5,
        "model_name": "small",
        "temperature": 0.7,
    }


def test_a_malformed_address_shows_no_credentials_and_is_told_from_others():
    one, other = (print_of(Model(base_url=f"http://me:hunter2@{host}:port/v1")) for host in ("here", "there"))
    assert "hunter2" not in one
    assert one != other


class Client:
    """Nobody knows what it is."""


def with_client(client=Client()):  # noqa: B008
    return RunnableLambda(lambda messages: str(client))


def profile(**fingerprints):
    return GuardProfile(**SHAPE, fingerprints=fingerprints)


def guarded(generator, pinned, face=BestOfMiniN, **settings):
    return face(generator=generator, reward_model=lambda m, c: [1.0] * len(c), profile=pinned, **settings)


def test_what_is_unknown_to_the_profile_is_not_vouched_for_and_said(caplog):
    chain = with_client() | ONE
    guarded(chain, profile(generator=print_of(chain)))
    assert "does not vouch for the reward_model" in caplog.text
    assert "uses.client of the generator" in caplog.text


def test_a_runnable_that_says_nothing_of_itself_is_not_vouched_for(caplog):
    def passing(answers):
        yield from answers

    chain = ONE | RunnableGenerator(passing)
    guarded(chain, profile(generator=print_of(chain)))
    assert "inside of the generator" in caplog.text


def test_what_is_unknown_here_is_refused_where_the_profile_knows_it():
    known = print_of(with_client("a name") | ONE)
    with pytest.raises(ProfileError, match=r"uses\.client cannot be compared"):
        guarded(with_client() | ONE, profile(generator=known))


def test_a_log_without_fingerprints_gives_a_profile_that_loads_and_says_so(caplog, recwarn):
    guarded(ONE, profile())
    assert "does not vouch for the reward_model (its log does not say which it was); the generator" in caplog.text
    assert not recwarn.list


def test_the_refusal_names_what_differs():
    with pytest.raises(ProfileError, match=r"generator\.settings\.temperature is 0\.7, not 0\.3"):
        guarded(ONE, profile(generator=print_of(Model(temperature=0.3))))


def test_a_profile_of_schema_1_is_compared_as_it_was_written(caplog):
    pins = {"generator": "langchain:Model:{}"}
    old = GuardProfile(**SHAPE, schema_version=1, fingerprints=pins)
    guarded(ONE, old)
    assert "an earlier version did not write down of the generator" in caplog.text
    with pytest.raises(ProfileError):
        guarded(ONE, GuardProfile(**SHAPE, schema_version=1, fingerprints={"generator": "langchain:Other:{}"}))


@pytest.mark.parametrize("face", [BestOfMiniN, ChatBestOfMiniN])
async def test_options_of_a_call_that_make_another_generator_are_refused(face):
    guard = guarded(ONE, profile(generator=print_of(ONE)), face)
    assert guard.invoke("q").text == "from small"
    assert guard.invoke("q", temperature=0.7, seed=3, tools=[]).text == "from small"
    with pytest.raises(ProfileError, match=r"temperature is 0\.3, not 0\.7"):
        guard.invoke("q", temperature=0.3)
    with pytest.raises(ProfileError, match="large"):
        await guard.ainvoke("q", model="large")
    lax = guarded(ONE, profile(generator=print_of(ONE)), face, strict=False)
    with pytest.warns(UserWarning, match="temperature"):
        assert lax.invoke("q", temperature=0.3).text == "from small"
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        lax.invoke("q", temperature=0.3)
    assert not [each for each in again if "temperature" in str(each.message)], "it is said once"


def test_a_generator_that_takes_its_time_to_say_what_it_is_is_within_the_deadline():
    over = threading.Event()

    class Slow(FakeGenerator):
        seconds = 0.0

        def describe(self, options=NO_OPTIONS):
            over.wait(self.seconds)
            return {"model": "a"}

    generator = Slow(["good"])
    profile = GuardProfile(mode="guardrail", schedule=[1], thresholds=[0.0], fingerprints={"generator": '{"model":"a"}'})
    guard = BestOfMiniN(generator=generator, reward_model=FakeRewardModel({"good": 1.0}), profile=profile, timeout=1.0)
    assert guard.invoke("q", top_k=4).text == "good"
    generator.seconds = 60.0
    with OwnTime() as own, pytest.raises(ProfileError, match="not known in time"):
        guard.invoke("q", top_k=5)
    over.set()
    assert own.seconds < 3


def test_standing_options_of_the_chat_model_are_part_of_its_generator():
    meant = profile(generator=print_of(Model(temperature=0.3)))
    for temperature in (0.3, "0.3"):  # as environment variables have it
        assert guarded(ONE, meant, ChatBestOfMiniN, temperature=temperature).invoke("q").text == "from small"
    with pytest.raises(ProfileError, match="temperature"):
        guarded(ONE, profile(generator=print_of(ONE)), ChatBestOfMiniN, temperature=0.3)


def test_a_model_that_the_config_names_is_compared_too():
    model = ONE.configurable_alternatives(ConfigurableField(id="llm"), default_key="small", big=OTHER)
    guard = guarded(model, profile(generator=print_of(ONE)))
    assert guard.invoke("q").text == "from small"
    with pytest.raises(ProfileError, match="large"):
        guard.invoke("q", {"configurable": {"llm": "big"}})


def test_other_generators_are_compared_with_their_options():
    generator = FakeGenerator(["a"])
    guard = guarded(generator, profile(generator=generator.fingerprint()))
    guard.invoke("q")
    with pytest.raises(ProfileError, match="temperature"):
        guard.invoke("q", temperature=0.3)


def test_a_calls_extra_body_is_told_beside_the_generators_as_requests_have_it():
    own = OpenAICompatibleGenerator("http://here", model="m", api_key="", extra_body={"top_k": 40, "min_p": 0.1})
    assert own.describe({"extra_body": {"min_p": 0.2}})["settings"]["extra_body"] == {"top_k": 40, "min_p": 0.2}


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_traces_say_what_drew_with_what_options_by_which_config():
    model = ONE.configurable_alternatives(ConfigurableField(id="llm"), default_key="small", big=OTHER)
    rows = []
    guard = BestOfMiniN(generator=model, reward_model=FakeRewardModel(lambda text: 1.0), schedule=[1], trace_to=rows.append)
    guard.invoke("q")
    guard.invoke("q", temperature=0.3)
    guard.invoke("q", {"configurable": {"llm": "big"}})
    guard.finish()
    assert [row["generated_by"] for row in rows] == [print_of(ONE), print_of(Model(temperature=0.3)), print_of(OTHER)]


@pytest.mark.filterwarnings("ignore:uncalibrated")
async def test_the_response_cache_tells_generators_apart():
    cache = InMemoryCache()
    for model, said in ((ONE, "from small"), (ONE.bind(model="large"), "from large"), (ask(OTHER), "from large")):
        guard = ChatBestOfMiniN(generator=model, reward_model=lambda m, c: [2.0] * len(c), schedule=[1], cache=cache)
        assert (await guard.ainvoke("q")).text == said


@pytest.mark.filterwarnings("ignore:uncalibrated")
@pytest.mark.parametrize("face", [BestOfMiniN, ChatBestOfMiniN])
async def test_no_draw_comes_from_the_global_cache_and_all_else_does(face):
    cache = InMemoryCache()
    set_llm_cache(cache)
    try:
        model = FakeChatModel(lambda messages, number: f"answer {number}")
        judge = FakeChatModel(lambda messages, number: f"verdict {number}")

        def score(messages, candidates):
            return [2.0 + len(judge.invoke("the same").text) for _ in candidates]

        guard = face(generator=RunnableLambda(model.invoke), reward_model=score, schedule=[4])
        first, second = await guard.ainvoke("q"), guard.invoke("q")
        assert first.text != second.text
        assert (len(model.calls), len(judge.calls)) == (8, 1)
        assert get_llm_cache() is cache
        assert model.invoke("q").text == model.invoke("q").text
    finally:
        set_llm_cache(None)


def test_drift_compares_part_by_part_and_names_what_differs():
    pinned = profile(generator=print_of(ONE))
    (same,) = same_marks(pinned, {"generator": Counter({print_of(ONE): 3})})
    assert not same.found
    (other,) = same_marks(pinned, {"generator": Counter({print_of(ONE): 3, print_of(OTHER): 1})})
    assert other.found
    assert "1 of 4" in other.what
    assert "model_name" in other.what


def test_drift_does_not_cry_over_a_profile_of_schema_1():
    old = profile(generator="langchain:Model:{}", reward_model="sha256:abc")
    same = same_marks(old, {"generator": Counter({print_of(ONE): 3}), "reward_model": Counter({"sha256:abc:def": 3})})
    assert [finding.found for finding in same] == [False, False]
    (other,) = same_marks(old, {"reward_model": Counter({"sha256:abd:def": 3})})
    assert other.found


async def test_a_server_is_part_of_a_generator():
    one, other = (OpenAICompatibleGenerator(url, model="x", api_key="") for url in ("http://a:1/v1", "http://b:1/v1"))
    assert await asyncio.to_thread(one.fingerprint) != await asyncio.to_thread(other.fingerprint)
