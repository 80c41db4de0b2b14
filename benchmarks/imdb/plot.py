"""Stage 8: the README's picture of what is gained, from the JSON that the evaluation wrote."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

STYLE = {
    "best-of-N": ("#888888", "o"),
    "best-of-N at 0": ("#c0392b", "o"),
    "guardrail, threshold": ("#1f6f43", "s"),
    "accelerator at 0": ("#e08e0b", "^"),
    "accelerator, threshold": ("#1f4e8c", "D"),
}


def series(records: list[dict[str, Any]], procedure: str) -> list[dict[str, Any]]:
    """One procedure's records by N."""
    return sorted((r for r in records if r["procedure"] == procedure), key=lambda r: r["n"])


def curve(axes: Axes, records: list[dict[str, Any]], procedure: str, horizontal: str, vertical: str) -> None:
    """A line with its 95 % intervals."""
    found = series(records, procedure)
    values = [r[vertical] for r in found]
    across = [r["n"] if horizontal == "n" else r[horizontal][0] for r in found]
    middle = [v[0] for v in values]
    bars = [[m - v[1] for m, v in zip(middle, values, strict=True)], [v[2] - m for m, v in zip(middle, values, strict=True)]]
    color, marker = STYLE[procedure]
    axes.errorbar(across, middle, yerr=bars, label=procedure, color=color, marker=marker, capsize=2, linewidth=1.4)


def draw(records: list[dict[str, Any]], output: Path) -> None:
    """Left: reliability against N. Right: quality against draws."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for procedure in ("best-of-N at 0", "guardrail, threshold"):
        curve(left, records, procedure, "n", "false-acceptance rate")
    left.set(
        xlabel="budget N", ylabel="false-acceptance rate", title="Of requests without a good answer: share served", ylim=(0, None)
    )
    left.set_xticks([1, 4, 8, 16, 32])
    for procedure in ("best-of-N", "accelerator at 0", "accelerator, threshold"):
        curve(right, records, procedure, "draws", "acceptable rate")
    right.set(xlabel="draws spent on a request", ylabel="acceptable rate", title="Of all requests: share with an acceptable answer")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)


def main() -> None:
    """Draw the outside-option model's records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/imdb.json"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/imdb.png"))
    options = parser.parse_args()
    draw(json.loads(options.results.read_text(encoding="utf-8"))["records"]["reward"], options.output)


if __name__ == "__main__":
    main()
