"""Stage 7: best-of-N and best of mini-N on held-out prompts, with both reward models.

Thresholds are fixed on other prompts (role "calibrate"), by the rules of :mod:`benchmarks.imdb.thresholds`.
All procedures see the same draws in the same order, through the live policy. Wall seconds come from the real engine on a
few prompts: idle is one request at a time, saturated is many at once on the same models.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from langchain_core.messages import HumanMessage
from rich.progress import track

from benchmarks.imdb.figures import Drawn, figures, replay
from benchmarks.imdb.models import NEW_TOKENS, REWARDS, TOP_K, model_path
from benchmarks.imdb.sample import main as sample_main
from benchmarks.imdb.sample import read_rows
from benchmarks.imdb.score import score_role
from benchmarks.imdb.thresholds import accelerator_threshold, guard_thresholds, schedule
from benchmarks.tables import print_table, write_json
from bonmini_guard import RewardModel
from bonmini_guard.adapters.local import TransformersGenerator
from bonmini_guard.engine.engine import Engine
from bonmini_guard.policy.policy import Policy, accelerator, best_of_n, guardrail

SIZES = (1, 4, 8, 16, 32)
LARGEST = SIZES[-1]


@dataclass(frozen=True)
class Procedure:
    """A named policy; ``serve_from`` withholds answers below a score (best-of-N accepted at 0)."""

    name: str
    policy: Policy
    serve_from: float = -math.inf


def procedures(n: int, guard: Sequence[float], accelerate: float) -> list[Procedure]:
    """Everything compared at one budget."""
    return [
        Procedure("best-of-N", best_of_n(n)),
        Procedure("best-of-N at 0", best_of_n(n), 0.0),
        Procedure("guardrail at 0", guardrail(schedule(n), 0.0)),
        Procedure("guardrail, threshold", guardrail(schedule(n), guard)),
        Procedure("accelerator at 0", accelerator(schedule(n), 0.0)),
        Procedure("accelerator, threshold", accelerator(schedule(n), accelerate)),
    ]


def load(path: Path) -> Drawn:
    """A scored log as arrays of shape (prompts, N)."""
    rows = read_rows(path)

    def field(name: str) -> Any:
        return np.array([[candidate[name] for candidate in row["candidates"]] for row in rows], dtype=float)  # type: ignore[attr-defined]

    return Drawn(field("score"), field("acceptable"), field("utility"), field("tokens"))


def evaluate(calibrate: Drawn, held_out: Drawn) -> list[dict[str, Any]]:
    """One record for each procedure and N."""
    records: list[dict[str, Any]] = []
    for n in track(SIZES, description="replaying"):
        for procedure in procedures(n, guard_thresholds(calibrate, n, LARGEST), accelerator_threshold(calibrate, n)):
            outcomes = replay(procedure.policy, held_out, procedure.serve_from)
            thresholds = None if procedure.name.startswith("best") else procedure.policy.thresholds
            records.append({"procedure": procedure.name, "n": n, "thresholds": thresholds} | figures(outcomes))
    return records


def prepare(options: argparse.Namespace, role: str, name: str) -> Drawn:
    """The role's scored draws, made first where they are missing."""
    log = options.work / f"log-{role}-{name}.jsonl.gz"
    if not (options.work / f"draws-{role}.jsonl.gz").exists():
        if not options.data.exists():
            sys.exit(
                f"no draws in {options.work} and no IMDB reviews at {options.data}: pass --data (see benchmarks/imdb/README.md)"
            )
        options.work.mkdir(parents=True, exist_ok=True)
        seed = "2" if role == "calibrate" else "3"
        arguments = ["--role", role, "--data", str(options.data), "--work", str(options.work), "--device", options.device]
        sample_main([*arguments, "--limit", str(options.prompts), "--seed", seed])
    return load(log if log.exists() else score_role(options.work, role, name, options.device))


async def wall(engine: Engine, prompts: list[str], together: int) -> float:
    """Seconds a request, with ``together`` requests at a time."""
    turn = asyncio.Semaphore(together)

    async def one(index: int, prompt: str) -> None:
        async with turn:
            await engine.run([HumanMessage(prompt)], seed=index)

    begun = time.perf_counter()
    await asyncio.gather(*(one(index, prompt) for index, prompt in enumerate(prompts)))
    return (time.perf_counter() - begun) / len(prompts)


def measure_walls(options: argparse.Namespace, records: list[dict[str, Any]], name: str) -> None:
    """Add wall seconds a request to the records, idle and saturated; equal procedures are run once."""
    generator = TransformersGenerator.load(str(model_path("lm")), device=options.device, max_new_tokens=NEW_TOKENS, top_k=TOP_K)
    reward = RewardModel.load(str(model_path(name)), device=options.device)
    prompts = [str(row["prompt"]) for row in read_rows(options.work / "draws-evaluate.jsonl.gz")[: options.wall_prompts]]
    known: dict[Policy, tuple[float, float]] = {}
    for record in track(records, description=f"timing with {name}"):
        thresholds, n = record["thresholds"], record["n"]
        policy = best_of_n(n) if thresholds is None else accelerator(schedule(n), thresholds)
        if policy not in known:
            engine = Engine(generator, reward, policy)
            known[policy] = (asyncio.run(wall(engine, prompts, 1)), asyncio.run(wall(engine, prompts, len(prompts))))
        record["seconds idle"], record["seconds saturated"] = known[policy]


SHOWN = (
    "false acceptances",
    "false-acceptance rate",
    "served-and-bad rate",
    "precision",
    "recall",
    "recall vs best-of-N",
    "acceptable rate",
    "mean true reward",
    "draws",
    "tokens",
)


def cell(name: str, value: tuple[float, float, float]) -> str:
    """A value with its 95 % interval."""
    if math.isnan(value[0]):
        return "-"
    digits = 0 if name in ("false acceptances", "tokens") else 1 if name == "draws" else 2 if name == "mean true reward" else 3
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*value, d=digits)


def levels(thresholds: Sequence[float] | None) -> str:
    """The thresholds of a procedure: one number, or those of the early loops and of the last."""
    if thresholds is None:
        return "-"
    return f"{thresholds[-1]:.2f}" if thresholds[0] == thresholds[-1] else f"{thresholds[0]:.2f}, last {thresholds[-1]:.2f}"


def show(records: list[dict[str, Any]]) -> None:
    """Print one table of all procedures and budgets."""
    timed = [key for key in ("seconds idle", "seconds saturated") if key in records[0]]
    rows = [
        [
            record["procedure"],
            record["n"],
            levels(record["thresholds"]),
            *(cell(name, record[name]) for name in SHOWN),
            *(f"{record[key]:.3f}" for key in timed),
        ]
        for record in records
    ]
    print_table(["procedure", "N", "threshold", *SHOWN, *timed], rows)


def accept_reject(drawn: Drawn) -> dict[str, float]:
    """How well score 0 separates acceptable from unacceptable single draws: accuracy, balanced accuracy, ranking (AUC)."""
    said, truth = drawn.scores.ravel() >= 0, drawn.acceptable.ravel() > 0
    order = drawn.scores.ravel().argsort().argsort() + 1.0
    positives, negatives = truth.sum(), (~truth).sum()
    area = (order[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    balanced = (said[truth].mean() + (~said[~truth]).mean()) / 2
    return {"accuracy at 0": float((said == truth).mean()), "balanced accuracy at 0": float(balanced), "AUC": float(area)}


def effects(records: list[dict[str, Any]], separation: dict[str, dict[str, float]]) -> list[str]:
    """What the experiment set out to show, in sentences with figures."""

    def at(procedure: str, n: int, figure: str) -> float:
        return float(next(r[figure][0] for r in records if (r["procedure"], r["n"]) == (procedure, n)))

    growth = " -> ".join(f"{at('best-of-N at 0', n, 'false-acceptance rate'):.3f}" for n in SIZES)
    before, after = at("best-of-N at 0", 32, "false-acceptance rate"), at("guardrail, threshold", 32, "false-acceptance rate")
    lines = [
        f"false-acceptance rate of best-of-N at score 0, N = {', '.join(map(str, SIZES))}: {growth}",
        f"guardrail with its threshold at N = 32: {before:.3f} -> {after:.3f}, a cut of {1 - after / before:.1%}, "
        f"at a recall against best-of-32 of {at('guardrail, threshold', 32, 'recall vs best-of-N'):.3f}",
    ]
    plain = at("best-of-N", 32, "acceptable rate")
    for name in ("accelerator at 0", "accelerator, threshold"):
        served, draws = at(name, 32, "acceptable rate"), at(name, 32, "draws")
        lines.append(f"{name} at N = 32: {draws:.1f} draws, acceptable rate {served:.3f} (best-of-32: {plain:.3f})")
    lines += [
        f"accept/reject at score 0, {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in s.items()) for name, s in separation.items()
    ]
    return lines


def main() -> None:
    """Print the tables of both reward models and the effects; write JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/imdb"), help="IMDB reviews; needed only to draw")
    parser.add_argument("--work", type=Path, default=Path("build/imdb"), help="where draws and logs are kept between runs")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--wall-prompts", type=int, default=12, help="prompts timed with the real engine; 0 times nothing")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    separation: dict[str, dict[str, float]] = {}
    for name in REWARDS:
        calibrate, held_out = prepare(options, "calibrate", name), prepare(options, "evaluate", name)
        separation[name] = accept_reject(held_out)
        results[name] = evaluate(calibrate, held_out)
        if options.wall_prompts:
            measure_walls(options, results[name], name)
        counts = f"{len(held_out.scores)} held-out prompts, {len(calibrate.scores)} others for the thresholds"
        print(f"\n{name}: {counts}; 95 % intervals\n")
        show(results[name])
    print()
    sentences = effects(results["reward"], separation)
    print("\n".join(sentences))
    write_json(options.json, {"effects": sentences, "accept_reject": separation, "records": results})


if __name__ == "__main__":
    main()
