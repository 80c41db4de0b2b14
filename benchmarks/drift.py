"""How often ``drift`` cries out over a year of weekly looks, and how soon after a change.

``python -m benchmarks.drift [--worlds 100] [--json FILE]``. Every world calibrates anew on 300 simulated prompts, then has 52 weeks
of traces of the calibrated guard, 20 % of them labelled. They are looked at in three ways: with a state that is kept (``--state``),
each week by itself at a share of the rate (``--looks 52``), and each week by itself at all of it (naive).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.tables import arguments, print_table, write_json
from tests.calibration.populations import Population
from tests.calibration.watching import TRAFFIC, calibrated, first_alarm, weeks_of

WEEKS, TRACES, CHANGE = 52, 40, 10
WAYS = ("state", "looks", "naive")
UNCHANGED = {"the same traffic": TRAFFIC, "the same traffic, whole-number scores": Population(size=4, digits=0)}
CHANGED = {
    "prompts a little harder": replace(TRAFFIC, middle=-0.25),
    "prompts harder": replace(TRAFFIC, middle=-0.5),
    "prompts much harder": replace(TRAFFIC, middle=-1.0),
    "prompts more mixed": replace(TRAFFIC, prompt=1.5),
    "the scorer blinder": replace(TRAFFIC, shared=1.5),
}


def main() -> None:
    """Measure, print tables, write JSON if asked."""
    options = arguments(__doc__, worlds=100, changed_worlds=20, json=Path).parse_args()
    alarms = [_alarms(name, population, options.worlds) for name, population in UNCHANGED.items()]
    print_table([f"of {options.worlds} worlds", *WAYS], [[row["case"], *(row[way] for way in WAYS)] for row in alarms])
    delays = [_delays(name, population, options.changed_worlds) for name, population in CHANGED.items()]
    heads = [f"change in week {CHANGE + 1}", *(f"{way}: found, median traces" for way in WAYS)]
    print_table(heads, [[row["case"], *(_shown(row[way]) for way in WAYS)] for row in delays])
    setting = {"weeks": WEEKS, "traces_a_week": TRACES, "change_after_week": CHANGE, "false_alarm_rate": 0.01}
    worlds = {"worlds": options.worlds, "changed_worlds": options.changed_worlds}
    write_json(options.json, {**setting, **worlds, "alarms": alarms, "delays": delays})


def _alarms(name: str, population: Population, worlds: int) -> dict[str, Any]:
    """In how many worlds without a change each way cries out at all."""
    heard = dict.fromkeys(WAYS, 0)
    for seed in range(worlds):
        profile = calibrated(seed, population)
        weeks = list(weeks_of(profile, [population] * WEEKS, TRACES, seed))
        for way in WAYS:
            heard[way] += first_alarm(profile, weeks, way) is not None
    return {"case": name, **heard}


def _delays(name: str, later: Population, worlds: int) -> dict[str, Any]:
    """In how many worlds the change is found, how many cried out before it, and the median of the traces that it took."""
    found: dict[str, list[int]] = {way: [] for way in WAYS}
    early = dict.fromkeys(WAYS, 0)
    for seed in range(worlds):
        profile = calibrated(seed)
        weeks = list(weeks_of(profile, [TRAFFIC] * CHANGE + [later] * (WEEKS - CHANGE), TRACES, seed))
        for way in WAYS:
            alarm = first_alarm(profile, weeks, way)
            if alarm is not None:
                early[way] += alarm[0] <= CHANGE
                found[way] += [(alarm[0] - CHANGE) * TRACES] if alarm[0] > CHANGE else []
    return {"case": name} | {
        way: {
            "worlds": worlds,
            "found": len(found[way]),
            "before_the_change": early[way],
            # over all worlds in which nothing was said before: a median beyond the year is none
            "median_traces": _median(found[way], worlds - early[way]),
        }
        for way in WAYS
    }


def _median(delays: list[int], worlds: int) -> float | None:
    place = worlds // 2
    return float(sorted(delays)[place]) if place < len(delays) else None


def _shown(way: dict[str, Any]) -> str:
    median = "-" if way["median_traces"] is None else f"{way['median_traces']:g}"
    return f"{way['found']} of {way['worlds']}, {median}"


if __name__ == "__main__":
    main()
