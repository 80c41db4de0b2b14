"""Beside plain labellers and one model: what helps on held-out prompts, and what does not.

``python -m benchmarks.imdb.beyond --json benchmarks/results/beyond.json`` trains small reward models on a part of
WORK/choices.jsonl.gz and measures them on WORK/choices-eval.jsonl.gz and on the draws of WORK/log-evaluate-reward.jsonl.gz:

* three seeds, their mean, and their mean less a standard deviation (a conservative score): best-of-32 and acceptance at 0;
* judgements of one prompt spread over batches instead of together, for the same number of texts computed;
* a fifth of the judgements replaced by random ones;
* labellers whose taste is shared by all answers to a prompt (a nested logit with dissimilarity 0.5).

Every model is judged by what labellers without noise and without shared taste say, and by the true utilities.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks.imdb.models import model_path
from benchmarks.imdb.sentiment import SentimentTruth
from benchmarks.imdb.teaching import all_figures, texts_of
from benchmarks.tables import arguments, print_table, read_rows, write_json
from bonmini_guard import RewardModel
from bonmini_guard.training import train_reward_model
from bonmini_guard.training.batches import Group, batches_of, encode_rows
from bonmini_guard.training.choices import ChoiceRow, read_choices
from bonmini_guard.training.run import load_base, scored_rows
from bonmini_guard.training.settings import Settings
from bonmini_guard.training.trainer import fit

SHOWN = ("log_likelihood", "pair_accuracy", "acceptance_auc", "reliability_error", "true_acceptance_accuracy")
PLAN: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 40, "threads": 1, "device": "cpu", "checkpoints": 0}
SHARE, DISSIMILARITY = 0.2, 0.5


def some_prompts(rows: Sequence[ChoiceRow], count: int) -> list[ChoiceRow]:
    """The rows of the first so many prompts."""
    kept = set(islice(dict.fromkeys(row.prompt for row in rows), count))
    return [row for row in rows if row.prompt in kept]


def disturbed(rows: Sequence[ChoiceRow], share: float, seed: int) -> list[ChoiceRow]:
    """A share of the judgements replaced by random ones."""
    source = random.Random(seed)
    found = []
    for row in rows:
        for _ in range(row.count):
            options: list[Any] = [*range(len(row.responses)), "none"]
            found.append(replace(row, choice=source.choice(options) if source.random() < share else row.choice, count=1))
    return found


def nested(rows: Sequence[ChoiceRow], truth: SentimentTruth, dissimilarity: float, seed: int) -> list[ChoiceRow]:
    """New judgements of the same answers, by labellers whose taste is shared by all answers to a prompt."""
    source = np.random.default_rng(seed)
    counts: dict[tuple[Any, tuple[str, ...]], int] = {}
    for row in rows:
        counts[row.prompt, row.responses] = counts.get((row.prompt, row.responses), 0) + row.count
    found = []
    for (prompt, responses), count in counts.items():
        utilities = truth.utilities([prompt[0].text + text for text in responses]) / dissimilarity
        inclusive = np.logaddexp.reduce(utilities)
        none = 1 / (1 + np.exp(dissimilarity * inclusive))
        chances = np.append(np.exp(utilities - inclusive) * (1 - none), none)
        for choice, times in enumerate(source.multinomial(count, chances / chances.sum())):
            if times:
                found.append(ChoiceRow(prompt, responses, "none" if choice == len(responses) else choice, int(times)))
    return found


def train_spread(rows: Sequence[ChoiceRow], base: Path, folder: Path, *, epochs: float, **settings: Any) -> None:
    """Train with every judgement in a batch by chance, and as many steps as training by prompts would take."""
    plan = Settings(epochs=epochs, **settings)
    loaded = load_base(str(base), plan)
    together = encode_rows(rows, loaded.formatter, plan.batch_size)
    alone = [Group(tuple(sorted(set(row.members))), (row,)) for group in together.groups for row in group.judgements]
    apart = replace(together, groups=alone)
    steps = len(batches_of(together, plan.batch_size, epochs))
    shorter = replace(plan, epochs=steps / len(batches_of(apart, plan.batch_size)))
    with tempfile.TemporaryDirectory() as scratch:
        fit(loaded.scorer, apart, Path(scratch), shorter, None, new=())
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


class Best:
    """Best-of-N on logged draws of the evaluation prompts, by scores of any kind."""

    def __init__(self, log: Path, prompts: int) -> None:
        rows = read_rows(log)[:prompts]
        self.rows = [(row["prompt"], [one["text"] for one in row["candidates"]]) for row in rows]
        self.utility = np.array([[one["utility"] for one in row["candidates"]] for row in rows])

    def scores(self, path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Scores of all draws, shape (prompts, draws)."""
        model = RewardModel.load(path, device="cpu")
        try:
            return np.array([model.score(prompt, texts) for prompt, texts in track(self.rows, description="scoring draws")], float)
        finally:
            model.close()

    def figures(self, scores: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
        """The best-scored of all draws: how often it is acceptable, its true utility, and false acceptances at score 0."""
        pick = scores.argmax(1)
        rows = np.arange(len(pick))
        good, served = self.utility[rows, pick] > 0, scores[rows, pick] >= 0
        return {
            "best_acceptable": float(good.mean()),
            "best_utility": float(self.utility[rows, pick].mean()),
            "false_acceptance_rate": float((served & ~good).sum() / max(1, (~good).sum())),
            "recall": float((served & good).sum() / max(1, good.sum())),
        }


def main() -> None:
    """Train and measure all variants, print a table, write JSON with --json."""
    options = arguments(__doc__, work=Path("build/imdb"), prompts=1200, draw_prompts=300, epochs=5.0, json=Path).parse_args()
    torch.set_num_threads(1)
    truth = SentimentTruth.load(model_path("truth"))
    held_out = read_choices(options.work / "choices-eval.jsonl.gz")
    acceptable = torch.tensor(truth.utilities(texts_of(held_out)) > 0)
    learnt = some_prompts(read_choices(options.work / "choices.jsonl.gz"), options.prompts)
    best = Best(options.work / "log-evaluate-reward.jsonl.gz", options.draw_prompts)
    noisy, shared = disturbed(learnt, SHARE, 1), nested(learnt, truth, DISSIMILARITY, 1)
    variants: dict[str, tuple[list[ChoiceRow], dict[str, Any]]] = {
        "plain, seed 0": (learnt, {}),
        "plain, seed 1": (learnt, {"seed": 1}),
        "plain, seed 2": (learnt, {"seed": 2}),
        "spread over batches": (learnt, {}),
        "plain, on random fifth": (noisy, {}),
        "plain, on shared taste": (shared, {}),
    }
    results, kept = {}, []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, (rows, settings)) in enumerate(variants.items()):
            folder = Path(scratch) / str(number)
            train = train_spread if name.startswith("spread") else train_reward_model
            train(rows, options.work / "reward-base", folder, epochs=options.epochs, **(PLAN | settings))
            scores, encoding = scored_rows(folder, held_out)
            draws = best.scores(folder)
            results[name] = _shown(all_figures(scores, encoding.groups, acceptable)) | best.figures(draws)
            if name.startswith("plain, seed"):
                kept.append((scores, draws))
        ensembles: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "mean of three seeds": lambda scores: scores.mean(0),
            "mean less one deviation": lambda scores: scores.mean(0) - scores.std(0),
        }
        for name, combine in ensembles.items():
            together = combine(torch.stack([scores for scores, _ in kept]))
            found = _shown(all_figures(together, encoding.groups, acceptable))
            results[name] = found | best.figures(combine(torch.tensor(np.stack([draws for _, draws in kept]))).numpy())
    names = (*SHOWN, "best_acceptable", "best_utility", "false_acceptance_rate", "recall")
    print_table(
        ["model", *(n.replace("_", " ") for n in names)], [[k, *(f"{v[n]:.3f}" for n in names)] for k, v in results.items()]
    )
    write_json(options.json, {"prompts": options.prompts, "draw_prompts": options.draw_prompts, "models": results})


def _shown(figures: dict[str, Any]) -> dict[str, float]:
    return {name: figures[name] for name in SHOWN}


if __name__ == "__main__":
    main()
