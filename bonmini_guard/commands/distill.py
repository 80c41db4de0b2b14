"""``bonmini-guard distill``: fine-tune a generator towards its own best-of-N (variational), and report the reward/KL front."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any

from bonmini_guard.commands import settings_of
from bonmini_guard.commands.terminal import say, table, width


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("prompts", nargs="+", metavar="PROMPTS", help="rows with a prompt; scored candidates serve as reference")
    parser.add_argument("--generator", required=True, metavar="DIR", help="folder or id of a causal language model")
    parser.add_argument("--reward-model", required=True, metavar="DIR", help="folder or id of the reward model")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder to write; it must not exist or be empty")
    parser.add_argument("--n", type=int, default=16, help="the N of best-of-N; the KL coefficient is 1/(N-1) (default 16)")
    parser.add_argument("--reference-draws", type=int, default=32, help="draws a prompt that rank rewards (default 32)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default 100)")
    parser.add_argument("--prompts-a-step", type=int, default=16, help="prompts in a step (default 16)")
    parser.add_argument("--draws", type=int, default=8, help="draws for each of them (default 8)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="tokens of an answer at most (default 64)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling (default 1)")
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="peak of the cosine schedule (default 1e-5)")
    parser.add_argument("--lora-rank", type=int, metavar="RANK", help="train low-rank adapters; merged at the end")
    parser.add_argument("--eval-prompts", type=int, default=100, help="prompts held out, at most a fifth (default 100)")
    parser.add_argument("--eval-draws", type=int, default=32, help="draws for each of them (default 32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")


def run(options: argparse.Namespace) -> int:
    """Distil, and print the front."""
    from bonmini_guard.reward.model import RewardModel
    from bonmini_guard.training.distill.prompts import read_prompts
    from bonmini_guard.training.distill.run import distill
    from bonmini_guard.training.run import check_output
    from bonmini_guard.training.settings import DistillSettings

    check_output(options.output)
    prompts = read_prompts(options.prompts)
    device = None if options.device == "auto" else options.device
    with closing(RewardModel.load(options.reward_model, device=device)) as reward:
        report = distill(prompts, options.generator, reward, options.output, **settings_of(DistillSettings, options))
    say(f"{options.output}: distilled on {report['prompts']:,} prompts; figures of {report['held_out_prompts']:,} held-out ones")
    print(shown_front(report["front"], width()))
    return 0


def shown_front(front: list[dict[str, Any]], room: int | None) -> str:
    """The front as a table; the first figure is what one would distil for: of the truth where it is known."""
    names = [key for key in ("score", "acceptance", "utility", "acceptable") if key in front[0]]
    figures = [f"{'utility' if 'utility' in names else 'score'}_gain", *names]
    heads = ("answered by", *(name.replace("_gain", " above one draw") for name in figures), "draws", "KL (nats)")
    cells = [[f"{record[name]:.3f} ± {record[f'{name}_within']:.3f}" for name in figures] for record in front]
    rows = [[one["name"], *of, f"{one['draws']:.1f}", f"{one['kl']:.2f}"] for one, of in zip(front, cells, strict=True)]
    return table(heads, rows, room)
