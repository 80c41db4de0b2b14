"""Draws of a local causal language model for many prompts at once, and how far two models are apart on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import tqdm

from bonmini_guard.reward.formatting import prompt_ids
from bonmini_guard.reward.pooling import pad

#: Sequences in a batch.
_BATCH = 128


@dataclass(frozen=True, slots=True)
class Draw:
    """One answer: its prompt's and its own token ids, the end token included, and its text."""

    prompt: list[int]
    answer: list[int]
    text: str


@torch.inference_mode()
def draw(
    model: Any, tokenizer: Any, prompts: Sequence[Any], count: int, *, new_tokens: int, temperature: float
) -> list[list[Draw]]:
    """``count`` independent draws for each rendered prompt, from the whole vocabulary, by torch's global random state."""
    model.eval()
    ids = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    jobs = sorted((place for place in range(len(ids)) for _ in range(count)), key=lambda place: len(ids[place]))
    found: list[list[Draw]] = [[] for _ in prompts]
    with tqdm(total=len(jobs), desc="Drawing", delay=2.0) as bar:
        for start in range(0, len(jobs), _BATCH):
            part = jobs[start : start + _BATCH]
            for place, answer in zip(part, _continued(model, [ids[p] for p in part], new_tokens, temperature), strict=True):
                found[place].append(Draw(ids[place], answer, tokenizer.decode(answer, skip_special_tokens=True)))
            bar.update(len(part))
    return found


@torch.inference_mode()
def divergence(model: Any, reference: Any, draws: Sequence[Draw], temperature: float) -> Tensor:
    """KL(model, reference) of whole answers, one estimate for each draw *of the model*, shape (draws,), in nats.

    Each is the sum over the answer's tokens of the exact divergence of the next-token laws: without bias, never negative, and
    with far less noise than the log ratio of the answer's probabilities.
    """
    found = []
    for batch in _batches(draws):
        logs, mask, _ = _logs(model, batch, temperature)
        others, _, _ = _logs(reference, batch, temperature)
        each = (logs.exp() * (logs - others)).sum(2)
        found.append((each * mask).sum(1).cpu())
    return torch.cat(found)


@torch.inference_mode()
def log_likelihood(model: Any, draws: Sequence[Draw], temperature: float) -> float:
    """Mean log-probability of a token of the draws under a model, in nats."""
    total, tokens = 0.0, 0
    for batch in _batches(draws):
        logs, mask, ids = _logs(model, batch, temperature)
        total += float((logs.gather(2, ids.unsqueeze(2)).squeeze(2) * mask).sum())
        tokens += int(mask.sum())
    return total / tokens


def _continued(model: Any, ids: list[list[int]], new_tokens: int, temperature: float) -> Iterator[list[int]]:
    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    rows, mask = (part.flip(1).to(model.device) for part in pad([row[::-1] for row in ids], 0))  # on the left
    output = model.generate(
        rows, attention_mask=mask, do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=new_tokens
    )
    for answer in output[:, rows.shape[1] :].tolist():
        ended = next((position for position, token in enumerate(answer) if token in ends), len(answer))
        yield answer[: ended + 1]


def _batches(draws: Sequence[Draw]) -> Iterator[Sequence[Draw]]:
    # Whole vocabularies are held for every position, so these batches are small.
    for start in range(0, len(draws), _BATCH // 4):
        yield draws[start : start + _BATCH // 4]


def _logs(model: Any, batch: Sequence[Draw], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of every next token, as it is drawn, which of them belong to the answers, and the tokens that came."""
    ids, present = pad([one.prompt + one.answer for one in batch], 0)
    ids, present = ids.to(model.device), present.to(model.device)
    logs = (model(input_ids=ids, attention_mask=present).logits[:, :-1].float() / temperature).log_softmax(2)
    starts = torch.tensor([len(one.prompt) for one in batch], device=model.device)
    positions = torch.arange(1, ids.shape[1], device=model.device)
    mask = (positions >= starts.unsqueeze(1)) & present[:, 1:].bool()
    return logs, mask, ids[:, 1:]
