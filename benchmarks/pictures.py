"""What every picture of a benchmark ends with."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def write_svg(figure: Figure, axes: Axes, output: Path) -> None:
    """Write a picture without a frame to its right and above; the same results are the same bytes, since no date is in it."""
    axes.spines[["top", "right"]].set_visible(False)
    output.parent.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = output.name
    figure.savefig(output, metadata={"Date": None})
