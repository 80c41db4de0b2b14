"""Verdict tokens of a served model: where they are read, what is told of them, and what has no score."""

from __future__ import annotations

import math

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from bonmini_guard import ScorerSpec
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.reward.declared import load_scorer
from tests.adapters.loopback import InThread
from tests.adapters.openai_server import MODEL, OpenAIServer


def place(token, **shares):
    return {"token": token, "logprob": 0.0, "top_logprobs": [{"token": one, "logprob": math.log(p)} for one, p in shares.items()]}


def writing(*places):
    def answer(body):
        message = {"role": "assistant", "content": "".join(one["token"] for one in places)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": list(places)}}
        usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
        return {"id": "x", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}

    return answer


def judged(answer, **token):
    with InThread(OpenAIServer()) as server:
        server.answer = answer
        table = {"wanted": ["No"], "unwanted": ["Yes"], **token}
        scorer = load_scorer(ScorerSpec(kind="token", endpoint=server.url, model=MODEL, token=table))
        try:
            return scorer.score([HumanMessage("Where?")], [AIMessage("Paris {prompt}")]), server.requests[-1][2]
        finally:
            scorer.close()


def test_the_first_token_is_the_verdict():
    [score], body = judged(writing(place("No", No=0.6, Yes=0.2, **{" No": 0.15, "Maybe": 0.05})))
    assert score == pytest.approx(math.log(0.75 / 0.2))
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant"]


def test_a_verdict_behind_what_comes_before_it():
    places = [place("<score>", x=1.0), place(" No", **{" No": 0.1, " Yes": 0.9})]
    [score], _ = judged(writing(*places), after="<score>")
    assert score == pytest.approx(math.log(0.1 / 0.9))


def test_where_white_space_was_written_there_is_no_verdict():
    places = [place("\n\n", **{"\n\n": 0.99, "safe": 0.01}), place("unsafe", safe=0.1, unsafe=0.9)]
    for after in ("\n\n", ""):
        [score], _ = judged(writing(*places), after=after, wanted=["safe"], unwanted=["unsafe"])
        assert score == pytest.approx(math.log(0.1 / 0.9))


def test_a_side_that_is_not_told_counts_as_the_least_that_is():
    [score], _ = judged(writing(place("No", No=0.9, Maybe=0.05)))
    assert score == pytest.approx(math.log(0.9 / 0.05))


def test_a_verdict_of_several_tokens_is_known_by_the_first_that_was_written():
    words = {"wanted": ["Safe"], "unwanted": ["Unsafe", "Controversial"]}
    told = {"Controvers": 0.9, "Safe": 0.06, "Unsafe": 0.03, "S": 0.01}
    [score], _ = judged(writing(place(" Controvers", **told)), after="", **words)
    assert score == pytest.approx(math.log(0.06 / 0.93))
    # Of what begins no verdict nothing is taken for one.
    assert judged(writing(place("Safety", Safety=0.9, S=0.1)), **words)[0] == [None]
    assert judged(writing(place("N", N=0.9, x=0.1)), wanted=["No"], unwanted=["Not"])[0] == [None]


def test_a_token_without_a_probability_is_not_told():
    told = place("No", No=0.9, Yes=0.05)
    told["top_logprobs"].append({"token": "yes", "logprob": None})
    assert judged(writing(told))[0] == pytest.approx([math.log(0.9 / 0.05)])


def test_without_a_verdict_there_is_no_score():
    assert judged(writing(place("Maybe", Maybe=0.9, x=0.1)))[0] == [None]
    assert judged(writing(place("No", No=0.9, Yes=0.1)), after="<score>")[0] == [None]
    for told in ({}, {"top_logprobs": None}):  # of servers that tell of what they wrote alone
        assert judged(writing({"token": "No", "logprob": 0.0, **told}))[0] == [None]


@pytest.mark.parametrize("unwanted", [["Yes", " No"], ["Yes", " "]])
def test_a_verdict_that_says_nothing_is_refused(unwanted):
    table = {"wanted": ["No"], "unwanted": unwanted}
    with pytest.raises(ConfigurationError, match="a verdict is blank, or wanted and unwanted"):
        load_scorer(ScorerSpec(kind="token", endpoint="http://127.0.0.1:9", model=MODEL, token=table))


def test_a_question_is_one_turn_and_fills_nothing_in_twice():
    _, body = judged(writing(place("No", No=0.9, Yes=0.1)), ask="{prompt} / {answer}", system="Judge.", options={"think": False})
    assert [turn["content"] for turn in body["messages"]] == ["Judge.", "Where? / Paris {prompt}"]
    assert body["chat_template_kwargs"] == {"think": False}
