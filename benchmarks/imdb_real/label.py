"""Step 4: from the truth's log-odds to utilities, labels and simulated labellers.

``python -m benchmarks.imdb_real.label`` reads WORK/truth-ROLE.jsonl.gz (the draws scored by the truth) and writes
WORK/choices.jsonl.gz to train on, and WORK/log-ROLE.jsonl.gz, complete labelled log rows for calibration and evaluation. Utility is
the truth's log-odds above a cut, and acceptable what lies above it. The cut is where a fifth of the development prompts have no
acceptable answer among their 32.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

import numpy as np

from benchmarks.imdb.choices import simulate
from benchmarks.imdb_real.draw import WORK
from benchmarks.tables import arguments, read_rows, write_rows

#: Share of development prompts without any acceptable answer.
HOPELESS = 0.2
#: Labellers of each pair.
LABELLERS = 3

Row = dict[str, Any]


def cut_of(rows: Iterable[Row]) -> float:
    """Log-odds that the best answer of a fifth of the prompts does not exceed, to two places."""
    best = [max(candidate["score"] for candidate in row["candidates"]) for row in rows]
    return round(float(np.quantile(best, HOPELESS)), 2)


def log_row(row: Row, cut: float) -> Row:
    """A log row with utilities and labels, to be scored by a reward model."""
    candidates = [
        {"text": c["text"], "tokens": c["tokens"], "utility": round(c["score"] - cut, 3), "acceptable": c["score"] > cut}
        for c in row["candidates"]
    ]
    return {"id": row["id"], "prompt": row["prompt"], "candidates": candidates}


def choice_rows(row: Row, random: np.random.Generator) -> Iterator[Row]:
    """All pairs of a prompt's draws, each judged by some labellers: A, B or neither, by utility and Gumbel noise."""
    utilities = {c["text"]: c["utility"] for c in row["candidates"] if c["text"].strip()}
    for pair in combinations(utilities, 2):
        for choice, count in simulate(np.array([utilities[text] for text in pair]), LABELLERS, random).items():
            yield {"prompt": row["prompt"], "responses": list(pair), "choice": choice, "count": count}


def main() -> None:
    """Write the files of all roles that are there, and print what the draws are worth."""
    work = arguments(__doc__, work=WORK).parse_args().work
    develop = read_rows(work / "truth-develop.jsonl.gz")
    cut = cut_of(develop)
    print(json.dumps({"cut": cut}))
    random = np.random.default_rng(0)
    for role in ("develop", "choices", "calibrate", "evaluate"):
        if (source := work / f"truth-{role}.jsonl.gz").exists():
            rows = [log_row(row, cut) for row in read_rows(source)]
            print(json.dumps({"role": role} | worth(rows)))
            write_rows(work / f"log-{role}.jsonl.gz", rows)
            if role == "choices":
                write_rows(work / "choices.jsonl.gz", (pair for row in rows for pair in choice_rows(row, random)))


def worth(rows: list[Row]) -> Row:
    """Shares acceptable: of single draws, and of prompts with any acceptable draw."""
    labels = [[candidate["acceptable"] for candidate in row["candidates"]] for row in rows]
    single = float(np.mean([label for row in labels for label in row]))
    return {
        "prompts": len(rows),
        "draws": len(labels[0]),
        "single": single,
        "none": float(np.mean([not any(row) for row in labels])),
    }


if __name__ == "__main__":
    main()
