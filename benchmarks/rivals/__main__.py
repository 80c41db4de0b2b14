"""Draws that each rule needs for best-of-N's acceptable rate minus one point; internals fitted on one half, tested on the other.

``python -m benchmarks.rivals [--code LOG] --json benchmarks/results/rivals.json``: the desk and both IMDB regimes from the
committed logs, and any complete labelled log. A rule's curve (draws against acceptable rate) goes through all its settings on the
test half, so each stands at its own best setting of that quality; intervals are over random halves.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.desk.label import log_rows
from benchmarks.imdb.sample import read_rows
from benchmarks.imdb_real.keep import log_of
from benchmarks.rivals.others import AdaBoN, Beacon, OptScale, Pandora, PerfectReward, Weitzman
from benchmarks.rivals.ours import FixedN, Loops, Posterior
from benchmarks.rivals.rules import Floats, Pool, Rule
from benchmarks.tables import print_table, write_json

ORDERS, POINT = 5, 0.01
RULES: Mapping[str, type[Any] | Any] = {
    "smallest fixed N": FixedN,
    "AdaBoN across a batch": AdaBoN,
    "BEACON": Beacon,
    "Pandora UCB": Pandora,
    "OptScale": OptScale,
    "ours, loops of 4": lambda: Loops(4),
    "ours, one at a time": lambda: Loops(1),
    "posterior": Posterior,
    "bound: the prompt's law known": Weitzman,
    "bound: perfect reward, no foresight": PerfectReward,
}


def pools(code: Path | None) -> dict[str, Pool]:
    """Regimes by name."""
    found = {"desk": _pool(log_rows("calibrate") + log_rows("evaluate"))}
    for name in ("minilm", "words"):
        found[f"IMDB, {name}"] = _pool([*read_rows(log_of(name, "calibrate")), *read_rows(log_of(name, "evaluate"))])
    if code is not None:
        found[code.name.split(".")[0]] = _pool(read_rows(code))
    return found


def _pool(rows: Any) -> Pool:
    drawn = [row["candidates"][:32] for row in rows]
    scores = np.array([[one["score"] for one in each] for each in drawn], dtype=np.float64)
    # A draw that could not be scored is the worst there is.
    scores = np.where(np.isnan(scores), np.nanmin(scores), scores)
    return Pool(scores, np.array([[one["acceptable"] for one in each] for each in drawn], dtype=np.bool_))


def acceptable(pool: Pool, by: Floats, stops: Any) -> float:
    """The share of requests whose best draw among the first ones, by some scores, is acceptable."""
    hidden = np.where(np.arange(by.shape[1]) < np.asarray(stops)[:, None], by, -np.inf)
    return float(np.take_along_axis(pool.good, hidden.argmax(1)[:, None], 1).mean())


def needed(rule: Rule, pool: Pool, wanted: float) -> float:
    """The fewest draws at which a setting, or a mixture of two, reaches the quality; infinite if none does."""
    index, by = rule.index(pool), rule.serves(pool)
    curve = [rule.stops(pool, index, knob) for knob in rule.knobs(pool)]
    points = [(float(np.mean(stops)), acceptable(pool, by, stops)) for stops in curve]
    below, above = ([point for point in points if (point[1] > wanted - 1e-9) == side] for side in (False, True))
    mixed = [d + (wanted - q) / (e - q) * (f - d) for d, q in below for f, e in above]
    return min([*mixed, *(draws for draws, _ in above)], default=np.inf)


def compared(pool: Pool, splits: int) -> dict[str, Any]:
    """By rule: draws in every split."""
    found: dict[str, list[float]] = {name: [] for name in RULES}
    rates = list[float]()
    for split in range(splits):
        random = np.random.default_rng(split)
        order = random.permutation(pool.scores.shape[0])
        half = order.size // 2
        learnt, tested = pool.take(order[:half]), pool.take(order[half:]).shuffled(random, ORDERS)
        rates.append(acceptable(tested, tested.scores, np.full(tested.scores.shape[0], tested.scores.shape[1])))
        for name, make in RULES.items():
            rule = make()
            rule.fit(learnt)
            found[name].append(needed(rule, tested, rates[-1] - POINT))
    return {"best_of_n": float(np.mean(rates)), "draws": found}


def _strict(regimes: Mapping[str, Any]) -> dict[str, Any]:
    """Without infinities, which JSON has no word for."""
    return {
        name: each | {"draws": {rule: [n if np.isfinite(n) else None for n in values] for rule, values in each["draws"].items()}}
        for name, each in regimes.items()
    }


def main() -> None:
    """All regimes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--code", type=Path, help="a complete labelled log")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {name: compared(pool, given.splits) for name, pool in pools(given.code).items()}
    head = ["draws for best-of-32 minus a point", *found]
    rows = [["best-of-32 acceptable", *(f"{each['best_of_n']:.3f}" for each in found.values())]]
    rows += [[rule, *(_cell(each["draws"][rule]) for each in found.values())] for rule in RULES]
    ratios = [np.array(each["draws"]["posterior"]) / each["draws"]["ours, one at a time"] for each in found.values()]
    rows.append(["posterior / one at a time", *(_cell(ratio) for ratio in ratios)])
    print_table(head, rows)
    sources = {name: make().source for name, make in RULES.items()}
    write_json(given.json, {"splits": given.splits, "orders": ORDERS, "sources": sources, "regimes": _strict(found)})


def _cell(values: Any) -> str:
    if not np.isfinite(values).all():
        return f"not in {int((~np.isfinite(values)).sum())} of {len(values)}"
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{np.mean(values):.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
