"""Which draw an accelerator serves: soft and minimum Bayes risk against their definitions, through the guard."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from langchain_core.messages import AIMessage
from pydantic import BaseModel

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, GuardProfile, MinimumBayesRisk, ShadowBestOfMiniN, Soft
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.policy.select import overlap
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")


class Film(BaseModel):
    """A film."""

    title: str


SCORES = {"red red": 1.0, "a red hat": 0.5, "a red cap": -0.5, "no": -2.0}


def guard(**options):
    options = {"mode": "accelerator", "schedule": [4], "threshold": math.inf} | options
    return BestOfMiniN(generator=FakeGenerator(list(SCORES)), reward_model=FakeRewardModel(SCORES), **options)


def test_soft_serves_each_draw_as_often_as_its_weight_says():
    soft = guard(select=Soft(temperature=0.8))
    served = Counter(soft.run("?", seed=seed).selected.message.text for seed in range(600))
    weights = {text: math.exp(score / 0.8) for text, score in SCORES.items()}
    for text, weight in weights.items():
        assert served[text] / 600 == pytest.approx(weight / sum(weights.values()), abs=0.07)
    assert soft.run("?", seed=5).selected.message.text == soft.run("?", seed=5).selected.message.text


def test_mbr_serves_what_is_most_like_the_others():
    similar = {one: sum(overlap(one, other) for other in SCORES) for one in SCORES}
    assert guard(select="mbr").run("?").selected.message.text == max(similar, key=similar.__getitem__)
    assert guard(select="best").run("?").selected.message.text == "red red"
    assert guard(select=MinimumBayesRisk(reward=10.0)).run("?").selected.message.text == "red red"
    assert guard(select=MinimumBayesRisk(lambda one, other: float(other == one == "no"))).run("?").selected.message.text == "no"


def test_mbr_compares_what_calls_say():
    """Structured output stands in calls: of texts alone, all draws were the same, and the first one was served."""
    calls = [{"name": "Film", "args": {"title": title}, "id": "1"} for title in ("Brazil", "Alien", "Alien")]
    parts = {"generator": FakeGenerator([AIMessage("", tool_calls=[call]) for call in calls]), "mode": "accelerator"}
    judge = FakeRewardModel(lambda messages, candidates: [1.0] * len(candidates))
    llm = ChatBestOfMiniN(**parts, reward_model=judge, schedule=[3], threshold=math.inf, select="mbr")
    assert llm.with_structured_output(Film).invoke("?").title == "Alien"


@pytest.mark.parametrize("threshold", [math.inf, 0.0])
def test_a_similarity_that_fails_leaves_the_best_and_quotes_nothing(threshold, caplog):
    def quoting(one, other):
        raise ValueError(one)

    assert guard(threshold=threshold, select=MinimumBayesRisk(quoting)).invoke("?").text == "red red"
    assert "ValueError in quoting() at test_select.py" in caplog.text
    assert "red" not in caplog.text


@pytest.mark.parametrize("select", [MinimumBayesRisk(lambda one, other: math.nan), MinimumBayesRisk(reward=math.nan)])
def test_so_does_one_that_is_no_number(select, caplog):
    generator = FakeGenerator(["no", "red red"])
    few = BestOfMiniN(
        generator=generator,
        reward_model=FakeRewardModel(SCORES),
        mode="accelerator",
        schedule=[2],
        threshold=math.inf,
        select=select,
    )
    assert few.invoke("?").text == guard(threshold=math.inf, select=select).invoke("?").text == "red red"
    assert "select= failed, the best draw is served: ValueError" in caplog.text


def test_of_draws_that_passed_one_of_them_is_served():
    result = guard(threshold=0.5, select=Soft(temperature=1e6)).run
    served = {result("?", seed=seed).selected.message.text for seed in range(40)}
    assert served == {"red red", "a red hat"}
    assert {result("?", seed=seed).decision for seed in range(5)} == {"accepted"}


def test_words_that_are_shared_count_as_often_as_both_have_them():
    assert overlap("a b b", "b b c") == pytest.approx(2 * 2 / 6)
    assert overlap("", "") == 0.0


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"mode": "guardrail"}, "accelerator"),
        ({"exit": "eager"}, "not for exit='eager'"),
        ({"select": "worst"}, "select must be 'best', 'soft' or 'mbr'"),
    ],
)
def test_it_is_refused_where_the_best_is_promised(options, cure):
    with pytest.raises(ConfigurationError, match=cure):
        guard(**{"select": "soft"} | options)
    certified = GuardProfile(mode="accelerator", schedule=(4,), thresholds=(0.0,), epsilon=0.01, evidence={"rows": 9})
    with pytest.raises(ConfigurationError, match="certified for serving the best"):
        guard(profile=certified, mode=None, schedule=None, threshold=None, select="soft")
    for temperature in (0, "0.5"):
        with pytest.raises(ConfigurationError, match="above 0"):
            Soft(temperature=temperature)
    with pytest.raises(ConfigurationError, match="shadow mode"):
        ShadowBestOfMiniN(guard(select="mbr"))


def test_a_chat_model_that_serves_another_draw_is_another_model():
    parts = {"generator": FakeGenerator(list(SCORES)), "reward_model": FakeRewardModel(SCORES), "mode": "accelerator"}
    keys = [ChatBestOfMiniN(**parts, select=select)._identifying_params for select in ("best", "soft", Soft(2.0))]
    assert keys[0] != keys[1] != keys[2] != keys[0]
