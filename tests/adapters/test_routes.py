"""Specs of kind "route": each server's protocol on the loopback, what is told of a wrong one, and what is asked for."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from bonmini_guard import ScorerSpec
from bonmini_guard.adapters import RemoteRewardModel
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.engine.scorers import score_once
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.reward.declared import load_scorer
from tests.adapters.loopback import InThread
from tests.adapters.reward_server import RewardServer
from tests.reward.tiny import make_tokenizer

RAW = [("vllm", "score"), ("vllm", "rerank"), ("tei", "rerank"), ("infinity", "rerank")]
HOSTED = [("jina", "rerank"), ("cohere", "rerank")]
ANSWERS = ["Rome", "Paris, France", "It is Paris."]


def value(pair):
    """Of a pair of texts: 0.1 a letter of the answer, and 3 for Paris."""
    return len(pair[1]) / 10 - 3 + 3 * ("Paris" in pair[1])


def declared(server, route, **more):
    table = {"server": route[0], "name": route[1], "http": {"retries": 0}, **more.pop("table", {})}
    return load_scorer(ScorerSpec(kind="route", endpoint=server.url, model="tiny", route=table, **more))


def judged(scorer):
    try:
        return scorer.score([HumanMessage("Where?")], [AIMessage(answer) for answer in ANSWERS])
    finally:
        scorer.close()


@pytest.mark.parametrize("route", RAW)
def test_rerankers_give_raw_scores_in_the_order_of_the_answers(route):
    with InThread(RewardServer(value)) as server:
        scorer = declared(server, route)
        assert judged(scorer) == pytest.approx([value(("Where?", answer)) for answer in ANSWERS])
        assert scorer.has_zero is False
        assert scorer.fingerprint().startswith("probe:")
        last = server.requests[-1][2]
        assert last.get("query", last.get("text_1")) == "Where?"


@pytest.mark.parametrize("route", RAW)
def test_a_reranker_whose_padding_shows_is_asked_text_by_text(route, caplog):
    with InThread(RewardServer(value)) as server:
        plain = server.reply

        def padded(path, body):
            answers = next(body[name] for name in ("documents", "texts", "text_2") if name in body)
            more, longest = server.score, max(map(len, answers))
            server.score = lambda pair: more(pair) + 0.05 * (longest - len(pair[1]))
            try:
                return plain(path, body)
            finally:
                server.score = more

        server.reply = padded
        assert judged(declared(server, route)) == pytest.approx([value(("Where?", answer)) for answer in ANSWERS])
        assert "texts are sent one by one" in caplog.text


@pytest.mark.parametrize("route", HOSTED)
def test_hosted_rerankers_give_probabilities_which_are_declared(route):
    with InThread(RewardServer(value)) as server:
        with pytest.raises(ConfigurationError, match="look like probabilities"):
            declared(server, route).check()
        assert judged(declared(server, route, scale="probability")) == pytest.approx([value(("Where?", one)) for one in ANSWERS])
        assert server.requests[-1][0] == {"jina": "/v1/rerank", "cohere": "/v2/rerank"}[route[0]]


def test_zero_and_shift_of_a_route():
    with InThread(RewardServer(value)) as server:
        scorer = declared(server, RAW[0], zero={"shift": -1.0, "factor": 2.0})
        assert judged(scorer) == pytest.approx([2 * value(("Where?", answer)) - 1 for answer in ANSWERS])
        assert scorer.has_zero
        mark = scorer.fingerprint()
        assert scorer.agrees_with(mark)
        assert not scorer.agrees_with(mark.partition("+")[0])


def test_our_own_server_tells_its_fingerprint():
    with InThread(RewardServer(lambda asked: value(("", asked[1]["content"])))) as server:
        scorer = declared(server, ("bonmini", None))
        assert judged(scorer) == pytest.approx([value(("Where?", answer)) for answer in ANSWERS])
        assert (scorer.has_zero, scorer.fingerprint()) == (True, "sha256:abc")


def test_what_cannot_be_sent_as_text_has_no_score():
    image = AIMessage([{"type": "text", "text": "Paris"}, {"type": "image_url", "image_url": {"url": "data:,"}}])
    with InThread(RewardServer(value)) as server:
        scorer = declared(server, RAW[0])
        assert scorer.score([HumanMessage("Where?")], [image, AIMessage("Rome")]) == [None, pytest.approx(value(("", "Rome")))]
        scorer.close()


def test_a_tokenizer_without_a_chat_template_counts_pairs():
    tokenizer = make_tokenizer()
    with InThread(RewardServer(value)) as server:
        scorer = RemoteRewardModel(server.url, kind="tei-rerank", tokenizer=tokenizer, max_length=120)
        answers = [AIMessage(text) for text in ("Rome", "Rome " * 120, "</s>", "Par\ud800s")]
        assert run_sync(lambda: score_once(scorer, [HumanMessage("x")], answers)) == [
            value(("", "Rome")),
            None,
            None,
            value(("", "Par\ufffds")),
        ]
    assert tokenizer.chat_template is None


def test_vectors_are_told_apart_from_scores():
    with InThread(RewardServer(value)) as server:
        server.reply = lambda path, body: {"data": [{"index": at, "score": [0.1, 0.2, 0.3]} for at in range(len(body["text_2"]))]}
        with pytest.raises(ConfigurationError, match=r"vectors of 3 numbers.*--convert classify"):
            declared(server, RAW[0]).check()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"server": "tei", "name": "pooling"}, "server = 'tei' has no route 'pooling' here: use 'classify' or 'rerank'"),
        ({"server": "vllm"}, "needs tokenizer="),
        ({"server": "vllm", "name": "rerank", "http": {"timeot": 3}}, "did you mean 'timeout'"),
        ({"server": "bonmini", "http": {"api_key": "secret"}}, "http: api_key is no further option"),
        ({"server": "bonmini", "http": {"base_url": "http://x"}}, "http: base_url is no further option"),
    ],
)
def test_what_is_wrong_is_named(table, words):
    with pytest.raises(ConfigurationError, match=words):
        load_scorer(ScorerSpec(kind="route", endpoint="http://127.0.0.1:1", route=table))
