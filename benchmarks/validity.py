"""Are the promises kept, and are they worth anything? ``python -m benchmarks.validity [--repeats 300] [--json FILE]``.

Every case of the slow validity tests (clustered errors, ties, half of the prompts with nothing acceptable, few rows; each risk and
the accelerator), the best of several seeds, counted and not counted: how often the truth exceeds what was promised with confidence
0.9, how often a certificate's own risk is above alpha, how much is served, and how many labels that takes at most.

``--against VERSION`` (a revision, or a folder with its source) calibrates the same logs with another version of the package, and
shows what it serves.
"""

from __future__ import annotations

import json
import math
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import arguments, print_table, write_json
from benchmarks.versions import run, source_of
from bonmini_guard.policy.profile import GuardProfile
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
    truth,
)

MORE_ROWS = (100, 200, 400, 800, 1600)
SEEDS = 20


#: Calibrates logs in the folder argv[1] with the version that is imported, and prints the thresholds.
CHILD = """
import json, sys, numpy as np
from bonmini_guard.calibration.guardrail import calibrate_guardrail
from bonmini_guard.calibration.logs import Log
found = []
for number in range(int(sys.argv[2])):
    kept = np.load(f"{sys.argv[1]}/{number}.npz")
    names = tuple(map(str, range(len(kept["counts"]))))
    log = Log("simulated", names, names, kept["scores"], kept["labels"].astype(float), kept["counts"], kept["groups"])
    outcome = calibrate_guardrail(log, **json.loads(sys.argv[3]))
    found.append(list(outcome.profile.thresholds) if hasattr(outcome, "profile") else None)
print(json.dumps(found))
"""


def arriving(repeats: int) -> list[dict[str, Any]]:
    """One row a case of those decided in order of arrival: missed is a certificate that is not true of each width of its ladder."""
    rows = [_row(name, recalibrate(*case, repeats=repeats, exit=exit_), repeats) for name, (*case, exit_) in ARRIVING.items()]
    misses, draws, found = recalibrate_accelerator(HASTY, 400, EIGHT, 0.02, repeats=repeats, exit="rolling")
    about = f"rolling accelerator, epsilon 0.02, short answers worse ({draws:.2f} draws of 8)"
    return [*rows, {"case": about, "missed": misses / repeats, "certified": found}]


def measure(repeats: int, against: Path | None) -> list[dict[str, Any]]:
    """One row a case."""
    rows = []
    cases = {**CASES, **{f"served_and_bad, {n:,} rows": (CLUSTERED, n, FOUR, "served_and_bad", 0.05) for n in MORE_ROWS}}
    for name, case in cases.items():
        counted = recalibrate(*case, repeats=repeats)
        rows.append(_row(name, counted, repeats) | ({} if against is None else _beside(against, case, counted.served)))
    rows.append(
        _row(f"best of {SEEDS} seeds, counted", recalibrate(*CASES["served_and_bad"], repeats=repeats, seeds=SEEDS), repeats)
    )
    shapes = recalibrate(*CASES["served_and_bad"], repeats=repeats, schedules=SCHEDULES)
    rows.append(_row(f"best of {len(SCHEDULES)} schedules, counted", shapes, repeats))
    misses, draws, found = recalibrate_accelerator(SMALL, 400, (2, 2), 0.02, repeats=repeats)
    return [*rows, {"case": f"accelerator, epsilon 0.02 ({draws:.2f} draws of 4)", "missed": misses / repeats, "certified": found}]


def _beside(source: Path, case: tuple[Any, ...], mine: list[float]) -> dict[str, float]:
    """What another version's profiles serve in truth on the first logs of a case, and what this one's do on the same."""
    repeats = min(60, len(mine))
    other = _other(source, case, repeats)
    more = np.asarray(mine[:repeats]) - np.asarray(other)
    error = float(more.std(ddof=1)) / math.sqrt(repeats)
    return {"other_serves": float(np.mean(other)), "difference": float(more.mean()), "difference_error": error}


def _other(source: Path, case: tuple[Any, ...], repeats: int) -> list[float]:
    population, prompts, schedule, risk, alpha = case
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            log = population.log(prompts, number)
            kept = {name: getattr(log, name) for name in ("scores", "labels", "counts", "groups")}
            np.savez(Path(folder) / f"{number}.npz", **kept)
        asked = json.dumps({"schedule": schedule, "risk": risk, "alpha": alpha, "delta": DELTA})
        every = run(source, CHILD, folder, str(repeats), asked)
    profiles = [found and GuardProfile(mode="guardrail", schedule=schedule, thresholds=tuple(found)) for found in every]
    return [truth(population, profile)["served"] if profile else 0.0 for profile in profiles]


def _row(name: str, counted: Counted, repeats: int) -> dict[str, Any]:
    print(f"{name}: missed {counted.misses} of {repeats}", flush=True)
    shares = {"missed": counted.misses / repeats, "contradicted": counted.contradicted / repeats}
    return {"case": name, **shares, "certified": counted.found, "served": float(np.mean(counted.served)), "labels": counted.labels}


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = arguments(__doc__, repeats=300, json=Path)
    parser.add_argument("--arriving", action="store_true", help="only the cases that are decided in order of arrival")
    parser.add_argument("--against", metavar="VERSION", help="a revision, or a folder with the source of another version")
    options = parser.parse_args()
    with source_of(options.against) if options.against else nullcontext() as other:
        rows = arriving(options.repeats) if options.arriving else measure(options.repeats, other)
    head = [
        "case",
        f"missed (allowed {DELTA:g})",
        "own risk above alpha",
        "certified",
        "served",
        "labels a row",
        "other serves",
        "this serves more by",
        "± s.e.",
    ]
    keys = ("case", "missed", "contradicted", "certified", "served", "labels", "other_serves", "difference", "difference_error")
    cells = [[row.get(key, "") for key in keys] for row in rows]
    print_table(head, [[f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row] for row in cells])
    write_json(options.json, {"repeats": options.repeats, "delta": DELTA, "cases": rows})


if __name__ == "__main__":
    main()
