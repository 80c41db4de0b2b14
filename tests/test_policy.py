"""The policy's promises, as properties over random scores, schedules and thresholds."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonmini_guard.policy.policy import (
    Action,
    BelowFloor,
    Decision,
    Never,
    Policy,
    State,
    Stop,
    StopRule,
    accelerator,
    best_of_n,
    guardrail,
)

scores = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.integers(-3, 3).map(float))
schedules = st.lists(st.integers(1, 5), min_size=1, max_size=5)
levels = st.one_of(st.integers(-3, 3).map(float), st.just(math.inf), st.just(-math.inf))


@st.composite
def runs(draw, mode=None, floors=True):
    """A policy and a score for every draw of its budget."""
    schedule = draw(schedules)
    thresholds = draw(st.lists(levels, min_size=len(schedule), max_size=len(schedule)))
    mode = mode or draw(st.sampled_from(["guardrail", "accelerator"]))
    some = st.lists(st.integers(-4, 2).map(float), min_size=len(schedule), max_size=len(schedule))
    floors = draw(st.one_of(st.none(), some)) if floors else None
    policy = Policy(mode, tuple(schedule), tuple(thresholds), stop=Never() if floors is None else BelowFloor(tuple(floors)))
    return policy, draw(st.lists(scores, min_size=policy.budget, max_size=policy.budget))


def follow(policy: Policy, values: list[float | None]) -> tuple[State, Decision]:
    """Feed the policy its draws until it decides."""
    state = State()
    while (decision := policy.decide(state)).action is Action.DRAW:
        state = policy.observe(state, values[state.drawn : state.drawn + decision.draws])
    return state, decision


def usable(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


@given(runs())
def test_never_draws_more_than_the_budget(run):
    policy, values = run
    state, _ = follow(policy, values)
    assert 0 < state.drawn <= policy.budget
    assert state.drawn == sum(policy.schedule[: state.loops])


@given(runs())
def test_accepts_only_at_or_above_the_loops_threshold(run):
    policy, values = run
    state, decision = follow(policy, values)
    if decision.accepted:
        assert decision.reason == "passed"
        assert values[decision.index] >= policy.thresholds[state.loops - 1]
    elif state.best_index is not None and state.loops == len(policy.schedule):
        assert state.best < policy.thresholds[-1]


@given(runs(mode="guardrail"))
def test_guardrail_never_serves_what_did_not_pass(run):
    policy, values = run
    _, decision = follow(policy, values)
    assert (decision.action is Action.SERVE) == decision.accepted


@given(st.lists(scores, min_size=1, max_size=20), schedules)
def test_accelerator_with_infinite_thresholds_is_best_of_n(values, schedule):
    values = list(itertools.islice(itertools.cycle(values), sum(schedule)))
    _, looped = follow(accelerator(schedule, math.inf), values)
    _, plain = follow(best_of_n(sum(schedule)), values)
    assert (looped.index, looped.action) == (plain.index, plain.action)
    finite = [score for score in values if usable(score)]
    if finite:
        assert values[plain.index] == max(finite)
        assert plain.index == values.index(max(finite))
    else:
        assert plain.action is Action.ABSTAIN
        assert plain.index is None


@given(runs())
def test_not_a_number_and_infinity_never_win(run):
    policy, values = run
    _, decision = follow(policy, values)
    if decision.index is not None:
        assert usable(values[decision.index])


@given(runs(), st.randoms(use_true_random=False))
def test_permuting_a_loops_draws_changes_nothing_but_identity(run, randomness):
    policy, values = run
    shuffled: list[float | None] = []
    for start, size in zip(itertools.accumulate(policy.schedule, initial=0), policy.schedule, strict=False):
        block = values[start : start + size]
        randomness.shuffle(block)
        shuffled += block
    (before, first), (after, second) = follow(policy, values), follow(policy, shuffled)
    assert (before.loops, before.best, first.action, first.reason, first.accepted) == (
        after.loops,
        after.best,
        second.action,
        second.reason,
        second.accepted,
    )


@given(runs())
def test_the_earliest_of_equal_scores_wins(run):
    policy, values = run
    state, decision = follow(policy, values)
    if decision.index is not None:
        assert decision.index == [v if usable(v) else None for v in values[: state.drawn]].index(state.best)


def test_a_score_equal_to_the_threshold_passes():
    _, decision = follow(guardrail([1], 0.5), [0.5])
    assert decision.accepted


def test_the_best_so_far_counts_over_all_loops():
    # 1.0 does not pass the first loop's threshold, and passes the second's, which drew nothing better.
    state, decision = follow(guardrail([1, 1], [2.0, 0.5]), [1.0, 0.0])
    assert decision.accepted
    assert (decision.index, state.loops) == (0, 2)


def test_an_abstention_names_the_best_so_far():
    _, decision = follow(guardrail([2, 2], 5.0), [1.0, 3.0, 2.0, None])
    assert decision.action is Action.ABSTAIN
    assert (decision.index, decision.reason, decision.threshold) == (1, "budget_spent", 5.0)


def test_rules_compose():
    class Tired(StopRule):
        def __call__(self, state):
            return Stop("tired") if state.loops == 2 else None

    state = State(loops=2, scores=(1.0, 2.0), best=2.0, best_index=1)
    low, tired = BelowFloor((3.0, 3.0)), Tired()
    assert (low | tired)(state) == Stop("hopeless")
    assert (BelowFloor((1.0, 1.0)) | tired)(state) == Stop("tired")
    assert Never()(state) is None


def test_what_passed_is_served_whatever_else_would_stop():
    policy = guardrail([1, 1], 0.5, stop=BelowFloor((9.0, 9.0)))
    assert policy.decide(policy.observe(State(), [0.5])).reason == "passed"
    assert policy.decide(policy.observe(State(), [0.4])).reason == "hopeless"


@pytest.mark.parametrize("reason", ["mine", "passed"])
def test_a_stop_rule_of_the_users_cannot_accept(reason):
    class Eager(StopRule):
        def __call__(self, state):
            return Stop(reason) if state.loops else None

    policy = guardrail([1, 1], 5.0, stop=Eager())
    decision = policy.decide(policy.observe(State(), [1.0]))
    assert (decision.action, decision.reason) == (Action.ABSTAIN, reason)


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (("watchdog", (4,), (0.0,)), "use 'guardrail' or 'accelerator'"),
        (("guardrail", (), ()), "at least one loop"),
        (("guardrail", (4, 0), (0.0, 0.0)), "1 or more draws"),
        (("guardrail", (4, True), (0.0, 0.0)), "1 or more draws"),
        (("guardrail", (4, 4), (0.0,)), "one for each loop"),
        (("guardrail", (4,), (math.nan,)), "infinity to never exit"),
        (("guardrail", (4,), (0.0,), "sometimes"), "'loop', 'eager' or 'rolling'"),
        (("guardrail", (4,), (0.0,), "rolling"), "must list ones"),
    ],
)
def test_malformed_policies_name_the_cure(arguments, cure):
    with pytest.raises(ValueError, match=cure):
        Policy(*arguments)


def test_a_loop_must_bring_its_scores():
    with pytest.raises(ValueError, match="cannot take 1 scores"):
        guardrail([2]).observe(State(), [1.0])
