"""Stage 0: read IMDB reviews and split them so that no stage sees another stage's reviews.

The reviews are Maas et al., 2011 (aclImdb). They are not part of this repository: no licence to redistribute them
was granted. Two layouts are read:

* ``train.jsonl.gz`` and ``test.jsonl.gz`` with the keys ``text`` and ``label`` (0 or 1);
* the original ``aclImdb/{train,test}/{pos,neg}/*.txt`` folders.
"""

from __future__ import annotations

import html
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import read_rows

BREAK = re.compile(r"(?:\s*<br\s*/?>\s*)+", re.IGNORECASE)

#: Held-out reviews are the only source of prompts; each role owns a slice of the shuffled test part.
ROLES: dict[str, tuple[int, int]] = {
    "develop": (0, 400),  # choose the regime, before any effect is looked at
    "calibrate": (400, 1400),  # fix thresholds
    "evaluate": (1400, 2400),  # report figures
    "choices": (2400, 12500),  # simulated labelling
}


@dataclass(frozen=True)
class Review:
    """One review: cleaned text and its label (1 positive, 0 negative)."""

    text: str
    label: int


def clean(text: str) -> str:
    """Replace HTML line breaks by spaces and unescape entities."""
    return re.sub(r"\s+", " ", html.unescape(BREAK.sub(" ", text))).strip()


def read_split(data: Path, split: str) -> list[Review]:
    """Read ``train`` or ``test`` from either layout, in a fixed shuffled order.

    Raises:
        FileNotFoundError: neither layout lies under ``data``; the message says how to get the reviews.
    """
    reviews = list(_read(data, split))
    random.Random(f"imdb-{split}").shuffle(reviews)
    return reviews


def prompt_reviews(data: Path, role: str) -> list[Review]:
    """The held-out reviews that belong to one role of ``ROLES``."""
    start, stop = ROLES[role]
    return read_split(data, "test")[start:stop]


def _read(data: Path, split: str) -> Iterator[Review]:
    packed = data / f"{split}.jsonl.gz"
    if packed.exists():
        yield from (Review(clean(row["text"]), int(row["label"])) for row in read_rows(packed))
        return
    folder = data / split
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no IMDB reviews under {data}: expected {packed.name} or {split}/pos and {split}/neg. "
            "Download aclImdb_v1 (Maas et al., 2011), unpack it, and pass its folder as --data."
        )
    for label, name in enumerate(("neg", "pos")):
        for path in sorted((folder / name).glob("*.txt")):
            yield Review(clean(path.read_text(encoding="utf-8")), label)
