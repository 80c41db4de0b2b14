"""Are the promises kept, and are they worth anything? ``python -m benchmarks.validity [--repeats 500] [--json FILE]``.

Every case of the slow validity tests (clustered errors, heavy ties, 80 % of prompts with nothing acceptable, groups, per-loop
thresholds, hopeless exits; each risk, each bound), the power at 1,000 labelled prompts, and the accelerator: how often the truth
exceeds what was promised with confidence 0.9, next to how much is served.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.tables import print_table, write_json
from bonmini_guard.calibration.staircase import Shape
from tests.calibration.recalibrations import CASES, DELTA, SINGLE, SMALL, recalibrate, recalibrate_accelerator

POWER = {
    "served_and_bad, 1,000 prompts": (SINGLE, 1000, Shape((1,)), "served_and_bad", 0.05),
    "bad_among_served, 1,000 prompts": (SINGLE, 1000, Shape((1,)), "bad_among_served", 0.1),
    "false_acceptance, 1,000 prompts": (SINGLE, 1000, Shape((1,)), "false_acceptance", 0.1),
}


def measure(repeats: int) -> list[dict[str, Any]]:
    """One row a case."""
    rows = []
    for name, case in {**CASES, **POWER}.items():
        begin = time.perf_counter()
        misses, served, found, oracle = recalibrate(*case, repeats=repeats)
        row = {"case": name, "missed": misses / repeats, "certified": found, "served": served, "oracle_served": oracle}
        rows.append({**row, "seconds": time.perf_counter() - begin})
        print(f"{name}: missed {misses} of {repeats}", flush=True)
    begin = time.perf_counter()
    misses, _ = recalibrate_accelerator(SMALL, 150, (2, 2), 0.05, repeats=repeats)
    row = {
        "case": "accelerator, epsilon 0.05",
        "missed": misses / repeats,
        "certified": None,
        "served": None,
        "oracle_served": None,
    }
    return [*rows, {**row, "seconds": time.perf_counter() - begin}]


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    rows = measure(options.repeats)
    head = ["case", f"missed (allowed {DELTA:g})", "certified", "served", "oracle serves", "seconds"]
    print_table(head, [["" if v is None else v if isinstance(v, str) else f"{v:.3f}" for v in row.values()] for row in rows])
    write_json(options.json, {"repeats": options.repeats, "delta": DELTA, "cases": rows})


if __name__ == "__main__":
    main()
