"""The local reward model: scores answers with a sequence classifier on this machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from bonmini_guard.errors import CandidateTooLong, CheckpointError, ConfigurationError, MissingExtraError

try:
    import torch
    from huggingface_hub import snapshot_download
    from transformers import AutoModelForSequenceClassification as _  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "transformers", "local") from error

from bonmini_guard.reward.checkpoint import has_zero, length_limit, load_classifier, load_config, load_tokenizer, pad_id
from bonmini_guard.reward.formatting import Encoded, Formatter
from bonmini_guard.reward.scoring import BatchScorer

logger = logging.getLogger(__name__)


class RewardModel:
    """Scores answers to a conversation; with an outside option, sigmoid(score) is the probability of beating "none".

    All work is done in one thread of its own, so sessions of many requests share the model and never block an event loop.
    Make one with :meth:`load`.

    Attributes:
        model_id: the folder or id it was loaded from.
        has_zero: whether score 0 is the outside option; a plain Bradley-Terry model only ranks.
        max_length: most tokens of a conversation with its answer; None has no limit.
    """

    def __init__(self, model: Any, tokenizer: Any, model_id: str, max_length: int | None = None, batch_tokens: int = 4096) -> None:
        if batch_tokens < 1:
            raise ConfigurationError(f"batch_tokens is {batch_tokens}: it must be positive")
        self.model_id = model_id
        self.has_zero = has_zero(model.config)
        self.max_length = length_limit(model.config, tokenizer, max_length)
        self._formatter = Formatter(tokenizer, self.max_length)
        self._scorer = BatchScorer(model, pad_id(model.config, tokenizer), batch_tokens)
        self._precision, self._device = str(model.dtype).removeprefix("torch."), str(model.device)
        self._template = tokenizer.chat_template
        self._fingerprint: str | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bonmini-guard-scoring")

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        *,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        max_length: int | None = None,
        batch_tokens: int = 4096,
    ) -> RewardModel:
        """Load a checkpoint with one label and safetensors weights. Code that comes with a checkpoint is never run.

        Args:
            path_or_id: a folder or a model id.
            device: where to run; by default the GPU if there is one.
            dtype: precision, by default bfloat16 on a GPU and float32 on a CPU, whatever the stored one.
            max_length: most tokens, if less than the model's own limit.
            batch_tokens: most tokens in a batch, padding included.

        Raises:
            CheckpointError: it is missing or of another kind; the message names the cure.
            ConfigurationError: the device, the precision or a number is wrong.
        """
        path = str(path_or_id)
        place = _device(device)
        precision = _precision(dtype, place)
        config = load_config(path)
        if config.num_labels != 1:
            raise CheckpointError(
                f"{path}: {config.num_labels} labels, and a reward model has one; train one with 'bonmini-guard train'"
            )
        tokenizer = load_tokenizer(path)
        model, missing = load_classifier(path, config, precision)
        if missing:
            raise CheckpointError(f"{path}: without weights for {missing[0]}; train the model with 'bonmini-guard train'")
        return cls(model.to(place).eval(), tokenizer, path, max_length, batch_tokens)

    def score(self, messages: Sequence[BaseMessage] | str, candidates: Sequence[AIMessage | str]) -> list[float | None]:
        """One score for each candidate, in order; None for one that does not fit, with a warning.

        Args:
            messages: the conversation, or one user turn.
            candidates: answers to it; equal ones are scored once.

        Raises:
            InputError: the chat template refuses the conversation.
        """
        return self._thread.submit(self._score, _conversation(messages), candidates, threading.Event()).result()

    def session(self, messages: Sequence[BaseMessage]) -> RewardSession:
        """A scoring session on one prompt; several may be open at a time."""
        return RewardSession(self, messages)

    def fingerprint(self) -> str:
        """SHA-256 over weights, chat template and precision, read once: equal fingerprints give equal scores."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for file in _weight_files(self.model_id):
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            digest.update(json.dumps([self._template, self._precision], sort_keys=True).encode())
            self._fingerprint = f"sha256:{digest.hexdigest()}"
        return self._fingerprint

    def close(self) -> None:
        """Drop what waits to be scored and end the thread; scoring afterwards raises RuntimeError."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def __repr__(self) -> str:
        zero = "outside option" if self.has_zero else "none"
        return f"RewardModel({self.model_id!r}, device={self._device}, dtype={self._precision}, zero={zero})"

    async def _score_async(self, messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> list[float | None]:
        stop = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, messages, candidates, stop)
        finally:
            # A batch that is running cannot be called back, but after a cancellation no further one begins.
            stop.set()

    def _score(
        self, messages: Sequence[BaseMessage], candidates: Sequence[AIMessage | str], stop: threading.Event
    ) -> list[float | None]:
        texts = self._encode(messages, candidates)
        scores = self._scorer.score([text.ids for text in texts if text is not None], stop)
        remaining = iter(scores)
        return [None if text is None else next(remaining) for text in texts]

    def _encode(self, messages: Sequence[BaseMessage], candidates: Sequence[AIMessage | str]) -> list[Encoded | None]:
        texts: list[Encoded | None] = []
        for candidate in candidates:
            try:
                texts.append(self._formatter.encode(messages, candidate))
            except CandidateTooLong as error:
                logger.warning("candidate %d of %d has no score: %s", len(texts) + 1, len(candidates), error)
                texts.append(None)
        cut = max((text.cut_turns for text in texts if text is not None), default=0)
        if cut:
            logger.warning("the conversation is too long for %s: up to %d of its oldest turns were left out", self.model_id, cut)
        return texts


class RewardSession:
    """Scores candidates of one prompt; see :class:`bonmini_guard.protocols.ScoringSession`."""

    def __init__(self, model: RewardModel, messages: Sequence[BaseMessage]) -> None:
        self._model = model
        self._messages = list(messages)

    async def score(self, candidates: Sequence[AIMessage]) -> list[float | None]:
        """One score for each candidate, in order; None for one that does not fit."""
        return await self._model._score_async(self._messages, candidates)

    async def aclose(self) -> None:
        """Nothing is held."""


def _conversation(messages: Sequence[BaseMessage] | str) -> Sequence[BaseMessage]:
    return [HumanMessage(messages)] if isinstance(messages, str) else messages


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigurationError(f"unknown device {name!r}: use cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"no CUDA device here for device={name!r}: use cpu")
    return device


def _precision(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None or dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    precision = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(precision, torch.dtype) or not precision.is_floating_point:
        raise ConfigurationError(f"unknown dtype {dtype!r}: use float32, bfloat16 or float16")
    if device.type == "cpu" and precision == torch.bfloat16:
        logger.warning("bfloat16 on a CPU without units for it is about 75 times slower than float32")
    return precision


def _weight_files(model_id: str) -> list[Path]:
    folder = Path(model_id)
    if not folder.is_dir():
        folder = Path(snapshot_download(model_id, allow_patterns=["*.safetensors"], local_files_only=True))
    return sorted(folder.glob("*.safetensors"))
