"""Stage 2: the ground truth, a TF-IDF logistic regression on the human labels of the training reviews.

It is fitted on whole reviews and on random windows of 30 to 80 words, because it will judge texts of that length.
"""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.imdb.reviews import Review, read_split
from benchmarks.imdb.sentiment import SentimentTruth, terms
from benchmarks.tables import arguments

FEATURES = 4_000

#: The regime, frozen on the development prompts before any effect was looked at: prompts of 48 tokens, answers of 32,
#: the truth judges prompt and answer together, and acceptable means "positive with probability above 0.62". Then 22 %
#: of the development prompts have no acceptable answer among 32 (at cut 0.75: 24 tokens 22 %, 40 tokens 26 %; at cut 0.65:
#: 48 tokens 26 %, 64 tokens 22 %). One unit of log-odds is worth four units of the labellers' Gumbel noise.
CUT = math.log(0.62 / 0.38)
SCALE = 4.0


def window(text: str, randomness: random.Random, size: tuple[int, int] = (30, 80)) -> list[str]:
    """So many neighbouring words of a text."""
    words = text.split()
    length = randomness.randint(*size)
    start = randomness.randrange(max(1, len(words) - length))
    return words[start : start + length]


def fit(reviews: list[Review], windows: int, seed: int) -> SentimentTruth:
    """Fit on each review once whole and ``windows`` times as a window."""
    randomness = random.Random(seed)
    texts = [review.text for review in reviews]
    labels = [review.label for review in reviews]
    for review in reviews:
        texts += [" ".join(window(review.text, randomness)) for _ in range(windows)]
        labels += [review.label] * windows
    vectorizer = TfidfVectorizer(analyzer=terms, max_features=FEATURES, min_df=20, sublinear_tf=True)
    features = vectorizer.fit_transform(texts)
    model = LogisticRegression(C=0.1, solver="liblinear").fit(features, labels)
    vocabulary = {term: int(column) for term, column in vectorizer.vocabulary_.items()}
    weights = model.coef_[0].astype(np.float32)
    return SentimentTruth(vocabulary, vectorizer.idf_.astype(np.float32), weights, float(model.intercept_[0]))


def accuracy(truth: SentimentTruth, texts: list[str], labels: list[int]) -> float:
    """Share of texts whose sign of log-odds agrees with the human label."""
    return float(np.mean((truth.log_odds(texts) > 0) == np.array(labels, dtype=bool)))


def main() -> None:
    """Fit the truth, print its accuracy on held-out reviews, and write it to WORK/truth."""
    parser = arguments(__doc__, work=Path("build/imdb"), windows=3, seed=0)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    truth = fit(read_split(options.data, "train"), options.windows, options.seed)
    truth = dataclasses.replace(truth, scale=SCALE, cut=CUT)
    truth.save(options.work / "truth")
    held_out = read_split(options.data, "test")[:4000]
    labels = [review.label for review in held_out]
    randomness = random.Random(options.seed)
    windows = [" ".join(window(review.text, randomness)) for review in held_out]
    truth = SentimentTruth.load(options.work / "truth")
    print(f"accuracy on held-out reviews: {accuracy(truth, [review.text for review in held_out], labels):.3f}")
    print(f"accuracy on windows of 30-80 words: {accuracy(truth, windows, labels):.3f}")


if __name__ == "__main__":
    main()
