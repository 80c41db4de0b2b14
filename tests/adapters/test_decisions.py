"""A question as reward model: what is asked on both wires, what its answers are worth, and what is no answer."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import re
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, ScorerSpec
from bonmini_guard.adapters.http_errors import EndpointError, MalformedAnswer, Overloaded
from bonmini_guard.adapters.rewards.decision_wires import DecisionEndpoint
from bonmini_guard.adapters.rewards.decisions import NONE_SAYS, Decisions, asked, step_of
from bonmini_guard.adapters.rewards.probe import probe_pairs
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.engine.scorers import log_odds
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.testing import FakeChatModel, FakeGenerator
from tests.adapters.decision_server import DecisionServer, langchains
from tests.adapters.loopback import InThread

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")
QUESTION = "Does the last answer state the delivery date?"
PROMPT = [HumanMessage("When does it come?")]
WIRES = pytest.mark.parametrize("wire", ["systemone", "decisions"])


def believes(text):
    return 0.97 if "9 July" in text else None if "refuse me" in text else 0.5 if text == NONE_SAYS else 0.03


def endpoint(url, wire, **http):
    return DecisionEndpoint(url, wire=wire, model="m", retries=0, **http)


def scores(scorer, *answers):
    async def once():
        session = scorer.session(PROMPT)
        return await session.score([AIMessage(answer) for answer in answers]), session.usage_metadata

    return run_sync(once)


@WIRES
def test_log_odds_of_yes_are_the_score_and_tokens_are_counted(wire):
    with InThread(DecisionServer(believes)) as server:
        scorer = Decisions(endpoint(server.url, wire), QUESTION)
        scorer.check()
        server.requests.clear()
        found, usage = scores(scorer, "on 9 July", "soon", "refuse me")
    assert found[:2] == pytest.approx([math.log(0.97 / 0.03), -math.log(0.97 / 0.03)])
    assert found[2] is None
    assert usage["total_tokens"] == 24
    assert scorer.has_zero
    assert len(server.requests) == 3


@WIRES
@pytest.mark.parametrize("told", [[], 5, "7", {"input_tokens": -5, "output_tokens": None}])
def test_usage_that_is_none_costs_no_score(wire, told):
    with InThread(DecisionServer(believes)) as server:
        server.spoil = lambda said: said | {"usage": told}
        found, usage = scores(Decisions(endpoint(server.url, wire), QUESTION), "on 9 July")
    assert found == pytest.approx([math.log(0.97 / 0.03)])
    assert usage is None


@WIRES
def test_sixteen_requests_are_made_at_a_time(wire):
    with InThread(DecisionServer(believes)) as server:
        scorer = Decisions(endpoint(server.url, wire), QUESTION)
        scorer.check()
        plain = server._work

        async def held(*arguments):
            while server.busiest < 16:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.1)  # one more would come meanwhile
            await plain(*arguments)

        server._work = held
        scores(scorer, *(f"on 9 July, {number}" for number in range(20)))
        assert server.busiest == 16


@WIRES
def test_conversation_and_calls_go_as_messages(wire):
    call = {"name": "lookup", "args": {"order": 7}, "id": "c1"}
    thought = AIMessage("", tool_calls=[call], additional_kwargs={"reasoning_content": "hm"})  # which is left out
    prompt = [HumanMessage("Where is order 7?"), thought, ToolMessage("on 9 July", tool_call_id="c1")]

    async def once(scorer):
        return await scorer.session(prompt).score([AIMessage("It comes on 9 July.")])

    with InThread(DecisionServer(believes)) as server:
        scorer = Decisions(endpoint(server.url, wire), {"date": QUESTION}, criteria={"true": "a day and a month"})
        assert run_sync(lambda: once(scorer)) == pytest.approx([math.log(0.97 / 0.03)])
        _, _, body = server.requests[-1]
    assert "hm" not in str(body)
    if wire == "systemone":
        assert [turn["role"] for turn in body["state"]] == ["user", "assistant", "tool", "assistant"]
        assert body["state"][1]["tool_calls"][0]["function"]["name"] == "lookup"
        assert body["questions"] == {"date": {"type": "noul", "instructions": QUESTION, "criteria": {"true": "a day and a month"}}}
    else:
        assert [item["type"] for item in body["input"]] == ["message", "function_call", "function_call_output", "message"]
        assert body["input"][1] | {"arguments": ""} == {"type": "function_call", "call_id": "c1", "name": "lookup", "arguments": ""}
        assert body["questions"][0]["instructions"] == f"{QUESTION}\nYes means: a day and a month"


@WIRES
def test_several_questions_must_all_hold(wire):
    with InThread(DecisionServer(lambda text: 0.9)) as server:
        scorer = Decisions(endpoint(server.url, wire), ["Is it kind?", "Is it true?"])

        def spoil(said):  # the second question is answered otherwise
            answers = said["answers"]
            second = answers["question 2"] if wire == "systemone" else answers[1]
            second["noul" if wire == "systemone" else "probability"] = 0.2
            return said

        server.spoil = spoil
        found, _ = scores(scorer, "yes")
    assert found == pytest.approx([math.log(0.2 / 0.8)])


@WIRES
@pytest.mark.parametrize(("said", "held"), [(1.0, 0.995), (0.0, 0.005), (0.99, 0.99), (0.999, 0.995)])
def test_what_is_rounded_is_held_off_from_certainty_by_half_a_step(wire, said, held):
    with InThread(DecisionServer(lambda text: said if text == "asked" else 0.25)) as server:
        found, _ = scores(Decisions(endpoint(server.url, wire), QUESTION), "asked")
    assert found == pytest.approx([math.log(held / (1 - held))])


def test_a_finer_scale_is_seen_by_the_probe():
    with InThread(DecisionServer(lambda text: 0.9999 if text == "asked" else 0.123456)) as server:
        scorer = Decisions(endpoint(server.url, "systemone"), QUESTION)
        assert scores(scorer, "asked")[0] == pytest.approx([math.log(0.9999 / 0.0001)])
    assert scorer.clip == pytest.approx(5e-7)
    assert [step_of(value) for value in (0.97, 0.5, 1.0, 1e-5)] == pytest.approx([0.01, 0.1, 1.0, 1e-5])
    assert log_odds(1.0, 0.01) == pytest.approx(math.log(99))


def changed(wire, change):
    """An answer of which one part is otherwise."""

    def spoil(said):
        answers = said["answers"]
        first = next(iter(answers.values())) if wire == "systemone" else answers[0]
        change(said, answers, first, "noul" if wire == "systemone" else "probability")
        return said

    return spoil


SPOILT = {
    "above one": lambda said, answers, first, key: first.update({key: 1.2}),
    "below zero": lambda said, answers, first, key: first.update({key: -0.1}),
    "a truth value": lambda said, answers, first, key: first.update({key: True}),
    "a text": lambda said, answers, first, key: first.update({key: "0.9"}),
    "null": lambda said, answers, first, key: first.update({key: None}),
    "no probability": lambda said, answers, first, key: first.pop(key),
    "no answers": lambda said, answers, first, key: said.pop("answers"),
    "answers of another kind": lambda said, answers, first, key: said.update(answers="yes"),
    "an answer that is none": lambda said, answers, first, key: said.update(
        answers=[1] if isinstance(answers, list) else {"acceptable": 1}
    ),
    "an error inside a 200": lambda said, answers, first, key: said.update(error={"message": "quota"}),
}


@WIRES
@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_is_no_answer_is_no_score(wire, spoilt):
    with InThread(DecisionServer(lambda text: 0.9)) as server:
        scorer = Decisions(endpoint(server.url, wire), QUESTION)
        scorer.check()
        server.spoil = changed(wire, SPOILT[spoilt])
        with pytest.raises(MalformedAnswer):
            scores(scorer, "yes")
        guard = BestOfMiniN(generator=FakeGenerator(["yes"]), reward_model=scorer, schedule=[2])
        assert (guard.run("q").decision, guard.run("q").reason) == ("abstained", "scorer_failed")


@pytest.mark.parametrize("spoilt", ["fewer", "more", "another's"])
def test_answers_in_order_are_held_against_their_questions(spoilt):
    def spoil(said):
        answers = said["answers"]
        {"fewer": answers.pop, "more": lambda: answers.append(answers[0]), "another's": lambda: answers[0].update(name="x")}[
            spoilt
        ]()
        return said

    with InThread(DecisionServer(lambda text: 0.9)) as server:
        scorer = Decisions(endpoint(server.url, "decisions"), QUESTION)
        scorer.check()
        server.spoil = spoil
        with pytest.raises(MalformedAnswer):
            scores(scorer, "yes")


@WIRES
@pytest.mark.parametrize(("fault", "error"), [(429, Overloaded), *((fault, EndpointError) for fault in (500, "html", "half"))])
def test_outages_are_outages(wire, fault, error):
    with InThread(DecisionServer(lambda text: 0.9)) as server:
        scorer = Decisions(endpoint(server.url, wire), QUESTION)
        scorer.check()
        server.faults = lambda path, body: fault
        with pytest.raises(error):
            scores(scorer, "yes")


@WIRES
def test_a_refused_answer_costs_its_neighbours_nothing(wire):
    with InThread(DecisionServer(lambda text: 0.9)) as server:
        scorer = Decisions(endpoint(server.url, wire), QUESTION)
        scorer.check()
        server.faults = lambda path, body: (400, {"error": "policy"}) if "vile" in str(body) else None
        found, _ = scores(scorer, "kind", "vile")
        assert found[0] == pytest.approx(math.log(9))
        assert found[1] is None
        assert scores(scorer, "vile")[0] == [None]  # a loop of one
        with pytest.raises(EndpointError):
            scores(scorer, "vile", "very vile")
        server.faults = lambda path, body: (404, {"error": "no such model"})
        with pytest.raises(EndpointError):
            scores(scorer, "kind")


@WIRES
@pytest.mark.parametrize("ask", ["each", "together", "choice"])
def test_a_thought_that_users_would_get_is_scored_with_its_answer_or_has_no_score(wire, ask):
    thought = AIMessage("on 9 July", additional_kwargs={"reasoning_content": "hm"})
    with InThread(DecisionServer(lambda text: 0.9)) as server:
        for not_shown, scored in ((["reasoning"], True), ([], False)):
            scorer = Decisions(endpoint(server.url, wire), QUESTION, ask=ask, not_shown=not_shown)
            found = run_sync(lambda scorer=scorer: scorer.session(PROMPT).score([thought]))
            assert [score is not None for score in found] == [scored]


@WIRES
def test_a_choice_among_answers_and_none(wire):
    shown = []

    def read(text):
        shown.append(text)
        return {"good": 0.6, "so so": 0.2, NONE_SAYS: 0.2}.get(text, 0.5)

    with InThread(DecisionServer(read)) as server:
        scorer = Decisions(endpoint(server.url, wire), QUESTION, ask="choice")
        scorer.check()
        server.requests.clear()
        shown.clear()
        found, _ = scores(scorer, "so so", "good")
        assert found == pytest.approx([0.0, math.log(3)])
        assert len(server.requests) == 2
        assert [text for text in shown if text != NONE_SAYS] in (
            ["so so", "good", "good", "so so"],
            ["good", "so so", "so so", "good"],
        )

        async def loops():
            session = scorer.session(PROMPT)
            return [await session.score([AIMessage(text)]) for text in ("good", "so so")]

        shown.clear()
        assert [score for [score] in run_sync(loops)] == pytest.approx([math.log(3), 0.0])
        assert "good" in shown[-6:]  # the best so far stands beside the new one


@WIRES
def test_a_refused_choice_costs_the_refused_answer_its_score_alone(wire):
    refusing = {"vile"}
    with InThread(DecisionServer(lambda text: {"good": 0.6, NONE_SAYS: 0.2}.get(text, 0.1))) as server:
        scorer = Decisions(endpoint(server.url, wire), QUESTION, ask="choice")
        scorer.check()
        server.faults = lambda path, body: (400, {"error": "no"}) if any(word in json.dumps(body) for word in refusing) else None
        assert scores(scorer, "vile", "good", "bad")[0] == [None, pytest.approx(math.log(3)), pytest.approx(-math.log(2))]
        assert scores(scorer, "vile")[0] == [None]
        with pytest.raises(EndpointError):
            scores(scorer, "vile", "very vile")
        refusing.add('"choice"')  # a server that takes none refuses no answer
        for answers in (["good"], ["good", "bad"]):
            with pytest.raises(EndpointError):
                scores(scorer, *answers)


@WIRES
def test_in_a_guard_by_its_question_and_by_a_spec(wire, tmp_path):
    with InThread(DecisionServer(believes)) as server:
        spec = tmp_path / "question.toml"
        spec.write_text(
            f'kind = "decision"\nmodel = "m"\nendpoint = "{server.url}/v1"\n[decision]\nwire = "{wire}"\nquestion = "{QUESTION}"\n'
        )
        generator = FakeGenerator(["soon", "on 9 July"])
        for guard in (
            BestOfMiniN(generator=generator, reward_model=endpoint(server.url, wire), question=QUESTION, schedule=[1, 1]),
            BestOfMiniN(generator=generator, reward_model=spec, schedule=[1, 1]),
        ):
            result = guard.run("When?")
            assert (result.decision, result.message.text, result.draws) == ("accepted", "on 9 July", 2)
            assert result.usage["total_tokens"] == 16
        chat = ChatBestOfMiniN(generator=generator, reward_model=spec, schedule=[1, 1])
        assert chat.invoke("When?").text == "on 9 July"


def test_what_is_asked_is_a_part_of_the_fingerprint():
    with InThread(DecisionServer(believes)) as server:
        marks = {
            Decisions(endpoint(server.url, "systemone"), text, criteria=criteria).fingerprint()
            for text in (QUESTION, "Is it polite?")
            for criteria in (None, {"true": "yes"})
        }
        assert len(marks) == 4
        scorer = Decisions(endpoint(server.url, "systemone"), QUESTION)
        assert scorer.agrees_with(scorer.fingerprint())
        assert not any(scorer.agrees_with(mark) for mark in marks - {scorer.fingerprint()})
        moved = Decisions(endpoint(server.url, "systemone"), QUESTION)
        server.believes = lambda text: 0.5
        assert not moved.agrees_with(scorer.fingerprint())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"questions": ""}, "question is empty"),
        ({"questions": []}, "question is empty"),
        ({"questions": "q", "ask": "all"}, "ask must be 'each', 'together' or 'choice'"),
        ({"questions": ["a", "b"], "ask": "choice"}, "takes one question"),
        ({"questions": 5}, "question is empty"),
        ({"questions": {"a": "A?"}, "criteria": {"b": {"true": "x"}}}, "criteria are of 'b'"),
        ({"questions": {"a": "A?"}, "criteria": {"a": {"yes": "x"}}}, "what counts as yes and as no"),
        ({"questions": {"a": "A?"}, "criteria": {"a": "x"}}, "what counts as yes and as no"),
        ({"questions": {"a": "A?"}, "criteria": ["x"]}, "what counts as yes and as no"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, says):
    with pytest.raises(ConfigurationError, match=says):
        Decisions(endpoint("http://127.0.0.1:9", "systemone"), **arguments)


def test_a_question_without_a_decision_model_is_refused():
    with pytest.raises(ConfigurationError, match="goes with a decision model"):
        BestOfMiniN(generator=FakeGenerator(["a"]), reward_model=lambda messages, candidates: [1.0], question=QUESTION)
    with pytest.raises(ConfigurationError, match="give a question"):
        ScorerSpec(kind="decision", endpoint="http://localhost:1", decision={"wire": "systemone"})


def test_names_of_questions():
    assert [each.name for each in asked("Is it true?")] == ["acceptable"]
    assert [each.name for each in asked(["a", "b"])] == ["question 1", "question 2"]
    assert asked({"kind": "Is it kind?"}, {"kind": {"false": "rude"}})[0].no == "rude"


# LangChain's own interface, where this version has it


def test_a_decision_model_of_langchain():
    def classify(state, questions):
        answers = {name: {"type": "noul", "noul": believes(state[-1].text)} for name in questions}
        return {"answers": answers, "usage": {"input_tokens": 5, "output_tokens": 0}}

    model = langchains(classify)
    guard = BestOfMiniN(generator=FakeGenerator(["soon", "on 9 July"]), reward_model=model, question=QUESTION, schedule=[1, 1])
    result = guard.run("When?")
    assert (result.message.text, result.score) == ("on 9 July", pytest.approx(math.log(0.97 / 0.03)))
    with pytest.raises(ConfigurationError, match="say what it is asked"):
        BestOfMiniN(generator=FakeGenerator(["a"]), reward_model=model)


@pytest.mark.parametrize("page", ["README.md", "docs/questions.md"])
def test_the_lines_of_the_pages_run(page):
    def classify(state, questions):
        assert "delivery date" in next(iter(questions.values())).instructions
        return {"answers": {name: {"type": "noul", "noul": 0.9} for name in questions}}

    text = (Path(__file__).parents[2] / page).read_text("utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "question=" in block]
    names = {"llm": FakeChatModel(["on 9 July"]), "decision_model": langchains(classify)}
    exec(code, names)
    assert names["guard"].run("When?").decision == "accepted"


@pytest.mark.filterwarnings("ignore:The class .OpenAIDecisions. is in beta")
def test_openai_decisions_of_langchain():
    types = pytest.importorskip("langchain_openai.decisions")
    with InThread(DecisionServer(believes)) as server:
        model = types.OpenAIDecisions(model="m", api_key="x", base_url=f"{server.url}/v1", max_retries=0)
        guard = BestOfMiniN(generator=FakeGenerator(["soon", "on 9 July"]), reward_model=model, question=QUESTION, schedule=[2])
        result = guard.run("When?")
        # Connections belong to the loop that opened them: each of the caller's has its own.
        later = [asyncio.run(guard.arun("When?")) for _ in range(2)]
    assert [(each.decision, each.message.text) for each in (result, *later)] == [("accepted", "on 9 July")] * 3


@pytest.mark.filterwarnings("ignore:The class .OpenAIDecisions. is in beta")
def test_a_connection_of_sync_calls_is_closed_where_it_was_opened(monkeypatch):
    types, closed = pytest.importorskip("langchain_openai.decisions"), []
    with InThread(DecisionServer(believes)) as server:
        model = types.OpenAIDecisions(model="m", api_key="x", base_url=f"{server.url}/v1", max_retries=0)
        wire = type(model._async_client._client)
        monkeypatch.setattr(wire, "aclose", recorded(wire.aclose, closed))
        scorer = Decisions(model, QUESTION)
        scorer.check()
        run_sync(lambda: asyncio.sleep(0))  # nothing of the last call is left there
        del scorer

        async def elsewhere():
            # Within a loop, as any collection may come.
            gc.collect()
            await asyncio.sleep(0)

        asyncio.run(elsewhere())
        here = run_sync(lambda: asyncio.sleep(0, asyncio.get_running_loop()))
    assert [loop is here for url, loop in closed if url.startswith(server.url)] == [True]


@pytest.mark.filterwarnings("ignore:The class .OpenAIDecisions. is in beta")
def test_what_openais_client_raises_is_told_apart_as_an_endpoints_errors_are(caplog):
    types = pytest.importorskip("langchain_openai.decisions")
    with InThread(DecisionServer(lambda text: 0.9)) as server:
        model = types.OpenAIDecisions(model="m", api_key="x", base_url=f"{server.url}/v1", max_retries=0)
        scorer = Decisions(model, QUESTION)
        scorer.check()
        server.faults = lambda path, body: (400, {"error": "policy"}) if "vile" in str(body) else None
        assert scores(scorer, "kind", "vile")[0] == [pytest.approx(math.log(9)), None]
        server.faults = lambda path, body: 429
        with pytest.raises(Overloaded):
            scores(scorer, "kind")
    Decisions(model, QUESTION).check()  # the server has gone
    assert "does not answer yet" in caplog.text


def recorded(aclose, closed):
    async def closing(client):
        closed.append((str(client.base_url), asyncio.get_running_loop()))
        await aclose(client)

    return closing


def test_requests_that_come_at_once_wait_for_one_probe():
    with InThread(DecisionServer(believes)) as server:
        scorer = Decisions(endpoint(server.url, "systemone"), QUESTION)

        async def crowd():
            await asyncio.gather(*(scorer.session([HumanMessage("When?")]).score([AIMessage("on 9 July")]) for _ in range(5)))

        asyncio.run(crowd())
        assert len(server.requests) == len(probe_pairs()) + 5


# Several questions by name, several answers in one request


class WithinQuestions(DecisionServer):
    """Reads the answer that a question holds."""

    def _systemone(self, body):
        if not (within := [one for one in body["questions"].values() if "an order" in one["instructions"]]):
            return super()._systemone(body)
        told = {name: self.believes(one["instructions"].rsplit("\n\n", 1)[1]) for name, one in body["questions"].items()}
        assert len(within) == len(told)
        return {"answers": {name: {"type": "noul", "noul": value} for name, value in told.items() if value is not None}}

    def _decisions(self, body):
        if not any("an order" in one["instructions"] for one in body["questions"]):
            return super()._decisions(body)
        told = [(one["name"], self.believes(one["instructions"].rsplit("\n\n", 1)[1])) for one in body["questions"]]
        answers = [{"name": n, "type": "refusal"} if v is None else {"name": n, "probability": v} for n, v in told]
        return {"answers": answers}


@WIRES
def test_answers_of_a_loop_share_one_request_and_keep_their_own_scores(wire):
    with InThread(WithinQuestions(believes)) as server:
        scorer = Decisions(endpoint(server.url, wire), {"date": QUESTION, "kind": "Is it kind?"}, ask="together")
        scorer.check()
        server.requests.clear()
        found, usage = scores(scorer, "soon", "on 9 July", "refuse me")
        assert len(server.requests) == 1
        assert usage["total_tokens"] == 8
        alone, _ = scores(Decisions(endpoint(server.url, wire), QUESTION), "soon", "on 9 July", "refuse me")
    assert found[:2] == pytest.approx(alone[:2])
    assert found[2] is alone[2] is None


@WIRES
def test_one_answer_that_spoils_the_shared_request_costs_the_others_nothing(wire):
    with InThread(WithinQuestions(believes)) as server:
        scorer = Decisions(endpoint(server.url, wire), QUESTION, ask="together")
        scorer.check()
        server.faults = lambda path, body: (400, {"error": "policy"}) if "vile" in str(body) else None
        found, _ = scores(scorer, "on 9 July", "vile")
    assert found == pytest.approx([math.log(0.97 / 0.03), None])


def test_each_question_stands_in_the_record_by_its_name(tmp_path):
    with InThread(DecisionServer(believes)) as server:
        scorer = Decisions(endpoint(server.url, "systemone"), {"date": QUESTION, "kind": "Is it kind?"})
        guard = BestOfMiniN(
            generator=FakeGenerator(["soon", "refuse me", "on 9 July"]),
            reward_model=scorer,
            schedule=[1, 1, 1],
            trace_to=tmp_path / "t.jsonl",
            trace_candidates=True,
        )
        result = guard.run("When?")
        message = guard.invoke("When?")
        guard.flush()
    high = math.log(0.97 / 0.03)
    assert [dict(each.parts) for each in result.candidates] == [
        pytest.approx({"date": -high, "kind": -high}),
        {"date": None, "kind": None},
        pytest.approx({"date": high, "kind": high}),
    ]
    assert message.response_metadata["bonmini_guard"]["parts"] == pytest.approx({"date": high, "kind": high})
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [set(each["parts"]) for each in rows[0]["candidates"]] == [{"date", "kind"}] * 3
