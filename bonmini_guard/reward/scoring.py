"""Scores of token sequences, in batches of like length."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bonmini_guard.reward.pooling import PooledScorer, pad


class BatchScorer:
    """Scores texts with one model, each distinct text once.

    Args:
        model: a sequence classifier with one label, in evaluation mode.
        pad_id: what to fill batches with.
        batch_tokens: most tokens in a batch, padding included; a longer text makes a batch of its own.
    """

    def __init__(self, model: Any, pad_id: int, batch_tokens: int) -> None:
        self._scorer = PooledScorer(model).eval()
        self._device = model.device
        self._pad_id = pad_id
        self._batch_tokens = batch_tokens

    @torch.inference_mode()
    def score(self, texts: Sequence[Sequence[int]], stop: threading.Event | None = None) -> list[float]:
        """One score for each text, in order.

        Args:
            texts: token ids, none empty.
            stop: set by a caller who no longer wants the scores; then no further batch begins, and they are NaN.
        """
        distinct = sorted({tuple(text) for text in texts}, key=len)
        scores: dict[tuple[int, ...], float] = {}
        for batch in self._batches(distinct):
            if stop is not None and stop.is_set():
                break
            scores.update(zip(batch, self._score_batch(batch), strict=True))
        return [scores.get(tuple(text), float("nan")) for text in texts]

    def _batches(self, texts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        batch: list[tuple[int, ...]] = []
        for text in texts:
            # Sorted by length, so the newest text is the batch's longest.
            if batch and len(text) * (len(batch) + 1) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(text)
        if batch:
            yield batch

    def _score_batch(self, batch: list[tuple[int, ...]]) -> list[float]:
        input_ids, attention_mask = pad([list(text) for text in batch], self._pad_id)
        scores: list[float] = self._scorer(input_ids.to(self._device), attention_mask.to(self._device)).float().tolist()
        return scores
