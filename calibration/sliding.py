"""A profile whose thresholds all move by the same amount: where a report's slider can stand, and what the replay says there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bonmini_guard.calibration.evidence import seal_holds
from bonmini_guard.calibration.figures import LABEL_FIGURES, Figures, figures_of_sums, one_order, sums_of, sums_over, transformed
from bonmini_guard.calibration.logs import Floats, Log
from bonmini_guard.calibration.paths import paths
from bonmini_guard.calibration.refutation import refutation
from bonmini_guard.policy.profile import GuardProfile

#: Positions of a slider, but for one: at least, and at most; a large log gets fewer, since each is a replay of all of it.
POSITIONS = (25, 101)
#: Rows times candidates times loops that are replayed for one slider, about.
_WORK = 3e8


@dataclass(frozen=True)
class Slider:
    """The positions of one profile's slider, lax to strict.

    Attributes:
        thresholds, figures: of each position: one a loop, and what ``replay --json`` gives.
        at: the position of the profile itself.
        certified: first and last position that the profile's certificate covers; None if it covers none beside this log.
    """

    thresholds: list[tuple[float, ...]]
    at: int
    figures: list[Figures]
    certified: tuple[int, int] | None


def slider(log: Log, profile: GuardProfile, replayed: dict[str, Any]) -> Slider:
    """The slider of a profile on a log as logged, of which :func:`~bonmini_guard.calibration.figures.replay_log` was told."""
    shifts = _shifts(transformed(log, profile.score_transform), profile)
    own = profile.serial_thresholds
    thresholds = [tuple(threshold + shift for threshold in own) for shift in shifts]
    figures = curve(log, profile, thresholds, replayed)
    at = int(np.flatnonzero(shifts == 0.0)[0])
    return Slider(thresholds, at, figures, _certified(log, profile, shifts, at))


def curve(log: Log, profile: GuardProfile, thresholds: Sequence[tuple[float, ...]], replayed: dict[str, Any]) -> list[Figures]:
    """The figures of :func:`~bonmini_guard.calibration.figures.replay_log` under each of these thresholds.

    Exact expectations over all orders, or, of a log labelled in part, counts of the one order: ``E[bad and served] / E[served]`` is
    the risk of a risk-coverage curve (Geifman and El-Yaniv, arXiv 1705.08500, equation 2, with 0/1 loss).
    """
    good = replayed["best_of_n"]["acceptable_rate"] or 0.0
    log, sums = transformed(log, profile.score_transform), list[Mapping[str, Any]]()
    asked = [(profile.mode, profile.schedule, each, profile.hopeless) for each in thresholds]
    if replayed["order"] == "one":
        log, missing = log.labelled_set()
        sums += (sums_of(one_order(log, each, missing, profile.risk)) for each in asked)
    else:
        sums += sums_over(log if log.is_bare else log.require_labels(), asked)
    hidden = dict.fromkeys(LABEL_FIGURES) if log.is_bare else {}
    return [{**figures_of_sums(total, good), **hidden} for total in sums]


def _shifts(log: Log, profile: GuardProfile) -> Floats:
    """(T,) ascending, 0 among them: half of them where equally many rows begin to be served, half where first loops do."""
    own = np.asarray(profile.serial_thresholds)
    finite = np.isfinite(own)
    if not finite.any():
        return np.zeros(1)
    above = paths(log, profile.schedule).best[:, finite] - own[finite]
    work = len(log) * log.scores.shape[1] * len(profile.schedule)
    number = int(np.clip(_WORK / work, *POSITIONS))
    spread = np.linspace(0, 1, number // 2)
    found = [np.quantile(known[np.isfinite(known)], spread, method="nearest") for known in (above.max(axis=1), above[:, 0])]
    return np.unique(np.concatenate([*found, [0.0, max(map(np.max, found)) + 1e-6]]))


def _certified(log: Log, profile: GuardProfile, shifts: Floats, at: int) -> tuple[int, int] | None:
    """A fixed sequence certifies every threshold that it passed: all stricter ones, up to where it began."""
    if profile.delta is None or seal_holds(profile) is False or refutation(log, profile) is not None:
        return None
    if not np.isfinite(profile.serial_thresholds).any() or "prices" in profile.evidence:  # no sequence led to that one threshold
        return at, at
    later = profile.risk == "bad_among_served" or "relaxed_from" in profile.evidence
    above = profile.evidence.get("certified_above", 0.0 if later else math.inf)
    return at, int(np.searchsorted(shifts, above, side="right")) - 1
