"""A question in place of a trained reward model, on the desk's draws: what each is worth, alone and after ``calibrate``.

``python -m benchmarks.questions`` asks the desk's own language model, which was not trained for it, whether a message says the
facts and no other, and takes the log-odds of its "Yes" and "No". Beside it stands the shipped reward model with an outside option.
Both see the same draws, and the same labels calibrate both.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.desk.evaluate import run, worth_of_scores
from benchmarks.desk.label import log_rows
from benchmarks.tables import arguments, print_table, read_rows, write_json, write_rows
from bonmini_guard.cli import main as command
from bonmini_guard.demo.room import language_model

DRAWS, LOOPS = 16, "2,2,2,2,2,2,2,2"
LOOKED_AT = (1, 4, 8, 16)
ASKED = (
    "{prompt}\n\nThe clerk wrote this message to the customer:\n{answer}\n\nDoes the message state every fact of the last notice "
    "above, and no fact that it does not give? Answer Yes or No."
)


def measure(prompts: int, folder: Path) -> dict[str, Any]:
    """Score, calibrate and replay in a folder."""
    spec = folder / "question.json"
    token = {"wanted": ["Yes"], "unwanted": ["No"], "ask": ASKED}
    spec.write_text(json.dumps({"kind": "token", "model": str(language_model()), "token": token}))
    for role in ("calibrate", "evaluate"):
        rows = [row | {"candidates": row["candidates"][:DRAWS]} for row in log_rows(role)[:prompts]]
        write_rows(folder / f"trained-{role}.jsonl", rows)
        write_rows(folder / f"bare-{role}.jsonl", list(map(_without_scores, rows)))
        scored = ["-o", str(folder / f"question-{role}.jsonl")]
        run(["score", str(folder / f"bare-{role}.jsonl"), "--reward-model", str(spec), *scored])
    return {name: _worth(name, folder) for name in ("question", "trained")}


def _without_scores(row: dict[str, Any]) -> dict[str, Any]:
    bare = {key: value for key, value in row.items() if key != "scored_by"}
    return bare | {"candidates": [{key: each[key] for key in each if key != "score"} for each in row["candidates"]]}


def _worth(name: str, folder: Path) -> dict[str, Any]:
    rows = read_rows(folder / f"{name}-evaluate.jsonl")
    found: dict[str, Any] = {key: worth_of_scores(rows)[key] for key in ("auc", "accuracy_at_zero")}
    found |= {f"false_acceptance_at_zero_of_{n}": _false_acceptance(rows, n) for n in LOOKED_AT}
    profile = folder / f"{name}.json"
    asked = ["calibrate", str(folder / f"{name}-calibrate.jsonl"), "--mode", "guardrail", "--schedule", LOOPS, "-o", str(profile)]
    if command(asked) != 0:
        return found | {"certified": False}
    said = json.loads(run(["replay", str(folder / f"{name}-evaluate.jsonl"), "--profile", str(profile), "--json"]))
    shown = {key: said[key] for key in ("acceptable_rate", "served_and_bad_rate", "mean_draws")}
    return found | {"certified": True} | shown


def _false_acceptance(rows: Sequence[dict[str, Any]], n: int) -> float:
    """Of prompts whose best of the first n draws is bad, the share whose best has a score of 0 or more."""
    best = [max(row["candidates"][:n], key=lambda each: each["score"]) for row in rows]
    bad = [each for each in best if not each["acceptable"]]
    return float(sum(each["score"] >= 0 for each in bad) / max(1, len(bad)))


def main() -> None:
    """Print both columns."""
    parser = arguments(__doc__, json=Path)
    parser.add_argument("--prompts", type=int, default=150, help="of each log: calibration and evaluation")
    parser.add_argument("--folder", type=Path, help="keeps what was scored, so that a killed run goes on")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        folder = given.folder or Path(fresh)
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(given.prompts, folder)
    keys = list(dict.fromkeys(key for each in found.values() for key in each))
    rows = [[key.replace("_", " "), *(_cell(each.get(key)) for each in found.values())] for key in keys]
    print_table(["", "a question, zero-shot", "trained with an outside option"], rows)
    write_json(given.json, {"prompts": given.prompts, "draws": DRAWS, "asked": ASKED, "found": found})


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
