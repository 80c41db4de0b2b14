"""A second truth of another family, a linear model over words, to see whether it matters that truth and reward model share a base.

``python -m benchmarks.imdb_real.words --data DIR`` fits it on what people said about the training reviews (whole, and three windows
of each), and writes the draws scored by it, WORK/words/truth-ROLE.jsonl.gz. From there on the steps are those of the first truth,
with ``--work WORK/words``.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.imdb.reviews import read_split
from benchmarks.imdb.sentiment import SentimentTruth
from benchmarks.imdb.truth import SCALE, accuracy, fit
from benchmarks.imdb_real.draw import ROLES, WORK
from benchmarks.imdb_real.label import Row
from benchmarks.tables import arguments, read_rows, write_rows

WINDOWS = 3


def scored(row: Row, truth: SentimentTruth) -> Row:
    """A row with log-odds, in units of the labellers' noise, as scores."""
    values = SCALE * truth.log_odds([row["prompt"] + one["text"] for one in row["candidates"]])
    return row | {"candidates": [one | {"score": value} for one, value in zip(row["candidates"], values.tolist(), strict=True)]}


def main() -> None:
    """Fit, say how often it is right, and score what was drawn."""
    parser = arguments(__doc__, work=WORK)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    truth = fit(read_split(options.data, "train"), WINDOWS, seed=0)
    windows = read_rows(options.work / "human-eval.jsonl.gz")
    texts, labels = [row["prompt"] + row["responses"][0] for row in windows], [int(row["choice"] == 0) for row in windows]
    print(f"right on held-out windows: {accuracy(truth, texts, labels):.3f}")
    (options.work / "words").mkdir(exist_ok=True)
    for role in ROLES:
        if (source := options.work / f"drawn-{role}.jsonl.gz").exists():
            write_rows(options.work / "words" / f"truth-{role}.jsonl.gz", (scored(row, truth) for row in read_rows(source)))


if __name__ == "__main__":
    main()
