"""``bonmini-guard train``: train a reward model whose zero means 'acceptable', from choices among answers and none of them."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonmini_guard.commands import add_max_bad, say_left_out, settings_of
from bonmini_guard.commands.terminal import say
from bonmini_guard.conversation import prompt_digest
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.logs.odd import Odd

if TYPE_CHECKING:
    from bonmini_guard.training.choices import ChoiceRow

#: Figures of judgements that not every set of rows has.
_FURTHER = {
    "pair_accuracy": "pair accuracy",
    "acceptance_auc": "acceptance AUC",
    "acceptance_accuracy": "accepted rightly at 0",
    "reliability_error": "reliability error",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("choices", metavar="CHOICES", type=Path, help="choice rows: JSON lines, packed or not, or Parquet")
    parser.add_argument("--base", required=True, help="folder or id of the model to start from, with safetensors weights")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder to write; it must not exist or be empty")
    objectives = ["outside_option", "bradley_terry"]
    parser.add_argument("--objective", choices=objectives, default=objectives[0], help="bradley_terry only ranks: it has no zero")
    parser.add_argument("--epochs", type=float, default=2.0, help="passes over the rows (default 2)")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="peak of the cosine schedule (default 5e-5)")
    parser.add_argument("--head-learning-rate", type=float, help="the same of a new head (default: 1e-3, or the other if greater)")
    parser.add_argument("--batch", dest="batch_size", type=int, default=32, help="distinct texts in a step (default 32)")
    parser.add_argument("--max-length", type=int, help="most tokens of a text; the checkpoint keeps it")
    parser.add_argument("--layers", type=int, help="keep only so many of the first layers of the base")
    parser.add_argument("--inputs", choices=["text", "pair"], help="pair: prompt and answer are two texts (default: as the base)")
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument("--eval", type=Path, metavar="FILE", help="held-out choice rows")
    held_out.add_argument("--eval-share", type=float, default=0.0, help="share of the prompts to hold out instead (default 0)")
    add_max_bad(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    # What large models and long runs need.
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: bfloat16 on a GPU")
    parser.add_argument("--accumulate", type=int, default=1, metavar="BATCHES", help="batches in a step (default 1)")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--lora-rank", type=int, metavar="RANK", help="train low-rank adapters; the checkpoint holds them alone")
    parser.add_argument("--lora-alpha", type=int, metavar="SCALE", help="their scale (default: twice the rank)")
    parser.add_argument("--checkpoints", type=int, default=10, help="how often a run saves itself (default 10; 0 never)")
    parser.add_argument("--early-stopping", type=int, metavar="PATIENCE", help="stop after so many checkpoints without improvement")
    parser.add_argument("--optimizer", default="adamw_torch_fused", help="by transformers' name: adafactor, adamw_bnb_8bit, ...")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="also write the checkpoint there, with its card; new: private")
    parser.add_argument("--report-to", metavar="TRACKER,...", help="where losses go: tensorboard, wandb, trackio, ...")
    parser.add_argument("--twin", action="store_true", help="also train a Bradley-Terry twin, and compare held-out figures")


def run(options: argparse.Namespace) -> int:
    """Train, and print what was learnt."""
    from bonmini_guard.training.data.statistics import describe

    rows, held_out = _read(options.choices, options.max_bad), _read(options.eval, options.max_bad) if options.eval else None
    if options.eval_share:
        rows, held_out = hold_out(rows, options.eval_share, options.seed)
    from bonmini_guard.training.run import part, train_reward_model, usable_rows
    from bonmini_guard.training.settings import Settings

    usable_rows(rows, options.objective)
    for warning in describe(rows, held_out or ()).warnings():
        print(f"warning: {warning}", file=sys.stderr)
    settings = settings_of(Settings, options)
    report = train_reward_model(rows, options.base, options.output, eval_rows=held_out, **settings)
    if os.environ.get("RANK", "0") == "0":
        _show(report, options.output)
    part()
    return 0


def _read(path: Path, most: float) -> list[ChoiceRow]:
    from bonmini_guard.training.choices import read_choices

    odd = Odd(most)
    rows = read_choices(path, odd)
    say_left_out(odd, {})
    return rows


def _show(report: dict[str, Any], output: Path) -> None:
    from bonmini_guard.training.run import unread

    say(f"{output}: {report['judgements']:,} judgements of {report['texts']:,} texts learnt")
    if left_out := report["judgements_too_long"]:
        share = left_out / (left_out + report["judgements"])
        say(f"left out: {left_out:,} judgements ({share:.0%}), with {unread(report['max_length'])}")
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    for key, name in (("eval", "held out"), ("twin_eval", "its Bradley-Terry twin"), ("base_eval", "the base before")):
        figures = report.get(key)
        if figures and figures["judgements"]:
            more = "".join(f", {said} {figures[key]:.3f}" for key, said in _FURTHER.items() if figures[key] is not None)
            say(f"{name}: log-likelihood {figures['log_likelihood']:.4f}, accuracy {figures['accuracy']:.3f}{more}")


def hold_out(rows: Sequence[ChoiceRow], share: float, seed: int) -> tuple[list[ChoiceRow], list[ChoiceRow]]:
    """Split rows by prompt (white space and case aside), so that no held-out prompt was trained on.

    ConfigurationError if the share is not in (0, 1), or there are fewer than two prompts.
    """
    known = sorted({row.prompt for row in rows}, key=lambda turns: [(turn.role, turn.text, repr(turn)) for turn in turns])
    digests = {turns: prompt_digest(turns) for turns in known}
    prompts = list(dict.fromkeys(digests.values()))
    if not 0 < share < 1 or len(prompts) < 2:
        raise ConfigurationError(f"cannot hold out a share of {share} of {len(prompts)} prompts: use a share between 0 and 1")
    size = min(len(prompts) - 1, max(1, round(share * len(prompts))))
    chosen = set(random.Random(seed).sample(prompts, size))
    return [row for row in rows if digests[row.prompt] not in chosen], [row for row in rows if digests[row.prompt] in chosen]
