"""Step 1: continue the first tokens of test reviews with the product's generator; resumable, what a file holds is not drawn again.

``python -m benchmarks.imdb_real.draw --data DIR [ROLE ...]`` draws into WORK/draws/ROLE.jsonl, and writes what is there as log rows
without scores: WORK/drawn-ROLE.jsonl.gz. Both hold review text, and stay out of the repository.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from langchain_core.messages import HumanMessage

from benchmarks.desk.draw import Drawing, read
from benchmarks.imdb.reviews import prompt_reviews
from benchmarks.tables import arguments, write_rows
from bonmini_guard.adapters.local import TransformersGenerator
from bonmini_guard.demo.room import language_model

WORK = Path("build/imdb_real")
PROMPT_TOKENS = 24
SAMPLING = {"temperature": 1.0, "top_k": 50, "max_new_tokens": 40}

#: Prompts and draws of each role; their slices of the test reviews are disjoint (:data:`benchmarks.imdb.reviews.ROLES`).
ROLES = {"choices": (500, 10), "develop": (150, 32), "calibrate": (250, 32), "evaluate": (250, 32)}


def generator() -> TransformersGenerator:
    """SmolLM2 as a plain continuer of text: without its chat template."""
    drawing = TransformersGenerator.load(str(language_model()), device="cpu", **SAMPLING)
    drawing.tokenizer.chat_template = None
    return drawing


def prompts(data: Path, role: str, drawing: TransformersGenerator) -> dict[str, str]:
    """The beginnings of the role's first reviews by name ("evaluate/17": the 18th review of the role's slice)."""
    found: dict[str, str] = {}
    for number, review in enumerate(prompt_reviews(data, role)):
        ids = drawing.tokenizer(review.text[: 20 * PROMPT_TOKENS])["input_ids"][:PROMPT_TOKENS]
        text = drawing.tokenizer.decode(ids)
        # Where the cut falls inside a character, or the pieces would be read differently, the prompt is another one: left out.
        if len(ids) == PROMPT_TOKENS and drawing.tokenizer(text)["input_ids"] == ids:
            found[f"{role}/{number}"] = text
        if len(found) == ROLES[role][0]:
            break
    return found


def draw(data: Path, work: Path, roles: Sequence[str]) -> None:
    """Draw for each role what its file does not hold yet, and write its log rows."""
    torch.set_num_threads(1)
    (work / "draws").mkdir(parents=True, exist_ok=True)
    drawing = generator()
    for role in roles:
        asked, file = prompts(data, role, drawing), work / "draws" / f"{role}.jsonl"
        begun = {name: [HumanMessage(text)] for name, text in asked.items()}
        asyncio.run(Drawing(drawing, file, ROLES[role][1]).all(begun, 0))
        drawn = {row["name"]: row["draws"] for row in read(file)}
        write_rows(work / f"drawn-{role}.jsonl.gz", (_log_row(name, text, drawn[name]) for name, text in asked.items()))


def _log_row(name: str, prompt: str, draws: list[list[Any]]) -> dict[str, Any]:
    candidates = [{"text": text, "tokens": tokens} for text, tokens, _ in draws]
    return {"id": name, "prompt": prompt, "candidates": candidates}


def main() -> None:
    """Draw as the command line says."""
    parser = arguments(__doc__, work=WORK)
    parser.add_argument("roles", nargs="*", metavar="ROLE", help=f"{', '.join(ROLES)} (default: all)")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    draw(options.data, options.work, options.roles or list(ROLES))


if __name__ == "__main__":
    main()
