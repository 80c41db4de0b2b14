"""What scores candidates elsewhere: each takes a prompt and answers, and gives raw scores."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

#: The rival that runs elsewhere and remembers what it has read.
SERVER = "vLLM /classify"

Rival = Callable[[Sequence[tuple[str, str]]], list[float]]


def rivals(folder: Path, device: str, vllm: str | None) -> tuple[dict[str, Rival], list[str]]:
    """Those that can run here, and a line about each that cannot."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), loaded(folder, device)
    found: dict[str, Rival] = {  # the first as in transformers' documentation: in the order of arrival, padded to the longest
        "transformers, batches of 8": in_batches(tokenizer, model, device, 8, lambda model, inputs: model(**inputs).logits[:, 0]),
        "pipeline, batches of 8": pipelined(folder, device),
    }
    missing = []
    try:
        found |= {"CrossEncoder": cross_encoder(folder, device, 32), "CrossEncoder, batches of 8": cross_encoder(folder, device, 8)}
    except ImportError:
        missing.append("CrossEncoder: not measured, sentence-transformers is not installed")
    if vllm is None:
        missing.append("vLLM /classify: not measured, no --vllm URL")
    else:
        found[SERVER] = classify_route(vllm)
    return found, missing


def in_batches(tokenizer: Any, model: Any, device: str, size: int, read: Callable[[Any, Any], torch.Tensor]) -> Rival:
    """One forward pass for each batch of texts, padded as the tokenizer has it; ``read`` gives the scores of one."""

    @torch.inference_mode()
    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(pairs), size):
            texts = [f"{prompt} {answer}" for prompt, answer in pairs[start : start + size]]
            inputs = tokenizer(texts, padding=True, return_tensors="pt").to(device)
            inputs.pop("token_type_ids", None)
            scores += read(model, inputs).float().tolist()
        return scores

    return score


def pipelined(folder: Path, device: str) -> Rival:
    """The pipeline of transformers."""
    run: Any = pipeline(
        "text-classification", model=loaded(folder, device), tokenizer=AutoTokenizer.from_pretrained(folder), device=device
    )

    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        texts = [f"{prompt} {answer}" for prompt, answer in pairs]
        return [found["score"] for found in run(texts, batch_size=8, function_to_apply="none")]

    return score


def cross_encoder(folder: Path, device: str, size: int) -> Rival:
    """Sentence-transformers' CrossEncoder; 32 is its own batch size."""
    from sentence_transformers import CrossEncoder  # type: ignore[import-not-found,unused-ignore]

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = CrossEncoder(str(folder), device=device, activation_fn=torch.nn.Identity(), model_kwargs={"dtype": dtype})

    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        scores: list[float] = model.predict(list(pairs), batch_size=size, show_progress_bar=False).tolist()
        return scores

    return score


def classify_route(url: str) -> Rival:
    """A vLLM server that serves the same checkpoint, with the pooling runner."""

    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        body = {"input": [f"{prompt} {answer}" for prompt, answer in pairs], "use_activation": False}
        request = urllib.request.Request(f"{url}/classify", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            data = json.load(answer)["data"]
        return [item["probs"][0] for item in sorted(data, key=lambda item: item["index"])]

    return score


def loaded(folder: Path, device: str, loader: Any = AutoModelForSequenceClassification) -> Any:
    """A model of transformers."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return loader.from_pretrained(folder, dtype=dtype).to(device).eval()
