"""How often ``drift`` cries out: without a change, and after one. ``python -m benchmarks.drift [--repeats 2000] [--json FILE]``.

Every repeat calibrates anew on 200 simulated prompts and looks at 150 later traces of the calibrated guard.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.tables import print_table, write_json
from bonmini_guard.calibration.drift import FALSE_ALARM_RATE
from tests.calibration.populations import Population
from tests.calibration.watching import TRAFFIC, alarms

RATES = (0.05, FALSE_ALARM_RATE)
TIED = Population(size=4, digits=0)
CASES = {
    "the same traffic": (TRAFFIC, TRAFFIC),
    "the same traffic, whole-number scores": (TIED, TIED),
    "harder prompts": (TRAFFIC, Population(size=4, middle=TRAFFIC.middle - 0.5)),
}


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    rows = []
    for name, (before, later) in CASES.items():
        heard = alarms(before, later, options.repeats, RATES)
        rows.append({"case": name, "alarms": {str(rate): heard[rate] / options.repeats for rate in RATES}})
        print(f"{name}: {dict(heard)} of {options.repeats}", flush=True)
    table = [[row["case"], *(f"{share:.4f}" for share in row["alarms"].values())] for row in rows]
    print_table(["case", *(f"alarms at {rate:g}" for rate in RATES)], table)
    write_json(options.json, {"repeats": options.repeats, "cases": rows})


if __name__ == "__main__":
    main()
