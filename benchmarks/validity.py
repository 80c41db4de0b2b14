"""Are the promises kept, and are they worth anything? ``python -m benchmarks.validity [--repeats 300] [--json FILE]``.

Every case of the slow validity tests (clustered errors, ties, half of the prompts with nothing acceptable, few rows; each risk and
the accelerator), the best of several seeds, counted and not counted: how often the truth exceeds what was promised with confidence
0.9, how often a certificate's own risk is above alpha, how much is served, and how many labels that takes at most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import arguments, print_table, write_json
from tests.calibration.recalibrations import (
    ARRIVING,
    CASES,
    CLUSTERED,
    DELTA,
    EIGHT,
    FOUR,
    HASTY,
    SCHEDULES,
    SMALL,
    Counted,
    recalibrate,
    recalibrate_accelerator,
)

MORE_ROWS = (100, 200, 400, 800, 1600)
SEEDS = 20


def arriving(repeats: int) -> list[dict[str, Any]]:
    """One row a case of those decided in order of arrival: missed is a certificate that is not true of each width of its ladder."""
    rows = [_row(name, recalibrate(*case, repeats=repeats, exit=exit_), repeats) for name, (*case, exit_) in ARRIVING.items()]
    misses, draws, found = recalibrate_accelerator(HASTY, 400, EIGHT, 0.02, repeats=repeats, exit="rolling")
    about = f"rolling accelerator, epsilon 0.02, short answers worse ({draws:.2f} draws of 8)"
    return [*rows, {"case": about, "missed": misses / repeats, "certified": found}]


def measure(repeats: int) -> list[dict[str, Any]]:
    """One row a case."""
    cases = {**CASES, **{f"served_and_bad, {n:,} rows": (CLUSTERED, n, FOUR, "served_and_bad", 0.05) for n in MORE_ROWS}}
    rows = [_row(name, recalibrate(*case, repeats=repeats), repeats) for name, case in cases.items()]
    rows.append(
        _row(f"best of {SEEDS} seeds, counted", recalibrate(*CASES["served_and_bad"], repeats=repeats, seeds=SEEDS), repeats)
    )
    shapes = recalibrate(*CASES["served_and_bad"], repeats=repeats, schedules=SCHEDULES)
    rows.append(_row(f"best of {len(SCHEDULES)} schedules, counted", shapes, repeats))
    misses, draws, found = recalibrate_accelerator(SMALL, 400, (2, 2), 0.02, repeats=repeats)
    return [*rows, {"case": f"accelerator, epsilon 0.02 ({draws:.2f} draws of 4)", "missed": misses / repeats, "certified": found}]


def _row(name: str, counted: Counted, repeats: int) -> dict[str, Any]:
    print(f"{name}: missed {counted.misses} of {repeats}", flush=True)
    shares = {"missed": counted.misses / repeats, "contradicted": counted.contradicted / repeats}
    return {"case": name, **shares, "certified": counted.found, "served": float(np.mean(counted.served)), "labels": counted.labels}


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = arguments(__doc__, repeats=300, json=Path)
    parser.add_argument("--arriving", action="store_true", help="only the cases that are decided in order of arrival")
    options = parser.parse_args()
    rows = arriving(options.repeats) if options.arriving else measure(options.repeats)
    head = ["case", f"missed (allowed {DELTA:g})", "own risk above alpha", "certified", "served", "labels a row"]
    keys = ("case", "missed", "contradicted", "certified", "served", "labels")
    cells = [[row.get(key, "") for key in keys] for row in rows]
    print_table(head, [[f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row] for row in cells])
    write_json(options.json, {"repeats": options.repeats, "delta": DELTA, "cases": rows})


if __name__ == "__main__":
    main()
