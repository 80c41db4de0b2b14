"""Exact replay of a grid against vectorised Monte Carlo: ``python -m benchmarks.replay_speed [--prompts 100000] [--json FILE]``.

A synthetic log of prompts x 64 candidates (scores rounded to 3 digits, 2 % failed draws) is replayed for 8 schedules of 32
draws x 200 thresholds: exactly, in one go; and by Monte Carlo, which draws orders for a share of the grid until the time it
would need for a standard error of 1e-4 on every rate can be told. Reading a log is not timed. Target: 20 s and 4 GB.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import write_json
from bonmini_guard.calibration.grids import grid_totals
from bonmini_guard.calibration.logs import Floats
from bonmini_guard.calibration.ranking import rank

SCHEDULES = (
    (32,),
    (16, 16),
    (8,) * 4,
    (4,) * 8,
    (2,) * 16,
    (4, 28),
    (4, 4, 8, 16),
    (1, 3, 4, 8, 16),
)
CANDIDATES, THRESHOLDS, STANDARD_ERROR = 64, 200, 1e-4


def population(prompts: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Scores (P, 64) with NaN for failed draws, and labels."""
    generator = np.random.default_rng(seed)
    utility = generator.normal(size=(prompts, 1)) + 0.7 * generator.normal(size=(prompts, CANDIDATES))
    scores = np.round(utility + 0.5 * generator.normal(size=(prompts, 1)) + 0.5 * generator.normal(size=utility.shape), 3)
    scores[generator.random(scores.shape) < 0.02] = np.nan
    return scores, (utility > 0).astype(np.float64)


def exact(scores: Floats, labels: Floats, thresholds: Floats) -> tuple[Floats, float]:
    """(S, T) served-and-bad rates of the guardrail, and seconds, sorting included."""
    begin = time.perf_counter()
    counts = np.full(len(scores), CANDIDATES)
    totals = grid_totals(rank(scores, labels, counts), SCHEDULES, thresholds)
    return (totals.accepted - totals.accepted_good) / len(scores), time.perf_counter() - begin


def monte_carlo(scores: Floats, labels: Floats, thresholds: Floats, rounds: int) -> tuple[Floats, Floats, float]:
    """One random order a prompt and round: (S, T) rates, their standard errors over rounds, and seconds."""
    generator = np.random.default_rng(1)
    begin = time.perf_counter()
    rates = []
    for _ in range(rounds):
        order = np.argsort(generator.random(scores.shape), axis=1)[:, :32]
        drawn = np.take_along_axis(np.where(np.isnan(scores), -np.inf, scores), order, axis=1)
        good = np.take_along_axis(labels, order, axis=1)
        rates.append([_one_round(drawn, good, schedule, thresholds) for schedule in SCHEDULES])
    values = np.array(rates)
    return values.mean(axis=0), values.std(axis=0, ddof=1), time.perf_counter() - begin


def _one_round(drawn: Floats, good: Floats, schedule: tuple[int, ...], thresholds: Floats) -> Floats:
    """Served-and-bad rate for every threshold: a loop's best is the exit for the thresholds above all bests before it."""
    ends = np.cumsum(schedule) - 1
    place = np.zeros(len(drawn), dtype=np.int64)
    low = np.zeros(len(drawn), dtype=np.int64)
    bad = np.zeros(thresholds.size + 1)
    best = np.full(len(drawn), -np.inf)
    begin = 0
    for end in ends:
        block = drawn[:, begin : end + 1]
        at = block.argmax(axis=1)
        top = np.take_along_axis(block, at[:, None], axis=1)[:, 0]
        place = np.where(top > best, at + begin, place)
        best = np.maximum(best, top)
        high = np.searchsorted(thresholds, best, side="right")
        wrong = 1.0 - np.take_along_axis(good, place[:, None], axis=1)[:, 0]
        bad += np.bincount(low, weights=wrong, minlength=thresholds.size + 1)
        bad -= np.bincount(high, weights=wrong, minlength=thresholds.size + 1)
        low, begin = high, end + 1
    rate: Floats = np.cumsum(bad)[:-1] / len(drawn)
    return rate


def measure(prompts: int, rounds: int) -> dict[str, Any]:
    """Both methods on one log."""
    scores, labels = population(prompts)
    thresholds = np.quantile(scores[np.isfinite(scores)], np.linspace(0.01, 0.999, THRESHOLDS))
    truth, seconds = exact(scores, labels, thresholds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rates, spread, sampled = monte_carlo(scores, labels, thresholds, rounds)
    needed = math.ceil(float(np.max(spread) / STANDARD_ERROR) ** 2)
    return {
        "prompts": prompts,
        "candidates": CANDIDATES,
        "schedules": len(SCHEDULES),
        "thresholds": THRESHOLDS,
        "exact_seconds": seconds,
        "exact_peak_gib": peak,
        "monte_carlo_seconds_a_round": sampled / rounds,
        "monte_carlo_rounds_for_1e-4": needed,
        "monte_carlo_seconds_for_1e-4": needed * sampled / rounds,
        "largest_difference": float(np.max(np.abs(rates - truth))),
        "largest_difference_in_standard_errors": float(np.max(np.abs(rates - truth) / (spread / math.sqrt(rounds) + 1e-6))),
    }


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20, help="Monte Carlo rounds, one order a prompt each; 2 or more")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    figures = measure(options.prompts, max(2, options.rounds))
    for name, value in figures.items():
        print(f"{name:40} {value:,.4g}" if isinstance(value, float) else f"{name:40} {value:,}")
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
