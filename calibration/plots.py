"""The plots of a report as inline SVG: matplotlib draws, nothing is loaded from anywhere."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from bonmini_guard.calibration.curves import FixedN, Reliability, ThresholdCurve
from bonmini_guard.calibration.logs import Log
from bonmini_guard.errors import MissingExtraError

try:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("matplotlib", "calibration") from error

BLUE, ORANGE, GREEN, RED, GREY = "#2563a8", "#d9730d", "#2e8b57", "#b3261e", "#8a8f98"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a8f98",
    "legend.frameon": False,
}


def svg(name: str, draw: Callable[[Any], None]) -> str:
    """One plot as an SVG element.

    Args:
        name: makes the ids inside unique in the page.
        draw: draws on the axes it is given.
    """
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with rc_context(style):
        figure = Figure(figsize=(6.4, 3.7), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{name}"', text, count=1)


def risk_coverage(curve: ThresholdCurve, plain: ThresholdCurve, here: tuple[float, float | None], budget: int) -> str:
    """Share of bad answers among those served, against the share served; ``here`` is the profile."""

    def draw(axes: Any) -> None:
        for part, colour, label in ((plain, GREY, f"best-of-{budget}"), (curve, BLUE, "this schedule")):
            axes.plot(100 * part.served, 100 * part.bad_among_served, color=colour, label=label)
        if here[1] is not None:
            axes.plot(100 * here[0], 100 * here[1], "o", color=ORANGE, markersize=9, label="this profile")
        axes.set(xlabel="served (% of requests)", ylabel="not acceptable (% of served)", xlim=(0, 102), ylim=(0, None))
        axes.legend()

    return svg("risk-coverage", draw)


def quality_against_draws(
    fixed: FixedN, curve: ThresholdCurve, here: tuple[float, float], clairvoyant: tuple[float, float], *, guardrail: bool
) -> str:
    """What the requests get, against what they cost; ``here`` and ``clairvoyant`` are (draws, share)."""

    def draw(axes: Any) -> None:
        plain, gain = (fixed.served_good, curve.served_good) if guardrail else (fixed.quality, curve.quality)
        axes.plot(fixed.draws, 100 * plain, color=GREY, marker=".", label="best-of-N, N fixed")
        axes.plot(curve.draws, 100 * gain, color=BLUE, label="this schedule, all thresholds")
        axes.plot(clairvoyant[0], 100 * clairvoyant[1], "D", color=GREEN, markersize=8, label="oracle that knows all scores")
        axes.plot(here[0], 100 * here[1], "o", color=ORANGE, markersize=9, label="this profile")
        what = "served and acceptable" if guardrail else "acceptable"
        axes.set(xlabel="draws a request", ylabel=f"{what} (% of requests)", ylim=(0, None), xlim=(0, None))
        axes.legend(fontsize=9)

    return svg("quality-draws", draw)


def over_optimisation(fixed: FixedN, budget: int) -> str:
    """Quality of best-of-N against N, on a logarithmic axis."""

    def draw(axes: Any) -> None:
        best = int(np.argmax(fixed.quality))
        axes.plot(fixed.draws, 100 * fixed.quality, color=BLUE, marker=".", label="best-of-N's answer is acceptable")
        axes.plot(fixed.draws, 100 * fixed.served_bad, color=RED, label="passes the last threshold and is not acceptable")
        axes.plot(fixed.draws[best], 100 * fixed.quality[best], "o", color=GREEN, markersize=9)
        axes.annotate(
            f"N = {best + 1}", (fixed.draws[best], 100 * fixed.quality[best]), (0, 9), textcoords="offset points", ha="center"
        )
        axes.axvline(budget, color=GREY, linestyle=":", linewidth=1)
        ticks = [tick for tick in (1, 2, 4, 8, 16, 32, 64, 128, 256) if tick <= fixed.draws[-1]]
        axes.set(xscale="log", xlabel="N", ylabel="% of requests", ylim=(0, 1.18 * 100 * float(fixed.quality.max()) + 1e-9))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.legend(fontsize=9)

    return svg("over-optimisation", draw)


def histograms(log: Log, thresholds: tuple[float, ...]) -> str:
    """Scores of all candidates by label, with the profile's thresholds."""

    def draw(axes: Any) -> None:
        drawn = log.scores[log.drawn]
        edges = np.linspace(drawn.min(), drawn.max() + 1e-9, 41)
        of = {1.0: log.labels == 1.0, 0.0: log.labels == 0.0, None: np.isnan(log.labels)}
        looks = {1.0: (GREEN, "acceptable"), 0.0: (RED, "not acceptable"), None: (GREY, "not labelled")}
        for key, (colour, label) in looks.items():
            values = log.scores[of[key] & log.drawn]
            if values.size:
                axes.hist(values, edges, color=colour, alpha=0.55, label=f"{label} ({values.size:,})")
        for number, threshold in enumerate(sorted({t for t in thresholds if np.isfinite(t)})):
            axes.axvline(threshold, color=ORANGE, label=None if number else "threshold")
        axes.set(xlabel="score", ylabel="candidates")
        axes.legend(fontsize=9)

    return svg("histograms", draw)


def reliability_diagram(found: Reliability) -> str:
    """Observed share against sigmoid(score)."""

    def draw(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], color=GREY, linestyle=":", label="perfect")
        bars = [100 * (found.observed - found.low), 100 * (found.high - found.observed)]
        axes.errorbar(100 * found.predicted, 100 * found.observed, bars, color=BLUE, marker="o", capsize=2, label="observed")
        axes.set(xlabel="sigmoid(score), %", ylabel="acceptable, %", xlim=(-2, 102), ylim=(-2, 102))
        axes.legend(loc="upper left")

    return svg("reliability", draw)
