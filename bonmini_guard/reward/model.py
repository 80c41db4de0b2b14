"""The local reward model: scores answers with a sequence classifier on this machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.errors import (
    CandidateTooLong,
    CheckpointError,
    ConfigurationError,
    InputError,
    Unscorable,
    first_line,
    needing,
)

with needing("local"):
    import torch
    from transformers import AutoModelForSequenceClassification as _  # noqa: F401

from bonmini_guard.conversation import NOT_SHOWN, Turn, clean, prompt_digest
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.engine.scorers import FunctionSession
from bonmini_guard.engine.workers import Workers
from bonmini_guard.reward.checkpoint import (
    base_note,
    base_of,
    changed_scale,
    check_vocabulary,
    check_whole,
    length_limit,
    load_config,
    load_tokenizer,
    pad_id,
    weight_files,
    weights_digest,
)
from bonmini_guard.reward.declared import as_asked, decision_model_of, load_scorer
from bonmini_guard.reward.formatting import Encoded
from bonmini_guard.reward.microbatch import CLOSED, MicroBatcher
from bonmini_guard.reward.pairs import Inputs
from bonmini_guard.reward.reading import Reading
from bonmini_guard.reward.rendering import rendering_digest
from bonmini_guard.reward.scoring import SegmentScorer
from bonmini_guard.reward.spec import ScorerSpec, is_spec
from bonmini_guard.reward.trunks import TrunkStore
from bonmini_guard.reward.work import Text, Work
from bonmini_guard.unseen import check_seen
from bonmini_guard.validation import Amount, Count, Names, Natural, checked

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Tokens of a batch, bytes of kept beginnings and seconds to wait for more calls, where nothing is asked for. Measured on a CPU,
#: where larger batches leave its caches and waiting gains nothing; on a GPU not measured.
_CPU = (2048, 2**28, 0.0)
_GPU = (16384, 2**32, 0.002)


@dataclass(frozen=True, slots=True)
class Activity:
    """What a reward model has computed (shared beginnings once), which calls wait, and the memory of what open sessions share."""

    batches: int
    tokens: int
    waiting: int
    cache_bytes: int


#: Calls of sessions that may be tokenised and wait to be computed: enough to fill any batch. Further ones wait in turns, and past
#: the limiter's bound are refused.
_IN_THE_QUEUE = 256


class RewardModel:
    """Scores answers to a conversation; with an outside option, sigmoid(score) is the probability of beating "none".

    Conversations are tokenised in one thread and scored in another, so sessions of many requests share the model and its
    batches, and never block an event loop. With a decoder model what the candidates of a session share is computed once,
    and kept until the session closes. Make one with :meth:`load`.

    Attributes:
        model_id: the folder or id it was loaded from.
        has_zero: whether score 0 is the outside option; a plain Bradley-Terry model only ranks.
        max_length: most tokens of a conversation with its answer; None has no limit.
        not_shown: kinds of parts of answers that it does not read.
    """

    #: Of prompts too: other parts are named in its input, no more.
    text_alone = True
    only_reads = True

    @checked
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        model_id: str,
        *,
        max_length: Count | None = None,
        batch_tokens: Count | None = None,
        cache_bytes: Natural | None = None,
        batch_window: Amount | None = None,
        base: str | None = None,
        not_shown: Names | None = None,
        reading: Reading | None = None,
    ) -> None:
        on_gpu = model.device.type == "cuda"
        defaults = _GPU if on_gpu else _CPU
        given = (batch_tokens, cache_bytes, batch_window)
        budget, limit, window = (default if value is None else value for value, default in zip(given, defaults, strict=True))
        self.model_id = model_id
        self._reading = reading or Reading()
        self.has_zero = self._reading.has_zero(model.config)
        self.max_length = length_limit(model.config, tokenizer, max_length)
        self.not_shown = frozenset(NOT_SHOWN if not_shown is None else not_shown)
        self._formatter = self._reading.formatter(model, tokenizer, self.max_length, self.not_shown)
        self._trunks = TrunkStore(int(limit))
        scorer = SegmentScorer(model, pad_id(model.config, tokenizer), self.max_length, self._reading)
        if not on_gpu:
            _keep_freed_memory()
        self._batcher = MicroBatcher(scorer, self._trunks, int(budget), window=window, overlap=on_gpu)
        self._precision, self._device = str(model.dtype).removeprefix("torch."), str(model.device)
        self._template = tokenizer.chat_template
        self._tokenizer = tokenizer
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        check_vocabulary(model_id, tokenizer, self._formatter, model)
        self._fingerprint: str | None = None
        self._earlier: str | None = None
        self._base, self._config = base, model.config
        self._trained_on = trained_prompts(model_id)
        self._places = Limiter(_IN_THE_QUEUE)
        self._closed = False
        self._tokenizing = Workers(1, "bonmini-guard-tokenizing")

    @classmethod
    def load(
        cls,
        path_or_id: str | Path | ScorerSpec,
        *,
        base: str | Path | None = None,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        cache_bytes: int | None = None,
        batch_window: float | None = None,
        not_shown: Collection[str] | None = None,
        inputs: Inputs | None = None,
        reading: Reading | None = None,
    ) -> RewardModel:
        """Load a checkpoint with one label and safetensors weights. Code that comes with a checkpoint is never run.

        Args:
            path_or_id: a folder or a model id; a folder of low-rank adapters (peft's, or trained here) loads with its base. Of a
                scorer spec, or its path, the scorer that it declares.
            base: folder or id of the base of adapters, if it is not where they say.
            device: where to run; by default the GPU if there is one.
            dtype: precision, by default bfloat16 on a GPU and float32 on a CPU, whatever the stored one.
            max_length: most tokens, if less than the model's own limit.
            batch_tokens: most tokens in a batch, padding included; the defaults of this and the next two stand in docs/scaling.md.
            cache_bytes: most memory for the beginnings that open sessions share.
            batch_window: most seconds to wait for calls of other requests while they come often.
            not_shown: parts of answers that the model does not read, and that a guard then does not serve: "reasoning" (the
                default), "refusal", or the type of a content block such as "image_url". An answer with another part that does not
                reach the model's input has no score; with ``not_shown=()`` the chat template must write reasoning.
            inputs: "text" for the conversation with its answer as the chat template writes it, "pair" for prompt and answer as two
                texts (cross-encoders), "answer" for the answer alone. None takes what the checkpoint says.
            reading: how it is asked and read, for what a spec declares; None is a classifier with one label.

        Raises:
            CheckpointError: it is missing or of another kind; the message names the cure.
            ConfigurationError: the device, the precision or a number is wrong, or nothing says which inputs it takes.
        """
        limits: dict[str, Any] = {"max_length": max_length, "batch_tokens": batch_tokens}
        limits |= {"cache_bytes": cache_bytes, "batch_window": batch_window, "not_shown": not_shown}
        if is_spec(path_or_id):
            if inputs is not None or reading is not None:
                raise ConfigurationError("inputs= and reading= go with a checkpoint: a spec says them by its kind")
            return cast(RewardModel, load_scorer(path_or_id, base=base, device=device, dtype=dtype, **limits))
        path, given = str(path_or_id), None if base is None else str(base)
        place = device_of(device)
        precision = _precision(dtype, place)
        config = load_config(path, given)
        if given is not None and reading is None and base_of(path, given) is None:
            raise ConfigurationError(f"base= goes with a folder of adapters, and {path} is whole: leave it out")
        read = reading or Reading(inputs)
        model, missing = read.load(path, config, precision, given)
        tokenizer = load_tokenizer(path, given)
        check_whole(path, missing)
        return cls(model.to(place).eval(), tokenizer, path, base=base_of(path, given), reading=read, **limits)

    def score(self, messages: Sequence[BaseMessage] | str, candidates: Sequence[AIMessage | str]) -> list[float | None]:
        """One score for each candidate, in order; None for one that does not fit, with a warning.

        Args:
            messages: the conversation, or one user turn.
            candidates: answers to it; equal ones are scored once.

        Raises:
            InputError: the chat template refuses the conversation, or the candidates are one text.
        """
        conversation, answers = as_asked(messages, candidates)
        check_seen(self, conversation, refuse=False)
        texts = self._tokenizing.submit(self._encode, conversation, answers).result()
        work = _work(texts)
        self._batcher.submit(work)
        return _in_order(texts, work.future.result())

    def session(self, messages: Sequence[BaseMessage]) -> FunctionSession:
        """A scoring session on one prompt; several may be open at a time. Closing it frees the prompt's computation.

        Its scores raise TooBusy while more than 10,000 calls wait on this event loop, InputError where the chat template refuses.
        """
        turns = list(map(Turn.of, messages))  # once, not for every candidate
        check_seen(self, turns, refuse=False)
        number = self._trunks.open()
        return FunctionSession(partial(self._score_in_session, number, turns), close=partial(self._trunks.close, number))

    async def tokenize(self, texts: Sequence[str | Sequence[int]], add_special_tokens: bool = True) -> list[Text]:
        """Token ids of texts (or checked ids) that a chat template has already been written around.

        Control tokens in these texts are control tokens, so nobody but the writer of the template should write them.

        Raises:
            CandidateTooLong: a text has more tokens than the model takes.
            InputError: a text has no tokens, or ids that the model does not know.
        """
        return await self._tokenized(self._ids, texts, add_special_tokens)

    async def score_tokens(self, texts: Sequence[Text]) -> list[float]:
        """One score for each text of :meth:`tokenize`, in order."""
        work = Work((text, 0) for text in texts)
        self._batcher.submit(work)
        scores = await asyncio.wrap_future(work.future)
        return [scores[text] for text in texts]

    @property
    def activity(self) -> Activity:
        """What it has done and holds."""
        return Activity(self._batcher.batches, self._batcher.tokens, self._batcher.waiting, self._trunks.bytes)

    as_decision_model = decision_model_of

    def fingerprint(self) -> str:
        """SHA-256 over weights, chat template, precision, and what the model reads of fixed conversations; computed once.

        Another model has another one, and so has one that reads texts in another way: through another tokenizer or formatter, or
        with another ``max_length``. The rest of the configuration is not in it.
        """
        if self._fingerprint is None:
            self._fingerprint = f"{self.earlier_fingerprint()}:{rendering_digest(self._formatter)}"
        return self._fingerprint

    def earlier_fingerprint(self) -> str:
        """As profiles of schema 1 have it: SHA-256 over weights, chat template and precision."""
        if self._earlier is None:
            digest = hashlib.sha256()
            for file in weight_files(self.model_id):
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            if self._base is not None:
                digest.update((base_note(self._config).get("digest") or weights_digest(self._base)).encode())
                digest.update(changed_scale(self.model_id).encode())
            digest.update(json.dumps([self._template, self._precision], sort_keys=True).encode() + self._reading.mark.encode())
            self._earlier = f"sha256:{digest.hexdigest()}"
        return self._earlier

    def trained_on(self, messages: Sequence[BaseMessage]) -> bool:
        """Whether the model learnt from answers to this prompt, as the digests in its folder say (white space and case aside)."""
        return bool(self._trained_on) and prompt_digest(map(Turn.of, messages)) in self._trained_on

    def close(self) -> None:
        """Drop what waits to be scored and end the threads; scoring afterwards raises RuntimeError."""
        self._closed = True
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        self._batcher.close()

    def __repr__(self) -> str:
        zero = "outside option" if self.has_zero else "none"
        return f"RewardModel({self.model_id!r}, device={self._device}, dtype={self._precision}, zero={zero})"

    async def _score_in_session(
        self, session: int, messages: Sequence[BaseMessage | Turn], candidates: Sequence[AIMessage]
    ) -> list[float | None]:
        async with self._places.here():
            texts = await self._tokenized(self._encode, messages, candidates)
            work = _work(texts, session)
            self._batcher.submit(work)
            # A cancelled caller cancels the work: a batch that is running cannot be called back, but no further one begins.
            return _in_order(texts, await asyncio.wrap_future(work.future))

    async def _tokenized(self, job: Callable[..., T], *arguments: Any) -> T:
        """Run on the tokenising thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokenizing, job, *arguments)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                # Dropped by close(): nobody cancelled this caller, who must not look as if.
                raise RuntimeError(CLOSED) from None
            raise

    def _ids(self, texts: Sequence[str | Sequence[int]], add_special_tokens: bool) -> list[Text]:
        found: list[Text] = []
        for number, text in enumerate(texts):
            ids = text
            if isinstance(text, str):
                ids = self._tokenizer(clean(text), add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
            if not ids or not all(isinstance(index, int) and 0 <= index < self._vocabulary for index in ids):
                raise InputError(f"text {number} has no tokens, or ids outside 0 to {self._vocabulary - 1}")
            if self.max_length is not None and len(ids) > self.max_length:
                raise CandidateTooLong(f"text {number} has {len(ids)} tokens, {self.max_length} allowed; texts are never cut")
            found.append(tuple(map(int, ids)))
        return found

    def _encode(self, messages: Sequence[BaseMessage | Turn], candidates: Sequence[AIMessage]) -> list[Encoded | None]:
        texts: list[Encoded | None] = []
        asked: Any = self._formatter.asked(messages)
        for candidate in candidates:
            try:
                text = self._formatter.encode(asked, candidate)
                if max(text.ids) >= self._vocabulary:
                    raise CandidateTooLong("it spells a token for which the model has no embedding")
                texts.append(text)
            except Unscorable as error:
                logger.warning("candidate %d of %d has no score: %s", len(texts) + 1, len(candidates), error)
                texts.append(None)
        cut = max((text.cut_turns for text in texts if text is not None), default=0)
        if cut:
            logger.warning("the conversation is too long for %s: up to %d of its oldest turns were left out", self.model_id, cut)
        return texts


def _work(texts: Sequence[Encoded | None], session: int | None = None) -> Work:
    return Work([(tuple(text.ids), text.cut_turns) for text in texts if text is not None], session)


def _in_order(texts: Sequence[Encoded | None], scores: dict[Text, float]) -> list[float | None]:
    return [None if text is None else scores[tuple(text.ids)] for text in texts]


def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones; see docs/scaling.md.

    It keeps blocks as large as the largest that it saw freed (mallopt(3), M_MMAP_THRESHOLD): one just under its limit is freed.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def device_of(name: str | None) -> torch.device:
    """The device of this name, by default the GPU if there is one; ConfigurationError where it is not here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"no device {name!r} here ({first_line(error)}): use cpu or cuda") from error
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


def trained_prompts(folder: str) -> frozenset[str]:
    """Digests of the prompts that a checkpoint of :func:`bonmini_guard.training.train_reward_model` was trained on."""
    file = Path(folder) / "trained_on.json"
    try:
        return frozenset(json.loads(file.read_text(encoding="utf-8"))["prompts"]) if file.is_file() else frozenset()
    except (ValueError, TypeError, LookupError) as error:
        raise CheckpointError(f"{file}: is broken ({first_line(error)}); copy the model anew") from error
