"""What a calibration ends with: a certificate, or the statement that the evidence does not suffice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from bonmini_guard.calibration.logs import Floats, Integers, Log
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.profile import GuardProfile

#: How many first-loop best scores a profile keeps for drift.
REFERENCE = 1000


@dataclass(frozen=True)
class Certificate:
    """The evidence suffices.

    Attributes:
        profile: ready to save, with its evidence.
        sentence: the consequence in one line.
    """

    profile: GuardProfile
    sentence: str


@dataclass(frozen=True)
class NotEnoughEvidence:
    """The evidence does not suffice; nothing may be written.

    Attributes:
        sentence: why, and what would help, in one true line.
        further: about how many further labelled prompts of this kind would suffice; None if, at the rates of this log, no
            number would.
        evidence: the figures behind the sentence.
    """

    sentence: str
    further: int | None
    evidence: dict[str, Any] = field(default_factory=dict)


def check_share(name: str, value: float) -> None:
    """Raise ConfigurationError unless the value lies strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise ConfigurationError(f"{name} is {value:g}: give a number between 0 and 1, both excluded, e.g. 0.1")


def split_units(groups: Integers, fit_share: float, generator: np.random.Generator) -> tuple[Integers, Integers]:
    """Row numbers of the fit split and of the certify split. Whole groups go to one side; certify comes in random order.

    Args:
        groups: (R,) group code of each row.
        fit_share: share of groups for the fit split, in [0, 1).
        generator: the source of the split.
    """
    shuffled = generator.permutation(np.unique(groups))
    fitted = shuffled[: round(fit_share * shuffled.size)]
    inside = np.isin(groups, fitted)
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def unit_numbers(groups: Integers, generator: np.random.Generator) -> Integers:
    """(R,) units 0..U-1 of some rows, numbered in random order: the order in which a betting test sees them."""
    codes, inverse = np.unique(groups, return_inverse=True)
    numbers: Integers = generator.permutation(codes.size)[inverse]
    return numbers


def reference_scores(log: Log, first_loop: int, seed: int) -> tuple[float, ...]:
    """Up to 1,000 best scores of the first loop, each request's draws in the order they came; failed loops are skipped.

    One row of each group, so that the scores are exchangeable with those of later traffic.
    """
    _, rows = np.unique(log.groups, return_index=True)
    first = log.scores[np.sort(rows), :first_loop]
    best = np.where(np.isnan(first), -np.inf, first).max(axis=1)
    best = best[np.isfinite(best)]
    if best.size > REFERENCE:
        best = best[np.sort(np.random.default_rng(seed).choice(best.size, REFERENCE, replace=False))]
    return tuple(map(float, best))


def first_decisions(log: Log, decision: str, values: Floats) -> dict[str, Any]:
    """What drift compares later traffic with, of which it looks at one request a group: ``first_of_groups``.

    Args:
        log: the certify split.
        decision: its name.
        values: (R,) the chance of it in each row.
    """
    _, rows = np.unique(log.groups, return_index=True)
    return {"first_of_groups": {"requests": int(rows.size), decision: float(values[rows].sum())}}


def group_means(log: Log, values: Floats) -> Floats:
    """(G,) the mean of each group: what a random request of it is like."""
    _, inverse = np.unique(log.groups, return_inverse=True)
    means: Floats = np.bincount(inverse, weights=values) / np.bincount(inverse)
    return means


def base_evidence(log: Log, **more: Any) -> dict[str, Any]:
    """Rows, labels and what was left out, and what the caller adds."""
    labels = int(np.isfinite(log.labels).sum())
    return {"source": log.source, "rows": len(log), "labels": labels, "left_out": dict(log.left_out), **more}


def profile_fingerprints(log: Log) -> dict[str, str]:
    """The fingerprints that a guard compares with its own parts: ``reward_model`` = scored_by, ``generator`` = generated_by.

    A value that is an object with the part's name, ``{"reward_model": "sha256:..."}``, stands for that string; any other one is
    written as JSON with sorted keys.
    """
    parts = {"reward_model": log.fingerprints.get("scored_by"), "generator": log.fingerprints.get("generated_by")}
    return {name: as_text(name, value) for name, value in parts.items() if value is not None}


def as_text(name: str, value: Any) -> str:
    """One fingerprint of a log as a string; see :func:`profile_fingerprints`."""
    if isinstance(value, dict) and isinstance(value.get(name), str):
        return str(value[name])
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def stamp() -> dict[str, Any]:
    """``created_at`` and ``package_version`` of a profile."""
    try:
        package = version("bonmini-guard")
    except PackageNotFoundError:  # run from a source tree that is not installed
        package = "0+source"
    return {"created_at": datetime.now(UTC).replace(microsecond=0), "package_version": package}


def percent(share: float) -> str:
    """A share as a short percentage: 5 %, 0.5 %, 12.3 %."""
    return f"{100 * share:.3g} %"
