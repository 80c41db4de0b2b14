"""What the guard is worth on the desk: both profiles by ``calibrate``, their figures by ``replay``, intervals over prompts.

The shape (loops of 2, 16 draws at most) was chosen on the calibration prompts: five shapes and ``--search`` were looked at there,
which ``--calibrations 6`` pays for. The rows stand in the order of drawing, so that is the order they are certified in.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.desk.label import log_rows
from benchmarks.tables import print_table, with_interval, write_json, write_rows
from bonmini_guard.calibration.logs import Log, load_log
from bonmini_guard.calibration.replay import Settled, rank, replay_rankings
from bonmini_guard.cli import main as command
from bonmini_guard.policy.policy import Mode
from bonmini_guard.policy.profile import GuardProfile

PROFILES = Path(__file__).parents[2] / "bonmini_guard" / "demo" / "models"
RESULTS = Path(__file__).parents[1] / "results" / "desk.json"
BUDGET, LOOPS = 16, ("--schedule", ",".join(["2"] * 8), "--order", "logged", "--calibrations", "6")
PROMISES = {
    "guardrail": ("--mode", "guardrail", "--risk", "served_and_bad", "--alpha", "0.05", "--delta", "0.1"),
    "accelerator": ("--mode", "accelerator", "--epsilon", "0.02", "--delta", "0.1"),
}
SHOWN = ("served", "acceptable_rate", "served_and_bad_rate", "bad_among_served_rate", "recall_vs_best_of_n", "mean_draws")
RESAMPLES = 1000
rows_of = functools.cache(log_rows)

#: The logs that are replayed, by what they are: role and which of its rows.
CUTS: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
    "evaluation prompts": ("evaluate", lambda row: True),
    "evaluation prompts, date known": ("evaluate", lambda row: row["date_known"]),
    "evaluation prompts, date not known": ("evaluate", lambda row: not row["date_known"]),
    "held-out situation (pick-up)": ("held-out", lambda row: True),
}


def evaluate(folder: Path) -> dict[str, Any]:
    """Calibrate and replay in a folder, which then holds both profiles.

    Returns:
        ``profiles`` (what was promised), ``figures`` by cut and procedure, ``intervals`` (95 %) in the same shape and
        ``scores`` (ties, and how well zero separates).
    """
    with contextlib.chdir(folder):
        write_rows(Path("calibrate.jsonl.gz"), rows_of("calibrate"))
        promised = {name: _calibrate(name) for name in PROMISES}
        Path("single.json").write_text(json.dumps({"mode": "accelerator", "schedule": [1], "thresholds": [None]}))
        figures, intervals = {}, {}
        for cut, (role, wanted) in CUTS.items():
            write_rows(Path("cut.jsonl.gz"), [row for row in rows_of(role) if wanted(row)])
            figures[cut], intervals[cut] = _figures(), _intervals(load_log(["cut.jsonl.gz"]))
    return {
        "profiles": promised,
        "figures": figures,
        "intervals": intervals,
        "scores": {role: worth_of_scores(rows_of(role)) for role in ("calibrate", "evaluate", "held-out")},
    }


def _calibrate(name: str) -> dict[str, Any]:
    """The command and its sentence."""
    arguments = ["calibrate", "calibrate.jsonl.gz", *PROMISES[name], *LOOPS, "-o", f"{name}.json"]
    return {"command": " ".join(["bonmini-guard", *arguments]), "sentence": run(arguments).strip()}


def run(arguments: list[str]) -> str:
    """What a command prints, which must not fail."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = command(arguments)
    assert code == 0, f"bonmini-guard {' '.join(arguments)}: exit code {code}"
    return said.getvalue()


def _figures() -> dict[str, Any]:
    """By procedure, what ``replay --json`` says of the log at hand."""
    replayed = {
        name: json.loads(run(["replay", "cut.jsonl.gz", "--profile", f"{name}.json", "--json"])) for name in ("single", *PROMISES)
    }
    guardrail = replayed["guardrail"]
    parts = {"single draw": replayed["single"], f"best-of-{BUDGET}": guardrail["best_of_n"]}
    parts |= {f"best-of-{BUDGET} at zero": guardrail["best_of_n_at_zero"]}
    parts |= {name: replayed[name] for name in PROMISES}
    reference = guardrail["best_of_n"]["acceptable_rate"]
    # A single draw's own recall would be against a best of one.
    return {
        name: {key: part[key] for key in ("requests", *SHOWN)}
        | {"recall_vs_best_of_n": part["acceptable_rate"] / reference if reference else None}
        for name, part in parts.items()
    }


def _intervals(log: Log) -> dict[str, dict[str, list[float] | None]]:
    """95 % intervals of the same figures, from resampled prompts."""
    profiles = [GuardProfile.load(f"{name}.json") for name in PROMISES]
    asked: list[tuple[Mode, Sequence[int], Sequence[float]]] = [
        ("accelerator", (1,), (math.inf,)),
        ("accelerator", (BUDGET,), (math.inf,)),
        ("guardrail", (BUDGET,), (0.0,)),
        *((profile.mode, profile.schedule, profile.thresholds) for profile in profiles),
    ]
    ranked = rank(log.scores, log.labels, log.counts)
    settled = [replay_rankings(ranked, mode, tuple(schedule), tuple(limits)) for mode, schedule, limits in asked]
    weights = np.random.default_rng(0).multinomial(len(log), np.full(len(log), 1 / len(log)), RESAMPLES)
    names = ("single draw", f"best-of-{BUDGET}", f"best-of-{BUDGET} at zero", *PROMISES)
    return {name: _limits(each, settled[1], weights) for name, each in zip(names, settled, strict=True)}


def _limits(settled: Settled, best: Settled, weights: Any) -> dict[str, list[float] | None]:
    good, bad, requests = weights @ settled.served_good, weights @ settled.served_bad, weights.sum(1)
    parts = (
        (good + bad, np.ones_like(good)),
        (good, requests),
        (bad, requests),
        (bad, good + bad),
        (good, weights @ best.served_good),
        (weights @ settled.draws, requests),
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = {key: above / below for key, (above, below) in zip(SHOWN, parts, strict=True)}
    return {key: _middle(values[np.isfinite(values)]) for key, values in samples.items()}


def _middle(values: Any) -> list[float] | None:
    return [float(value) for value in np.quantile(values, [0.025, 0.975])] if len(values) else None


def worth_of_scores(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of draws with the most common score and with the highest, AUC, and how often the side of zero is the check's."""
    drawn = [each for row in rows for each in row["candidates"]]
    scores, good = np.array([each["score"] for each in drawn]), np.array([each["acceptable"] for each in drawn])
    counts = np.unique(scores, return_counts=True)[1]
    below = np.searchsorted(np.sort(scores[~good]), scores[good], side="left")
    upto = np.searchsorted(np.sort(scores[~good]), scores[good], side="right")
    return {
        "most_common_score": float(counts.max() / len(scores)),
        "tied_at_top": float(counts[-1] / len(scores)),
        "auc": float((below + upto).mean() / 2 / (~good).sum()),
        "accuracy_at_zero": float(((scores >= 0) == good).mean()),
    }


def show(results: dict[str, Any]) -> None:
    """Print a table a cut, each figure with its interval."""
    for profile in results["profiles"].values():
        print(profile["sentence"])
    for cut, procedures in results["figures"].items():
        print(f"\n{cut}: {next(iter(procedures.values()))['requests']:.0f}; 95 % intervals\n")
        rows = [
            [name, *(_cell(key, figures[key], results["intervals"][cut][name][key]) for key in SHOWN)]
            for name, figures in procedures.items()
        ]
        print_table(["", *(key.replace("_", " ") for key in SHOWN)], rows)
    print()
    rows = [[role, *(f"{value:.4f}" for value in scores.values())] for role, scores in results["scores"].items()]
    print_table(["scores", *(key.replace("_", " ") for key in results["scores"]["evaluate"])], rows)


def _cell(key: str, value: float | None, interval: list[float] | None) -> str:
    digits = {"served": 0, "mean_draws": 1}.get(key, 3)
    return with_interval(None if interval is None else [value, *interval], digits)


def main() -> None:
    """Evaluate, print, write the results and the profiles."""
    with tempfile.TemporaryDirectory() as folder:
        results = evaluate(Path(folder))
        for name in PROMISES:
            shutil.copyfile(Path(folder) / f"{name}.json", PROFILES / f"{name}.json")
    show(results)
    write_json(RESULTS, results)
