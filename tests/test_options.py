"""The options are written once: every face takes them, mypy knows them, and a misspelt one names the right one."""

from __future__ import annotations

import asyncio
import copy
from typing import get_type_hints

import pytest
from langchain_core.runnables import ConfigurableField

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.reward import declared
from bonmini_guard.runnables.options import DEFAULTS, CommonOptions, GuardOptions
from bonmini_guard.testing import FakeChatModel, FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")
FACES = [BestOfMiniN, ChatBestOfMiniN]


def make(face, **options):
    return face(generator=FakeGenerator(["bad", "good"]), reward_model=FakeRewardModel({"bad": -1.0, "good": 2.0}), **options)


def test_every_option_has_a_default_and_is_described():
    assert set(get_type_hints(GuardOptions)) == set(DEFAULTS)
    described = (CommonOptions.__doc__ or "") + (GuardOptions.__doc__ or "")
    assert [name for name in DEFAULTS if f"{name}:" not in described] == []


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("wrong", "right"), [({"mod": "guardrail"}, "mode"), ({"treshold": 1.0}, "threshold"), ({"onabstain": "error"}, "on_abstain")]
)
def test_a_misspelt_option_names_the_right_one(face, wrong, right):
    with pytest.raises(ConfigurationError, match=f"did you mean '{right}'"):
        make(face, **wrong)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"budget": "1000"}, "budget must be an integer of 0 or more, not '1000'"),
        ({"reload": "yes", "profile": "p.json"}, "reload must be a number of 0 or more, not 'yes'"),
        ({"on_explored": 5}, "on_explored must be a callable, not 5"),
    ],
)
def test_a_value_of_another_kind_is_refused_when_the_guard_is_made(face, wrong, right):
    with pytest.raises(ConfigurationError, match=right):
        make(face, **wrong)


@pytest.mark.parametrize("face", FACES)
def test_misspelt_and_missing_parts_are_named(face):
    with pytest.raises(ConfigurationError, match="did you mean 'generator'"):
        face(generater=FakeGenerator(["a"]), reward_model=FakeRewardModel({}))
    with pytest.raises(ConfigurationError, match="reward_model= is missing"):
        face(generator=FakeGenerator(["a"]))


def test_the_middleware_takes_them_too():
    agents = pytest.importorskip("bonmini_guard.adapters.agents")
    with pytest.raises(ConfigurationError, match="did you mean 'explore'"):
        agents.BestOfMiniNMiddleware(reward_model=FakeRewardModel({}), explor=0.5)


@pytest.mark.parametrize("face", FACES)
def test_a_copy_with_other_options_decides_by_them_and_shares_the_limit(face):
    limiter = Limiter(3)
    model = make(face, mini_n=2, max_loops=2, max_concurrency=limiter, on_abstain="message", abstain_message="no")
    stricter = model.model_copy(update={"threshold": 9.0})
    assert (model.invoke("q").content, stricter.invoke("q").content) == ("good", "no")
    assert stricter.guard.engine.limiter is limiter
    assert (model.threshold, stricter.threshold, stricter.mini_n) == (None, 9.0, 2)
    with pytest.raises(ConfigurationError, match="did you mean 'threshold'"):
        model.model_copy(update={"treshold": 9.0})


@pytest.mark.parametrize("face", FACES)
def test_a_reward_model_is_loaded_once_whoever_copies_or_configures_its_guard(face, monkeypatch):
    loaded, judge = [], FakeRewardModel({"good": 2.0})
    monkeypatch.setattr(declared, "load_scorer", lambda source: loaded.append(source) or judge)
    model = face(generator=FakeGenerator(["good"]), reward_model="my-reward-model", schedule=[1])
    configured = model.configurable_fields(threshold=ConfigurableField(id="threshold"))
    answers = [configured.invoke("q", {"configurable": {"threshold": level}}) for level in (0.5, 1.0)]
    answers.append(model.model_copy(update={"threshold": 1.5}).invoke("q"))
    assert [answer.response_metadata["bonmini_guard"]["threshold"] for answer in answers] == [0.5, 1.0, 1.5]
    assert loaded == ["my-reward-model"]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("sync", [True, False])
async def test_what_limits_counts_and_waits_is_one_for_all_calls_that_configure_a_guard(face, sync):
    explored, judge = [], FakeRewardModel({"good": 2.0})
    asked = {"generator": FakeChatModel(["good"]), "reward_model": judge, "schedule": [1, 1], "exit": "eager"}
    model = face(**asked, explore=1.0, on_explored=explored.append, on_abstain=FakeChatModel(["instead"]))
    configured = model.configurable_fields(threshold=ConfigurableField(id="threshold"))
    for level in (0.5, 1.0):
        config = {"configurable": {"threshold": level}}
        await (asyncio.to_thread(configured.invoke, "q", config) if sync else configured.ainvoke("q", config))
    guards = [model.guard, *(configured.prepare({"configurable": {"threshold": level}})[0].guard for level in (0.5, 1.0))]
    assert [guard.engine.policy.thresholds[0] for guard in guards] == [0.0, 0.5, 1.0]
    await model.guard.afinish()
    assert (len(explored), model.guard.exploration.explored) == (2, 2)
    shared = [(guard.engine.generator, guard.engine.quarantine, guard.engine.load, guard.explorer, guard._says) for guard in guards]
    assert all(one is other for parts in shared for one, other in zip(parts, shared[0], strict=True))
    apart = model.model_copy(update={"generator": FakeChatModel(["good"]), "explore": 0.5}).guard
    shared = [(guard.engine.generator, guard.engine.quarantine, guard.explorer) for guard in (apart, model.guard)]
    assert all(one is not other for one, other in zip(*shared, strict=True))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("copied", [lambda face: face.model_copy(), lambda face: face.model_copy(deep=True), copy.copy])
def test_a_plain_copy_shares_its_parts(face, copied):
    model = make(face)
    assert copied(model).guard is model.guard
