"""Stage 5b: what the outside option taught: the reward model beside its Bradley-Terry twin, on held-out prompts.

Both models read the same held-out choice rows (WORK/choices-eval.jsonl.gz, simulated labellers with Gumbel noise). Acceptance
and reliability are measured against these sampled judgements, as :mod:`bonmini_guard.training.evidence` says; the last column
decides at score 0 against the sign of the true utility, without a labeller's noise. Intervals resample prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks.imdb.models import REWARDS, model_path
from benchmarks.imdb.sentiment import SentimentTruth
from benchmarks.tables import arguments, print_table, with_interval, write_json
from bonmini_guard.training.batches import Encoding
from bonmini_guard.training.choices import ChoiceRow, read_choices
from bonmini_guard.training.evidence import figures
from bonmini_guard.training.run import scored_rows

SHOWN = (
    "log_likelihood",
    "pair_accuracy",
    "acceptance_auc",
    "acceptance_accuracy",
    "acceptance_balanced_accuracy",
    "reliability_error",
    "true_acceptance_accuracy",
)
RESAMPLES = 200


def texts_of(rows: Sequence[ChoiceRow]) -> list[str]:
    """Prompt and answer of every text, in the order in which ``encode_rows`` counts them."""
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        answers[row.prompt[0].text].update(row.responses)
    return [prompt + text for prompt, texts in answers.items() for text in sorted(texts)]


def evaluated(scores: torch.Tensor, encoding: Encoding, acceptable: torch.Tensor) -> dict[str, Any]:
    """All figures of one model, with 95 % intervals."""
    found = all_figures(scores, encoding.groups, acceptable)
    random = np.random.default_rng(0)
    groups = encoding.groups
    samples = [
        all_figures(scores, [groups[i] for i in random.integers(len(groups), size=len(groups))], acceptable)
        for _ in track(range(RESAMPLES), description="resampling")
    ]
    limits = {name: np.quantile([sample[name] for sample in samples], [0.025, 0.975]).tolist() for name in SHOWN}
    return found | {"intervals": limits}


def all_figures(scores: torch.Tensor, groups: Sequence[Any], acceptable: torch.Tensor) -> dict[str, Any]:
    """The evidence against sampled judgements, and the share of answers decided rightly against the truth."""
    texts = torch.tensor([text for group in groups for text in group.texts])
    right = ((scores[texts] >= 0) == acceptable[texts]).double().mean()
    return figures(scores, groups, outside=True) | {"true_acceptance_accuracy": float(right)}


def meets(reward: dict[str, Any], twin: dict[str, Any]) -> dict[str, bool]:
    """What the experiment set out to show."""
    return {
        "beats its twin in acceptance decisions at zero": reward["acceptance_accuracy"] > twin["acceptance_accuracy"],
        "pair accuracy within one point of the twin's or above": reward["pair_accuracy"] > twin["pair_accuracy"] - 0.01,
        "reliability error at most 0.05": reward["reliability_error"] <= 0.05,
    }


def main() -> None:
    """Print the table of both models; write JSON with --json."""
    options = arguments(__doc__, work=Path("build/imdb"), json=Path).parse_args()
    torch.set_num_threads(1)
    rows = read_choices(options.work / "choices-eval.jsonl.gz")
    truth = SentimentTruth.load(model_path("truth"))
    acceptable = torch.tensor(truth.utilities(texts_of(rows)) > 0)
    results = {name: evaluated(*scored_rows(model_path(name), rows), acceptable) for name in REWARDS}
    cells = [[name, *(with_interval([found[key], *found["intervals"][key]]) for key in SHOWN)] for name, found in results.items()]
    print_table(["model", *(name.replace("_", " ") for name in SHOWN)], cells)
    met = meets(results["reward"], results["twin"])
    print("\n".join(f"{'yes' if answer else 'NO'}: {name}" for name, answer in met.items()))
    write_json(options.json, {"prompts": len({row.prompt for row in rows}), "models": results, "met": met})


if __name__ == "__main__":
    main()
