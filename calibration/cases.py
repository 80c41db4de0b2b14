"""The rows behind a report's cells: a few of each kind, with what its slider needs to say which kind they are, and their texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from bonmini_guard.calibration.figures import transformed
from bonmini_guard.calibration.logs import Integers, Log
from bonmini_guard.calibration.paths import Paths, exits, paths
from bonmini_guard.errors import InputError
from bonmini_guard.logs.opening import is_pipe
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.logs.rows import Row
from bonmini_guard.policy.profile import GuardProfile

#: Rows of each kind, and characters of an answer and of the last turn of a prompt.
EACH, ANSWER, PROMPT = 40, 1200, 800


#: A row's id and place; at the end of each loop the ``best`` score so far, its ``holder`` (which candidate, from 0), and whether it
#: is ``good``, None where there is none or nobody said; with texts the last turn of the prompt, and the answers by candidate.
Case = dict[str, Any]


def cases(log: Log, profile: GuardProfile, *, texts: bool = False) -> list[Case]:
    """Up to :data:`EACH` rows of each kind: served and bad, served and good, abstained though good, rightly, unlabelled; and near.

    Of the served the highest scores come first, of the others the highest, too: these are the next to be served. Near are those
    whose decision takes the smallest move of the thresholds.

    Of the log, as logged, ``extra["id"]`` tells ids. Texts of prompts and answers are read from its files.

    Raises:
        InputError: texts are wanted of a pipe, which cannot be read again, or of rows that hold none.
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
