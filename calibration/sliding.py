"""A profile whose thresholds all move by the same amount: where a slider can stand, what the replay says there, of which rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bonmini_guard.calibration.evidence import seal_holds
from bonmini_guard.calibration.figures import LABEL_FIGURES, Figures, figures_of_sums, one_order, sums_of, sums_over, transformed
from bonmini_guard.calibration.logs import Floats, Integers, Log
from bonmini_guard.calibration.paths import Paths, exits, paths
from bonmini_guard.calibration.refutation import refutation
from bonmini_guard.errors import InputError
from bonmini_guard.logs.opening import is_pipe
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.logs.rows import Row
from bonmini_guard.policy.profile import GuardProfile

#: Positions of a slider, but for one: at least, and at most; a large log gets fewer, since each is a replay of all of it.
POSITIONS = (25, 101)
#: Rows times candidates times loops that are replayed for one slider, about.
_WORK = 3e8
#: Rows of each kind, and characters of an answer and of the last turn of a prompt.
EACH, ANSWER, PROMPT = 40, 1200, 800

#: A row's id and place; at the end of each loop the ``best`` score so far, its ``holder`` (which candidate, from 0), and whether it
#: is ``good``, None where there is none or nobody said; with texts the last turn of the prompt, and the answers by candidate.
Case = dict[str, Any]


def slider(log: Log, profile: GuardProfile, replayed: dict[str, Any]) -> dict[str, Any]:
    """The slider of a profile on a log as logged, of which :func:`~bonmini_guard.calibration.figures.replay_log` was told.

    Of its positions, lax to strict: ``thresholds``, one a loop; by key the ``figures`` that ``replay --json`` gives; ``at``, the
    position of the profile itself; and the first and last one that is ``certified``, None if none is beside this log.
    """
    shifts = _shifts(transformed(log, profile.score_transform), profile)
    thresholds = [tuple(threshold + shift for threshold in profile.serial_thresholds) for shift in shifts]
    moved, at = curve(log, profile, thresholds, replayed), int(np.flatnonzero(shifts == 0.0)[0])
    columns = {key: [one[key] for one in moved] for key in moved[0]}
    return {"thresholds": thresholds, "at": at, "certified": _certified(log, profile, shifts, at), "figures": columns}


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
    scored = [known[np.isfinite(known)] for known in (above.max(axis=1), above[:, 0])]
    found = [np.quantile(known, spread, method="nearest") for known in scored if known.size]
    return np.unique(np.concatenate([*found, [0.0, max(map(np.max, found), default=0.0) + 1e-6]]))


def _certified(log: Log, profile: GuardProfile, shifts: Floats, at: int) -> tuple[int, int] | None:
    """A fixed sequence certifies every threshold that it passed: all stricter ones, up to where it began."""
    if profile.delta is None or seal_holds(profile) is False or refutation(log, profile) is not None:
        return None
    if not np.isfinite(profile.serial_thresholds).any() or "prices" in profile.evidence:  # no sequence led to that one threshold
        return at, at
    later = profile.risk == "bad_among_served" or "relaxed_from" in profile.evidence
    above = profile.evidence.get("certified_above", 0.0 if later else math.inf)
    return at, int(np.searchsorted(shifts, above, side="right")) - 1


def cases(log: Log, profile: GuardProfile, *, texts: bool = False) -> list[Case]:
    """Up to :data:`EACH` rows of each kind: served and bad, served and good, abstained though good, rightly, unlabelled; and near.

    Of the served the highest scores come first, of the others the highest, too: these are the next to be served. Near are those
    whose decision takes the smallest move of the thresholds.

    Of the log, as logged, ``extra["id"]`` tells ids. Texts of prompts and answers are read from its files; InputError if they
    are wanted of a pipe, which cannot be read again, or of rows that hold none.
    """
    log = transformed(log, profile.score_transform)
    path = paths(log, profile.schedule)
    names = log.extra.get("id")
    found: list[Case] = [
        {
            "id": str(names[row] if names else row),
            "place": log.places[row],
            "best": [score if math.isfinite(score) else None for score in path.best[row].tolist()],
            "good": [None if math.isnan(good) else good > 0 for good in path.good[row].tolist()],
            "holder": path.holder[row].tolist(),
            "prompt": None,
            "answers": None,
        }
        for row in _chosen(path, profile).tolist()
    ]
    return list(_again(log, found)) if texts else found


def _chosen(path: Paths, profile: GuardProfile) -> Integers:
    thresholds = np.asarray(profile.serial_thresholds)
    at, all_rows, last = exits(path, thresholds), np.arange(len(path)), len(path.draws) - 1
    good, best = path.good[all_rows, np.minimum(at, last)], path.best[all_rows, np.minimum(at, last)]
    kinds = np.where(np.isnan(good), 2.0, good) + 3 * (at > last)
    margin = np.abs((path.best - thresholds).max(axis=1))
    chosen = [np.argsort(margin, kind="stable")[:EACH]]
    for kind in np.unique(kinds):
        of_kind = np.flatnonzero(kinds == kind)
        chosen.append(of_kind[np.argsort(-best[of_kind], kind="stable")[:EACH]])
    return np.unique(np.concatenate(chosen))


def _again(log: Log, found: list[Case]) -> Iterator[Case]:
    of = {case["place"]: case for case in found}
    for name in log.places.files:
        if is_pipe(name):
            raise InputError(f"{name}: a pipe cannot be read twice, as --texts must; write the log to a file first")
        for place, value in RowFile(name):
            if place in of:
                row = Row(value, place)
                last = row.prompt[-1].plain(thoughts=True) if row.prompt else ""
                held = (at for at in set(of[place]["holder"]) if not row.candidates[at].failed)
                answers = {at: row.candidates[at].turn.plain(thoughts=True)[:ANSWER] for at in held}
                yield of[place] | {"prompt": last[:PROMPT], "answers": answers}
