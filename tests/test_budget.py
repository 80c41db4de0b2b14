"""A budget for each request: it ends requests early and never accepts anything."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from langchain_core.messages import AIMessage

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, GuardProfile
from bonmini_guard.errors import ConfigurationError, ProfileError
from bonmini_guard.policy.budget import Budget
from bonmini_guard.policy.policy import Action, Policy, State, guardrail
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

PROFILE = {"mode": "guardrail", "schedule": [2, 2], "thresholds": [1.0, 0.0], "alpha": 0.05, "delta": 0.1}


def costly(texts, read=10, written=5):
    usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
    return FakeGenerator([AIMessage(text, usage_metadata=usage) for text in texts])


def guard(texts=("-1",), **settings):
    generator = settings.pop("generator", None) or costly(texts)
    if "profile" not in settings:
        settings = {"mode": "guardrail", "schedule": [2, 2, 2]} | settings
    return BestOfMiniN(generator=generator, reward_model=FakeRewardModel(float), **settings)


@pytest.mark.filterwarnings("ignore:uncalibrated")
class TestRequests:
    @pytest.mark.parametrize(("tokens", "draws"), [(1, 2), (30, 2), (31, 4), (60, 4), (61, 6), (10**6, 6)])
    async def test_no_loop_begins_once_the_tokens_are_spent(self, tokens, draws):
        result = await guard(budget=tokens).arun("question")
        assert (result.decision, result.draws) == ("abstained", draws)
        assert result.reason == ("budget_spent" if draws == 6 else "budget")

    async def test_money_is_counted_with_the_price_of_each_kind_of_token(self):
        budget = Budget(money=0.00013, input_price=2.0, output_price=3.0)  # a draw costs 35 millionths
        result = await guard(budget=budget).arun("question")
        assert (result.reason, result.draws) == ("budget", 4)

    async def test_an_accelerator_serves_the_best_so_far(self):
        result = await guard(["-3", "-1", "5"], mode="accelerator", budget=1).arun("question")
        assert (result.decision, result.reason, result.message.content) == ("best_effort", "budget", "-1")

    async def test_what_passed_with_the_last_token_is_served(self):
        result = await guard(["-1", "1"], budget=1).arun("question")
        assert (result.decision, result.reason) == ("accepted", "passed")

    async def test_failed_draws_cost_nothing_that_is_known(self):
        usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        answers = [ValueError("down"), AIMessage("-1", usage_metadata=usage)]
        assert (await guard(generator=FakeGenerator(answers), budget=16).arun("question")).draws == 4

    async def test_a_generator_that_reports_no_tokens_is_told_about(self, caplog):
        result = await guard(generator=FakeGenerator(["-1"]), budget=1).arun("question")
        assert result.draws == 6
        assert "reports no tokens" in caplog.text

    async def test_so_is_one_whose_judge_alone_reports_tokens(self, caplog):
        def session(messages):
            judged = FakeRewardModel(float).session(messages)
            judged.spent = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
            return judged

        scorer = SimpleNamespace(session=session, has_zero=True)
        result = await BestOfMiniN(generator=FakeGenerator(["-1"]), reward_model=scorer, schedule=[2, 2, 2], budget=1).arun("q")
        assert (result.draws, result.usage["total_tokens"]) == (6, 15)
        assert "reports no tokens" in caplog.text

    async def test_the_chat_model_takes_a_budget_too(self):
        model = ChatBestOfMiniN(
            generator=costly(["-1"]), reward_model=FakeRewardModel(float), schedule=[2, 2], budget=1, on_abstain="message"
        )
        assert (await model.ainvoke("question")).response_metadata["bonmini_guard"]["reason"] == "budget"

    async def test_a_floor_for_hopeless_requests_keeps_its_reason(self):
        profile = GuardProfile(**PROFILE, risk="served_and_bad", hopeless=[0.0, None])
        assert (await guard(profile=profile, budget=1).arun("question")).reason == "hopeless"


def test_the_rule_reads_nothing_but_the_state():
    budget = Budget(tokens=10)
    assert budget(State()) is None
    assert budget(State(loops=1, tokens=(4, 5))) is None
    assert budget(State(loops=1, tokens=(4, 6))).reason == "budget"


def test_a_budget_only_adds_abstentions():
    source = random.Random(1)
    plain, limited = guardrail([2, 2, 2]), guardrail([2, 2, 2], stop=Budget(tokens=30))
    changed = 0
    for _ in range(300):
        loops = [[source.gauss(-1, 1) for _ in range(2)] for _ in range(3)]
        with_, without = outcome(limited, loops), outcome(plain, loops)
        assert with_ == without or with_ is None
        changed += with_ != without
    assert changed > 20


def outcome(policy: Policy, loops):
    state = State()
    while (decision := policy.decide(state)).action is Action.DRAW:
        state = policy.observe(state, loops[state.loops], tokens=(10, 10))
    return decision.index if decision.action is Action.SERVE else None


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "needs tokens="),
        ({"tokens": -1}, "numbers of 0 or more"),
        ({"tokens": "1000"}, "numbers of 0 or more"),
        ({"money": float("nan"), "input_price": 1}, "numbers of 0 or more"),
        ({"money": 1}, "needs input_price="),
    ],
)
def test_a_wrong_budget_is_refused(settings, problem):
    with pytest.raises(ConfigurationError, match=problem):
        Budget(**settings)


@pytest.mark.parametrize("risk", ["bad_among_served", "false_acceptance"])
def test_profiles_whose_promise_a_budget_breaks_are_refused(risk):
    profile = GuardProfile(**PROFILE, risk=risk)
    with pytest.raises(ProfileError, match=f"promises risk {risk}.*drop budget="):
        guard(profile=profile, budget=100)
    with pytest.warns(UserWarning, match="drop budget="):
        guard(profile=profile, budget=100, strict=False)


def test_profiles_whose_promise_a_budget_keeps_are_taken():
    guard(profile=GuardProfile(**PROFILE, risk="served_and_bad"), budget=100)
    guard(profile=GuardProfile(mode="guardrail", schedule=[2], thresholds=[0.0]), budget=100)
    accelerator = GuardProfile(mode="accelerator", schedule=[2], thresholds=[0.0], epsilon=0.01)
    with pytest.raises(ProfileError, match="quality near best-of-N"):
        guard(profile=accelerator, budget=100)
