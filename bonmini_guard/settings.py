"""From constructor arguments to a policy, with every combination checked once."""

from __future__ import annotations

import numbers
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bonmini_guard.budget import Budget
from bonmini_guard.errors import ConfigurationError, ProfileError
from bonmini_guard.policy import Policy, spread
from bonmini_guard.profile import GuardProfile, ScoreTransform

DEFAULT_MINI_N = 4
DEFAULT_MAX_LOOPS = 8


def load_profile(profile: str | os.PathLike[str] | GuardProfile | None) -> GuardProfile | None:
    """A profile from its path, or as it is.

    Raises:
        ConfigurationError: it is neither a path nor a profile.
        ProfileError: the file is missing or malformed.
    """
    if profile is None or isinstance(profile, GuardProfile):
        return profile
    if not isinstance(profile, str | os.PathLike):
        raise ConfigurationError(f"profile is a {type(profile).__name__}: pass a path or a GuardProfile")
    return GuardProfile.load(profile)


def has_zero(scorer: Any, profile: GuardProfile | None) -> bool:
    """Whether score 0 is the outside option: the model's own zero, or the one a profile has fitted to it."""
    return getattr(scorer, "has_zero", True) or (profile is not None and profile.score_transform != ScoreTransform())


def profile_name(profile: str | os.PathLike[str] | GuardProfile | None) -> str | None:
    """What a record calls a profile: its file name, or the promise it makes."""
    if profile is None:
        return None
    if isinstance(profile, GuardProfile):
        return f"{profile.mode}:{profile.risk}<={profile.alpha:g}" if profile.risk and profile.alpha is not None else profile.mode
    return os.path.basename(os.fspath(profile))


def build_policy(profile: GuardProfile | None, shape: dict[str, Any]) -> Policy:
    """The policy of a profile, or of the arguments mode, mini_n, max_loops, schedule, threshold and exit.

    Args:
        profile: a loaded profile, or None.
        shape: those six arguments; None stands for "not given".

    Raises:
        ConfigurationError: both are given, or the arguments are wrong or contradict each other.
    """
    given = [name for name, value in shape.items() if value is not None]
    if profile is not None:
        if given:
            them = "it" if len(given) == 1 else "them"
            raise ConfigurationError(f"profile= fixes {', '.join(given)} already: drop {them}, or the profile")
        return profile.policy()
    schedule = build_schedule(shape["schedule"], shape["mini_n"], shape["max_loops"])
    thresholds = _build_thresholds(shape["threshold"], len(schedule))
    mode: Any = "guardrail" if shape["mode"] is None else shape["mode"]
    exit_: Any = "loop" if shape["exit"] is None else shape["exit"]
    try:
        return Policy(mode, schedule, thresholds, exit_)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from error


def _build_thresholds(threshold: Any, loops: int) -> tuple[float, ...]:
    if threshold is None:
        return (0.0,) * loops
    try:
        return (float(threshold),) * loops if isinstance(threshold, numbers.Real) else spread(threshold, loops)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"threshold {threshold!r} must be a number, or a list of one number for each loop") from error


def build_schedule(schedule: Sequence[int] | None, mini_n: int | None, max_loops: int | None) -> tuple[int, ...]:
    """The schedule, or ``mini_n`` draws in each of ``max_loops`` loops.

    Raises:
        ConfigurationError: both ways are used, or a number is not a positive integer.
    """
    if schedule is not None:
        if mini_n is not None or max_loops is not None:
            raise ConfigurationError("give either schedule=, or mini_n= and max_loops=, not both")
        if isinstance(schedule, str) or not isinstance(schedule, Sequence):
            raise ConfigurationError(f"schedule {schedule!r} must be a list of draws for each loop, e.g. [4, 4, 4, 4]")
        return tuple(schedule)
    mini_n = DEFAULT_MINI_N if mini_n is None else mini_n
    max_loops = DEFAULT_MAX_LOOPS if max_loops is None else max_loops
    for name, value in (("mini_n", mini_n), ("max_loops", max_loops)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name} must be a positive integer, not {value!r}")
    return (mini_n,) * max_loops


def with_budget(policy: Policy, budget: int | Budget | None, profile: GuardProfile | None, strict: bool) -> Policy:
    """The policy with a budget of tokens or money for each request.

    It only adds abstentions, so the promise of ``served_and_bad`` holds with it. A share among the served, or among those of
    one kind, may rise when others drop out: such profiles are refused.

    Raises:
        ConfigurationError: the budget is out of range.
        ProfileError: the profile's promise does not hold under a budget (a warning with ``strict=False``).
    """
    if budget is None:
        return policy
    rule = budget if isinstance(budget, Budget) else Budget(tokens=budget)
    if profile is not None and (profile.risk or profile.epsilon is not None) and profile.risk != "served_and_bad":
        _refuse_budget(profile, strict)
    return replace(policy, stop=policy.stop | rule if policy.stop else rule)


def _refuse_budget(profile: GuardProfile, strict: bool) -> None:
    promise = f"risk {profile.risk}" if profile.mode == "guardrail" else "quality near best-of-N"
    problem = (
        f"the profile promises {promise} for requests that end as calibrated, and a budget ends some of them earlier: "
        "drop budget=, calibrate for served_and_bad, or pass strict=False to go on without the promise"
    )
    if strict:
        raise ProfileError(problem)
    warnings.warn(problem, UserWarning, stacklevel=5)


def check_parts(policy: Policy, profile: GuardProfile | None, generator: Any, scorer: Any, strict: bool) -> None:
    """Refuse parts that cannot keep the promise; warn about a threshold nobody calibrated.

    Raises:
        ConfigurationError: the generator cannot sample, the scorer is not what it claims to be, or a model without a zero would
            guard without a profile.
        ProfileError: the profile was calibrated for other parts (a warning with ``strict=False``).
    """
    if callable(getattr(scorer, "check", None)):
        scorer.check()
    if policy.budget > 1 and getattr(generator, "deterministic", False):
        raise ConfigurationError(
            f"the generator is deterministic (temperature 0), so {policy.budget} draws would be one answer {policy.budget} times: "
            "set a positive temperature, or mini_n=1 and max_loops=1"
        )
    if profile is not None:
        check_fingerprints(profile, {"reward_model": scorer, "generator": generator}, strict)
        return
    if not getattr(scorer, "has_zero", True):
        _check_without_zero(policy)
    warnings.warn(
        f"uncalibrated: threshold {policy.thresholds[0]:g} promises nothing on your traffic; "
        "write a profile with 'bonmini-guard calibrate'",
        UserWarning,
        stacklevel=4,
    )


def _check_without_zero(policy: Policy) -> None:
    problem = (
        "this reward model was trained on pairs only (Bradley-Terry): its scores have no zero, so no threshold on them means "
        "'acceptable'; calibrate a profile, or train with an outside option ('bonmini-guard train')"
    )
    if policy.mode == "guardrail":
        raise ConfigurationError(problem)
    warnings.warn(problem, UserWarning, stacklevel=5)


def check_fingerprints(profile: GuardProfile, parts: dict[str, Any], strict: bool) -> None:
    """Refuse a profile that was calibrated for other parts than those named.

    Raises:
        ProfileError: a fingerprint differs, or there is none to compare (a warning with ``strict=False``).
    """
    for name, part in parts.items():
        expected = profile.fingerprints.get(name)
        if expected is None:
            continue
        actual = part.fingerprint() if callable(getattr(part, "fingerprint", None)) else None
        agrees = getattr(part, "agrees_with", None)
        if actual == expected or (callable(agrees) and isinstance(expected, str) and agrees(expected)):
            continue
        found = "cannot be compared: it has no fingerprint" if actual is None else f"has fingerprint {actual}"
        problem = (
            f"the profile was calibrated with {name} {expected}, the guard's {found}; its promise does not hold here. "
            "Recalibrate, or pass strict=False to go on without the promise"
        )
        if strict:
            raise ProfileError(problem)
        warnings.warn(problem, UserWarning, stacklevel=5)
