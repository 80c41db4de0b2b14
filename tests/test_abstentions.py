"""One request, one decision: a retry around a guard gets the abstention that there was, and no second chance."""

from __future__ import annotations

import asyncio
import gc
import sys

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, NoAcceptableResponse
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.testing import FakeChatModel, FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")
FACES = pytest.mark.parametrize("face", [BestOfMiniN, ChatBestOfMiniN])
USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])


class Improving:
    """Every draw of the first request is bad, all others are good."""

    def __init__(self, draws=2):
        self.drawn = 0
        self._bad = draws

    async def draw(self, request):
        self.drawn += 1
        return AIMessage("bad secret" if self.drawn <= self._bad else "good", usage_metadata=USAGE)


def make(face, generator=None, **options):
    scorer = FakeRewardModel({"bad secret": -1.0, "good": 1.0})
    return face(generator=generator or Improving(), reward_model=scorer, **{"schedule": [2], **options})


async def ask(runnable, question, sync, config=None):
    return await (asyncio.to_thread(runnable.invoke, question, config) if sync else runnable.ainvoke(question, config))


@FACES
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("shape", ["alone", "chain", "lambda"])
async def test_a_retry_gets_the_same_abstention(face, sync, shape):
    generator = Improving()
    made = make(face, generator)
    chain = {
        "alone": made,
        "chain": PROMPT | made | RunnableLambda(lambda message: message),
        "lambda": RunnableLambda(lambda q: q) | made,
    }
    retried = chain[shape].with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    with pytest.raises(NoAcceptableResponse, match="budget_spent") as caught:
        await ask(retried, {"q": "hi"} if shape == "chain" else "hi", sync)
    assert generator.drawn == 2
    assert (caught.value.result.draws, caught.value.result.score) == (2, -1.0)


@FACES
@pytest.mark.skipif(sys.version_info < (3, 12), reason="no eager tasks before Python 3.12")
async def test_where_tasks_are_eager_a_retry_gets_it_too_and_other_draws_do_not(face):
    generator, loop = Improving(), asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    with pytest.raises(NoAcceptableResponse):
        await (PROMPT | make(face, generator)).with_retry(wait_exponential_jitter=False).ainvoke({"q": "hi"})
    assert generator.drawn == 2
    generator.drawn, outer = 0, make(face, make(face, generator, schedule=[1]), schedule=[2, 2])
    assert (await outer.ainvoke("hi")).text == "good"
    loop.set_task_factory(None)


@FACES
async def test_a_retry_of_sync_calls_inside_a_running_loop_gets_it_too(face):
    generator = Improving()
    retried = (PROMPT | make(face, generator)).with_retry(wait_exponential_jitter=False)
    with pytest.raises(NoAcceptableResponse):
        retried.invoke({"q": "hi"})
    assert generator.drawn == 2


@FACES
@pytest.mark.parametrize("sync", [False, True])
async def test_draws_of_a_guard_around_it_are_no_retries_of_each_other(face, sync):
    generator = Improving()
    outer = make(face, make(face, generator, schedule=[1]), schedule=[2, 2])
    assert (await ask(outer, "hi", sync, {"configurable": {"thread_id": "1"}})).text == "good"
    assert generator.drawn == 4


@FACES
@pytest.mark.parametrize("sync", [False, True])
async def test_a_retry_of_a_guard_that_each_call_configures_gets_it_too(face, sync):
    generator = Improving()
    guard = make(face, generator).configurable_fields(threshold=ConfigurableField(id="threshold"))
    retried = guard.with_retry(wait_exponential_jitter=False)
    with pytest.raises(NoAcceptableResponse):
        await ask(retried, "hi", sync, {"configurable": {"threshold": 0.5}})
    assert generator.drawn == 2
    # Another threshold is another question.
    generator.drawn, lax = 0, {"configurable": {"threshold": -2.0}}
    assert (await ask(retried, "hi", sync, lax)).text == "bad secret"


@FACES
@pytest.mark.parametrize("sync", [False, True])
async def test_another_tenant_or_session_asks_for_itself(face, sync):
    drawn = []

    def route(messages, config):
        drawn.append(config["configurable"]["tenant"])
        return "good" if drawn[-1] == "b" else "bad secret"

    made = make(face, RunnableLambda(route))
    with pytest.raises(NoAcceptableResponse):
        await ask(made.with_retry(wait_exponential_jitter=False), "hi", sync, {"configurable": {"tenant": "a"}})
    assert (await ask(made, "hi", sync, {"configurable": {"tenant": "b"}})).text == "good"
    assert drawn == ["a", "a", "b", "b"]


@FACES
@pytest.mark.parametrize("sync", [False, True])
async def test_another_model_that_the_config_names_is_asked(face, sync):
    small, large = FakeChatModel(["bad secret"], model_name="small"), FakeChatModel(["good"], model_name="large")
    model = small.configurable_alternatives(ConfigurableField(id="model"), default_key="small", large=large)
    guard = make(face, model)
    for _ in range(2):
        with pytest.raises(NoAcceptableResponse):
            await ask(guard, "hi", sync, {"configurable": {"thread_id": "1", "model": "small"}})
    assert len(small.calls) == 2
    assert (await ask(guard, "hi", sync, {"configurable": {"thread_id": "1", "model": "large"}})).text == "good"


class Silent:
    def __repr__(self):
        raise RuntimeError("detached")


@FACES
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("where", ["call", "config"])
async def test_options_without_a_repr_are_told_apart_as_others_are(face, sync, where):
    made = make(face, generator := Improving(6))
    retried = made.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    for value in (Silent(), Silent()):
        config = {"configurable": {"thread_id": "1", **({"session": value} if where == "config" else {})}}
        bound = retried.bind(session=value) if where == "call" else retried
        with pytest.raises(NoAcceptableResponse):
            await ask(bound, "hi", sync, config)
    assert generator.drawn == 4


@FACES
@pytest.mark.parametrize("sync", [False, True])
async def test_a_second_chance_is_given_where_that_is_said(face, sync):
    made = make(face, retry_memory=0)
    assert (await ask(made.with_retry(wait_exponential_jitter=False), "hi", sync)).text == "good"


@FACES
async def test_other_requests_are_other_requests(face):
    made = make(face)
    for _ in range(2):
        with pytest.raises(NoAcceptableResponse):
            await made.ainvoke("hi")
    assert (await made.ainvoke("hello")).text == "good"
    assert (await made.ainvoke("hi", stop=["."])).text == "good"


@FACES
async def test_others_who_ask_the_same_have_a_request_of_their_own(face):
    made = make(face)
    with pytest.raises(NoAcceptableResponse):
        await asyncio.create_task(made.ainvoke("hi"))

    async def other():
        return await made.ainvoke("hi")

    # A handler's task: nobody waits for it who waited for the first.
    done: asyncio.Future = asyncio.get_running_loop().create_future()
    asyncio.create_task(other()).add_done_callback(lambda task: done.set_result(task.result()))
    assert (await done).text == "good"


async def test_a_conversation_keeps_its_abstention_whichever_task_asks():
    made, config = make(BestOfMiniN), {"configurable": {"thread_id": "7"}}
    for _ in range(2):
        with pytest.raises(NoAcceptableResponse):
            await asyncio.wait_for(made.ainvoke("hi", config), 10)
    assert (await made.ainvoke("hi", {"configurable": {"thread_id": "8"}})).text == "good"


@FACES
async def test_who_asks_again_later_is_answered_by_the_same_callable(face):
    made = make(face, timeout=0.5, on_abstain=lambda result: "sorry")
    assert (await made.ainvoke("hi")).text == "sorry"
    await asyncio.sleep(0.6)
    assert (await made.ainvoke("hi")).text == "sorry"


async def test_it_is_forgotten_in_time_and_with_another_profile(monkeypatch):
    made = make(BestOfMiniN, retry_memory=0.05)
    with pytest.raises(NoAcceptableResponse):
        await made.ainvoke("hi")
    await asyncio.sleep(0.06)
    assert (await made.ainvoke("hi")).text == "good"
    made = make(BestOfMiniN)
    with pytest.raises(NoAcceptableResponse):
        await made.ainvoke("hi")
    made.guard.abstentions.clear()
    assert (await made.ainvoke("hi")).text == "good"


async def test_run_and_arun_always_draw():
    made = make(BestOfMiniN)
    with pytest.raises(NoAcceptableResponse):
        await made.ainvoke("hi")
    assert (await made.arun("hi")).message.text == "good"


@pytest.mark.parametrize("failing", ["scorer", "generator"])
async def test_an_outage_may_be_asked_again(failing):
    calls = 0

    def down(messages, candidates):
        nonlocal calls
        calls += 1
        if calls == 1 and failing == "scorer":
            raise OSError("down")
        return [1.0] * len(candidates)

    answers = [OSError("down")] * 2 + ["good"] if failing == "generator" else ["good"]
    made = BestOfMiniN(
        generator=FakeGenerator(lambda request: answers.pop(0) if len(answers) > 1 else answers[0]), reward_model=down, schedule=[2]
    )
    assert (await made.with_retry(wait_exponential_jitter=False).ainvoke("hi")).text == "good"


@FACES
async def test_a_repeated_abstention_is_said_as_the_first_was_and_bills_nothing(face):
    made = make(face, on_abstain="message")
    first, second = await made.ainvoke("hi"), await made.ainvoke("hi")
    assert (first.text, first.response_metadata["bonmini_guard"]) == (second.text, second.response_metadata["bonmini_guard"])
    assert first.usage_metadata["total_tokens"] == 4
    assert not second.usage_metadata


async def test_no_text_is_held():
    made = make(BestOfMiniN)
    with pytest.raises(NoAcceptableResponse):
        await made.ainvoke("hi secret")
    gc.collect()
    assert "secret" not in str([entry.result.candidates for entry in made.guard.abstentions._entries.values()])
    assert all(entry.result.candidates[0].message.content == "" for entry in made.guard.abstentions._entries.values())


async def test_what_is_held_is_bounded(monkeypatch):
    monkeypatch.setattr("bonmini_guard.engine.abstentions.MOST", 3)
    made = make(BestOfMiniN, FakeGenerator(["bad secret"]))
    for number in range(6):
        with pytest.raises(NoAcceptableResponse):
            await made.ainvoke(f"question {number}")
    assert len(made.guard.abstentions._entries) == 3


@pytest.mark.parametrize("sync", [False, True])
async def test_an_agents_node_that_runs_again_gets_it_too(sync):
    model = FakeChatModel(lambda messages, number: "bad secret" if number < 2 else "good")
    scorer = FakeRewardModel({"bad secret": -1.0, "good": 1.0})
    graph = create_agent(model, middleware=[BestOfMiniNMiddleware(reward_model=scorer, schedule=[2])])
    retried = graph.with_retry(wait_exponential_jitter=False)
    with pytest.raises(NoAcceptableResponse):
        await ask(retried, {"messages": [("human", "hi")]}, sync, {"configurable": {"thread_id": "1"}})
    assert len(model.calls) == 2


@pytest.mark.parametrize("sync", [False, True])
async def test_an_agent_that_asks_for_another_form_asks_for_itself(sync):
    model = FakeChatModel(["{}"])
    middleware = BestOfMiniNMiddleware(reward_model=FakeRewardModel({"{}": -1.0}), schedule=[2])
    for form, calls in ((None, 2), (ProviderStrategy({"title": "Film", "type": "object"}), 4)):
        graph = create_agent(model, middleware=[middleware], response_format=form)
        for _ in range(2):
            with pytest.raises(NoAcceptableResponse):
                await ask(graph, {"messages": [("human", "hi")]}, sync, {"configurable": {"thread_id": "1"}})
            assert len(model.calls) == calls


@FACES
async def test_a_retry_gets_it_though_a_generator_has_changed_the_prompt_that_it_was_given(face):
    asked = []

    class Thinking:
        async def draw(self, request):
            asked.append([message.text for message in request.messages])
            request.messages.append(AIMessage("a thought"))
            return AIMessage("bad secret")

    with pytest.raises(NoAcceptableResponse):
        await make(face, Thinking()).with_retry(wait_exponential_jitter=False).ainvoke("hi")
    assert len(asked) == 2


def test_negative_memory_is_refused():
    with pytest.raises(ConfigurationError, match="retry_memory must be a number of 0 or more"):
        make(BestOfMiniN, retry_memory=-1)
