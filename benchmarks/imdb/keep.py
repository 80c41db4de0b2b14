"""Stage 6b: the scored pool without its texts, small enough to commit: ids, scores, scores of cut answers, utilities, labels.

``python -m benchmarks.imdb.keep [--work WORK]`` reads WORK/log-ROLE-reward.jsonl.gz, scores each answer after a quarter and after a
half of its tokens, and writes pool-ROLE.jsonl.gz beside this file: log rows for ``calibrate`` and ``replay``, in drawing order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from langchain_core.messages import AIMessage, HumanMessage
from rich.progress import track
from transformers import AutoTokenizer

from benchmarks.imdb.models import model_path
from benchmarks.tables import arguments, keep_rows, read_rows
from bonmini_guard import RewardModel

HERE = Path(__file__).parent
ROLES = ("calibrate", "evaluate")
#: The shares of its tokens after which an answer is scored unfinished.
CUTS = (0.25, 0.5)


def pool_of(role: str) -> Path:
    """The committed log of a role."""
    return HERE / f"pool-{role}.jsonl.gz"


def kept(row: dict[str, Any], partial: Sequence[Sequence[float]]) -> dict[str, Any]:
    """One row without texts; an id stands in for the prompt."""
    candidates = [
        {
            "text": "",
            "score": round(one["score"], 3),
            "partial": [round(score, 2) for score in cut],
            "utility": round(one["utility"], 2),
            "acceptable": one["acceptable"],
        }
        for one, cut in zip(row["candidates"], partial, strict=True)
    ]
    return {"id": row["id"], "prompt": row["id"], "candidates": candidates, "scored_by": row["scored_by"]}


def partial_scores(rows: Sequence[dict[str, Any]]) -> Iterator[list[tuple[float, ...]]]:
    """Of each row's candidates, the scores at the cuts."""
    tokenizer, reward = AutoTokenizer.from_pretrained(model_path("lm")), RewardModel.load(str(model_path("reward")), device="cpu")
    for row in track(rows, description="scoring cut answers"):
        answers = tokenizer([one["text"] for one in row["candidates"]], add_special_tokens=False)["input_ids"]
        by_cut = []
        for cut in CUTS:
            texts = tokenizer.batch_decode([ids[: max(1, round(cut * len(ids)))] for ids in answers])
            by_cut.append(reward.score([HumanMessage(row["prompt"])], [AIMessage(text) for text in texts]))
        yield list(zip(*by_cut, strict=True))


def main() -> None:
    """Write the roles."""
    parser = arguments(__doc__, work=Path("build/imdb"))
    parser.add_argument("--role", choices=ROLES, nargs="*", default=ROLES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for role in options.role:
        rows = read_rows(options.work / f"log-{role}-reward.jsonl.gz")
        keep_rows(pool_of(role), map(kept, rows, partial_scores(rows)), separators=(",", ":"))


if __name__ == "__main__":
    main()
