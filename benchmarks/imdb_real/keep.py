"""Step 7: the scored logs without their texts, small enough to commit: ids, scores of both models, utilities, labels.

``python -m benchmarks.imdb_real.keep`` reads WORK/reward-ROLE.jsonl.gz and WORK/twin-evaluate.jsonl.gz and writes ROLE.jsonl.gz
beside this file: log rows for ``calibrate``, ``replay`` and ``report``, in the order of drawing. An id stands in for the prompt.
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


def kept(scored: dict[str, Any], twin: dict[str, Any] | None = None) -> dict[str, Any]:
    """One row: the reward model's score, and the twin's beside it if given."""
    candidates = [
        {"text": "", "score": round(one["score"], 4)} | {name: one[name] for name in ("utility", "acceptable")}
        for one in scored["candidates"]
    ]
    for candidate, other in zip(candidates, twin["candidates"] if twin else (), strict=twin is not None):
        candidate["twin"] = round(other["score"], 4)
    return {"id": scored["id"], "prompt": scored["id"], "candidates": candidates, "scored_by": scored["scored_by"]}


def main() -> None:
    """Write both roles; the twin calibrates nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    work = parser.parse_args().work
    pairs = zip(*(read_rows(work / f"{model}-evaluate.jsonl.gz") for model in ("reward", "twin")), strict=True)
    roles = {"calibrate": map(kept, read_rows(work / "reward-calibrate.jsonl.gz")), "evaluate": (kept(*pair) for pair in pairs)}
    for role, rows in roles.items():
        # Without a time stamp, so that the same rows are the same bytes.
        with (HERE / f"{role}.jsonl.gz").open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as file:
            file.writelines((json.dumps(row) + "\n").encode() for row in rows)


if __name__ == "__main__":
    main()
