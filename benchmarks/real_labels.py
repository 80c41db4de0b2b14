"""Real labels: does a small reward model trained on a CPU learn a ranking and a zero from public data?

``python -m benchmarks.real_labels --pairs DIR --logs DIR --json FILE``. ``--pairs`` holds pairs with ``chosen`` and ``rejected``
(comparisons: "none" was not offered), ``--logs`` log rows with absolute labels, from which "none" follows. The data are not part
of this repository. All prompts of all sets train one model, and its Bradley-Terry twin on the comparisons among them; three
tenths of the prompts of each set are held out, and the figures are of those, set by set.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from transformers import AutoTokenizer

from benchmarks.imdb.reward_base import build
from benchmarks.imdb.teaching import scored
from benchmarks.tables import print_table, write_json
from bonmini_guard.calibration.files import RowFile
from bonmini_guard.data import ConversionOptions, convert
from bonmini_guard.data.converters import in_held_out
from bonmini_guard.demo.models import model_path
from bonmini_guard.reward import train_reward_model
from bonmini_guard.reward.batches import Group
from bonmini_guard.reward.choices import ChoiceRow
from bonmini_guard.reward.evidence import figures
from bonmini_guard.reward.training import comparisons

HELD_OUT, RESAMPLES, LENGTH = 0.3, 200, 320
#: Draws of one prompt that are used; of a hundred draws, all pairs would drown the other sets.
DRAWS = 8
#: Rows of one set, and tokens of one text (the oldest turns are cut, longer answers left out): what a CPU learns in minutes.
ROWS = 1000

Place = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """One set: what is trained on, and held-out rows to measure with."""

    name: str
    learnt: list[ChoiceRow]
    held_out: list[ChoiceRow]


def parts(pairs: Path, logs: Path, seed: int) -> Iterator[Part]:
    """Every set under the two folders."""
    for path in sorted(pairs.glob("*.jsonl.gz")):
        rows = list(convert(RowFile(path), "pairs"))[:ROWS]
        yield _part(path, rows, rows, seed)
    for path in sorted(logs.glob("*.jsonl.gz")):
        records = [pair for pair in RowFile(path) if _labelled(pair[1])][:ROWS]
        if records:
            some = list(_some(records, seed))
            learnt = convert(some, "log", ConversionOptions(rows="pairs", seed=seed))
            yield _part(path, learnt, convert(some, "log", ConversionOptions(rows="single")), seed)


def _part(path: Path, learnt: Iterable[ChoiceRow], measured: Iterable[ChoiceRow], seed: int) -> Part:
    name = path.name.removesuffix(".jsonl.gz")
    return Part(
        name,
        [row for row in learnt if not in_held_out(row, HELD_OUT, seed)],
        [row for row in measured if in_held_out(row, HELD_OUT, seed)],
    )


def _labelled(record: dict[str, Any]) -> bool:
    return all(isinstance(candidate.get("acceptable"), bool) for candidate in record.get("candidates", [{}]))


def _some(records: Sequence[Place], seed: int) -> Iterator[Place]:
    for place, record in records:
        drawn = record["candidates"]
        chosen = random.Random(f"{seed} {record['id']}").sample(drawn, min(DRAWS, len(drawn)))
        yield place, record | {"candidates": [one for one in chosen if one["text"]]}


def base(folder: Path, layers: int, seed: int) -> Path:
    """A small encoder with the embeddings of the bundled language model, everything else untrained; for longer texts."""
    model = build(model_path("lm"), layers, seed)
    model.config.max_position_embeddings = LENGTH
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(model_path("lm"))
    tokenizer.model_max_length = LENGTH
    tokenizer.save_pretrained(folder)
    return folder


def measure(part: Part, models: dict[str, Path]) -> dict[str, Any]:
    """The held-out figures of one set for each model, with 95 % intervals over prompts, and what chance gives."""
    found: dict[str, Any] = {}
    for name, path in models.items():
        scores, encoding = scored(path, part.held_out)
        random_state = np.random.default_rng(0)
        groups = encoding.groups
        picks = random_state.integers(len(groups), size=(RESAMPLES, len(groups)))
        samples = [figures(scores, [groups[i] for i in pick], outside=True) for pick in picks]
        found[name] = {k: v for k, v in figures(scores, groups, outside=True).items() if k != "reliability"}
        found[name]["intervals"] = {key: _interval(samples, key) for key in SHOWN}
        found["chance"] = chance(groups, part)
    return found


def chance(groups: Sequence[Group], part: Part) -> dict[str, float | None]:
    """What can be had without reading the texts: 0.5 for rankings; the training share of acceptance for the likelihood."""
    single = [row for group in groups for row in group.judgements if row.offered]
    if not single:
        return {"log_likelihood": -float(np.log(2)), "acceptance_accuracy": None}
    accepted = float(np.average([row.target == 0 for row in single], weights=[row.weight for row in single]))
    share = min(max(accepted, 1e-6), 1 - 1e-6)
    return {
        "log_likelihood": share * float(np.log(share)) + (1 - share) * float(np.log(1 - share)),
        "acceptance_accuracy": max(accepted, 1 - accepted),
    }


SHOWN = (
    "pair_accuracy",
    "acceptance_auc",
    "acceptance_balanced_accuracy",
    "acceptance_accuracy",
    "reliability_error",
    "log_likelihood",
)


def _interval(samples: Sequence[dict[str, Any]], key: str) -> list[float] | None:
    values = [sample[key] for sample in samples if sample[key] is not None]
    return np.quantile(values, [0.025, 0.975]).tolist() if values else None


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print one table: a line for each set and model."""
    lines = []
    for name, found in results.items():
        for model in ("reward", "twin"):
            cells = [
                "-"
                if found[model][key] is None
                else "{:.3f} [{:.3f}, {:.3f}]".format(found[model][key], *found[model]["intervals"][key])
                for key in SHOWN
            ]
            lines.append([name, model, found[model]["judgements"], *cells])
        accuracy = found["chance"]["acceptance_accuracy"]
        constant = "-" if accuracy is None else f"{accuracy:.3f}"
        lines.append([name, "chance", "", "0.5", "0.5", "0.5", constant, "-", f"{found['chance']['log_likelihood']:.3f}"])
    print_table(["set", "model", "judgements", *(key.replace("_", " ") for key in SHOWN)], lines)


def main() -> None:
    """Train, measure, print a table; write JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=Path, required=True, metavar="DIR")
    parser.add_argument("--logs", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, help="keep the models there (default: a temporary folder)")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = list(parts(options.pairs, options.logs, options.seed))
    rows = [row for part in found for row in part.learnt]
    plan = {"epochs": options.epochs, "learning_rate": options.learning_rate, "seed": options.seed, "threads": 1, "device": "cpu"}
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        start = base(work / "base", options.layers, options.seed)
        models = {"reward": work / "reward", "twin": work / "twin"}
        for name, learnt in (("reward", rows), ("twin", comparisons(rows))):
            if not models[name].exists():
                objective = "outside_option" if name == "reward" else "bradley_terry"
                train_reward_model(learnt, start, models[name], objective=objective, **plan)
        results = {part.name: measure(part, models) for part in track(found, description="measuring")}
    show(results)
    sizes = {part.name: {"trained": len(part.learnt), "held_out": len(part.held_out)} for part in found}
    write_json(options.json, {"settings": plan | {"layers": options.layers}, "rows": sizes, "sets": results})


if __name__ == "__main__":
    main()
