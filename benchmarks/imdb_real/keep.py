"""Step 7: the scored logs without their texts, small enough to commit: ids, scores of both models, utilities, labels.

``python -m benchmarks.imdb_real.keep`` reads WORK/reward-ROLE.jsonl.gz and WORK/twin-ROLE.jsonl.gz and writes ROLE.jsonl.gz beside
this file: log rows for ``calibrate``, ``replay`` and ``report``, in the order of drawing. An id stands in for the prompt.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from benchmarks.imdb.sample import read_rows
from benchmarks.imdb_real.draw import WORK

HERE = Path(__file__).parent


def kept(scored: dict[str, Any], twin: dict[str, Any]) -> dict[str, Any]:
    """One row: the reward model's score, the twin's beside it."""
    pairs = zip(scored["candidates"], twin["candidates"], strict=True)
    candidates = [
        {"text": "", "score": round(one["score"], 4), "twin": round(other["score"], 4)}
        | {k: one[k] for k in ("utility", "acceptable")}
        for one, other in pairs
    ]
    return {"id": scored["id"], "prompt": scored["id"], "candidates": candidates, "scored_by": scored["scored_by"]}


def main() -> None:
    """Write both roles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    work = parser.parse_args().work
    for role in ("calibrate", "evaluate"):
        parts = (read_rows(work / f"{model}-{role}.jsonl.gz") for model in ("reward", "twin"))
        rows = (kept(*pair) for pair in zip(*parts, strict=True))
        # Without a time stamp, so that the same rows are the same bytes.
        with (HERE / f"{role}.jsonl.gz").open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as file:
            file.writelines((json.dumps(row) + "\n").encode() for row in rows)


if __name__ == "__main__":
    main()
