"""Scoring throughput: shared prompts, mixed lengths, concurrent guarded requests; ours and the rivals in turns, in one run.

With ``--device cuda --shape 8B`` (or 0.6B) it runs in bfloat16 on random weights, and gives the share of the measured matmul
ceiling that useful operations reach, a shared prompt counted once. Nothing of that has been measured yet.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from langchain_core.messages import AIMessage, HumanMessage

from benchmarks.scoring.models import SHAPES, finish, matmul_ceiling, save_model, useful_flops, words
from benchmarks.scoring.rivals import SERVER, Rival, rivals
from benchmarks.scoring.traffic import traffic
from benchmarks.tables import print_table, write_json
from bonmini_guard import RewardModel

Pair = tuple[str, str]


# Every turn has texts of its own: a server that remembers what it has read must read it first.


def shared(prompt: int, answers: int, length: int, turn: int, *, same_prompt: bool = False) -> list[Pair]:
    """Answers to one prompt, which may be that of turn 0 again."""
    asked = torch.Generator().manual_seed(0 if same_prompt else turn)
    text, source = words(prompt, asked), torch.Generator().manual_seed(1000 + turn)
    return [(text, words(length, source)) for _ in range(answers)]


def mixed(count: int, turn: int) -> list[Pair]:
    """Answers to prompts of their own, 16 to 512 tokens together; as long in every turn."""
    lengths = torch.randint(16, 513, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    source = torch.Generator().manual_seed(1000 + turn)
    return [(words(length // 2, source), words(length - length // 2, source)) for length in lengths]


def first_loop(model: RewardModel) -> Rival:
    """A new request each time: the prompt is computed once, for all of its answers."""

    def score(pairs: Sequence[Pair]) -> list[float]:
        return [float(score or 0.0) for score in model.score(pairs[0][0], [answer for _, answer in pairs])]

    return score


def following_loop(model: RewardModel, pairs: Sequence[Pair]) -> Rival:
    """A session whose prompt is already there."""
    session = model.session([HumanMessage(pairs[0][0])])

    def score(pairs: Sequence[Pair]) -> list[float]:
        return [float(score or 0.0) for score in asyncio.run(session.score([AIMessage(answer) for _, answer in pairs]))]

    score(pairs)
    return score


def separate(model: RewardModel) -> Rival:
    """Each answer has a prompt of its own: requests that come at the same time."""

    async def together(pairs: Sequence[Pair]) -> list[float]:
        sessions = [model.session([HumanMessage(prompt)]) for prompt, _ in pairs]
        found = await asyncio.gather(*(s.score([AIMessage(answer)]) for s, (_, answer) in zip(sessions, pairs, strict=True)))
        for session in sessions:
            await session.aclose()
        return [float(scores[0] or 0.0) for scores in found]

    return lambda pairs: asyncio.run(together(pairs))


Seconds = dict[str, dict[str, float]]


def seconds_in_turns(contenders: dict[str, Rival], texts: Callable[[int], Sequence[Pair]], rounds: int, device: str) -> Seconds:
    """Median seconds of each, on the wall clock and of the processor, measured in turns.

    On a machine that others use too, a process's own processor time is the fairer of the two; each computes in one thread.
    """
    check_agreement(contenders, texts(0)[:2], device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(1, rounds + 1):
        pairs = texts(turn)
        for name, score in contenders.items():
            finish(device)
            begun = perf_counter(), process_time()
            score(pairs)
            times[name].append((perf_counter() - begun[0], process_time() - begun[1]))
    medians = {name: [statistics.median(part) for part in zip(*values, strict=True)] for name, values in times.items()}
    return {name: {"wall": wall, "processor": processor} for name, (wall, processor) in medians.items()}


def check_agreement(contenders: dict[str, Rival], pairs: Sequence[Pair], device: str) -> None:
    """Leave if some of them score otherwise; the calls warm all of them up."""
    found = {name: torch.tensor(score(pairs)[: len(pairs)]) for name, score in contenders.items()}
    first = next(iter(found.values()))
    tolerance = (1e-4 if device == "cpu" else 0.05) * (1 + first.abs().max())
    for name, scores in found.items():
        if (scores - first).abs().max() > tolerance:
            raise SystemExit(f"{name} scores otherwise: what it computes cannot be compared")


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
        times = seconds_in_turns({"ours, first loop": first_loop(model)} | others, first, options.rounds, options.device)
        # Of the others only a server may remember the prompt.
        knowing = {"ours, following loop": following_loop(model, again(0))} | {k: v for k, v in others.items() if k == SERVER}
        later = seconds_in_turns(knowing, again, options.rounds, options.device)
        later |= {key: value for key, value in times.items() if key in others and key != SERVER}
        own = [length] * answers
        name = f"{prompt} + {answers} x {length}"
        rows[name] = report(name, times, answers, useful_flops(options.shape, prompt, own), ceiling=ceiling, clock=clock)
        only_own = useful_flops(options.shape, prompt, own) - useful_flops(options.shape, prompt, [])
        rows[name + ", following"] = report(name + ", following loop", later, answers, only_own, ceiling=ceiling, clock=clock)
    times = seconds_in_turns({"ours": separate(model)} | others, partial(mixed, 64), options.rounds, options.device)
    pairs = mixed(64, 0)
    flops = sum(useful_flops(options.shape, 0, [len(f"{a} {b}".split())]) for a, b in pairs)
    rows["mixed lengths"] = report("mixed lengths, no shared prompt", times, len(pairs), flops, ceiling=ceiling, clock=clock)
    for line in missing:
        print(line)
    rows["traffic"] = traffic(model, options.requests, options.rounds)
    model.close()
    return {
        "shape": options.shape,
        "device": options.device,
        "ratios_of_the_clock": clock,
        "ceiling_flops": ceiling,
        "not_measured": missing,
        "rows": rows,
    }


def main(run: Callable[[Path, argparse.Namespace], dict[str, Any]] = measure) -> None:
    """Print the tables; write JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3, help="measured turns")
    parser.add_argument("--requests", type=int, default=64, help="concurrent guarded requests")
    parser.add_argument("--vllm", metavar="URL", help="a vLLM server of the checkpoint that --keep wrote")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where to write the checkpoint (default: a temporary folder)")
    parser.add_argument("--only-traffic", action="store_true", help="measure only the concurrent guarded requests")
    parser.add_argument("--only-write", action="store_true", help="write the checkpoint to --keep, and measure nothing")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        save_model(folder, options.shape, options.device)
        if not options.only_write:
            write_json(options.json, run(folder, options))


if __name__ == "__main__":
    main()
