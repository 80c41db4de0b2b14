"""Label the draws by the desk's check: log rows for score and calibrate, accept or reject rows for train.

``python -m benchmarks.desk.label FOLDER`` reads the draws beside this file (or those in FOLDER/draws) and writes
FOLDER/ROLE.jsonl.gz.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.desk.draw import read, seeds
from bonmini_guard.demo.check import verdict
from bonmini_guard.demo.desk import ROLES, Note, messages, prompts
from bonmini_guard.writing import appearing

HERE = Path(__file__).parent


def draws(role: str, work: Path) -> dict[str, list[list[Any]]]:
    """Each prompt's draws in the order of drawing: text, tokens, whether it ended by itself."""
    fresh = work / "draws" / f"{role}.jsonl"
    parts: defaultdict[str, list[list[Any]]] = defaultdict(list)
    for row in sorted(read(fresh if fresh.exists() else HERE / f"{role}.jsonl.gz"), key=lambda row: row["first"]):
        parts[row["name"]] += row["draws"]
    return parts


def log_row(name: str, note: Note, drawn: list[list[Any]]) -> dict[str, Any]:
    """A complete log row with the check's verdict and reason on each draw."""
    numbered = zip(drawn, seeds(name, range(len(drawn))), strict=True)
    candidates = [
        {"text": text, "tokens": tokens, "seed": seed, "acceptable": reason is None, "reason": reason}
        for (text, tokens, ended), seed in numbered
        for reason in [verdict(note, text, ended)]
    ]
    row = {"id": name, "prompt": messages(note, name), "candidates": candidates}
    return row | {"situation": note.situation, "date_known": note.dated}


def choice_rows(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One accept or reject row for each draw."""
    for candidate in row["candidates"]:
        yield {"prompt": row["prompt"], "responses": [candidate["text"]], "choice": 0 if candidate["acceptable"] else "none"}


def label(work: Path) -> None:
    """Write all roles and print what the draws are worth."""
    work.mkdir(parents=True, exist_ok=True)
    for role in ROLES:
        drawn = draws(role, work)
        rows = [log_row(name, note, drawn[name]) for name, note in prompts(role) if name in drawn]
        with appearing(work / f"{role}.jsonl.gz") as file:
            for row in rows:
                for record in choice_rows(row) if role == "train" else [row]:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        print(json.dumps({"role": role} | worth(rows)))


def worth(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of acceptable answers: of a draw, and of prompts where the first 4, 16 and all draws hold one; reasons, counted."""
    verdicts = [[candidate["acceptable"] for candidate in row["candidates"]] for row in rows]
    flat = [verdict for row in verdicts for verdict in row]
    shares = {f"best_of_{n}": sum(any(row[:n]) for row in verdicts) / len(verdicts) for n in (4, 16, 32) if n <= len(verdicts[0])}
    reasons = Counter(candidate["reason"] or "acceptable" for row in rows for candidate in row["candidates"])
    return {"prompts": len(rows), "draws": len(flat), "single": sum(flat) / len(flat), **shares, "reasons": reasons.most_common(8)}


if __name__ == "__main__":
    label(Path(sys.argv[1]))
