"""What a calibration ends with: a certificate, or the statement that the evidence does not suffice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

from bonmini_guard.calibration.blocks import FINGERPRINTS
from bonmini_guard.calibration.logs import Log
from bonmini_guard.calibration.simulate import MOST_ROWS
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.policy.profile import GuardProfile


@dataclass(frozen=True)
class Certificate:
    """The evidence suffices: a profile, ready to save, with its evidence; and the consequence in one line."""

    profile: GuardProfile
    sentence: str


@dataclass(frozen=True)
class NotEnoughEvidence:
    """The evidence does not suffice; nothing may be written.

    Attributes:
        why: what it does not suffice for.
        find: finds ``further``, which takes a while; None where labels are not what is lacking.
    """

    why: str
    evidence: dict[str, Any] = field(default_factory=dict)
    find: Callable[[], int | None] | None = None

    @cached_property
    def further(self) -> int | None:
        """About how many further labelled prompts of this kind would suffice in four cases of five; None if too many."""
        return None if self.find is None else self.find()

    @property
    def sentence(self) -> str:
        """Why, and what would help, in one true line."""
        if self.find is None:
            return self.why
        if self.further is None:
            cure = "a better reward model, fewer draws or a larger level would"
            return f"{self.why}; with labels like these {MOST_ROWS:,} rows would hardly do; {cure}"
        return f"{self.why}; about {self.further:,} further ones like them would suffice (4 times of 5)"


def check_share(name: str, value: float) -> None:
    """Raise ConfigurationError unless the value lies strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise ConfigurationError(f"{name} is {value:g}: give a number between 0 and 1, both excluded, e.g. 0.1")


def sealed(profile: GuardProfile, said: Mapping[str, Any] | None = None, **changes: Any) -> GuardProfile:
    """The profile with changes, more evidence, and a digest of what that certifies; an edit of it shows (:func:`seal_holds`)."""
    profile = profile.model_copy(update={**changes, "evidence": {**profile.evidence, **(said or {})}})
    return profile.model_copy(update={"evidence": {**profile.evidence, "digest": _digest(profile)}})


def seal_holds(profile: GuardProfile) -> bool | None:
    """Whether the profile is as it was certified; None for one without a digest (by hand, or of an older version)."""
    digest = profile.evidence.get("digest")
    return None if digest is None else bool(digest == _digest(profile))


_SEALED = {"mode", "schedule", "thresholds", "exit", "hopeless", "score_transform", "risk", "alpha", "delta", "epsilon"}


def _digest(profile: GuardProfile) -> str:
    seen = {key: value for key, value in profile.evidence.items() if key != "digest"}
    named = _SEALED | ({"in_flight", "max_draws"} if profile.exit == "rolling" else set())
    # sealed where it is there: profiles that were made before it was stay as they are
    named |= set() if profile.in_flight_thresholds is None else {"in_flight_thresholds"}
    text = json.dumps([json.loads(profile.model_dump_json(include=named)), seen], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()


def profile_fingerprints(log: Log) -> dict[str, str]:
    """The fingerprints that a guard compares with its own parts: ``reward_model`` = scored_by, ``generator`` = generated_by.

    A value that is an object with the part's name, ``{"reward_model": "sha256:..."}``, stands for that string; any other one is
    written as JSON with sorted keys.
    """
    return {name: as_text(name, log.fingerprints[key]) for key, name in FINGERPRINTS.items() if key in log.fingerprints}


def as_text(name: str, value: Any) -> str:
    """One fingerprint of a log as a string; see :func:`profile_fingerprints`."""
    if isinstance(value, dict) and isinstance(value.get(name), str):
        return str(value[name])
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def percent(share: float) -> str:
    """A share as a short percentage: 5 %, 0.5 %, 12.3 %."""
    return f"{100 * share:.3g} %"


def consequence(profile: GuardProfile, replayed: Mapping[str, Any] | None = None) -> str:
    """What a profile means for 10,000 requests, at the rates of the rows it was certified on, or of another log.

    ``served = 10,000 E[served] / requests``; "at most ... with confidence" is the profile's own alpha (or epsilon) and delta,
    proved by :mod:`bonmini_guard.calibration.certify` on the log it was calibrated on.

    Args:
        profile: also one that promises nothing.
        replayed: what :func:`bonmini_guard.calibration.figures.replay_log` says of it on that log.
    """
    seen, budget = profile.evidence if replayed is None else replayed, sum(profile.schedule)
    tried = profile.evidence.get("calibrations", 1)
    sure = f"with {100 * (1 - (profile.delta or 0.0)):.6g} % confidence{f' (one of {tried} calibrations)' if tried != 1 else ''}"
    draws, counted = seen["mean_draws"], seen.get("counted", seen["requests"])
    if not counted:
        return "This log says nothing of this profile: in no row is the answer labelled that it would choose."
    if profile.mode == "accelerator":
        said = f"Requests like these would take {draws:.1f} draws instead of {budget} ({percent(1 - draws / budget)} fewer)"
        if profile.epsilon is None or profile.delta is None:
            return f"{said}; this profile promises nothing about their quality."
        lost = None
        if replayed is None:
            lost = seen["lost"] - seen["won"]
        elif None not in (good := (replayed["best_of_n"]["acceptable_rate"], replayed["acceptable_rate"])):
            lost = (good[0] - good[1]) * replayed["requests"]
        found = "" if lost is None else f" ({percent(lost / counted)} in this log)"
        return (
            f"{said}, acceptable at most {percent(profile.epsilon)} of requests less often than best-of-{budget}{found}, "
            f"{sure}{_started(seen)}."
        )
    served, bad = seen["served"] / counted, seen["false_acceptances"]
    promised = _promised(profile, served, sure)
    found = "an unknown number of them bad: there are no labels"
    if bad is not None:
        share = f", {percent(bad / seen['served'])} of those served" if served else ""
        found = f"{10_000 * bad / counted:,.0f} bad{share}, at the rates of this log"
    return (
        f"Of 10,000 requests like these you would serve about {10_000 * served:,.0f}, {promised} ({found}), "
        f"using {draws:.1f} draws a request instead of {budget}{_started(seen)}."
    )


def _promised(profile: GuardProfile, served: float, sure: str) -> str:
    level = profile.alpha
    if profile.risk is None or level is None or profile.delta is None:
        return "and this profile promises nothing"
    promise = {
        "served_and_bad": f"at most {10_000 * level:,.0f} of them bad, that is {percent(min(1.0, level / max(served, level)))} of "
        "those served",
        "bad_among_served": f"at most {percent(level)} of those served bad",
        "false_acceptance": f"at most {percent(level)} of the requests whose best answer is bad served all the same",
    }[profile.risk]
    return f"{promise}, {sure}"


def _started(seen: Mapping[str, Any]) -> str:
    """Of a rolling exit, how many draws are started by how many are in flight."""
    by_width = list(seen.get("in_flight", {}).items())
    ends = [f"{means['mean_started']:.1f} with {width}" for width, means in by_width[:1] + by_width[1:][-1:]]
    return f" ({' and '.join(ends)} in flight started)" if ends else ""
