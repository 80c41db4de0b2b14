"""The table as a picture, from the results' JSON: ``python -m benchmarks.rivals.picture``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

from benchmarks.pictures import write_svg
from benchmarks.rivals.__main__ import RULES
from benchmarks.tables import arguments

#: The regimes shown, with the words and colours for them.
SHOWN = {
    "desk": ("desk", "#1f6f43"),
    "IMDB, minilm": ("film reviews", "#c0392b"),
    "toy pool": ("toy pool", "#1f4e8c"),
    "toy pool, easier cut": ("toy pool, easier cut", "#8aa9d6"),
}


def draw(found: dict[str, Any], output: Path) -> None:
    """Mean draws with the middle 95 % of the halves; a rule that never reaches the quality has no point."""
    figure, axes = plt.subplots(figsize=(8.2, 5.4), constrained_layout=True)
    for step, (regime, (words, color)) in enumerate(SHOWN.items()):
        points = []
        for place, rule in enumerate(RULES):
            values = [draws for draws in found[regime]["draws"].get(rule, ()) if draws is not None]
            if values:
                points.append((np.mean(values), *np.quantile(values, [0.025, 0.975]), place + (step - 1.5) * 0.17))
        mean, low, high, at = np.array(points).T
        axes.errorbar(mean, at, xerr=[mean - low, high - mean], fmt="o", markersize=4, capsize=2, color=color, label=words)
    axes.set_yticks(range(len(RULES)), list(RULES))
    axes.invert_yaxis()
    axes.set(xlabel="draws for best-of-32's share of acceptable answers minus one point", xlim=(0, 33))
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    # Words stay words.
    mpl.rcParams["svg.fonttype"] = "none"
    write_svg(figure, axes, output)


def main() -> None:
    """Draw the committed results."""
    parser = arguments(__doc__, results=Path("benchmarks/results/rivals.json"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/rivals.svg"))
    options = parser.parse_args()
    draw(json.loads(options.results.read_text(encoding="utf-8"))["regimes"], options.output)


if __name__ == "__main__":
    main()
