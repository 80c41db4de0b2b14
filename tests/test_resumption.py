"""A person's answer through ``interrupt`` in ``on_abstain`` is served on resume: the second run of the node draws nothing."""

from __future__ import annotations

import asyncio
import json
import pickle
from dataclasses import replace

import pytest
from langchain_core.messages import AIMessage

pytest.importorskip("langchain.agents")
from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState, StateGraph
from langgraph.types import Command, interrupt

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, GuardProfile
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.runnables import resumption
from bonmini_guard.testing import FakeChatModel, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

QUESTION = {"messages": [("human", "q")]}
THREAD = {"configurable": {"thread_id": "1"}}
FACES = {"runnable": BestOfMiniN, "chat": ChatBestOfMiniN}


def ask_a_person(about):
    return interrupt("is there an answer?")


def graph_of(face, model, saver, ask=ask_a_person, before=None, after=None, sync=False):
    # As a reward model that changes its mind: without memory, a second try would be accepted.
    settings = {
        "reward_model": lambda m, c: [-1.0 if len(model.calls) <= 2 else 5.0] * len(c),
        "schedule": [2],
        "on_abstain": ask,
    }
    if face == "middleware":
        return create_agent(model, middleware=[BestOfMiniNMiddleware(**settings)], checkpointer=saver)
    guard = FACES[face](generator=model, **settings)

    def node(state):
        said = [interrupt(before)] if before else []
        answer = guard.invoke(state["messages"])
        return {"messages": [answer, *map(AIMessage, said), *([AIMessage(interrupt(after))] if after else [])]}

    async def anode(state):
        said = [interrupt(before)] if before else []
        answer = await guard.ainvoke(state["messages"])
        return {"messages": [answer, *map(AIMessage, said), *([AIMessage(interrupt(after))] if after else [])]}

    return (
        StateGraph(MessagesState).add_node("answer", node if sync else anode).set_entry_point("answer").compile(checkpointer=saver)
    )


async def run(graph, given, sync):
    return await (asyncio.to_thread(graph.invoke, given, THREAD) if sync else graph.ainvoke(given, THREAD))


@pytest.mark.parametrize("face", [*FACES, "middleware"])
@pytest.mark.parametrize("sync", [True, False])
async def test_the_persons_answer_is_served_and_nothing_is_drawn_again(face, sync):
    model = FakeChatModel(["draft"])
    graph = graph_of(face, model, InMemorySaver(), sync=sync)
    paused = await run(graph, QUESTION, sync)
    assert [pause.value for pause in paused["__interrupt__"]] == ["is there an answer?"]
    assert len(model.calls) == 2
    out = await run(graph, Command(resume="a person's answer"), sync)
    assert len(model.calls) == 2
    message = out["messages"][-1]
    about = message.response_metadata["bonmini_guard"]
    assert message.text == "a person's answer"
    assert (about["decision"], about["reason"], about["draws"], about["failed_draws"]) == ("fallback", "budget_spent", 2, 0)


@pytest.mark.parametrize("face", [*FACES, "middleware"])
async def test_another_process_resumes_from_the_checkpoint_which_holds_no_draft(face):
    saver, first = InMemorySaver(), FakeChatModel(["secret draft"])
    await run(graph_of(face, first, saver), QUESTION, False)
    kept = pickle.dumps([dict(saver.writes), dict(saver.blobs)])
    assert b"bonmini_guard_abstention" in kept
    assert b"secret" not in kept
    second = FakeChatModel(["secret draft"])
    out = await run(graph_of(face, second, saver), Command(resume="a person's answer"), False)
    assert out["messages"][-1].text == "a person's answer"
    assert not second.calls


@pytest.mark.parametrize("face", FACES)
async def test_a_profile_that_is_made_anew_meanwhile_changes_no_abstention(face, tmp_path):
    """It draws nothing again: under a laxer one a draft would be served, and what the person said would be lost."""
    profile = GuardProfile(mode="guardrail", schedule=[2], thresholds=[0.0])
    model, saver = FakeChatModel(["draft"]), InMemorySaver()

    def graph_under(**changes):
        profile.model_copy(update=changes).save(tmp_path / "p.json")
        judge = FakeRewardModel(lambda text: -1.0)
        guard = FACES[face](generator=model, reward_model=judge, profile=tmp_path / "p.json", on_abstain=ask_a_person)

        async def node(state):
            return {"messages": [await guard.ainvoke(state["messages"])]}

        return StateGraph(MessagesState).add_node("answer", node).set_entry_point("answer").compile(checkpointer=saver)

    await graph_under().ainvoke(QUESTION, THREAD)
    out = await graph_under(schedule=(3,), thresholds=(-5.0,)).ainvoke(Command(resume="a person's answer"), THREAD)
    assert (out["messages"][-1].text, len(model.calls)) == ("a person's answer", 2)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("sync", [True, False])
async def test_interrupts_before_and_behind_the_guard_keep_their_own_answers(face, sync):
    model = FakeChatModel(["draft"])
    graph = graph_of(face, model, InMemorySaver(), before="first?", after="last?", sync=sync)
    given = [QUESTION, Command(resume="one"), Command(resume="two")]
    asked = [(await run(graph, each, sync))["__interrupt__"][0].value for each in given]
    out = await run(graph, Command(resume="three"), sync)
    assert asked == ["first?", "is there an answer?", "last?"]
    assert [message.text for message in out["messages"][1:]] == ["two", "one", "three"]
    assert len(model.calls) == 2


@pytest.mark.parametrize("face", [*FACES, "middleware"])
async def test_an_answer_is_found_by_the_id_of_its_question(face):
    model = FakeChatModel(["draft"])
    graph = graph_of(face, model, InMemorySaver())
    (pause,) = (await run(graph, QUESTION, False))["__interrupt__"]
    out = await run(graph, Command(resume={pause.id: "by id"}), False)
    assert (out["messages"][-1].text, len(model.calls)) == ("by id", 2)


@pytest.mark.parametrize("face", FACES)
async def test_a_fallback_that_asks_nobody_leaves_later_interrupts_alone(face):
    model = FakeChatModel(["draft"])
    graph = graph_of(face, model, InMemorySaver(), ask=lambda about: "instead", after="last?")
    assert (await run(graph, QUESTION, False))["__interrupt__"][0].value == "last?"
    out = await run(graph, Command(resume="three"), False)
    assert [message.text for message in out["messages"][1:]] == ["instead", "three"]
    assert len(model.calls) == 2


@pytest.mark.parametrize("face", [*FACES, "middleware"])
async def test_the_next_turn_of_the_thread_is_a_request_of_its_own(face):
    model = FakeChatModel(["draft"])
    graph = graph_of(face, model, InMemorySaver())
    await run(graph, QUESTION, False)
    await run(graph, Command(resume="a person's answer"), False)
    out = await run(graph, {"messages": [("human", "and now?")]}, False)
    assert out["messages"][-1].text == "draft"
    assert len(model.calls) == 4


@pytest.mark.parametrize("face", [*FACES, "middleware"])
@pytest.mark.parametrize("sync", [True, False])
async def test_without_a_checkpointer_nothing_can_be_resumed_and_nothing_is_drawn_again(face, sync):
    model = FakeChatModel(["draft"])
    graph = graph_of(face, model, None, sync=sync)
    await run(graph, QUESTION, sync)
    with pytest.raises(RuntimeError, match="without checkpointer"):
        await run(graph, Command(resume="a person's answer"), sync)
    # Who begins again instead asks again, within the time that an abstention is kept.
    paused = await run(graph, QUESTION, sync)
    assert [pause.value for pause in paused["__interrupt__"]] == ["is there an answer?"]
    assert len(model.calls) == 2


async def test_a_resumed_abstention_costs_and_says_what_it_did():
    guard = BestOfMiniN(generator=FakeChatModel(["draft"]), reward_model=lambda m, c: [-1.0] * len(c), schedule=[2])
    result = replace(await guard.arun("q"), ahead=3)
    result.candidates[1].parts = {"short": -1.0, "kind": None}
    resumed = resumption._result(json.loads(json.dumps(resumption._kept("key", result))), guard.guard.engine)
    assert (resumed.draws, resumed.draws_started) == (2, 5)
    assert [draw.parts for draw in resumed.candidates] == [None, {"short": -1.0, "kind": None}]


@pytest.mark.parametrize("face", FACES)
async def test_guards_of_two_models_in_one_node_are_asked_each(face):
    """A cascade: what the small model's guard ended with is no answer of the large one's, nor the other way round on resume."""

    def guard(name, score, ask):
        drawn[name] = FakeChatModel(["answer"], model_name=name)
        return FACES[face](generator=drawn[name], reward_model=lambda m, c: [score] * len(c), schedule=[2], on_abstain=ask)

    def graph_of_two(small, large):
        async def node(state):
            said = [(await each.ainvoke(state["messages"])).text for each in (small, large)]
            return {"messages": [AIMessage(" ".join(said))]}

        graph = StateGraph(MessagesState).add_node("answer", node).set_entry_point("answer")
        return graph.compile(checkpointer=InMemorySaver())

    drawn = {}
    escalating = graph_of_two(guard("small", -1.0, lambda result: "escalated"), guard("large", 1.0, ask_a_person))
    assert (await escalating.ainvoke(QUESTION, THREAD))["messages"][-1].text == "escalated answer"
    asking = graph_of_two(guard("small", 1.0, ask_a_person), guard("large", -1.0, ask_a_person))
    await asking.ainvoke(QUESTION, THREAD)
    assert (await asking.ainvoke(Command(resume="a person's"), THREAD))["messages"][-1].text == "answer a person's"
    assert len(drawn["large"].calls) == 2


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("differing", ["judges", "profiles"])
async def test_guards_of_two_judges_or_profiles_in_one_node_are_asked_each(face, differing, tmp_path):
    def guard(name, score):
        judge = FakeRewardModel(lambda text: score)
        judge.model_id = name if differing == "judges" else "judge"
        (tmp_path / name).mkdir()
        profile = tmp_path / name / "guardrail.json"
        GuardProfile(mode="guardrail", schedule=[2], thresholds=[0.0]).save(profile)
        shape = {"schedule": [2]} if differing == "judges" else {"profile": profile}
        return FACES[face](generator=model, reward_model=judge, **shape, on_abstain=lambda result: f"refused by {name}")

    async def node(state):
        return {"messages": [AIMessage(" ".join([(await each.ainvoke(state["messages"])).text for each in guards]))]}

    model = FakeChatModel(["answer"])
    guards = guard("strict", -1.0), guard("lax", 1.0)
    graph = StateGraph(MessagesState).add_node("answer", node).set_entry_point("answer").compile(checkpointer=InMemorySaver())
    assert (await graph.ainvoke(QUESTION, THREAD))["messages"][-1].text == "refused by strict answer"
