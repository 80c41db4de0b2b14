"""Step 9: the false-acceptance rate of best-of-N against N, and the calibrated guard's point, from the results' JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.pictures import write_svg
from benchmarks.tables import arguments

RATE, DRAWS = "false_acceptance_rate", "mean_draws"


def points(axes: Axes, across: list[float], figures: list[list[float]], **style: Any) -> None:
    """Values with their 95 % intervals."""
    values = [figure[0] for figure in figures]
    bars = [[value - low for value, low, _ in figures], [high - value for value, _, high in figures]]
    axes.errorbar(across, values, yerr=bars, capsize=2, linewidth=1.4, **style)


def draw(found: dict[str, Any], output: Path) -> None:
    """One panel: lines for both reward models, a point for the guard at its own number of draws."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), constrained_layout=True)
    for name, label, color in (
        ("twin", "best-of-N at 0, trained without “neither”", "#888888"),
        ("reward", "best-of-N at 0", "#c0392b"),
    ):
        if name not in found:
            continue
        by_size = found[name]["best_of_n_at_zero"]
        points(axes, [float(n) for n in by_size], [by_size[n][RATE] for n in by_size], label=label, color=color, marker="o")
    guard = found["guardrail"]
    if "thresholds" in guard:
        label = f"guardrail, certified: recall {guard['recall'][0]:.2f}"
        points(axes, [guard[DRAWS][0]], [guard[RATE]], label=label, color="#1f6f43", marker="s", linestyle="none")
    axes.set(xlabel="draws a request", ylabel="false-acceptance rate", ylim=(0, 1.05))
    axes.set_title("Of requests whose best answer is not acceptable: share served", fontsize=10)
    axes.set_xticks([1, 4, 8, 16, 32])
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    write_svg(figure, axes, output)


def main() -> None:
    """Draw the committed results."""
    parser = arguments(__doc__, results=Path("benchmarks/results/imdb_real.json"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/imdb_real.svg"))
    options = parser.parse_args()
    draw(json.loads(options.results.read_text(encoding="utf-8"))["minilm"], options.output)


if __name__ == "__main__":
    main()
