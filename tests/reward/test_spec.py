"""Scorer specs: what they say, what is refused with which words, and that each goes wherever a reward model goes."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from bonmini_guard import BestOfMiniN, RewardModel, ScorerSpec
from bonmini_guard.cli import main
from bonmini_guard.engine.scorers import FunctionSession
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.reward.combined import Combined
from bonmini_guard.reward.declared import Declared, as_scorer, load_scorer
from bonmini_guard.testing import FakeChatModel, FakeGenerator

from .test_model import CONFIGS, save

PARIS = '[check]\ntype = "regex"\npattern = "Paris"\n'
CHECK = 'kind = "check"\n' + PARIS


def write(folder, text, name="scorer.toml"):
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), CONFIGS["llama"], bonmini_guard={"zero": "outside_option", "version": 1})


# What a file says


def test_toml_json_and_python_say_the_same(tmp_path):
    said = {"kind": "check", "check": {"type": "regex", "pattern": "Paris"}}
    toml, dumped = write(tmp_path, CHECK), write(tmp_path, json.dumps(said), "scorer.json")
    assert ScorerSpec.load(toml) == ScorerSpec.load(dumped) == ScorerSpec(**said)
    for file in (toml, dumped):  # as editors on Windows save it
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert ScorerSpec.load(toml) == ScorerSpec.load(dumped) == ScorerSpec(**said)
    assert (
        load_scorer(toml).fingerprint()
        == load_scorer(dumped).fingerprint()
        != load_scorer(write(tmp_path, CHECK + "absent = true")).fingerprint()
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind = 'tokn'", "kind: Input should be 'template', 'pair'"),
        ("kind = 'template'\nmodl = 'x'", "unknown argument 'modl': did you mean 'model'?"),
        ("kind = 'template'", "needs model = a folder or an id"),
        ("kind = 'template'\nmodel = 'x'\nendpoint = 'http://x'", "endpoint is for the kinds route, judge, decision, token"),
        ("kind = 'template'\nmodel = 'x'\n" + PARIS, r"\[check\] belongs to kind = 'check', and the kind is 'template'"),
        ("kind = 'check'", r"needs a table \[check\]"),
        ("kind = 'labels'\nmodel = 'x'\n[labels]\nwantd = ['a']", "labels: unknown argument 'wantd': did you mean 'wanted'?"),
        ("kind = 'labels'\nmodel = 'x'\n[labels]\ninputs = 'answer'", "name those that are wanted"),
        ("kind = 'token'\nmodel = 'x'\n[token]\nwanted = ['No']", "token: unwanted: Field required"),
        ("kind = 'route'\n[route]\nserver = 'vllm'", "needs endpoint = the server's address"),
        ("kind = 'judge'\nmodel = 'gpt'\n[judge]\nrubric = 'x'", "needs endpoint = the server's address"),
        (
            "model = 'x'\n" + CHECK,
            "model is for the kinds template, pair, labels, token, route, judge, decision, and the kind is 'check'",
        ),
        ("api_key_env = 'KEY'\n" + CHECK, "api_key_env is for the kinds route, judge, decision, token"),
        (
            "kind = 'route'\nendpoint = 'http://x'\nnot_shown = []\n[route]\nserver = 'bonmini'",
            "not_shown of kind = 'route' is what its server",
        ),
        (
            f"kind = 'sum'\nnot_shown = ['refusal']\n[[sum]]\n{CHECK.replace('[check]', '[sum.check]')}",
            "not_shown of kind = 'sum' is said by",
        ),
        (f"kind = 'all'\n[[all]]\nweight = 2\n{CHECK.replace('[check]', '[all.check]')}", "weight is of a part of kind = 'sum'"),
        ("kind = 'template'\nmodel = 'x'\nscale = 'points'\nhas_zero = true", "has no zero of its own"),
        ("scale = 'probability'\n" + CHECK, "scores of kind = 'check' are log-odds"),
        ("weight = 2\n" + CHECK, "weight is of a part of kind = 'sum', and this is the whole"),
        ("kind = 'template'\nmodel = ''", "needs model = a folder or an id"),
        (
            "kind = 'token'\nmodel = 'x'\napi_key_env = 'KEY'\n[token]\nwanted = ['No']\nunwanted = ['Yes']",
            "api_key_env goes with an endpoint",
        ),
        ("intercept = 1\n" + CHECK, "intercept is of kind = 'sum', and the kind is 'check'"),
        ("kind = 'template'\nmodel = 'x'\nzero = { factor = -1.0 }", "zero: factor: Input should be greater than 0"),
        ("kind = 'decision'\nendpoint = 'http://x'\n" + 2 * "[[decision.questions]]\nname = 'a'\nquestion = 'A?'\n", "one name"),
        (
            "kind = 'decision'\nendpoint = 'http://x'\ndecision = { questions = ["
            "{ name = 'question 2', question = 'A?' }, { question = 'B?' }] }",
            "two questions have one name",
        ),
        ("kind = ", "is no TOML of a scorer spec"),
    ],
)
def test_what_is_refused_names_file_and_key(tmp_path, text, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        ScorerSpec.load(write(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "scorer.toml"))


@pytest.mark.parametrize(
    ("kind", "table", "said"),
    [
        ("judge", {"rubric": "x", "temperature": 0.5}, "temperature"),
        ("judge", {"rubric": "x", "max_tokens": 64}, "max_tokens"),
        ("decision", {"question": "x", "wire": "decisions"}, "wire"),
        ("decision", {"question": "x", "http": {"timeout": 5}}, "http"),
    ],
)
def test_settings_of_an_endpoint_are_refused_for_a_model_of_langchain(kind, table, said):
    with pytest.raises(ConfigurationError, match=f"{said} goes with an endpoint"):
        ScorerSpec(kind=kind, model=FakeChatModel(["x"]), **{kind: table})
    assert getattr(ScorerSpec(kind=kind, model="m", endpoint="http://x", **{kind: table}), kind)


def test_objects_in_a_spec_are_told_without_their_addresses():
    def spec():
        def expected(messages):
            return "Paris"

        return ScorerSpec(kind="check", check={"type": "exact", "expected": expected})

    one, other = spec(), spec()
    assert one.check.expected is not other.check.expected
    assert load_scorer(one).fingerprint() == load_scorer(other).fingerprint()


def test_a_list_is_no_spec(tmp_path):
    with pytest.raises(ConfigurationError, match="kind: Field required"):
        ScorerSpec.load(write(tmp_path, "[]", "scorer.json"))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('type = "regex"\npatern = "x"', "unknown argument 'patern': did you mean 'pattern'?"),
        ('type = "regex"', "pattern= is missing"),
        ('type = "number"\nexpected = 1\ntolerance = -1', "tolerance must be"),
        ('type = "number"\nexpected = "five"', "expected must be a number"),
        ('type = "exact"\nexpected = 5', "expected must be a text"),
        ('type = "regex"\npattern = 5', "is no regular expression"),
        ('type = "python"\ntests = 5', "tests must be a text, several, or a function"),
    ],
)
def test_arguments_of_a_check_are_checked(tmp_path, table, words):
    with pytest.raises(ConfigurationError, match=words):
        load_scorer(write(tmp_path, f'kind = "check"\n[check]\n{table}'))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: cannot be read"):
        as_scorer(str(tmp_path / "nowhere.toml"))


# What it makes of scores


def judged(scorer, *answers):
    return scorer.score([HumanMessage("Where?")], [AIMessage(answer) for answer in answers])


def test_a_checkpoint_by_its_path_by_a_spec_and_by_load_is_one(tmp_path, checkpoint):
    spec = write(tmp_path, f"kind = 'template'\nmodel = {str(checkpoint)!r}")
    models = [as_scorer(str(checkpoint)), as_scorer(spec), RewardModel.load(spec), RewardModel.load(checkpoint)]
    assert {type(model) for model in models} == {RewardModel}
    assert len({(model.fingerprint(), model.has_zero, *judged(model, "good film")) for model in models}) == 1
    for model in models:
        model.close()


def test_a_model_beside_the_file_is_found(tmp_path, checkpoint):
    (tmp_path / "model").symlink_to(checkpoint)
    model = load_scorer(write(tmp_path, "kind = 'template'\nmodel = 'model'"))
    assert model.has_zero
    model.close()
    server = "endpoint = 'http://127.0.0.1:9'\n"
    route = ScorerSpec.of(write(tmp_path, f"kind = 'route'\n{server}[route]\nserver = 'vllm'\ntokenizer = 'model'"))
    assert route.route.tokenizer == str(tmp_path / "model")
    # The server's name for a model is no folder of ours.
    elsewhere = f"kind = 'token'\nmodel = 'model'\n{server}[token]\nwanted = ['yes']\nunwanted = ['no']"
    assert ScorerSpec.of(write(tmp_path, elsewhere)).model == "model"


def test_what_a_spec_says_is_not_said_again_to_load(tmp_path):
    with pytest.raises(ConfigurationError, match="a spec says them"):
        RewardModel.load(write(tmp_path, CHECK), inputs="pair")


def test_a_check_says_that_it_reads_no_calls():
    both = combined("all", about("a"), about("b"))
    assert [load_scorer(spec).reads_calls for spec in (ScorerSpec(**about("a")), both)] == [False, False]
    assert Combined(both, [SimpleNamespace(has_zero=True)] * 2).reads_calls


def test_zero_and_scale_make_the_score(tmp_path, checkpoint):
    plain = RewardModel.load(checkpoint)
    moved = load_scorer(write(tmp_path, f"kind = 'template'\nmodel = {str(checkpoint)!r}\nzero = {{ shift = 1.5, factor = 2.0 }}"))
    [before], [after] = judged(plain, "good film"), judged(moved, "good film")
    assert after == pytest.approx(2 * before + 1.5)
    assert moved.fingerprint() != plain.fingerprint()
    assert moved.has_zero
    only_ranks = load_scorer(write(tmp_path, f"kind = 'template'\nmodel = {str(checkpoint)!r}\nhas_zero = false"))
    assert (only_ranks.has_zero, only_ranks.fingerprint()) == (False, plain.fingerprint())
    for model in (plain, moved, only_ranks):
        model.close()


def test_what_a_spec_declares_takes_texts_as_a_reward_model_does(checkpoint):
    models = [RewardModel.load(checkpoint), RewardModel.load(ScorerSpec(kind="template", model=str(checkpoint), zero={}))]
    said = [model.score(*given) for model in models for given in (("the film", ["good"]), ([HumanMessage("the film")], ["good"]))]
    assert said == [said[0]] * 4
    assert load_scorer(ScorerSpec(**about("Paris"))).score("Where?", ["Paris", "Rome"]) == [6.0, -6.0]
    for model in models:
        with pytest.raises(InputError, match="give a list of answers"):
            model.score("the film", "good")
        model.close()


async def test_calls_of_one_session_at_once_have_their_fixed_answers_once(checkpoint):
    """As the scoring server makes them, whose sessions are of a conversation."""
    model = load_scorer(
        ScorerSpec(kind="template", model=str(checkpoint), zero={"anchors": [{"text": "fine", "weight": 1.0}]}), device="cpu"
    )
    session = model.session([HumanMessage("the film")])
    together = await asyncio.gather(*(session.score([AIMessage("good")]) for _ in range(2)))
    for scores in (*together, await session.score([AIMessage("good")])):
        assert scores == pytest.approx(together[0], abs=1e-5)
    model.close()


def combined(kind, *parts, **more):
    return ScorerSpec(kind=kind, **{kind: list(parts)}, **more)


def about(pattern, **more):
    return {"kind": "check", "check": {"type": "regex", "pattern": pattern}, **more}


def test_all_is_the_least_and_sum_is_weighed():
    both = load_scorer(combined("all", about("Paris"), about("France")))
    assert judged(both, "Paris, France", "Paris", "Rome") == [6, -6, -6]
    assert both.has_zero
    weighed = load_scorer(combined("sum", about("Paris", weight=2.0), about("France", weight=0.5), intercept=1.0))
    assert judged(weighed, "Paris, France", "Paris", "Rome") == [16, 10, -14]
    assert not weighed.has_zero
    assert load_scorer(combined("sum", about("Paris"), has_zero=True)).has_zero
    assert not both.trained_on([])
    knows = SimpleNamespace(trained_on=lambda messages: messages == ["seen"])
    learnt = Combined(combined("sum", about("a"), about("b")), [both, knows])
    assert [learnt.trained_on([each]) for each in ("seen", "new")] == [True, False]
    assert len({load_scorer(combined("all", about(a), about(b))).fingerprint() for a, b in ("ab", "ba", "cd")}) == 3


def test_a_combination_agrees_with_a_profile_as_its_parts_do():
    spec = combined("all", about("a"), about("b"))
    near = SimpleNamespace(
        has_zero=True, fingerprint=lambda: "probe:1.02", agrees_with=lambda mark: mark in ("probe:1.02", "probe:1.01")
    )
    exact = SimpleNamespace(has_zero=True, fingerprint=lambda: "sha256:1")
    before, now = Combined(spec, [near, exact]).fingerprint().replace("1.02", "1.01"), Combined(spec, [near, exact])
    assert before != now.fingerprint()
    assert now.agrees_with(before)
    assert now.agrees_with("all:f621ea2a1a67deaf95290faf8b013b4412d6153128573de465d4d96265ffbc6e")
    assert not now.agrees_with("all:f621")
    assert not Combined(spec, [exact, near]).agrees_with(before)
    assert not Combined(combined("all", about("a"), about("b"), about("c")), [near, exact, exact]).agrees_with(before)
    assert not Combined(combined("sum", about("a"), about("b"), has_zero=True), [near, exact]).agrees_with(before)


def test_a_combination_does_not_agree_with_one_whose_zero_lies_elsewhere():
    here, moved = (load_scorer(combined("sum", about("a"), about("b"), has_zero=True, zero=zero)) for zero in (None, {"shift": 1}))
    assert not here.agrees_with(moved.fingerprint())
    assert not moved.agrees_with(here.fingerprint())
    assert not here.agrees_with(here.fingerprint()[:-2])


@pytest.mark.parametrize("kind", ["all", "sum"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, None])
async def test_a_score_of_a_part_that_is_not_finite_is_none(kind, odd):
    def part(*scores):
        async def score(candidates):
            return list(scores)

        return SimpleNamespace(has_zero=True, session=lambda _: FunctionSession(score))

    both = Combined(combined(kind, about("a"), about("b")), [part(1.0, 1.0), part(odd, 2.0)])
    assert (await both.session([]).score([AIMessage("a"), AIMessage("b")]))[0] is None


async def test_a_probability_that_is_not_finite_costs_its_own_answer_the_score():
    """All answers beside it had none: it was told as a probability outside of [0, 1]."""

    async def score(candidates):
        return [0.5, math.nan, 0.5]

    inner = SimpleNamespace(session=lambda _: FunctionSession(score))
    given = Declared(ScorerSpec(kind="template", model="m", scale="probability"), inner).session([])
    assert await given.score([AIMessage(text) for text in "abc"]) == [0.0, None, 0.0]


async def test_no_part_goes_on_where_another_has_failed():
    ended = []

    async def fails(candidates):
        raise ValueError("no scores")

    async def slow(candidates):
        try:
            await asyncio.sleep(10)
        finally:
            ended.append(True)

    parts = [SimpleNamespace(has_zero=True, session=lambda _, score=score: FunctionSession(score)) for score in (slow, fails)]
    with pytest.raises(ValueError, match="no scores"):
        await Combined(combined("all", about("a"), about("b")), parts).session([]).score([AIMessage("a")])
    assert ended == [True]


def test_all_wants_a_zero_in_each_part():
    with pytest.raises(ConfigurationError, match="part 2 of 'all' has no zero"):
        load_scorer(combined("all", about("Paris"), about("France", has_zero=False)))


@pytest.mark.parametrize(
    ("second", "says"), [({"kind": "template", "model": "./nowhere"}, "no such folder"), (about("a", has_zero=False), "no zero")]
)
def test_parts_of_what_cannot_be_loaded_are_closed(checkpoint, monkeypatch, second, says):
    closed, close = [], RewardModel.close
    monkeypatch.setattr(RewardModel, "close", lambda model: closed.append(model.model_id) or close(model))
    with pytest.raises(ConfigurationError, match=says):
        load_scorer(combined("all", {"kind": "template", "model": str(checkpoint)}, second))
    assert closed == [str(checkpoint)]


def test_options_of_local_models_reach_only_those(checkpoint):
    with pytest.raises(ConfigurationError, match="device goes with a model that runs here"):
        load_scorer(ScorerSpec(**about("Paris")), device="cpu")
    with pytest.raises(ConfigurationError, match="device goes with a model that runs here"):
        load_scorer(combined("sum", about("Paris"), combined("all", about("France"))), device="cpu")
    both = load_scorer(combined("all", {"kind": "template", "model": str(checkpoint)}, about("good")), device="cpu")
    assert len(judged(both, "good film")) == 1
    both.close()


# Where it goes


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_guard_chat_model_shadow_and_middleware_take_a_path(tmp_path):
    from langchain.agents import create_agent

    from bonmini_guard import ChatBestOfMiniN, ShadowBestOfMiniN
    from bonmini_guard.adapters.agents import BestOfMiniNMiddleware

    spec, said = str(write(tmp_path, CHECK)), ["Rome", "Paris"]
    chat = ChatBestOfMiniN(generator=FakeGenerator(said), reward_model=spec, schedule=[1, 1])
    assert chat.invoke("Where?").text == "Paris"
    guard = BestOfMiniN(generator=FakeGenerator(said), reward_model=Path(spec), schedule=[1, 1])
    result = guard.run("Where?")
    assert (result.decision, result.score, result.draws) == ("accepted", 6.0, 2)
    shadow = ShadowBestOfMiniN(guard)
    assert shadow.invoke("Where?").text == "Rome"
    agent = create_agent(FakeChatModel(said), middleware=[BestOfMiniNMiddleware(reward_model=spec, schedule=[1, 1])])
    assert agent.invoke({"messages": [("user", "Where?")]})["messages"][-1].text == "Paris"


def test_a_guardrail_refuses_a_spec_that_only_ranks(tmp_path):
    with pytest.raises(ConfigurationError, match="no zero"):
        BestOfMiniN(generator=FakeGenerator(["x"]), reward_model=write(tmp_path, "has_zero = false\n" + CHECK), mode="guardrail")


def test_score_takes_a_spec_and_resumes_on_it(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"id": "a", "prompt": "Where?", "candidates": [{"text": "Rome"}, {"text": "Paris"}]}) + "\n")
    spec = write(tmp_path, CHECK)
    assert main(["score", str(log), "--reward-model", str(spec), "-o", str(tmp_path / "out.jsonl")]) == 0
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert [one["score"] for one in row["candidates"]] == [-6, 6]
    assert row["scored_by"] == load_scorer(spec).fingerprint()
    assert main(["score", str(tmp_path / "out.jsonl"), "--reward-model", str(spec), "-o", str(tmp_path / "again.jsonl")]) == 0
    assert "0 candidates scored; kept: 2" in capsys.readouterr().out


def test_serve_offers_what_a_spec_declares(tmp_path):
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    from bonmini_guard.server.app import ScoringServer

    with TestClient(ScoringServer(load_scorer(write(tmp_path, CHECK))).app, base_url="http://localhost") as client:
        body = {"messages": [{"role": "user", "content": "Where?"}], "candidates": ["Paris", "Rome"]}
        answer = client.post("/score", json=body).json()
        assert (answer["scores"], answer["has_zero"]) == ([6.0, -6.0], True)
        assert client.post("/predict", json={"inputs": "x"}).status_code == 404
        assert client.get("/metrics").status_code == 200
        described = client.get("/openapi.json").json()["paths"]
        assert set(described) == {"/score", "/v1/systemone", "/v1/decisions", "/health", "/ready", "/metrics"}
