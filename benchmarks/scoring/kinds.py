"""The kinds of scorer specs beside what their models' cards call, and beside CrossEncoder on classifiers of the same shape."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.scoring.models import save_model
from benchmarks.scoring.rivals import Rival, cross_encoder, in_batches, loaded
from benchmarks.scoring.turns import Seconds, first_loop, mixed, seconds_in_turns, separate, shared
from benchmarks.tables import print_table
from bonmini_guard import ScorerSpec
from bonmini_guard.reward.declared import load_scorer

_TOKEN = {"wanted": ["w1"], "unwanted": ["w2"]}
_LABELS = ("LABEL_0", "LABEL_1", "LABEL_2")


def kinds(folder: Path, shape: str, device: str, rounds: int, clock: str) -> dict[str, Any]:
    """Rows of a decoder's kinds, 512 + 8 x 64 tokens, and of an encoder's, at mixed lengths."""
    places = {name: folder / name for name in ("one", "labels", "language model", "pairs")}
    save_model(places["one"], shape, device)
    save_model(places["labels"], shape, device, num_labels=len(_LABELS))
    save_model(places["language model"], shape, device, AutoModelForCausalLM)
    save_model(places["pairs"], "encoder", device)
    one, labels, language_model, pairs = map(str, places.values())
    decoding: dict[str, dict[str, Rival]] = {
        "template": {"ours": first_loop(_declared(device, kind="template", model=one))} | _crossed(one, device),
        "labels": {
            "ours": first_loop(_declared(device, kind="labels", model=labels, labels={"wanted": _LABELS[:1]})),
            "transformers": _labels(labels, device),
        },
        "token": {
            "ours": first_loop(_declared(device, kind="token", model=language_model, token=_TOKEN)),
            "transformers": _verdicts(language_model, device),
        },
    }
    encoding = {"pair": {"ours": separate(_declared(device, kind="pair", model=pairs))} | _crossed(pairs, device)}
    texts = {"kinds, 512 + 8 x 64": partial(shared, 512, 8, 64), "kinds, mixed lengths": partial(mixed, 32)}
    measured = {
        name: seconds_in_turns(groups, texts[name], rounds, device)
        for name, groups in zip(texts, (decoding, encoding), strict=True)
    }
    for name, times in measured.items():
        _show(name, times, clock)
    return {name: {"candidates": len(texts[name](0)), "seconds": times} for name, times in measured.items()}


def _show(name: str, times: Seconds, clock: str) -> None:
    """A table, with ratios to ours of the same kind and to CrossEncoder."""
    print(f"\n{name}")
    crossed = next((value[clock] for key, value in times.items() if key.endswith("CrossEncoder")), math.nan)
    table = []
    for key, value in times.items():
        own = times[f"{key.partition(':')[0]}: ours"][clock]
        seconds = [f"{value[each]:.3f}" for each in ("wall", "processor")]
        table.append([key, *seconds, f"{value[clock] / own:.2f}", f"{crossed / value[clock]:.2f}"])
    print_table(["", "wall (s)", "processor (s)", "x ours of the kind", "times as fast as CrossEncoder"], table)


def _declared(device: str, **spec: Any) -> Any:
    return load_scorer(ScorerSpec(**spec), device=device)


def _crossed(folder: str, device: str) -> dict[str, Rival]:
    try:
        return {"CrossEncoder": cross_encoder(Path(folder), device, 32)}
    except ImportError:
        return {}


def _labels(folder: str, device: str) -> Rival:
    """Log-odds of the first label, as cards of classifiers have it: a softmax over padded batches."""

    def read(model: Any, inputs: Any) -> torch.Tensor:
        return torch.logit(model(**inputs).logits.double().softmax(-1)[:, 0])

    return in_batches(AutoTokenizer.from_pretrained(folder), loaded(Path(folder), device), device, 8, read)


def _verdicts(folder: str, device: str) -> Rival:
    """Log-odds of a verdict's token, as Qwen3-Reranker's card has it: the last logits of batches padded on the left."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    yes, no = (tokenizer.convert_tokens_to_ids(words[0]) for words in _TOKEN.values())

    def read(model: Any, inputs: Any) -> torch.Tensor:
        last = model(**inputs).logits[:, -1, :].float()
        return last[:, yes] - last[:, no]

    return in_batches(tokenizer, loaded(Path(folder), device, AutoModelForCausalLM), device, 8, read)
