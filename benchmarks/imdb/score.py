"""Stage 6: score the draws of one role with a reward model and judge them by the truth, into log rows.

The result is an ordinary log: ``bonmini-guard calibrate`` and ``replay`` read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from langchain_core.messages import AIMessage, HumanMessage
from rich.progress import track
from transformers import AutoTokenizer

from benchmarks.imdb.models import REWARDS, model_path
from benchmarks.imdb.sentiment import SentimentTruth
from benchmarks.tables import arguments, read_rows, write_rows
from bonmini_guard import RewardModel


def scored(rows: list[dict[str, Any]], reward: RewardModel, truth: SentimentTruth, label: str) -> Iterator[dict[str, object]]:
    """Log rows with ``score``, ``acceptable``, the true ``utility`` and the number of ``tokens`` of each candidate."""
    tokenizer = AutoTokenizer.from_pretrained(model_path("lm"))
    for row in track(rows, description=label):
        texts = [candidate["text"] for candidate in row["candidates"]]
        scores = reward.score([HumanMessage(row["prompt"])], [AIMessage(text) for text in texts])
        utilities = truth.utilities([row["prompt"] + text for text in texts])
        lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        candidates = [
            {"text": text, "score": score, "acceptable": bool(utility > 0), "utility": float(utility), "tokens": tokens}
            for text, score, utility, tokens in zip(texts, scores, utilities, lengths, strict=True)
        ]
        yield {"id": row["id"], "prompt": row["prompt"], "candidates": candidates, "scored_by": reward.fingerprint()}


def main() -> None:
    """Score WORK/draws-ROLE.jsonl.gz with one reward model into WORK/log-ROLE-NAME.jsonl.gz."""
    parser = arguments(__doc__, work=Path("build/imdb"))
    parser.add_argument("--role", required=True, choices=["calibrate", "evaluate"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--name", default=REWARDS[0], choices=REWARDS, help="of the reward model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reward = RewardModel.load(str(model_path(options.name)), device=options.device)
    drawn, truth = read_rows(options.work / f"draws-{options.role}.jsonl.gz"), SentimentTruth.load(model_path("truth"))
    label = f"scoring {options.role} with {options.name}"
    write_rows(options.work / f"log-{options.role}-{options.name}.jsonl.gz", scored(drawn, reward, truth, label))


if __name__ == "__main__":
    main()
