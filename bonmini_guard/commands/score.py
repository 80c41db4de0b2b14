"""``bonmini-guard score``: fill in a log's missing scores with a reward model; resumable after a kill."""

from __future__ import annotations

import argparse
import shlex
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from bonmini_guard.commands import say_torn
from bonmini_guard.commands.terminal import say
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.writing import check_output

if TYPE_CHECKING:
    from bonmini_guard.calibration.scoring_logs import Tally

#: Letters that a judge is asked with, beside rubric, prompt and answer.
_QUESTION = 700


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("logs", nargs="+", metavar="LOGS", help="log files: JSON lines, packed or not, or Parquet; - is stdin")
    parser.add_argument("--reward-model", required=True, metavar="SPEC", help="folder or id of the reward model, or a scorer spec")
    parser.add_argument("--base", metavar="DIR", help="the base of low-rank adapters, if it is not where they say")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="where to write: .jsonl or .jsonl.gz")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="only every N-th row, beginning with the I-th")
    parser.add_argument("--ray", type=int, metavar="WORKERS", help="spread the log over workers of a Ray cluster")
    parser.add_argument("--dry-run", action="store_true", help="say how much there is to score, and what a judge would cost")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")


def run(options: argparse.Namespace) -> int:
    """Score, with a progress bar on stderr."""
    check_output(options.output, options.logs, lines=True)
    if options.dry_run:
        say(_plan(options))
        return 0
    tally = _local(options) if options.ray is None else _on_ray(options)
    notes = {"taken over from an earlier run (rows)": tally.resumed, "scores replaced": tally.replaced, "kept": tally.kept}
    notes |= {"could not be scored and count as failed draws": tally.unscorable, "torn last lines dropped": tally.torn}
    notes |= {"rows whose prompt the model was trained on, marked so and left out by calibrate": tally.trained_on}
    said = "".join(f"; {name}: {number:,}" for name, number in notes.items() if number)
    say(f"{options.output}: {tally.rows:,} rows, {tally.scored:,} candidates scored{said}")
    say(f"next: bonmini-guard start {shlex.quote(str(options.output))}")
    return 0


def _plan(options: argparse.Namespace) -> str:
    """What there is to do, before anything is loaded, asked or paid for; a token is taken for four letters."""
    from bonmini_guard.logs.rows import rows_in
    from bonmini_guard.reward.spec import judges_of

    rows = candidates = scored = letters = 0
    number, shards = options.shard
    for row in islice(rows_in(*options.logs, told=say_torn), number - 1, None, shards):
        drawn = [one for one in row.candidates if not one.failed]
        rows, candidates = rows + 1, candidates + len(drawn)
        scored += sum(one.value.get("score") is not None for one in drawn)
        letters += sum(len(one.turn.text) for one in drawn) + len(drawn) * sum(len(turn.text) for turn in row.prompt)
    said = f"{rows:,} rows, {candidates:,} candidates, {scored:,} of them with a score, which is kept if it is this scorer's"
    for judge in judges_of(options.reward_model):
        asked = candidates * judge.votes
        read = (letters + candidates * (len(judge.rubric) + _QUESTION)) * judge.votes // 4
        said += f"\njudge: up to {asked:,} requests, about {read:,} tokens read, at most {asked * judge.max_tokens:,} written"
    return said


def _on_ray(options: argparse.Namespace) -> Tally:
    """Every worker loads the model; Ray shows its own progress."""
    if options.shard != (1, 1):
        raise ConfigurationError("--ray makes its own shards: leave out --shard")
    from bonmini_guard.adapters.ray_data import score_log_on_ray
    from bonmini_guard.reward.declared import load_scorer

    load = partial(load_scorer, options.reward_model, device=options.device, base=options.base)
    gpus = 1.0 if (options.device or "").startswith("cuda") else 0.0
    return score_log_on_ray(options.logs, load, options.output, workers=options.ray, gpus_per_worker=gpus)


def _local(options: argparse.Namespace) -> Tally:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from bonmini_guard.calibration.scoring_logs import score_log
    from bonmini_guard.reward.declared import load_scorer

    total = _rows(options.logs, options.shard)  # a log that cannot be read is told before a model is loaded
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    scorer = closing(load_scorer(options.reward_model, device=options.device, base=options.base))
    with scorer as model, Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("rows scored", total=total)
        return score_log(
            options.logs, model, options.output, shard=options.shard, progress=lambda rows: bar.update(task, completed=rows)
        )


def _rows(paths: list[str], shard: tuple[int, int]) -> int | None:
    """How many rows the bar will count; None if that would need a look into a Parquet file, or into a pipe."""
    from bonmini_guard.logs.reading import RowFile

    counts = [RowFile(path).lines() for path in paths]
    number, shards = shard
    return None if None in counts else max(0, (sum(filter(None, counts)) - number) // shards + 1)


def _shard(text: str) -> tuple[int, int]:
    parts = text.split("/")
    if len(parts) == 2 and all(part.isdigit() for part in parts) and 1 <= int(parts[0]) <= int(parts[1]):
        return int(parts[0]), int(parts[1])
    raise argparse.ArgumentTypeError(f"{text!r} is no shard: write I/N with 1 <= I <= N, e.g. 2/8")
