"""Scoring throughput: shared prompts, mixed lengths, concurrent guarded requests; ours and the rivals in turns, in one run.

With ``--device cuda --shape 8B`` (or 0.6B) it runs in bfloat16 on random weights, and gives the share of the measured matmul
ceiling that useful operations reach, a shared prompt counted once. Nothing of that has been measured yet.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.scoring.kinds import kinds
from benchmarks.scoring.models import SHAPES, matmul_ceiling, save_model, useful_flops
from benchmarks.scoring.rivals import SERVER, rivals
from benchmarks.scoring.traffic import traffic
from benchmarks.scoring.turns import Seconds, first_loop, following_loop, mixed, seconds_in_turns, separate, shared
from benchmarks.tables import arguments, print_table, write_json
from bonmini_guard import RewardModel


def report(name: str, times: Seconds, pairs: int, flops: float, *, ceiling: float, clock: str) -> dict[str, Any]:
    """Print one table, and give its figures; ratios are of the clock named."""
    ours = next(iter(times))
    own = times[ours][clock]
    print(f"\n{name}: {pairs} candidates")
    rows = [
        [key, f"{value['wall']:.3f}", f"{value['processor']:.3f}", f"{pairs / value[clock]:.1f}", f"{value[clock] / own:.2f}"]
        for key, value in times.items()
    ]
    print_table(["", "wall (s)", "processor (s)", "candidates / s", f"x {ours}"], rows)
    print(
        f"useful operations of {ours}: {flops / own / 1e9:.1f} GFLOP/s, {flops / own / ceiling:.0%} of the matmul ceiling",
        flush=True,
    )
    ratios = {key: value[clock] / own for key, value in times.items() if key != ours}
    return {"candidates": pairs, "seconds": times, "times_as_long": ratios, "useful_flops_per_second": flops / own}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All rows."""
    clock = "processor" if options.device == "cpu" and options.vllm is None else "wall"
    if options.only_kinds:
        about = {"shape": options.shape, "device": options.device, "ratios_of_the_clock": clock}
        return about | {"rows": kinds(folder, options.shape, options.device, options.rounds, clock)}
    ceiling = matmul_ceiling(options.device)
    model = RewardModel.load(folder, device=options.device)
    rows: dict[str, Any] = {}
    if options.only_traffic:
        rows["traffic"] = traffic(model, options.requests, options.rounds)
        return {"shape": options.shape, "device": options.device, "rows": rows}
    others, missing = rivals(folder, options.device, options.vllm)
    for prompt, answers, length in ((512, 8, 64), (2048, 32, 128)):
        first = partial(shared, prompt, answers, length)
        again = partial(first, same_prompt=True)
        times = seconds_in_turns({"": {"ours, first loop": first_loop(model)} | others}, first, options.rounds, options.device)
        # Of the others only a server may remember the prompt.
        knowing = {"ours, following loop": following_loop(model, again(0))} | {k: v for k, v in others.items() if k == SERVER}
        later = seconds_in_turns({"": knowing}, again, options.rounds, options.device)
        later |= {key: value for key, value in times.items() if key in others and key != SERVER}
        own = [length] * answers
        name = f"{prompt} + {answers} x {length}"
        rows[name] = report(name, times, answers, useful_flops(options.shape, prompt, own), ceiling=ceiling, clock=clock)
        only_own = useful_flops(options.shape, prompt, own) - useful_flops(options.shape, prompt, [])
        rows[name + ", following"] = report(name + ", following loop", later, answers, only_own, ceiling=ceiling, clock=clock)
    times = seconds_in_turns({"": {"ours": separate(model)} | others}, partial(mixed, 64), options.rounds, options.device)
    pairs = mixed(64, 0)
    flops = sum(useful_flops(options.shape, 0, [len(f"{a} {b}".split())]) for a, b in pairs)
    rows["mixed lengths"] = report("mixed lengths, no shared prompt", times, len(pairs), flops, ceiling=ceiling, clock=clock)
    for line in missing:
        print(line)
    rows["traffic"] = traffic(model, options.requests, options.rounds)
    model.close()
    rows |= kinds(folder, options.shape, options.device, options.rounds, clock)
    return {
        "shape": options.shape,
        "device": options.device,
        "ratios_of_the_clock": clock,
        "ceiling_flops": ceiling,
        "not_measured": missing,
        "rows": rows,
    }


def main() -> None:
    """Print the tables; write JSON with --json."""
    parser = arguments(__doc__, json=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3, help="measured turns")
    parser.add_argument("--requests", type=int, default=64, help="concurrent guarded requests")
    parser.add_argument("--vllm", metavar="URL", help="a vLLM server of the checkpoint that --keep wrote")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where to write the checkpoint (default: a temporary folder)")
    parser.add_argument("--only-traffic", action="store_true", help="measure only the concurrent guarded requests")
    parser.add_argument("--only-kinds", action="store_true", help="measure only the kinds of scorer specs")
    parser.add_argument("--only-write", action="store_true", help="write the checkpoint to --keep, and measure nothing")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        save_model(folder, options.shape, options.device)
        if not options.only_write:
            write_json(options.json, measure(folder, options))


if __name__ == "__main__":
    main()
