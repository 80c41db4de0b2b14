"""What a zero from few labels is worth: a shift, a factor, fixed answers, and centring on a request's own draws.

``python -m benchmarks.zero`` makes a world in which prompts have free offsets (standard deviation 2) and one in which they have
none. Each ``--log NAME LABELS HELD_OUT MODEL BESIDE`` adds labelled logs with texts, one to take labels from and one of other
prompts, a model, and the key of scores of another one in the logs, such as of the one trained with an outside option (or
``score``). For 50 to 2,000 labels, 4 to a prompt or as many as it takes, it fits each form, lets ``zero`` choose, and says how many
requests get an acceptable answer where 5 % of all requests get a bad one: best of all draws, served above one threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.tables import arguments, print_table, write_json
from bonmini_guard.calibration import zero
from bonmini_guard.commands.zero import ANCHORS
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.logs.rows import Row

Floats = npt.NDArray[np.float64]
COUNTS, RATE, REPEATS = (50, 200, 500, 2000), 0.05, 20


@dataclass(frozen=True)
class Draws:
    """Complete rows: (P, N) scores and labels, (P, k) scores of the fixed answers."""

    raw: Floats
    anchors: Floats
    good: npt.NDArray[np.bool_]

    def labels(self, rows: npt.NDArray[Any], draws: int) -> zero.Labels:
        """Labels of the first draws of some rows."""
        return zero.Labels(
            self.raw[rows, :draws].ravel(),
            np.repeat(self.anchors[rows], draws, axis=0),
            self.good[rows, :draws].ravel(),
            np.arange(rows.size).repeat(draws),
        )

    def scores(self, fit: zero.Fit) -> Floats:
        """(P, N) scores with the zero."""
        return np.asarray(fit.factor * self.raw + fit.shift - (self.anchors @ fit.weights)[:, None])


def good_served(scores: Floats, good: npt.NDArray[np.bool_]) -> float:
    """The share of requests with an acceptable answer, at the laxest threshold with at most RATE bad ones; best of all draws."""
    best = scores.argmax(1)
    order = np.argsort(-scores.max(1), kind="stable")
    is_good = np.take_along_axis(good, best[:, None], 1)[:, 0][order]
    allowed = np.flatnonzero((~is_good).cumsum() <= RATE * good.shape[0])
    return float(is_good[: allowed[-1] + 1].sum() / good.shape[0]) if allowed.size else 0.0


def simulated(prompts: int, draws: int, offsets: float, seed: int) -> Draws:
    """Utilities above 0 are acceptable; scores add an offset of the prompt, which fixed answers share but for their own worth."""
    random = np.random.default_rng(seed)
    utility = random.normal(-0.5, 1, (prompts, 1)) + random.normal(0, 1, (prompts, draws))
    offset = random.normal(0, offsets, (prompts, 1)) if offsets else np.zeros((prompts, 1))
    anchors = offset + random.normal(-2, 0.5, (prompts, 2))
    return Draws(utility + random.normal(0, 0.5, (prompts, draws)) + offset, anchors, utility > 0)


def of_log(path: Path, scorer: Any, beside: str) -> tuple[Draws, Floats]:
    """Scores of a model, and those of another one that stand in the log; its rows are complete and labelled."""
    mark = scorer.fingerprint()
    # A log scored before rendering was part of the fingerprint says only its beginning.
    known = {mark, mark.rpartition(":")[0]}
    rows = [Row(value | {"scored_by": mark} if value.get("scored_by") in known else value, place) for place, value in RowFile(path)]
    labels = zero.labels_of(rows, scorer, ANCHORS)
    raw = labels.raw.reshape(len(rows), -1)
    other = np.array([[one.value[beside] for one in row.candidates] for row in rows])
    return Draws(raw, labels.anchors[:: raw.shape[1]], labels.good.reshape(raw.shape)), other


def measured(fit: Draws, held_out: Draws) -> dict[str, Any]:
    """By number of labels: what each form and the choice are worth, means over random subsets of the prompts."""
    found: dict[str, Any] = {}
    centred = held_out.raw - held_out.raw.mean(1, keepdims=True)
    fixed = {"centred on its own draws": good_served(centred, held_out.good)}
    for count in COUNTS:
        draws = max(4, -(-count // fit.raw.shape[0]))
        prompts = count // draws
        each: dict[str, list[float]] = {name: [] for name in (*zero.FORMS, "chosen")}
        chosen = list[str]()
        for repeat in range(REPEATS):
            rows = np.random.default_rng(repeat).choice(fit.raw.shape[0], prompts, replace=False)
            labels = fit.labels(rows, draws)
            choice = zero.choose(labels, repeat)
            chosen.append(choice.form)
            for name in zero.FORMS:
                each[name].append(good_served(held_out.scores(zero.fit(labels, name)), held_out.good))
            each["chosen"].append(each[choice.form][-1])
        found[str(count)] = {name: float(np.mean(values)) for name, values in each.items()} | fixed
        found[str(count)]["fixed answers chosen"] = chosen.count("fixed answers") / REPEATS
        found[str(count)]["least of chosen minus shift"] = float(np.min(np.subtract(each["chosen"], each["shift"])))
    return found


def show(name: str, found: Mapping[str, Any], best: float | None) -> None:
    """One table."""
    said = "" if best is None else f"; with an outside option {best:.3f}"
    print(f"\n{name}: requests with an acceptable answer at {RATE:.0%} bad{said}")
    keys = list(next(iter(found.values())))
    print_table(["labels", *keys], [[count, *(f"{each[key]:.3f}" for key in keys)] for count, each in found.items()])


def _on_logs(name: str, fit: Path, evaluate: Path, model: str, beside: str) -> dict[str, Any]:
    from bonmini_guard.reward.declared import load_scorer

    scorer = load_scorer(model)
    labelled, _ = of_log(fit, scorer, beside)
    held_out, other = of_log(evaluate, scorer, beside)
    best = good_served(other, held_out.good)
    within, between = zero.orders(held_out.labels(np.arange(held_out.raw.shape[0]), held_out.raw.shape[1]))
    found = measured(labelled, held_out)
    show(name, found, best)
    return {"by_labels": found, "with_outside_option": best, "pairs_in_order": [within, between]}


def main() -> None:
    """Simulations, or logs."""
    parser = arguments(__doc__, json=Path)
    parser.add_argument("--log", nargs=5, action="append", default=[], metavar=("NAME", "LABELS", "HELD_OUT", "MODEL", "BESIDE"))
    given = parser.parse_args()
    results: dict[str, Any] = {}
    for name, offsets in (("free offsets of prompts", 2.0), ("no offsets", 0.0)):
        found = measured(simulated(800, 16, offsets, 0), simulated(2000, 16, offsets, 1))
        show(name, found, None)
        results[name] = {"by_labels": found}
    for name, fit, held_out, model, beside in given.log:
        results[name] = _on_logs(name, Path(fit), Path(held_out), model, beside)
    write_json(given.json, {"rate": RATE, "repeats": REPEATS, "anchors": ANCHORS, "worlds": results})


if __name__ == "__main__":
    main()
