"""Whether the reward model was luck: what further seeds of its training give on the draws that the shipped one scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.desk.evaluate import worth_of_scores
from benchmarks.desk.label import log_rows, read
from benchmarks.tables import print_table, write_json

RESULTS = Path(__file__).parents[1] / "results" / "desk_seeds.json"


def seeds(scored: Sequence[Path]) -> None:
    """Print and write the worth of each file's scores, and of the shipped model's on the same rows."""
    found: dict[str, dict[str, Any]] = {}
    for file in scored:
        rows = {row["id"]: row for row in read(file)}
        shipped = [row for role in ("evaluate", "held-out") for row in log_rows(role) if row["id"] in rows]
        draws = sum(len(row["candidates"]) for row in shipped)
        found[file.name.partition(".")[0]] = {"prompts": len(shipped), "draws": draws, **worth_of_scores(list(rows.values()))}
        found[f"shipped, {len(shipped)} prompts"] = {"prompts": len(shipped), "draws": draws, **worth_of_scores(shipped)}
    columns = list(next(iter(found.values())))
    rounded = [[name, *(f"{value:.4g}" for value in each.values())] for name, each in found.items()]
    print_table(["scores of", *(key.replace("_", " ") for key in columns)], rounded)
    write_json(RESULTS, found)
