"""Small logs for the tests, and the slow truth that the closed forms are held against."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonmini_guard.calibration.blocks import Places, row_keys
from bonmini_guard.calibration.logs import Log
from bonmini_guard.policy.policy import Action, Policy
from bonmini_guard.policy.policy import run as follow

KEYS = ("served_good", "served_bad", "abstained_good", "abstained_bad", "accepted", "best_effort", "draws", "loops")


@lru_cache(maxsize=4)
def _keys_of_numbers(rows: int) -> NDArray[np.uint64]:
    """(R,) the keys of ids from 0: the same for all simulated logs of one size."""
    keys = row_keys(str(number).encode() for number in range(rows))
    keys.flags.writeable = False
    return keys


def log_of_arrays(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    counts: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    source: str = "arrays",
) -> Log:
    """A log of complete rows from tables; the place of a row is ``source:number``, from 1; its id, from 0.

    Args:
        scores: (R, W), NaN for failed draws and beyond the row's count.
        labels: (R, W), NaN where there is none.
        counts: (R,) candidates of each row; all W where not given.
        groups: (R,) units; each row its own where not given.
        source: for messages.
    """
    table = np.asarray(scores, dtype=np.float64)
    rows, width = table.shape
    numbers, nothing = np.arange(rows), np.zeros(rows, dtype=bool)
    _, first, units = np.unique(numbers if groups is None else np.asarray(groups), return_index=True, return_inverse=True)
    return Log(
        source,
        _keys_of_numbers(rows),
        Places((source,), np.zeros(rows, dtype=np.int32), numbers + 1),
        table,
        np.asarray(labels, dtype=np.float32),
        np.full(rows, width) if counts is None else np.asarray(counts, dtype=np.int64),
        np.argsort(np.argsort(first))[units],
        nothing,
        nothing,
        ~nothing,
        np.isin(numbers, first),
    )


def log_of(scores: Sequence[Sequence[float]], labels: Sequence[Sequence[float]], groups: Sequence[int] | None = None) -> Log:
    """A log from ragged lists; NaN scores are failed draws."""
    counts = np.array([len(row) for row in scores])
    width = int(counts.max())
    tables = [np.array([[*row, *[math.nan] * (width - len(row))] for row in values], dtype=float) for values in (scores, labels)]
    return log_of_arrays(*tables, counts=counts, groups=groups, source="test")


def written(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """The file, with these rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options_of(command: Any, *arguments: object) -> argparse.Namespace:
    """What a command is told."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def called(command: Any, *arguments: object) -> int:
    """The exit code of a command, whose errors are raised."""
    return command.run(options_of(command, *arguments))


def rows_of(log: Log) -> Iterator[dict[str, Any]]:
    """The log as row dictionaries."""
    for i in range(len(log)):
        candidates = []
        for score, label in zip(log.scores[i, : log.counts[i]], log.labels[i, : log.counts[i]], strict=True):
            failed = {"score": None, "failed": True} if math.isnan(score) else {"score": float(score)}
            candidates.append({"text": "x", "acceptable": None if math.isnan(label) else bool(label), **failed})
        yield {"id": str(i), "prompt": f"p{i}", "candidates": candidates}


def run(policy: Policy, scores: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
    """One request, played by the real policy on draws in the given order."""
    ran = follow(policy, list(scores))
    decision = ran.decision
    good = decision.index is not None and labels[decision.index] == 1.0
    served = decision.action is Action.SERVE
    return {
        "served_good": served and good,
        "served_bad": served and not good,
        "abstained_good": not served and good,
        "abstained_bad": not served and not good,
        "accepted": served and decision.accepted,
        "best_effort": served and not decision.accepted,
        "draws": ran.draws,
        "loops": ran.loops,
    }


def enumerate_orders(policy: Policy, scores: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
    """The mean over all ordered samples of N of the n candidates."""
    runs = [
        run(policy, [scores[i] for i in order], [labels[i] for i in order])
        for order in permutations(range(len(scores)), policy.budget)
    ]
    return {key: math.fsum(one[key] for one in runs) / len(runs) for key in KEYS}
