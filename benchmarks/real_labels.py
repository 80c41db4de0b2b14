"""Real labels: does a small reward model trained on a CPU learn a ranking and a zero from public data?

``python -m benchmarks.real_labels --pairs DIR --logs DIR --json FILE``. ``--pairs`` holds pairs with ``chosen`` and ``rejected``
(comparisons: "none" was not offered), ``--logs`` log rows with absolute labels, from which "none" follows. The data are not part
of this repository. Every set has models of its own, as a product would: of absolute labels one with the outside option, which
accepts or rejects single answers, and its Bradley-Terry twin on the comparisons that the labels imply; of pairs alone the
Bradley-Terry model. The prompts of a set are dealt into folds, and
every judgement is predicted by models that were trained on the other folds. What the length of the answer alone would predict
stands beside.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks.real_base import write_base
from benchmarks.tables import arguments, print_table, with_interval, write_json
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.training import train_reward_model
from bonmini_guard.training.batches import Group, Judgement
from bonmini_guard.training.choices import ChoiceRow
from bonmini_guard.training.data import ConversionOptions, convert
from bonmini_guard.training.evidence import area, figures, sampled
from bonmini_guard.training.run import scored_rows

#: What the models of a set learn.
OBJECTIVES = {"reward": "outside_option", "twin": "bradley_terry"}
FOLDS, RESAMPLES = 3, 500
#: Tokens of a text: the oldest turns are cut, longer answers left out.
LENGTH = 1536
#: Distinct texts of a batch, fewer where a set would else be learnt from in fewer steps than this.
BATCH, STEPS = 32, 100
#: Draws of one prompt that are used: of a hundred, the pairs would be nearly five thousand.
DRAWS = 16
SHOWN = (
    "pair_accuracy",
    "acceptance_auc",
    "acceptance_balanced_accuracy",
    "acceptance_accuracy",
    "reliability_error",
    "log_likelihood",
)

Place = tuple[str, dict[str, Any]]
#: Scores of texts, and judgements of them.
Predicted = tuple[torch.Tensor, list[Group]]
#: Scores of the texts of all folds, and the judgements of each fold.
Folds = tuple[torch.Tensor, list[list[Group]]]


@dataclass(frozen=True)
class Part:
    """One set: rows that each of its models learns from, and rows to measure with, of the same prompts."""

    name: str
    learnt: dict[str, list[ChoiceRow]]
    measured: list[ChoiceRow]

    def split(self, fold: int, seed: int) -> Part:
        """To measure: this fold; to learn from: the others."""
        learnt = {model: [row for row in rows if fold_of(row, seed) != fold] for model, rows in self.learnt.items()}
        return Part(self.name, learnt, [row for row in self.measured if fold_of(row, seed) == fold])


def fold_of(row: ChoiceRow, seed: int) -> int:
    """The fold of a row's prompt, by the prompt alone, so that no prompt is in two."""
    said = [[turn.role, turn.text, *([] if turn.is_plain else [turn.digest()])] for turn in row.prompt]
    digest = hashlib.sha256(json.dumps([seed, said]).encode()).digest()
    return int.from_bytes(digest[:8]) * FOLDS // 2**64


def parts(pairs: Path, logs: Path, seed: int) -> Iterator[Part]:
    """Every set under the two folders."""
    for path in sorted(pairs.glob("*.jsonl.gz")):
        rows = list(convert(RowFile(path), "pairs"))
        yield Part(path.name.removesuffix(".jsonl.gz"), {"twin": rows}, rows)
    for path in sorted(logs.glob("*.jsonl.gz")):
        records = [pair for pair in RowFile(path) if _labelled(pair[1])]
        if records:
            some = list(_some(records, seed))
            single = list(convert(some, "log", ConversionOptions(rows="single")))
            compared = [row for row in convert(some, "log", ConversionOptions(rows="pairs", seed=seed)) if row.choice != "none"]
            yield Part(path.name.removesuffix(".jsonl.gz"), {"reward": single, "twin": compared}, single)


def _labelled(record: dict[str, Any]) -> bool:
    return all(isinstance(candidate.get("acceptable"), bool) for candidate in record.get("candidates", [{}]))


def _some(records: Sequence[Place], seed: int) -> Iterator[Place]:
    for place, record in records:
        drawn = record["candidates"]
        chosen = random.Random(f"{seed} {record['id']}").sample(drawn, min(DRAWS, len(drawn)))
        yield place, record | {"candidates": [one for one in chosen if one["text"]]}


def predicted(part: Part, plan: dict[str, Any], layers: int) -> dict[str, Predicted]:
    """Train the models of one fold, and predict what it measures; and what length alone predicts."""
    found = {"length": length_alone(part)}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        start = write_base(Path(scratch) / "base", layers=layers, length=LENGTH, seed=plan["seed"])
        for name, rows in part.learnt.items():
            size = batch_size(rows, plan["epochs"])
            train_reward_model(rows, start, Path(scratch) / name, objective=OBJECTIVES[name], batch_size=size, **plan)
            scores, encoding = scored_rows(Path(scratch) / name, part.measured)
            found[name] = scores, encoding.groups
    return found


def batch_size(rows: Sequence[ChoiceRow], epochs: float) -> int:
    """How many distinct texts a batch has: at least all answers to any prompt."""
    texts = {(row.prompt, text) for row in rows for text in row.responses}
    most = max(Counter(prompt for prompt, _ in texts).values())
    return max(most, min(BATCH, int(epochs * len(texts) / STEPS)))


def length_alone(part: Part) -> Predicted:
    """The length of an answer as its score, or its negative if shorter ones were better in what the first model learns from."""
    seen = figures(*by_length(next(iter(part.learnt.values()))), outside=True)
    better = seen["acceptance_auc"] if seen["pair_accuracy"] is None else seen["pair_accuracy"]
    scores, groups = by_length(part.measured)
    return (scores if better is None or better >= 0.5 else -scores), groups


def by_length(rows: Sequence[ChoiceRow]) -> Predicted:
    """The number of characters of every answer, and the rows as judgements of them."""
    lengths: list[int] = []
    groups: list[Group] = []
    for row in rows:
        members = tuple(range(len(lengths), len(lengths) + len(row.responses)))
        lengths += map(len, row.responses)
        groups.append(Group(members, (Judgement(members, row.target, float(row.count), row.none_offered),)))
    return torch.tensor(lengths, dtype=torch.float32), groups


def joined(found: Sequence[Predicted]) -> Folds:
    """The scores of several folds in one row, and the judgements of each."""
    folds: list[list[Group]] = []
    at = 0
    for scores, own in found:
        folds.append([_moved(group, at) for group in own])
        at += len(scores)
    return torch.cat([scores for scores, _ in found]), folds


def _moved(group: Group, by: int) -> Group:
    judgements = tuple(replace(one, members=tuple(text + by for text in one.members)) for one in group.judgements)
    return Group(tuple(text + by for text in group.texts), judgements)


def folded(scores: torch.Tensor, folds: Sequence[Sequence[Group]]) -> dict[str, Any]:
    """The figures of all folds together; but answers are ranked against answers of their own fold alone.

    Each fold has a model of its own, and models differ by a constant: one that learnt from fewer acceptable answers scores lower,
    just where more are left to be predicted. An area under the curve of pooled scores counts that against all of them.
    """
    parts = [sampled(scores, [row for group in fold for row in group.judgements]) for fold in folds]
    pairs = np.array([float(weights[labels].sum() * weights[~labels].sum()) for _, labels, weights in parts])
    areas = [area(*part) if count else 0.0 for part, count in zip(parts, pairs, strict=True)]
    within = float(pairs @ areas / pairs.sum()) if pairs.any() else None
    found = figures(scores, [group for fold in folds for group in fold], outside=True)
    del found["reliability"]
    return found | {"acceptance_auc": within}


def evaluated(scores: torch.Tensor, folds: Sequence[Sequence[Group]]) -> dict[str, Any]:
    """The figures, with 95 % intervals over the prompts of every fold."""
    source = np.random.default_rng(0)
    samples = [
        folded(scores, [[fold[i] for i in source.integers(len(fold), size=len(fold))] for fold in folds]) for _ in range(RESAMPLES)
    ]
    return folded(scores, folds) | {"intervals": {key: _interval(samples, key) for key in SHOWN}}


def chance(folds: Sequence[Sequence[Group]]) -> dict[str, float | None]:
    """What can be had without reading the texts: 0.5 for rankings; the share of acceptance for the likelihood."""
    single = [row for fold in folds for group in fold for row in group.judgements if row.offered]
    if not single:
        return {"log_likelihood": -float(np.log(2)), "acceptance_accuracy": None}
    accepted = float(np.average([row.target == 0 for row in single], weights=[row.weight for row in single]))
    share = min(max(accepted, 1e-6), 1 - 1e-6)
    return {
        "log_likelihood": share * float(np.log(share)) + (1 - share) * float(np.log(1 - share)),
        "acceptance_accuracy": max(accepted, 1 - accepted),
    }


def _interval(samples: Sequence[dict[str, Any]], key: str) -> list[float] | None:
    values = [sample[key] for sample in samples if sample[key] is not None]
    return np.quantile(values, [0.025, 0.975]).tolist() if values else None


def measure(part: Part, folds: Sequence[dict[str, Predicted]]) -> dict[str, Any]:
    """The figures of one set: of its models, of length alone (which has no zero), of chance."""
    all_folds = {name: joined([fold[name] for fold in folds]) for name in folds[0]}
    found: dict[str, Any] = {name: evaluated(*all_folds[name]) for name in part.learnt}
    length = folded(*all_folds["length"])
    found["length"] = {key: length[key] for key in ("pair_accuracy", "acceptance_auc")}
    return found | {"chance": chance(all_folds["twin"][1])}


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print one table: a line for each set and model."""
    lines = []
    for name, found in results.items():
        for model in [model for model in ("reward", "twin") if model in found]:
            cells = [_cell(found[model][key], found[model]["intervals"][key]) for key in SHOWN]
            lines.append([name, model, found[model]["judgements"], *cells])
        ranking = [_cell(found["length"][key]) for key in SHOWN[:2]]
        lines.append([name, "length", "", *ranking, *["-"] * 4])
        constant = _cell(found["chance"]["acceptance_accuracy"])
        lines.append([name, "chance", "", "0.5", "0.5", "0.5", constant, "-", _cell(found["chance"]["log_likelihood"])])
    print_table(["set", "model", "judgements", *(key.replace("_", " ") for key in SHOWN)], lines)


def _cell(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if interval is None else with_interval([value, *interval])


def main() -> None:
    """Train, measure, print a table; write JSON with --json."""
    parser = arguments(__doc__, epochs=2.0, learning_rate=1e-3, layers=1, json=Path)
    parser.add_argument("--pairs", type=Path, required=True, metavar="DIR")
    parser.add_argument("--logs", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of the training")
    parser.add_argument("--processes", type=int, default=2, help="folds that are trained at a time, one thread each")
    parser.add_argument("--sets", nargs="*", metavar="NAME", help="only these")
    options = parser.parse_args()
    plan = {"epochs": options.epochs, "learning_rate": options.learning_rate, "seed": options.seed}
    plan |= {"threads": 1, "device": "cpu", "checkpoints": 0}
    found = [part for part in parts(options.pairs, options.logs, options.seed) if part.name in (options.sets or [part.name])]
    splits = [part.split(fold, options.seed) for part in found for fold in range(FOLDS)]
    rows = {part.name: {name: len(rows) for name, rows in part.learnt.items()} | {"measured": len(part.measured)} for part in found}
    settings = plan | {"layers": options.layers, "folds": FOLDS, "length": LENGTH, "draws": DRAWS, "batch": BATCH, "steps": STEPS}
    results: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        learn = partial(predicted, plan=plan, layers=options.layers)
        done = iter(track(pool.map(learn, splits), description="training", total=len(splits)))
        for part in found:
            results[part.name] = measure(part, list(islice(done, FOLDS)))
            # After each set: a run takes the better part of an hour.
            write_json(options.json, {"settings": settings, "rows": rows, "sets": results})
    show(results)


if __name__ == "__main__":
    main()
