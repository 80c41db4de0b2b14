"""The regimes: complete labelled logs as arrays, from the committed files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.desk.label import log_rows
from benchmarks.imdb.keep import ROLES, pool_of
from benchmarks.imdb.truth import CUT, SCALE
from benchmarks.imdb_real.keep import log_of
from benchmarks.rivals.rules import Floats, Pool
from benchmarks.tables import read_rows
from bonmini_guard.policy.select import overlap

N = 32
Rows = list[dict[str, Any]]
#: The easier cut of the toy pool: acceptable where the truth gives a chance of 0.35 of being positive, in place of 0.62.
EASIER = SCALE * (math.log(0.35 / 0.65) - CUT)


def regimes() -> dict[str, Rows]:
    """Log rows of 32 draws by regime, in the order of drawing."""
    toy = [row for role in ROLES for row in read_rows(pool_of(role))]
    easier = [row | {"candidates": [one | {"acceptable": one["utility"] > EASIER} for one in row["candidates"]]} for row in toy]
    real = {f"IMDB, {name}": [row for role in ROLES for row in read_rows(log_of(name, role))] for name in ("minilm", "words")}
    every = {"desk": [*log_rows("calibrate"), *log_rows("evaluate")], **real, "toy pool": toy, "toy pool, easier cut": easier}
    # One model scored both roles of each; of one regime its mark was written in two ways, which would be refused.
    return {name: [{key: row[key] for key in ("id", "prompt", "candidates")} for row in rows] for name, rows in every.items()}


def pools(code: Path | None) -> dict[str, Pool]:
    """Regimes as arrays, and a log of one's own by its name."""
    rows = regimes() | ({} if code is None else {code.name.split(".")[0]: read_rows(code)})
    return {name: pool_of_rows(each, texts=True) for name, each in rows.items()}


def pool_of_rows(rows: Sequence[dict[str, Any]], texts: bool = False) -> Pool:
    """Log rows of :data:`N` draws as arrays; with ``texts`` how alike they are, where the rows hold texts."""
    drawn = [row["candidates"][:N] for row in rows]

    def of(name: str, kind: Callable[[Any], Any] = float) -> Any:
        return np.array([[np.nan if one[name] is None else kind(one[name]) for one in each] for each in drawn])

    scores = of("score")
    # A draw that could not be scored is the worst there is.
    scores = np.where(np.isnan(scores), np.nanmin(scores), scores)
    partial = of("partial", np.array) if "partial" in drawn[0][0] else None
    alike = _similarities([[one["text"] for one in each] for each in drawn]) if texts and drawn[0][0]["text"] else None
    return Pool(scores, of("acceptable", bool), alike, partial)


def _similarities(texts: list[list[str]]) -> Floats:
    """(P, N, N) shared words."""
    found = np.zeros((len(texts), len(texts[0]), len(texts[0])))
    for row, each in enumerate(texts):
        for i, first in enumerate(each):
            for j in range(i + 1):
                found[row, i, j] = found[row, j, i] = overlap(first, each[j])
    return found
