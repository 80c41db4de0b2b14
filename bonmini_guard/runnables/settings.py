"""From options to a policy, with every combination checked once; what a profile promises, and does not promise here."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bonmini_guard.engine.fingerprints import compare, fingerprint_of, unknown_in
from bonmini_guard.engine.load import LADDER
from bonmini_guard.engine.protocols import NO_OPTIONS
from bonmini_guard.engine.scorers import CallableScorer
from bonmini_guard.errors import ConfigurationError, ProfileError
from bonmini_guard.policy.budget import Budget
from bonmini_guard.policy.policy import Exit, Policy, spread
from bonmini_guard.policy.profile import GuardProfile, ScoreTransform
from bonmini_guard.policy.select import SELECTIONS
from bonmini_guard.runnables.options import SHAPE, GuardOptions
from bonmini_guard.validation import Names, check

logger = logging.getLogger(__name__)

DEFAULT_MINI_N = 4
DEFAULT_MAX_LOOPS = 8

#: Differences that a message names, and characters of a fingerprint that it quotes, at most.
MOST_NAMED, MOST_TOLD = 4, 100

#: Packages between whoever builds a guard and us.
_INSIDE = ("bonmini_guard", "pydantic", "langchain_core", "langchain")


def load_profile(profile: str | os.PathLike[str] | GuardProfile | None) -> GuardProfile | None:
    """A profile from its path, or as it is."""
    if profile is None or isinstance(profile, GuardProfile):
        return profile
    if not isinstance(profile, str | os.PathLike):
        raise ConfigurationError(f"profile is a {type(profile).__name__}: pass a path or a GuardProfile")
    return GuardProfile.load(profile)


def has_zero(scorer: Any, profile: GuardProfile | None) -> bool:
    """Whether score 0 is the outside option: the model's own zero, or the one a profile has fitted to it."""
    return bool(getattr(scorer, "has_zero", None)) or (profile is not None and profile.score_transform != ScoreTransform())


def profile_name(profile: str | os.PathLike[str] | GuardProfile | None) -> str | None:
    """What a record calls a profile: its file name, or the promise it makes."""
    if profile is None:
        return None
    if isinstance(profile, GuardProfile):
        return f"{profile.mode}:{profile.risk}<={profile.alpha:g}" if profile.risk and profile.alpha is not None else profile.mode
    return os.path.basename(os.fspath(profile))


def build_policy(profile: GuardProfile | None, options: GuardOptions) -> Policy:
    """The policy of a profile, or of the options that one fixes."""
    given = [name for name in SHAPE if options.get(name) is not None]
    if profile is not None:
        if given:
            them = "it" if len(given) == 1 else "them"
            raise ConfigurationError(f"profile= fixes {', '.join(given)} already: drop {them}, or the profile")
        return profile.policy()
    exit_ = build_exit(options)
    schedule = build_schedule(options["schedule"], options["mini_n"], options["max_loops"])
    if exit_ == "rolling":
        schedule = (1,) * (options["max_draws"] or DEFAULT_MINI_N * DEFAULT_MAX_LOOPS)
    try:
        thresholds = spread(0.0 if options["threshold"] is None else options["threshold"], len(schedule))
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"threshold {options['threshold']!r} must be a number, or a list of one number for each loop"
        raise ConfigurationError(problem) from error
    try:
        return Policy(options["mode"] or "guardrail", schedule, thresholds, exit_)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from error


def build_exit(options: GuardOptions) -> Exit:
    """The exit asked for, or the one that the shape is for."""
    rolling = [name for name in ("in_flight", "max_draws") if options[name] is not None]
    loops = [name for name in ("schedule", "mini_n", "max_loops") if options[name] is not None]
    exit_ = options["exit"] or ("rolling" if rolling else "loop")
    if wrong := loops if exit_ == "rolling" else rolling:
        cure = "a rolling exit takes max_draws= and in_flight=" if exit_ == "rolling" else "use exit='rolling'"
        raise ConfigurationError(f"{wrong[0]}= does not go with exit={exit_!r}: {cure}")
    return exit_


def widths(policy: Policy, profile: GuardProfile | None, in_flight: int | str | None) -> tuple[int, ...]:
    """Draws that a rolling request may keep in flight: those that the profile was calibrated for, or the ladder, or one alone."""
    ladder = (profile.in_flight if profile is not None else None) or LADDER
    if in_flight is None or in_flight == "auto":
        return tuple(rung for rung in ladder if rung <= policy.budget) or ladder[:1]
    if profile is not None and (policy.exit != "rolling" or in_flight not in ladder):
        held = f"in_flight {', '.join(map(str, ladder))}" if policy.exit == "rolling" else f"exit {policy.exit!r}"
        raise ConfigurationError(f"the profile was calibrated for {held}: drop in_flight={in_flight}, or calibrate for it")
    return (int(in_flight),)


def build_schedule(schedule: Sequence[int] | None, mini_n: int | None, max_loops: int | None) -> tuple[int, ...]:
    """The schedule, or ``mini_n`` draws in each of ``max_loops`` loops."""
    if schedule is None:
        return (mini_n or DEFAULT_MINI_N,) * (max_loops or DEFAULT_MAX_LOOPS)
    if mini_n is not None or max_loops is not None:
        raise ConfigurationError("give either schedule=, or mini_n= and max_loops=, not both")
    if isinstance(schedule, str) or not isinstance(schedule, Sequence):
        raise ConfigurationError(f"schedule {schedule!r} must be a list of draws for each loop, e.g. [4, 4, 4, 4]")
    return tuple(schedule)


def looked_ahead(policy: Policy, lookahead: int) -> int:
    """Draws of later loops to keep running, for a policy that has later loops to decide on as wholes."""
    if lookahead and policy.exit != "loop":
        raise ConfigurationError(f"lookahead= is for exit='loop', and this guard's is {policy.exit!r}: drop one of them")
    return lookahead


def selection(policy: Policy, profile: GuardProfile | None, select: Any) -> Any:
    """What picks the draw to serve; None for the best."""
    select = SELECTIONS.get(select, select)
    if select is not None and (policy.mode == "guardrail" or policy.exit == "eager"):
        raise ConfigurationError("select= is for an accelerator, and not for exit='eager': drop it")
    if select is not None and profile is not None and profile.evidence:
        raise ConfigurationError("the profile was certified for serving the best draw: drop select=, or the profile")
    return select


def time_to_decide(policy: Policy, options: GuardOptions) -> float | None:
    """Seconds for drawing and scoring: ``timeout``, without what is kept for a Runnable or a callable in ``on_abstain``."""
    timeout = options["timeout"]
    if timeout is None or policy.mode != "guardrail" or isinstance(options["on_abstain"], str):
        return timeout
    return timeout * (1 - options["on_abstain_reserve"])


def with_budget(policy: Policy, budget: int | Budget | None, profile: GuardProfile | None, strict: bool) -> Policy:
    """The policy with a budget of tokens or money for each request.

    It only adds abstentions, so the promise of ``served_and_bad`` holds with it. A share among the served, or among those of
    one kind, may rise when others drop out: such profiles are refused.
    """
    if budget is None:
        return policy
    rule = budget if isinstance(budget, Budget) else Budget(tokens=budget)
    if profile is not None and (profile.risk or profile.epsilon is not None) and profile.risk != "served_and_bad":
        promise = f"risk {profile.risk}" if profile.mode == "guardrail" else "quality near best-of-N"
        _object(
            f"the profile promises {promise} for requests that end as calibrated, and a budget ends some of them earlier: "
            "drop budget=, calibrate for served_and_bad, or pass strict=False to go on without the promise",
            ProfileError if strict else None,
        )
    return replace(policy, stop=policy.stop | rule if policy.stop else rule)


def _object(problem: str, error: type[ConfigurationError] | None) -> None:
    """Raise an error, or warn at the line that called into this package."""
    if error is not None:
        raise error(problem)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(problem, UserWarning, stacklevel=level + 1)


def check_parts(policy: Policy, profile: GuardProfile | None, scorer: Any, threshold_given: bool) -> None:
    """Refuse a scorer that cannot keep the promise; warn about a threshold nobody calibrated."""
    if callable(getattr(scorer, "check", None)):
        scorer.check()
    check({"not_shown": getattr(scorer, "not_shown", ())}, {"not_shown": Names})
    if profile is not None:
        return
    zero = getattr(scorer, "has_zero", None)
    if zero is not None and not zero:
        _object(
            "this reward model was trained on pairs only (Bradley-Terry): its scores have no zero, so no threshold on them means "
            "'acceptable'; calibrate a profile, or train with an outside option ('bonmini-guard train')",
            ConfigurationError if policy.mode == "guardrail" else None,
        )
    guess = zero is None and not threshold_given
    _object(
        f"uncalibrated: threshold {policy.thresholds[0]:g} promises nothing on your traffic"
        + (", and is a guess for this reward model, which does not say that it has a zero" if guess else "")
        + "; write a profile with 'bonmini-guard calibrate'"
        + (", or declare @reward_function(has_zero=True) if a score of 0 means 'as likely acceptable as not'" if guess else ""),
        None,
    )
    if isinstance(scorer, CallableScorer) and 0.0 in policy.thresholds:
        scorer.suspect_probabilities()


def refuse_greedy(policy: Policy, greedy: bool, what: str) -> None:
    """Refuse several draws that would all be the same."""
    if greedy and policy.budget > 1:
        raise ConfigurationError(
            f"{what} is deterministic (temperature 0, or a seed of its own), so {policy.budget} draws would be one answer "
            f"{policy.budget} times: set a positive temperature and no seed, or mini_n=1 and max_loops=1"
        )


def check_profile(profile: GuardProfile, generator: Any, scorer: Any, strict: bool, options: Mapping[str, Any]) -> None:
    """As :func:`check_fingerprints`, and log what the profile's promise does not vouch for."""
    check_fingerprints(profile, {"reward_model": scorer, "generator": generator}, strict, options)
    unknown = not_vouched_for(profile)
    for name, part in (("reward_model", scorer), ("generator", generator)):
        if _agrees_as_earlier(profile.fingerprints.get(name), part):
            unknown.append(f"what an earlier version did not write down of the {name}: calibrate anew")
    if unknown and (profile.risk or profile.epsilon is not None):
        logger.warning("the profile's promise does not vouch for %s", "; ".join(unknown))


def not_vouched_for(profile: GuardProfile) -> list[str]:
    """What a profile does not say of its reward model and its generator, in words."""
    unknown = []
    for name in ("reward_model", "generator"):
        if (expected := profile.fingerprints.get(name)) is None:
            unknown.append(f"the {name} (its log does not say which it was)")
        unknown += [f"{place} of the {name} (it could not be described)" for place in unknown_in(expected)]
    return unknown


def check_fingerprints(profile: GuardProfile, parts: dict[str, Any], strict: bool, options: Mapping[str, Any] = NO_OPTIONS) -> None:
    """Refuse a profile that was calibrated for other parts than these, by the names that its fingerprints have.

    Where it is not ``strict``, warn. Every draw has the call options.
    """
    for name, part in parts.items():
        expected = profile.fingerprints.get(name)
        if expected is None:
            continue
        differing = differences(expected, part, options if name == "generator" else NO_OPTIONS)
        if differing:
            problem = refusal(name, expected, differing)
            _object(f"{problem}. Recalibrate, or pass strict=False to go on without the promise", ProfileError if strict else None)


def differences(expected: Any, part: Any, options: Mapping[str, Any] = NO_OPTIONS) -> Sequence[str]:
    """In what a part that is called with options differs from a profile's fingerprint; one of schema 1 is compared as it is."""
    differing = compare(expected, fingerprint_of(part, options)).differing
    if not differing or not isinstance(expected, str):
        return differing
    agrees = getattr(part, "agrees_with", None)
    return () if (callable(agrees) and agrees(expected)) or _agrees_as_earlier(expected, part) else differing


def _agrees_as_earlier(expected: Any, part: Any) -> bool:
    """Whether a part is the one that a profile of schema 1 names, as far as that says it."""
    earlier = getattr(part, "earlier_fingerprint", None)
    if not callable(earlier) or not isinstance(expected, str) or expected.startswith("{"):
        return False
    return bool(expected == earlier() != fingerprint_of(part))


def refusal(name: str, expected: Any, differing: Sequence[str]) -> str:
    """That a part is another one, in words."""
    told = f" ({expected})" if isinstance(expected, str) and len(expected) <= MOST_TOLD else ""
    more = f", and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
    what = ", ".join(differing[:MOST_NAMED]) + more
    return f"the profile was calibrated with another {name}{told}: {what}; its promise does not hold here"
