"""Bad input: every wrong argument, part or combination is one clear typed error; warnings point at the caller."""

from __future__ import annotations

import math
import re

import pytest
from langchain_core.language_models import FakeListChatModel

from bonmini_guard import BestOfMiniN, GuardProfile, RewardModel
from bonmini_guard.errors import BonMiniGuardError, CheckpointError, ConfigurationError, ProfileError
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

quiet = pytest.mark.filterwarnings("ignore:uncalibrated")
ROLLING = GuardProfile(mode="guardrail", schedule=(1,) * 4, thresholds=(0.0,) * 4, exit="rolling", in_flight=(2, 8))
PROFILE = GuardProfile(mode="guardrail", schedule=(2, 2), thresholds=(1.0, 0.5))


class Tempered(FakeListChatModel):
    temperature: float = 1.0


def make(**settings):
    parts = {"generator": FakeGenerator(["good"]), "reward_model": FakeRewardModel({"good": 2.0})}
    return BestOfMiniN(**{**parts, **settings})


def greedy():
    generator = FakeGenerator(["good"])
    generator.deterministic = True
    return generator


@quiet
@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ({"schedule": []}, "at least one loop"),
        ({"schedule": [4, 0]}, "1 or more draws"),
        ({"schedule": [4, -1]}, "1 or more draws"),
        ({"schedule": [2.5]}, "1 or more draws"),
        ({"schedule": "4,4"}, "list of draws"),
        ({"schedule": 4}, "list of draws"),
        ({"schedule": [4], "mini_n": 4}, "not both"),
        ({"schedule": [4], "max_loops": 4}, "not both"),
        ({"mini_n": 0}, "mini_n must be a positive integer"),
        ({"max_loops": -1}, "max_loops must be a positive integer"),
        ({"mini_n": True}, "mini_n must be a positive integer"),
        ({"mini_n": 2.0}, "mini_n must be a positive integer"),
        ({"max_loops": 2**63 - 1}, "max_loops must be a positive integer of at most 1,000,000"),
        ({"max_draws": 2**70}, "max_draws must be a positive integer of at most 1,000,000"),
        ({"mode": "watchdog"}, "must be 'guardrail' or 'accelerator'"),
        ({"mode": ""}, "must be 'guardrail' or 'accelerator'"),
        ({"exit": "sometimes"}, "must be 'loop', 'eager' or 'rolling'"),
        ({"exit": "rolling", "schedule": [4]}, "takes max_draws="),
        ({"in_flight": 4, "mini_n": 4}, "takes max_draws="),
        ({"exit": "eager", "max_draws": 8}, "use exit='rolling'"),
        ({"in_flight": "wide"}, "a positive integer or 'auto'"),
        ({"profile": PROFILE, "in_flight": 4}, "calibrated for exit 'loop'"),
        ({"profile": ROLLING, "in_flight": 4}, "calibrated for in_flight 2, 8"),
        ({"profile": ROLLING, "max_draws": 4}, "fixes max_draws already"),
        ({"in_flight": 4, "lookahead": 4}, "lookahead= is for exit='loop'"),
        ({"threshold": math.nan}, "NaN"),
        ({"threshold": [0.0], "max_loops": 2}, "one for each loop"),
        ({"threshold": "high"}, "must be a number"),
        ({"threshold": [True, False], "max_loops": 2}, "must be a number"),
        ({"threshold": 10**400}, "must be a number"),
        ({"timeout": 10**400}, "timeout must be a positive"),
        ({"profile": PROFILE, "mode": "guardrail"}, "fixes mode already"),
        ({"profile": PROFILE, "mini_n": 4, "threshold": 0.0}, "fixes mini_n, threshold already"),
        ({"profile": PROFILE, "exit": "loop"}, "fixes exit already"),
        ({"profile": PROFILE, "schedule": [4]}, "fixes schedule already"),
        ({"profile": {"mode": "guardrail"}}, "a path or a GuardProfile"),
        ({"generator": None}, "pass a LangChain chat model"),
        ({"generator": "gpt"}, "pass a LangChain chat model"),
        ({"reward_model": None}, "pass RewardModel.load"),
        ({"reward_model": "some/model"}, "neither a folder here"),
        ({"generator": greedy()}, "temperature 0"),
        ({"generator": Tempered(responses=["a"], temperature=0)}, "temperature 0"),
        ({"generator": Tempered(responses=["a"]).bind(temperature=0)}, "temperature 0"),
        ({"timeout": 0}, "timeout must be a positive"),
        ({"timeout": -1.0}, "timeout must be a positive"),
        ({"timeout": "soon"}, "timeout"),
        ({"max_concurrency": 0}, "max_concurrency must be a positive integer"),
        ({"explore": 1.5}, "between 0 and 1"),
        ({"explore": math.nan}, "between 0 and 1"),
        ({"on_abstain": "shrug"}, "'error', 'message', a Runnable or a callable"),
        ({"on_abstain": None}, "'error', 'message', a Runnable or a callable"),
        ({"treshold": 1.0}, "treshold"),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+|0{9,}", "", str(value)),  # the same at every run
)
def test_a_wrong_argument_is_a_configuration_error_that_names_the_cure(settings, cure):
    with pytest.raises(ConfigurationError, match=cure) as caught:
        make(**settings)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, BonMiniGuardError)


@quiet
def test_temperature_zero_is_fine_for_a_single_draw():
    assert make(generator=greedy(), schedule=[1]).run("q").draws == 1


@quiet
def test_defaults_are_a_guardrail_of_eight_loops_of_four_at_zero():
    policy = make().guard.engine.policy
    assert (policy.mode, policy.schedule, policy.thresholds, policy.exit) == ("guardrail", (4,) * 8, (0.0,) * 8, "loop")


@pytest.mark.parametrize("threshold", ["12", ["1", "2"]])
def test_a_text_is_no_threshold(threshold):
    """As it comes from an environment variable: of each digit one loop's threshold was made."""
    with pytest.raises(ConfigurationError, match="must be a number, or a list of one number for each loop"):
        make(mini_n=1, max_loops=2, threshold=threshold)


def test_a_rubric_is_a_text():
    with pytest.raises(ConfigurationError, match="rubric must be a text"):
        make(rubric=["It is true.", "It is short."])


def test_a_missing_profile_or_checkpoint():
    with pytest.raises(ProfileError, match="cannot read the profile"):
        make(profile="/nowhere/guardrail.json")
    with pytest.raises(CheckpointError, match="nowhere"):
        RewardModel.load("/nowhere/model")


def test_uncalibrated_is_a_warning_at_the_callers_line():
    with pytest.warns(UserWarning, match="uncalibrated: threshold 0 ") as caught:
        BestOfMiniN(generator=FakeGenerator(["good"]), reward_model=FakeRewardModel({"good": 2.0}))
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.filterwarnings("error")
def test_a_profile_without_fingerprints_warns_of_nothing():
    policy = make(profile=PROFILE).guard.engine.policy
    assert (policy.mode, policy.schedule, policy.thresholds) == ("guardrail", (2, 2), (1.0, 0.5))


# A reward model that only ranks


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_a_model_without_a_zero_accelerates_with_a_warning_and_has_no_probability():
    with pytest.warns(UserWarning, match="Bradley-Terry") as caught:
        guard = BestOfMiniN(
            generator=FakeGenerator(["good"]), reward_model=FakeRewardModel({"good": 2.0}, has_zero=False), mode="accelerator"
        )
    assert {warning.filename for warning in caught} == {__file__}
    metadata = guard.run("q").metadata()
    assert (metadata["score"], metadata["acceptance_probability"]) == (2.0, None)


@pytest.mark.parametrize(("transform", "probability"), [({}, None), ({"a": 2.0, "b": -4.0}, 0.5)])
def test_only_a_fitted_zero_gives_a_ranking_model_a_probability(transform, probability):
    profile = GuardProfile(mode="guardrail", schedule=(2,), thresholds=(-1.0,), score_transform=transform)
    guard = make(profile=profile, reward_model=FakeRewardModel({"good": 2.0}, has_zero=False))
    assert guard.run("q").acceptance_probability == probability


# Fingerprints


def profile_for(**fingerprints):
    return PROFILE.model_copy(update={"fingerprints": fingerprints})


@pytest.mark.filterwarnings("error")
def test_equal_fingerprints_are_accepted():
    make(profile=profile_for(reward_model="fake-reward-model", generator="fake-generator"))


@pytest.mark.parametrize(
    ("fingerprints", "settings"),
    [
        ({"reward_model": "sha256:other"}, {}),
        ({"generator": "other"}, {}),
        ({"reward_model": "sha256:other"}, {"reward_model": lambda messages, candidates: [0.0]}),  # cannot be compared
    ],
)
def test_other_parts_are_refused_unless_not_strict(fingerprints, settings):
    with pytest.raises(ProfileError, match="promise does not hold"):
        make(profile=profile_for(**fingerprints), **settings)
    with pytest.warns(UserWarning, match="promise does not hold"):
        make(profile=profile_for(**fingerprints), strict=False, **settings)
