"""Step 8: best-of-N at score 0, its twin, and calibrated guards, on the committed logs; exact over draw orders, seconds of work.

``python -m benchmarks.imdb_real.evaluate --json benchmarks/results/imdb_real.json``. For each truth thresholds come from
NAME-calibrate.jsonl.gz, figures from NAME-evaluate.jsonl.gz, as ``bonmini-guard calibrate`` and ``replay`` give them; intervals are
of 1,000 resamples of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.imdb_real.keep import NAMES as TRUTHS
from benchmarks.imdb_real.keep import log_of, with_scores
from benchmarks.tables import arguments, print_table, read_rows, with_interval, write_json
from bonmini_guard.calibration.choose import calibrate_accelerator, calibrate_guardrail
from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence
from bonmini_guard.calibration.figures import figures_of_sums, sums_of
from bonmini_guard.calibration.logs import Log, log_of_rows
from bonmini_guard.calibration.replay import Settled, replay
from bonmini_guard.policy.policy import Mode
from bonmini_guard.training.evidence import area

SIZES = (1, 4, 8, 16, 32)
SCHEDULE = (4,) * 8
RESAMPLES = 1000
SHOWN = ("false_acceptances", "false_acceptance_rate", "served_and_bad_rate", "recall", "recall_vs_best_of_n", "acceptable_rate")
NAMES = (*SHOWN, "mean_draws")

Rows = list[dict[str, Any]]
#: Value, and the ends of its 95 % interval.
Figure = list[float | None]


class Resampled:
    """Figures of a procedure with intervals, against best-of-N of the same log.

    Args:
        log: complete, labelled rows; every row is its own unit.
    """

    def __init__(self, log: Log) -> None:
        self.log, prompts = log, len(log)
        source = np.random.default_rng(0)
        self.samples = [np.arange(prompts), *source.integers(prompts, size=(RESAMPLES, prompts))]

    def settled(self, mode: Mode, schedule: Sequence[int], thresholds: Sequence[float]) -> Settled:
        """What a procedure does on each prompt."""
        return replay(self.log, mode, schedule, thresholds)

    def figures(self, settled: Settled) -> dict[str, Figure]:
        """The figures of ``replay --json`` that are shown."""
        best = self.settled("accelerator", (32,), (np.inf,)).served_good
        found = [figures_of_sums(sums_of(_of(settled, sample)), float(best[sample].mean())) for sample in self.samples]
        return {name: interval([sample[name] for sample in found]) for name in NAMES}

    def fewer(self, guard: Settled, before: Settled) -> Figure:
        """By which share there are fewer false acceptances than before."""
        return interval([1 - float(guard.served_bad[sample].sum() / before.served_bad[sample].sum()) for sample in self.samples])

    def ranking(self) -> Figure:
        """Area under the ROC curve of single draws."""
        scores, labels = torch.tensor(self.log.scores), torch.tensor(self.log.labels > 0)
        weights = torch.ones(scores[0].numel())
        every = [
            area(scores[sample].flatten(), labels[sample].flatten(), weights.repeat(len(sample)))
            for sample in map(torch.tensor, self.samples[:201])
        ]
        return interval(every)


def _of(settled: Settled, rows: Any) -> Settled:
    return Settled(*(getattr(settled, field.name)[rows] for field in fields(Settled)))


def interval(values: Sequence[float | None]) -> Figure:
    """The first value, and where 95 % of the others lie."""
    others = [value for value in values[1:] if value is not None]
    return [values[0], *(float(end) for end in np.quantile(others, [0.025, 0.975]))]


def evaluate(calibrate: Rows, held_out: Rows) -> dict[str, Any]:
    """Everything that is measured."""
    found: dict[str, Any] = {}
    models = {"reward": "score"} | ({"twin": "twin"} if "twin" in held_out[0]["candidates"][0] else {})
    for name, column in models.items():
        held = Resampled(log_of_rows(with_scores(held_out, column)))
        at_zero = {n: held.figures(held.settled("guardrail", (n,), (0.0,))) for n in SIZES}
        found[name] = {"auc": held.ranking(), "best_of_n_at_zero": at_zero}
        # One threshold found on labels needs no zero: what calibration alone makes of a model that only ranks.
        prefix, known = "" if name == "reward" else f"{name}: ", log_of_rows(with_scores(calibrate, column))
        found[f"{prefix}best_of_32"] = held.figures(held.settled("accelerator", (32,), (np.inf,)))
        guardrail = calibrate_guardrail(known, schedule=SCHEDULE, risk="false_acceptance", alpha=0.1)
        found[f"{prefix}guardrail"] = guard(guardrail, held)
        found[f"{prefix}accelerator"] = guard(calibrate_accelerator(known, schedule=SCHEDULE, epsilon=0.02), held)
    worth = {role: base_rates(rows) for role, rows in (("calibrate", calibrate), ("evaluate", held_out))}
    return {"draws": worth} | found


def guard(outcome: Certificate | NotEnoughEvidence, held: Resampled) -> dict[str, Any]:
    """What a certificate says, and what it does on the held-out prompts."""
    if isinstance(outcome, NotEnoughEvidence):
        return {"sentence": outcome.sentence}
    profile = outcome.profile
    done = held.settled(profile.mode, profile.schedule, profile.thresholds)
    before = held.settled("guardrail", (32,), (0.0,))
    figures = held.figures(done) | {"fewer_false_acceptances_than_best_of_32_at_zero": held.fewer(done, before)}
    return {"sentence": outcome.sentence, "thresholds": list(profile.thresholds)} | figures


def base_rates(rows: Rows) -> dict[str, Any]:
    """What the draws are worth to an oracle."""
    labels = [[candidate["acceptable"] for candidate in row["candidates"]] for row in rows]
    return {"prompts": len(rows), "single": float(np.mean(labels)), "none_of_32": float(np.mean([not any(row) for row in labels]))}


def show(found: dict[str, Any]) -> None:
    """Print one table."""
    lines = [
        [f"{model}: best-of-{n} at 0", *_cells(found[model]["best_of_n_at_zero"][n])]
        for model in ("reward", "twin")
        if model in found
        for n in SIZES
    ]
    guards = [name for name in found if name.endswith(("guardrail", "accelerator"))]
    lines += [[name, *_cells(found[name])] for name in found if name.endswith("best_of_32")]
    lines += [[name, *_cells(found[name])] for name in guards if "thresholds" in found[name]]
    print_table(["procedure", *NAMES], lines)
    for name in guards:
        print(f"\n{name}: {found[name]['sentence']}")


def _cells(figures: dict[str, Figure]) -> list[str]:
    return [with_interval(figures[name], 1 if name in ("false_acceptances", "mean_draws") else 3) for name in NAMES]


def main() -> None:
    """Print a table for each truth; write JSON with --json."""
    options = arguments(__doc__, json=Path).parse_args()
    found = {
        name: evaluate(*(read_rows(log_of(name, role)) for role in ("calibrate", "evaluate")))
        for name in TRUTHS
        if log_of(name, "evaluate").exists()
    }
    for name, figures in found.items():
        print(f"\ntruth: {name}\n")
        show(figures)
    write_json(options.json, found)


if __name__ == "__main__":
    main()
