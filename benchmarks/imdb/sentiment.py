"""The toy regime's ground truth: a linear sentiment model over words.

It belongs to another model family than the reward models on purpose: it is a TF-IDF logistic regression trained on the
human labels of IMDB reviews, so a reward model cannot agree with it by construction. Stored as safetensors and JSON.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

WORD = re.compile(r"[a-z0-9']{2,}|[!?]")


def terms(text: str) -> list[str]:
    """The words of a text in lower case, exclamation and question marks among them."""
    return WORD.findall(text.lower())


@dataclass(frozen=True)
class SentimentTruth:
    """Log-odds that a text is a positive review, and the utility derived from it.

    Attributes:
        vocabulary: column of each term.
        idf: inverse document frequency of each column; shape (terms,).
        weights: logistic regression weights; shape (terms,).
        bias: intercept.
        scale: utility units for one unit of log-odds.
        cut: log-odds at which a text is just acceptable: utility 0.
    """

    vocabulary: dict[str, int]
    idf: NDArray[np.float32]
    weights: NDArray[np.float32]
    bias: float
    scale: float = 1.0
    cut: float = 0.0

    def log_odds(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds of "positive" for each text; shape (texts,)."""
        return np.array([self._log_odds(text) for text in texts], dtype=np.float64)

    def utilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """True utility relative to the outside option, scale * (log-odds - cut); acceptable when positive."""
        return self.scale * (self.log_odds(texts) - self.cut)

    def _log_odds(self, text: str) -> float:
        counts = Counter(term for term in terms(text) if term in self.vocabulary)
        if not counts:
            return self.bias
        columns = np.fromiter((self.vocabulary[term] for term in counts), dtype=np.int64, count=len(counts))
        frequencies = np.fromiter(counts.values(), dtype=np.float64, count=len(counts))
        values = (1.0 + np.log(frequencies)) * self.idf[columns]
        return float(values @ self.weights[columns] / np.linalg.norm(values)) + self.bias

    def save(self, folder: Path) -> None:
        """Write ``vocabulary.json`` and ``truth.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        ordered = sorted(self.vocabulary, key=self.vocabulary.__getitem__)
        settings = {"bias": self.bias, "scale": self.scale, "cut": self.cut, "terms": ordered}
        (folder / "vocabulary.json").write_text(json.dumps(settings), encoding="utf-8")
        half = {"idf": self.idf.astype(np.float16), "weights": self.weights.astype(np.float16)}
        save_file(half, str(folder / "truth.safetensors"))

    @classmethod
    def load(cls, folder: Path) -> SentimentTruth:
        """Read what ``save`` wrote."""
        settings = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        arrays = load_file(str(folder / "truth.safetensors"))
        vocabulary = {term: column for column, term in enumerate(settings["terms"])}
        idf, weights = arrays["idf"].astype(np.float32), arrays["weights"].astype(np.float32)
        return cls(vocabulary, idf, weights, settings["bias"], settings["scale"], settings["cut"])
