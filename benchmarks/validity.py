"""Are the promises kept, and are they worth anything? ``python -m benchmarks.validity [--repeats 300] [--json FILE]``.

Every case of the slow validity tests (clustered errors, ties, half of the prompts with nothing acceptable, few rows; each risk and
the accelerator), the best of several seeds, counted and not counted: how often the truth exceeds what was promised with confidence
0.9, how often a certificate's own risk is above alpha, and how much is served.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.tables import print_table, write_json
from tests.calibration.recalibrations import CASES, CLUSTERED, DELTA, FOUR, SMALL, recalibrate, recalibrate_accelerator

MORE_ROWS = (100, 200, 400, 800, 1600)
SEEDS = 20


def measure(repeats: int) -> list[dict[str, Any]]:
    """One row a case."""
    rows = [_row(name, recalibrate(*case, repeats=repeats), repeats) for name, case in CASES.items()]
    grown = {n: (CLUSTERED, n, FOUR, "served_and_bad", 0.05) for n in MORE_ROWS}
    rows += [_row(f"served_and_bad, {n:,} rows", recalibrate(*case, repeats=repeats), repeats) for n, case in grown.items()]
    shopped = recalibrate(*CASES["served_and_bad"], repeats=repeats, seeds=SEEDS)
    rows.append(_row(f"served_and_bad, best of {SEEDS} seeds", shopped, repeats))
    misses, draws, found = recalibrate_accelerator(SMALL, 400, (2, 2), 0.02, repeats=repeats)
    return [*rows, {"case": f"accelerator, epsilon 0.02 ({draws:.2f} draws of 4)", "missed": misses / repeats, "certified": found}]


def _row(name: str, counted: tuple[int, int, float, float], repeats: int) -> dict[str, Any]:
    misses, contradicted, served, found = counted
    print(f"{name}: missed {misses} of {repeats}", flush=True)
    return {"case": name, "missed": misses / repeats, "contradicted": contradicted / repeats, "certified": found, "served": served}


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    rows = measure(options.repeats)
    head = ["case", f"missed (allowed {DELTA:g})", "own risk above alpha", "certified", "served"]
    keys = ("case", "missed", "contradicted", "certified", "served")
    cells = [[row.get(key, "") for key in keys] for row in rows]
    print_table(head, [[f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row] for row in cells])
    write_json(options.json, {"repeats": options.repeats, "delta": DELTA, "cases": rows})


if __name__ == "__main__":
    main()
