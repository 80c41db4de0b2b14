"""The stopping procedure is one: the live engine and calibration's arrays do what ``policy.run`` does, on random policies."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from bonmini_guard.calibration.orders import order_of
from bonmini_guard.calibration.paths import exits, paths
from bonmini_guard.engine import outages
from bonmini_guard.engine.engine import Engine
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.errors import GenerationError
from bonmini_guard.policy.budget import Budget
from bonmini_guard.policy.policy import Action, BelowFloor, Never, Policy, arrival_order, guardrail, run
from bonmini_guard.reward.declared import as_scorer
from bonmini_guard.testing import FakeGenerator, FakeRewardModel
from tests.calibration.helpers import log_of
from tests.test_policy import runs
from tests.test_policy import scores as scores_of_draws

PROMPT = [HumanMessage("p")]


async def live(policy, scores, seconds):
    """The live engine on given scores; None is a draw that fails."""
    answers = [RuntimeError("lost") if score is None else str(index) for index, score in enumerate(scores)]
    scorer = FakeRewardModel(lambda text: scores[int(text)])
    return await Engine(FakeGenerator(answers, seconds), scorer, policy).run(PROMPT, seed=0)


@settings(max_examples=200, deadline=None)
@given(runs(), st.booleans())
def test_the_live_engine_does_what_run_does(policy_and_scores, eager):
    policy, scores = policy_and_scores
    policy = dataclasses.replace(policy, exit="eager" if eager else "loop")
    ran = run(policy, scores)
    lost = "".join("x" if score is None else "." for score in scores[: ran.draws])
    assume("x" * outages.MOST_IN_A_ROW not in lost)  # there the engine gives up: an outage, which no policy knows
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outages, "FIRST_PAUSE", 0.0)
            result = asyncio.run(live(policy, scores, 0.0))
    except GenerationError:
        assert ran.decision.action is not Action.SERVE
        assert all(score is None for score in scores[: ran.draws])
        return
    selected = ran.decision.index
    if selected is None:
        assert result.reason == "scorer_failed"
        return
    assert (result.draws, result.loops) == (ran.draws, ran.loops)
    failures = ran.decision.reason == "budget_spent" and result.decision == "abstained" and 2 * lost.count("x") >= ran.draws
    reason = "generator_failed" if failures else ran.decision.reason
    assert (result.selected.index, result.reason, result.threshold) == (selected, reason, ran.decision.threshold)
    assert (result.served, result.decision == "accepted") == (ran.decision.action is Action.SERVE, ran.decision.accepted)


def test_an_eager_exit_takes_the_draw_that_takes_the_shortest():
    policy = dataclasses.replace(guardrail([1, 3]), exit="eager")
    scores, seconds = [-1.0, 1.0, 2.0, -3.0], [0.0, 0.3, 0.05, 0.0]
    ran = run(policy, scores, seconds)
    assert (ran.decision.index, ran.draws, ran.loops) == (2, 4, 2)
    assert asyncio.run(live(policy, scores, seconds.__getitem__)).selected.index == 2
    assert run(policy, scores).decision.index == 1


class Groups(FakeGenerator):
    """Draws a whole batch at once."""

    async def draw_group(self, requests):
        for future in asyncio.as_completed([self._one(position, request) for position, request in enumerate(requests)]):
            yield await future

    async def _one(self, position, request):
        try:
            return position, await self.draw(request)
        except RuntimeError as error:
            return position, error


def record(policy, scores, seconds, lookahead=0, limit=None, grouped=False):
    """All that a request leaves behind but its times, and what was started of it."""
    answers = [RuntimeError("lost") if score is None else str(index) for index, score in enumerate(scores)]
    generator = (Groups if grouped else FakeGenerator)(answers, seconds.__getitem__)
    scorer = FakeRewardModel(lambda text: scores[int(text)])
    engine = Engine(generator, scorer, policy, limiter=None if limit is None else Limiter(limit), lookahead=lookahead)
    try:
        result = asyncio.run(engine.run(PROMPT, seed=0))
    except GenerationError as error:
        return str(error), None, generator
    draws = [(c.index, c.loop, c.seed, c.message and c.message.text, repr(c.error)) for c in result.candidates]
    numbers = [(c.raw_score, c.score) for c in result.candidates]
    selected = None if result.selected is None else result.selected.index
    about = {key: value for key, value in result.metadata().items() if key != "draws_started"}
    return repr((draws, numbers, selected, result.loops, result.reason, about)), result, generator


@settings(max_examples=150, deadline=None)
@given(runs(), st.data(), st.integers(1, 12), st.sampled_from([None, 1, 3]), st.booleans())
def test_lookahead_changes_no_decision_and_no_record(policy_and_scores, data, lookahead, limit, grouped):
    policy, scores = policy_and_scores
    seconds = data.draw(st.lists(st.sampled_from([0.0, 0.001, 0.003]), min_size=policy.budget, max_size=policy.budget))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outages, "FIRST_PAUSE", 0.0)
        plain, before, _ = record(policy, scores, seconds, 0, limit, grouped)
        ahead, after, generator = record(policy, scores, seconds, lookahead, limit, grouped)
    assert ahead == plain
    if after is not None:
        assert before.draws_started == before.draws == after.draws <= after.draws_started <= policy.budget
        asked = sorted(request.index for request in generator.requests)
        assert asked == list(range(len(asked)))
        assert after.draws <= len(asked) <= after.draws_started


class Jumping(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self):
        super().__init__()
        self.now, wait = 0.0, self._selector.select

        def select(timeout=None):
            self.now += timeout or 0.0
            return wait(0)

        self._selector.select = select

    def time(self):
        return self.now


def rolled(policy, answers, scores, seconds, in_flight):
    generator = FakeGenerator(answers, seconds.__getitem__)
    engine = Engine(generator, FakeRewardModel(lambda text: scores[int(text)]), policy, in_flight=(in_flight,))
    with asyncio.Runner(loop_factory=Jumping) as runner:
        return runner.run(engine.run(PROMPT, seed=0)), generator


def test_a_slow_scorer_changes_no_order_of_arrival():
    """As docs/calibration.md says: the certificate takes scoring to need no time."""
    seconds = [1.0, 12.0, 2.0, 2.0, 2.0, 2.0]

    async def score(messages, candidates):
        await asyncio.sleep(5.0)
        return [-1.0] * len(candidates)

    policy = Policy("guardrail", (1,) * 6, (0.0,) * 6, "rolling")
    generator = FakeGenerator(list("012345"), seconds.__getitem__)
    engine = Engine(generator, as_scorer(score), policy, in_flight=(2,))
    with asyncio.Runner(loop_factory=Jumping) as runner:
        result = runner.run(engine.run(PROMPT, seed=0))
    assert [candidate.index for candidate in result.candidates] == arrival_order(seconds, 2) == [0, 2, 3, 4, 5, 1]


@st.composite
def rolling(draw):
    """A rolling policy, a score for each draw and how long it takes, and draws in flight."""
    policy, values = draw(runs())
    draws = policy.budget
    varied = tuple(policy.thresholds[at % len(policy.thresholds)] for at in range(draws))
    levels = draw(st.sampled_from([varied, varied[:1] * draws]))
    stop = draw(st.sampled_from([Never(), BelowFloor((-3.0,) * draws)]))
    source = random.Random(draw(st.integers(0, 1000)))  # no two arrive at the same moment
    seconds = [source.uniform(0.5, 1.5) for _ in values]
    return Policy(policy.mode, (1,) * draws, levels, "rolling", stop), values, seconds, draw(st.integers(1, 9))


@settings(max_examples=100, deadline=None)
@given(rolling())
def test_a_rolling_request_does_what_run_does_on_scores_in_order_of_arrival(case):
    policy, scores, seconds, in_flight = case
    scores = [-9.0 if score is None else score for score in scores]
    result, generator = rolled(policy, [str(index) for index in range(len(scores))], scores, seconds, in_flight)
    ran = run(policy, scores, seconds, in_flight=in_flight)
    if ran.decision.index is None:
        assert result.reason == "scorer_failed"
        return
    arrived = [candidate.index for candidate in result.candidates]
    assert arrived == list(ran.order) == arrival_order(seconds, in_flight)[: ran.draws]
    assert run(policy, [scores[index] for index in arrived] + [None] * policy.budget).decision.reason == ran.decision.reason
    decision = ran.decision
    assert (result.selected.index, result.reason, result.threshold) == (decision.index, decision.reason, decision.threshold)
    assert (result.served, result.decision == "accepted") == (ran.decision.action is Action.SERVE, ran.decision.accepted)
    assert (result.draws, result.loops) == (ran.draws, ran.loops)
    assert result.draws_started == len(generator.requests) == min(policy.budget, ran.draws + in_flight - 1)


@settings(max_examples=100, deadline=None)
@given(rolling())
@example((Policy("guardrail", (1,) * 6, (0.0,) * 6, "rolling"), [None] * 2 + [-1.0] * 4, [1.0, 1.5, 5.0, 1.1, 1.2, 1.3], 2))
def test_draws_that_fail_change_no_decision_and_the_order_as_run_does(case):
    policy, scores, seconds, in_flight = case
    # Every third one that fails has an answer, which could not be scored.
    answers = [RuntimeError("lost") if score is None and index % 3 else str(index) for index, score in enumerate(scores)]
    try:
        result, _ = rolled(policy, answers, scores, seconds, in_flight)
    except GenerationError:
        return
    arrived = [candidate.index for candidate in result.candidates]
    ran = run(policy, [scores[index] for index in arrived] + [None] * (policy.budget - len(arrived)))
    assert result.draws_started <= min(policy.budget, len(arrived) + in_flight - 1)
    failed = [index for index, score in enumerate(scores) if score is None]
    assert arrived == arrival_order(seconds, in_flight, failed)[: len(arrived)]
    nan = [math.nan if score is None else score for score in scores]
    assert run(policy, nan, seconds, in_flight=in_flight).order == run(policy, scores, seconds, in_flight=in_flight).order
    if result.reason in ("generator_failed", "scorer_failed"):
        return
    assert (ran.draws, ran.decision.reason) == (len(arrived), result.reason)
    assert arrived[ran.decision.index] == result.selected.index


def test_a_budget_counts_the_tokens_of_each_loop():
    ran = run(guardrail([1, 1, 1], 5.0, stop=Budget(tokens=25)), [0.0] * 3, tokens=[(10, 3)] * 3)
    assert (ran.decision.reason, ran.draws) == ("budget", 2)


@given(runs(mode="guardrail", floors=False), st.data())
def test_arrays_over_a_log_exit_where_run_does(policy_and_scores, data):
    policy, first = policy_and_scores
    others = st.lists(st.lists(scores_of_draws, min_size=policy.budget, max_size=policy.budget), max_size=6)
    rows = [
        [math.nan if score is None or not math.isfinite(score) else score for score in row] for row in (first, *data.draw(others))
    ]
    log = log_of(rows, [[1.0] * policy.budget] * len(rows))
    path, order = paths(log, policy.schedule), order_of(log)
    for row, exited, holders, places in zip(rows, exits(path, policy.thresholds), path.holder, order, strict=True):
        ran = run(policy, [row[place] for place in places])
        assert exited == (ran.loops - 1 if ran.decision.accepted else len(policy.schedule))
        if ran.decision.accepted:
            assert holders[exited] == places[ran.decision.index]
