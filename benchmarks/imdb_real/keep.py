"""Step 7: the scored logs without their texts, small enough to commit: ids, scores of both models, utilities, labels.

``python -m benchmarks.imdb_real.keep [--work WORK] [--name NAME]`` reads WORK/reward-ROLE.jsonl.gz and, where it is there,
WORK/twin-evaluate.jsonl.gz, and writes NAME-ROLE.jsonl.gz beside this file: log rows for ``calibrate``, ``replay`` and ``report``,
in the order of drawing. An id stands in for the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.imdb_real.draw import WORK
from benchmarks.tables import arguments, keep_rows, read_rows

HERE = Path(__file__).parent
#: The truths.
NAMES = ("minilm", "words")


def log_of(name: str, role: str) -> Path:
    """The committed log of a truth's labels."""
    return HERE / f"{name}-{role}.jsonl.gz"


def kept(scored: dict[str, Any], twin: dict[str, Any] | None = None) -> dict[str, Any]:
    """One row: the reward model's score, and the twin's beside it if given."""
    candidates = [
        {"text": "", "score": round(one["score"], 4)} | {name: one[name] for name in ("utility", "acceptable")}
        for one in scored["candidates"]
    ]
    for candidate, other in zip(candidates, twin["candidates"] if twin else (), strict=twin is not None):
        candidate["twin"] = round(other["score"], 4)
    known = {key: scored[key] for key in ("scored_by", "trained_on") if key in scored}
    return {"id": scored["id"], "prompt": scored["id"], "candidates": candidates} | known


def with_scores(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The rows as another model scored them."""
    return [row | {"candidates": [one | {"score": one[name]} for one in row["candidates"]]} for row in rows]


def main() -> None:
    """Write both roles; the twin calibrates nothing."""
    parser = arguments(__doc__, work=WORK)
    parser.add_argument("--name", default=NAMES[0], choices=NAMES, help="of the truth that labelled them")
    options = parser.parse_args()
    for role in ("calibrate", "evaluate"):
        twin = options.work / f"twin-{role}.jsonl.gz"
        logs = [options.work / f"reward-{role}.jsonl.gz", *([twin] if twin.exists() else [])]
        rows = (kept(*each) for each in zip(*map(read_rows, logs), strict=True))
        keep_rows(log_of(options.name, role), rows)


if __name__ == "__main__":
    main()
