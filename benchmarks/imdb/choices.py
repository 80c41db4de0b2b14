"""Stage 4: simulate labellers who answer "A, B, or neither?" about pairs of draws.

Random utility (papers of discrete choice; arXiv 2510.04087 uses the same scheme): the utility of an answer is its true
utility plus Gumbel(0, 1) noise, that of "neither" is 0 plus the same noise, and the labeller picks the largest. Several
labellers judge each pair; equal choices are counted together in ``count``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.imdb.sentiment import SentimentTruth
from benchmarks.tables import arguments, read_rows, write_rows


def simulate(utilities: NDArray[np.float64], labellers: int, random: np.random.Generator) -> Counter[int | str]:
    """Choices of ``labellers`` labellers among answers with these true utilities, and "none" with utility 0."""
    offered = np.append(utilities, 0.0)
    picks = (offered + random.gumbel(size=(labellers, len(offered)))).argmax(1)
    return Counter("none" if pick == len(utilities) else int(pick) for pick in picks)


def choice_rows(
    row: dict[str, Any], truth: SentimentTruth, labellers: int, random: np.random.Generator
) -> Iterator[dict[str, object]]:
    """One choice row for each pair of distinct draws of a prompt and each distinct choice made about it."""
    texts = sorted({candidate["text"] for candidate in row["candidates"] if candidate["text"].strip()})
    utilities = truth.utilities([row["prompt"] + text for text in texts])
    for pair in combinations(range(len(texts)), 2):
        for choice, count in simulate(utilities[list(pair)], labellers, random).items():
            yield {"prompt": row["prompt"], "responses": [texts[i] for i in pair], "choice": choice, "count": count}


def main() -> None:
    """Label WORK/draws-choices.jsonl.gz into WORK/choices.jsonl.gz, holding the last prompts out as choices-eval."""
    parser = arguments(__doc__, work=Path("build/imdb"), labellers=3, seed=0)
    parser.add_argument("--held-out", type=int, default=300, help="prompts kept for measuring, not trained on")
    options = parser.parse_args()
    truth = SentimentTruth.load(options.work / "truth")
    random = np.random.default_rng(options.seed)
    drawn = read_rows(options.work / "draws-choices.jsonl.gz")
    parts = {"choices": drawn[: -options.held_out], "choices-eval": drawn[-options.held_out :]}
    for name, part in parts.items():
        labelled = (line for row in track(part, description=name) for line in choice_rows(row, truth, options.labellers, random))
        write_rows(options.work / f"{name}.jsonl.gz", labelled)


if __name__ == "__main__":
    main()
