"""Shadow mode: nobody notices the guard, and it says what it would have done."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from itertools import repeat
from uuid import UUID, uuid4

import pytest
from langchain_core.language_models import FakeListChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, ShadowBestOfMiniN
from bonmini_guard.calibration.logs import load_log
from bonmini_guard.engine.result import Candidate, GuardResult, Timings
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.policy.policy import Policy
from bonmini_guard.runnables.shadow import MOST_WATCHED, would_have
from bonmini_guard.testing import FakeChatModel, FakeGenerator, FakeRewardModel
from tests.calibration.helpers import run as played
from tests.test_no_leak import Tracer

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")


def by_text(text):
    return float(text.split()[-1])


def make(model, scorer=by_text, **settings):
    scorer = scorer if hasattr(scorer, "session") else FakeRewardModel(scorer)
    return ShadowBestOfMiniN(BestOfMiniN(generator=model, reward_model=scorer, **{"schedule": [2, 2], **settings}))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_turn_of_tools_is_passed_over_as_a_guard_passes_it_on(tmp_path, caplog):
    call = {"name": "lookup", "args": {}, "id": "c1"}
    said = [AIMessage("", tool_calls=[call]), AIMessage("I look 9", tool_calls=[call]), AIMessage("answer 1")]
    shadow = make(GenericFakeChatModel(messages=iter(said)), trace_to=tmp_path / "t.jsonl", tool_turns="text")
    for _ in said:
        await shadow.ainvoke("q")
        await shadow.afinish()
    assert (shadow.summary.scored, shadow.summary.skipped) == (1, 0)
    assert [row["candidates"][0].get("score") for row in rows(tmp_path / "t.jsonl")] == [1.0]
    assert "could not be scored" not in caplog.text


def drawn(scores, times):
    """Draws with scores, that took so many seconds."""
    return tuple(
        Candidate(i, 0, 0, AIMessage("x"), score=s, scored=1.0, started=0.0, finished=t)
        for i, (s, t) in enumerate(zip(scores, times, strict=False))
    )


# What the caller sees


@pytest.mark.parametrize(
    "model", [FakeListChatModel(responses=["answer -1"]), FakeListLLM(responses=["answer -1"])], ids=["chat", "llm"]
)
async def test_every_way_to_call_gives_what_the_model_gives(model):
    shadow = make(model, explore=1.0)
    assert type(await shadow.ainvoke("q")) is type(await model.ainvoke("q"))
    assert await (shadow | StrOutputParser()).ainvoke("q") == "answer -1"
    assert await asyncio.to_thread((shadow | StrOutputParser()).invoke, "q") == "answer -1"
    alone = [chunk async for chunk in (model | StrOutputParser()).astream("q")]
    assert [chunk async for chunk in (shadow | StrOutputParser()).astream("q")] == alone
    assert await asyncio.to_thread(lambda: list((shadow | StrOutputParser()).stream("q"))) == alone
    assert len(await shadow.abatch(["a", "b", "c"])) == 3
    await shadow.afinish()
    assert (shadow.summary.requests, shadow.summary.scored, shadow.summary.skipped) == (8, 8, 0)


async def test_tokens_arrive_before_the_answer_is_whole_and_callbacks_hear_one_ordinary_run():
    gate, tracer = asyncio.Event(), Tracer()

    class Slow(GenericFakeChatModel):
        async def _astream(self, *given, **named):
            for chunk in self._stream(*given, **named):
                yield chunk
                await gate.wait()

    shadow = make(Slow(messages=iter([AIMessage("one two -1")] * 9)), explore=1.0)
    stream = shadow.astream("q", {"callbacks": [tracer]})
    assert (await anext(stream)).content == "one"
    gate.set()
    async for _ in stream:
        pass
    await shadow.afinish()
    assert [(run.name, run.run_type) for run in tracer.roots] == [("Slow", "llm")]
    assert shadow.summary.explored == 1


async def test_the_models_errors_are_the_callers_and_the_guards_are_nobodys(caplog):
    class Broken(FakeListChatModel):
        def _call(self, *given, **named):
            raise ConnectionError("down")

    with pytest.raises(ConnectionError, match="down"):
        await make(Broken(responses=[])).ainvoke("q")

    def fail(text):
        raise ValueError("secret")

    shadow = make(FakeListChatModel(responses=["a 1"]), fail, explore=1.0)
    assert (await shadow.ainvoke("q")).content == "a 1"
    assert (await asyncio.to_thread(shadow.invoke, "q")).content == "a 1"
    await shadow.afinish()
    assert (shadow.summary.requests, shadow.summary.skipped) == (2, 2)
    assert "secret" not in caplog.text


async def test_the_answer_waits_for_nothing():
    scorer = FakeRewardModel(by_text, latency=30.0)
    shadow = make(FakeListChatModel(responses=["a 1"]), scorer)
    for _ in range(MOST_WATCHED + 10):
        await asyncio.wait_for(shadow.ainvoke("q"), 10)
    assert shadow.summary.skipped == 10
    assert len(shadow._background) == MOST_WATCHED
    for task in list(shadow._background._tasks.values()):
        task.cancel()
    await shadow.afinish()


async def test_generators_that_are_no_langchain_models_serve_one_draw():
    generator = FakeGenerator(["a 1"])
    shadow = make(generator)
    assert (await shadow.ainvoke("q", stop=["x"])).content == "a 1"
    assert (await asyncio.to_thread(shadow.invoke, "q")).content == "a 1"
    assert [chunk.content async for chunk in shadow.astream("q")] == ["a 1"]
    await shadow.afinish()
    assert len(generator.requests) == 3
    assert generator.requests[0].options == {"stop": ["x"]}


# What the guard would have done


async def test_the_first_draw_is_scored_and_the_explored_share_drawn_to_the_end(tmp_path):
    path = tmp_path / "t.jsonl"
    model = FakeListChatModel(responses=["a -1", "b -2", "c 3", "d 4"])
    for explore in (0.0, 1.0):
        shadow = make(model, explore=explore, trace_to=path)
        model.i = 0
        await shadow.ainvoke("q", {"metadata": {"group": "u"}})
        await shadow.afinish()
    first, whole = rows(path)
    assert [c["text"] for c in first["candidates"]] == ["a -1"]
    assert first["complete"] is False
    assert "decision" not in first
    assert (whole["complete"], whole["decision"], whole["served"], whole["loops"], whole["draws"]) == (True, "accepted", 0, 2, 4)
    assert whole["candidates"][whole["selected"]]["score"] > 0
    assert whole["group"] == first["group"] == "u"
    assert load_log(path).counts.tolist() == [4]
    summary = shadow.summary
    assert (summary.explored, summary.accepted, summary.replaced, summary.draws, summary.passed) == (1, 1, 1, 4, 0)
    assert "of 1 explored the guard would have accepted 1" in str(summary)


async def test_the_summary_counts_refusals_and_first_draws_that_pass():
    shadow = make(FakeListChatModel(responses=["a -1"]), explore=1.0)
    await shadow.ainvoke("q")
    await shadow.afinish()
    assert (shadow.summary.abstained, shadow.summary.passed) == (1, 0)
    shadow = make(FakeListChatModel(responses=["a 1"]))
    await shadow.ainvoke("q")
    await shadow.afinish()
    assert (shadow.summary.scored, shadow.summary.passed, shadow.summary.explored) == (1, 1, 0)
    assert "set explore=" in str(shadow.summary)


@pytest.mark.parametrize("mode", ["guardrail", "accelerator"])
async def test_what_it_would_have_done_is_what_the_policy_does(mode):
    shadow = make(FakeListChatModel(responses=["a 1"]), mode=mode)
    policy = Policy(mode, (2, 3, 1), (1.0, 0.5, 2.0))
    template = await shadow.guard.arun("q")
    for scores in (
        [0, 0, 0.6, 0, 0, 0],
        [0, 1, 9, 9, 9, 9],
        [0, 0, 0, 0, 0, 2],
        [0, 0, 0.4, 0.2, 0, 1.9],
        [-1, -3, -2, -9, -1, -5],
    ):
        complete = replace(template, candidates=drawn(map(float, scores), repeat(0.0)))
        would, truth = would_have(policy, complete), played(policy, scores, [0.0] * 6)
        assert (would.draws, would.loops) == (truth["draws"], truth["loops"])
        assert (would.decision == "accepted", would.decision == "best_effort") == (truth["accepted"], truth["best_effort"])


async def test_an_eager_guard_would_have_taken_the_first_to_arrive_that_passes():
    shadow = make(FakeListChatModel(responses=["a 1"]), exit="eager")
    template = await shadow.guard.arun("q")
    times, scores = (3.0, 1.0, 2.0, 1.0), (9.0, -1.0, 1.0, 5.0)
    complete = replace(template, candidates=drawn(scores, times))
    assert would_have(shadow.guard.guard.engine.policy, complete).selected.index == 0
    late = replace(complete, candidates=complete.candidates[1:])
    assert would_have(shadow.guard.guard.engine.policy, late).selected.index == 2


def test_a_rolling_guard_would_have_taken_the_first_of_those_in_flight_that_passes():
    policy = Policy("guardrail", (1,) * 4, (0.0,) * 4, "rolling")
    template = GuardResult("guardrail", "accepted", "passed", None, (), 1, {}, Timings(0.0, 0.0), None, 0)
    times, scores = (3.0, 1.0, 2.5, 1.0), (9.0, -1.0, 1.0, 5.0)
    complete = replace(template, candidates=drawn(scores, times))
    for in_flight, selected, draws in ((1, 0, 1), (2, 0, 2), (4, 3, 2)):
        would = would_have(policy, complete, in_flight)
        assert (would.selected.index, would.draws) == (selected, draws)


def test_only_a_guard_can_be_on_trial():
    chat = ChatBestOfMiniN(generator=FakeGenerator(["1"]), reward_model=FakeRewardModel(float))
    with pytest.raises(ConfigurationError, match=r"has one as \.guard"):
        ShadowBestOfMiniN(chat)
    ShadowBestOfMiniN(chat.guard)


@pytest.mark.parametrize("kind", [UUID, str])
async def test_the_run_id_that_a_caller_gave_is_the_id_of_the_trace(tmp_path, kind):
    shadow, run = make(FakeListChatModel(responses=["answer 1"]), trace_to=tmp_path / "t.jsonl"), uuid4()
    await shadow.ainvoke("q", {"run_id": kind(str(run))})
    await shadow.ainvoke("q")
    await shadow.afinish()
    named, other = [row["id"] for row in rows(tmp_path / "t.jsonl")]
    assert named == run.hex != other


@pytest.mark.parametrize("way", ["ainvoke", "astream", "invoke"])
async def test_a_chat_that_goes_on_at_once_changes_nothing_of_what_is_watched(tmp_path, way):
    shadow, chat = (
        make(GenericFakeChatModel(messages=iter([AIMessage("answer 1")])), trace_to=tmp_path / "t.jsonl"),
        [HumanMessage("q")],
    )
    if way == "astream":
        (answer,) = [chunk async for chunk in shadow.astream(chat) if chunk.text.endswith("1")]
    else:
        answer = shadow.invoke(chat) if way == "invoke" else await shadow.ainvoke(chat)
    chat.append(answer)
    answer.content = "answer 7"
    await shadow.afinish()
    (row,) = rows(tmp_path / "t.jsonl")
    assert ([turn["content"] for turn in row["prompt"]], row["candidates"][0]["text"]) == (["q"], "answer 1")


async def test_an_artifact_of_a_tool_that_cannot_be_copied_is_no_failure_of_the_scorer(tmp_path):
    """Of a prompt, whose scorer gets messages of its own: a connection or a lock goes along as it is."""
    call = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}])
    prompt = ["q", call, ToolMessage("found", tool_call_id="1", artifact=threading.Lock())]
    shadow = make(FakeChatModel(["answer 1"]), trace_to=tmp_path / "t.jsonl")
    assert (await shadow.guard.arun(prompt)).decision == "accepted"
    await shadow.ainvoke(prompt)
    await shadow.afinish()
    assert (shadow.summary.scored, [len(row["prompt"]) for row in rows(tmp_path / "t.jsonl")]) == (1, [3, 3])
