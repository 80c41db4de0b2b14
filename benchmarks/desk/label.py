"""Label the draws by the desk's check: log rows for score and calibrate, accept or reject rows for train."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

from benchmarks.tables import keep_rows, read_rows, write_rows
from bonmini_guard.demo.check import verdict
from bonmini_guard.demo.desk import ROLES, Note, messages, prompts

HERE = Path(__file__).parent


def seeds(name: str, draws: range) -> list[int]:
    """A seed for each draw of a prompt, by its name and the draw's number."""
    return [crc32(f"{name}/{draw}".encode()) & 0x7FFFFFFF for draw in draws]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no such file yet."""
    return read_rows(path) if path.exists() else []


def draws(role: str, work: Path | None = None) -> dict[str, dict[str, Any]]:
    """Each prompt's draws in the order of drawing, as text, tokens, whether it ended by itself and, where scored, the score.

    Args:
        role: a key of ``ROLES``.
        work: the folder of fresh draws; without them, the ones that are kept beside this file.
    """
    fresh = None if work is None else work / "draws" / f"{role}.jsonl"
    path = fresh if fresh is not None and fresh.exists() else HERE / f"{role}.jsonl.gz"
    prompts: defaultdict[str, dict[str, Any]] = defaultdict(lambda: {"draws": []})
    for row in sorted(read(path), key=lambda row: row["first"]):
        prompts[row["name"]]["draws"] += row["draws"]
        prompts[row["name"]] |= {"scored_by": row["scored_by"]} if "scored_by" in row else {}
    return prompts


def log_row(name: str, note: Note, drawn: dict[str, Any]) -> dict[str, Any]:
    """A complete log row with the check's verdict and reason on each draw."""
    numbered = zip(drawn["draws"], seeds(name, range(len(drawn["draws"]))), strict=True)
    candidates = [
        {"text": text, "tokens": tokens, "seed": seed, "acceptable": reason is None, "reason": reason}
        | ({"score": score[0]} if score else {})
        for (text, tokens, ended, *score), seed in numbered
        for reason in [verdict(note, text, ended)]
    ]
    scored = {"scored_by": drawn["scored_by"]} if "scored_by" in drawn else {}
    row = {"id": name, "prompt": messages(note, name), "candidates": candidates}
    return row | {"situation": note.situation, "date_known": note.dated} | scored


def log_rows(role: str, work: Path | None = None) -> list[dict[str, Any]]:
    """The log rows of all prompts of a role that were drawn for."""
    drawn = draws(role, work)
    return [log_row(name, note, drawn[name]) for name, note in prompts(role) if name in drawn]


def choice_rows(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One accept or reject row for each draw."""
    for candidate in row["candidates"]:
        yield {"prompt": row["prompt"], "responses": [candidate["text"]], "choice": 0 if candidate["acceptable"] else "none"}


def label(folder: Path) -> None:
    """Write all roles, ``train`` as choice rows, and print what the draws are worth."""
    folder.mkdir(parents=True, exist_ok=True)
    for role in ROLES:
        rows = log_rows(role, folder)
        write_rows(folder / f"{role}.jsonl.gz", [each for row in rows for each in choice_rows(row)] if role == "train" else rows)
        print(json.dumps({"role": role} | worth(rows)))


def keep(folder: Path) -> None:
    """Keep the draws of a folder, with the scores where FOLDER/scored has them, beside this file."""
    for role in ROLES:
        scored = {row["id"]: row for row in read(folder / "scored" / f"{role}.jsonl.gz")}
        rows = [kept(name, each, scored.get(name)) for name, each in draws(role, folder).items()]
        keep_rows(HERE / f"{role}.jsonl.gz", rows, ensure_ascii=False)


def kept(name: str, drawn: dict[str, Any], scored: dict[str, Any] | None) -> dict[str, Any]:
    """The line of one prompt. Scores have four digits after the point: further ones differ between machines."""
    if scored is None:
        return {"name": name, "first": 0, **drawn}
    pairs = list(zip(drawn["draws"], scored["candidates"], strict=True))
    assert all(text == candidate["text"] for (text, *_), candidate in pairs), f"{name}: scores of other draws"
    lines = [[*each[:3], round(candidate["score"], 4)] for each, candidate in pairs]
    return {"name": name, "first": 0, "scored_by": scored["scored_by"], "draws": lines}


def worth(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of acceptable answers: of a draw, and of prompts where the first 4, 16 and all draws hold one; reasons, counted."""
    verdicts = [[candidate["acceptable"] for candidate in row["candidates"]] for row in rows]
    flat = [verdict for row in verdicts for verdict in row]
    shares = {f"best_of_{n}": sum(any(row[:n]) for row in verdicts) / len(verdicts) for n in (4, 16, 32) if n <= len(verdicts[0])}
    reasons = Counter(candidate["reason"] or "acceptable" for row in rows for candidate in row["candidates"])
    return {"prompts": len(rows), "draws": len(flat), "single": sum(flat) / len(flat), **shares, "reasons": reasons.most_common(8)}
