"""Draws that each rule needs for best-of-N's acceptable rate minus one point; internals fitted on one half, tested on the other.

``python -m benchmarks.rivals [--code LOG] --json benchmarks/results/rivals.json``: the desk, both IMDB regimes and two cuts of the
toy pool from the committed logs, and any complete labelled log. A rule's curve (draws against acceptable rate) goes through all its
settings on the test half, so each stands at its own best setting of that quality; intervals are over random halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals import selections
from benchmarks.rivals.others import AdaBoN, Beacon, OptScale, Pandora, PerfectReward, Weitzman
from benchmarks.rivals.ours import FixedN, Loops, Posterior
from benchmarks.rivals.pools import pools
from benchmarks.rivals.rules import Floats, Integers, Pool, Rule
from benchmarks.tables import arguments, print_table, with_interval, write_json

#: Draws in all that the random orders of a test half come to, about.
DRAWS, MOST_ORDERS, POINT = 70_000, 5, 0.01
#: The price of a draw of a dearer model, which need not be drawn from twice.
DEARER = 3.0
OURS = "ours, one at a time"
RULES: Mapping[str, type[Any] | Any] = {
    "smallest fixed N": FixedN,
    "AdaBoN across a batch": AdaBoN,
    "BEACON": Beacon,
    "Pandora UCB": Pandora,
    "OptScale": OptScale,
    "speculative rejection": selections.SpeculativeRejection,
    "Soft best-of-n": selections.SoftBestOfN,
    "top-share uniform": selections.TopShare,
    "InferenceTimePessimism": selections.Pessimism,
    "regularised best-of-N": selections.RegularisedBestOfN,
    "minimum Bayes risk": selections.MinimumRisk,
    "ours, loops of 4": lambda: Loops(4),
    OURS: lambda: Loops(1),
    "posterior": Posterior,
    "bound: the prompt's law known": Weitzman,
    "bound: perfect reward, no foresight": PerfectReward,
}


def acceptable(pool: Pool, chosen: Integers) -> float:
    """The share of requests whose served draw is acceptable."""
    return float(np.take_along_axis(pool.good, chosen[:, None], 1).mean())


def curve(rule: Rule, pool: Pool) -> list[tuple[float, float, Any]]:
    """(mean draws, acceptable rate, setting) of all settings."""
    index, found = rule.index(pool), []
    for knob in rule.knobs(pool):
        draws, chosen = rule.run(pool, index, knob)
        found.append((float(draws.mean()), acceptable(pool, chosen), knob))
    return found


def needed(points: list[tuple[float, float, Any]], wanted: float) -> float:
    """The fewest draws at which a setting, or a mixture of two, reaches the quality; infinite if none does."""
    below, above = ([(d, q) for d, q, _ in points if (q > wanted - 1e-9) == side] for side in (False, True))
    mixed = [d + (wanted - q) / (e - q) * (f - d) for d, q in below for f, e in above]
    return min([*mixed, *(draws for draws, _ in above)], default=np.inf)


def figures(rule: Rule, pool: Pool, points: list[tuple[float, float, Any]], wanted: float) -> dict[str, float]:
    """Beside the draws, at the cheapest setting that reaches the quality; empty if none does.

    ``win_rate``: the served draw's score against one draw's of the same prompt, ties a half. ``kl``: of the served draw's rank
    among the prompt's draws to the base model's, in nats; a lower bound of the mean over prompts, exact for best-of-n.
    ``break_even_of_a_dearer_model``: how often one draw at three times the price must be acceptable to cost as much an answer.
    """
    reached = [point for point in points if point[1] > wanted - 1e-9]
    if not reached:
        return {}
    draws, rate, knob = min(reached, key=lambda point: point[0])
    _, chosen = rule.run(pool, rule.index(pool), knob)
    served = np.take_along_axis(pool.scores, chosen[:, None], 1)
    most = pool.scores.shape[1]
    below, equal = (served > pool.scores).sum(1), (served == pool.scores).sum(1)
    shares = np.bincount(most - below - equal, minlength=most) / chosen.size
    return {
        "acceptable": rate,
        "mean_reward": float(served.mean()),
        "win_rate": float(((below + equal / 2) / most).mean()),
        "kl": float((shares[shares > 0] * np.log(shares[shares > 0] * most)).sum()),
        "draws_an_acceptable_answer": draws / rate,
        "break_even_of_a_dearer_model": DEARER * rate / draws,
    }


def compared(pool: Pool, splits: int) -> dict[str, Any]:
    """By rule: draws and further figures in every split."""
    made = {name: make() for name, make in RULES.items()}
    rules = {name: rule for name, rule in made.items() if not rule.needs or getattr(pool, rule.needs) is not None}
    found: dict[str, list[float]] = {name: [] for name in rules}
    more: dict[str, list[dict[str, float]]] = {name: [] for name in rules}
    rates, half = list[float](), pool.scores.shape[0] // 2
    orders = max(1, min(MOST_ORDERS, round(DRAWS / (half * pool.scores.shape[1]))))
    for split in range(splits):
        random = np.random.default_rng(split)
        order = random.permutation(pool.scores.shape[0])
        learnt, tested = pool.take(order[:half]), pool.take(order[half:]).shuffled(random, orders)
        rates.append(acceptable(tested, tested.scores.argmax(1)))
        for name, rule in rules.items():
            rule.fit(learnt)
            points = curve(rule, tested)
            found[name].append(needed(points, rates[-1] - POINT))
            more[name].append(figures(rule, tested, points, rates[-1] - POINT))
    return {
        "prompts": pool.scores.shape[0],
        "orders": orders,
        "best_of_n": float(np.mean(rates)),
        "one_draw": float(pool.good.mean()),
        "draws": found,
        "at_equal_quality": {name: _means(each) for name, each in more.items()},
    }


def _means(each: list[dict[str, float]]) -> dict[str, float]:
    """Over the splits in which a setting reached the quality."""
    reached = [one for one in each if one]
    return {key: round(float(np.mean([one[key] for one in reached])), 4) for key in (reached[0] if reached else ())}


def _strict(regimes: Mapping[str, Any]) -> dict[str, Any]:
    """Without infinities, which JSON has no word for."""
    return {
        name: each
        | {"draws": {rule: [round(n, 3) if np.isfinite(n) else None for n in values] for rule, values in each["draws"].items()}}
        for name, each in regimes.items()
    }


def main() -> None:
    """All regimes."""
    parser = arguments(__doc__, splits=20, json=Path)
    parser.add_argument("--code", type=Path, help="a complete labelled log")
    given = parser.parse_args()
    found = {name: compared(pool, given.splits) for name, pool in pools(given.code).items()}
    head = ["draws for best-of-32 minus a point", *found]
    rows = [["best-of-32 acceptable", *(f"{each['best_of_n']:.3f}" for each in found.values())]]
    rows += [[rule, *(_cell(each["draws"].get(rule)) for each in found.values())] for rule in RULES]
    ratios = [np.array(each["draws"]["posterior"]) / each["draws"][OURS] for each in found.values()]
    rows.append(["posterior / one at a time", *(_cell(ratio) for ratio in ratios)])
    print_table(head, rows)
    sources = {name: make().source for name, make in RULES.items()}
    write_json(given.json, {"splits": given.splits, "sources": sources, "regimes": _strict(found)})


def _cell(values: Floats | list[float] | None) -> str:
    if values is None:
        return "-"
    if not np.isfinite(values).all():
        return f"not in {int((~np.isfinite(values)).sum())} of {len(values)}"
    return with_interval([float(np.mean(values)), *np.quantile(values, [0.025, 0.975])], 2)


if __name__ == "__main__":
    main()
