"""Draw candidates from a local transformers model: one prefill for a whole loop, a random state for each draw."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.errors import CheckpointError, ConfigurationError, InputError, MissingExtraError
from bonmini_guard.protocols import DrawRequest

try:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LogitsProcessor,
        LogitsProcessorList,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        StoppingCriteria,
        StoppingCriteriaList,
        StopStringCriteria,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )
except ImportError as error:
    raise MissingExtraError("transformers", "local") from error

from bonmini_guard.reward.checkpoint import check_place
from bonmini_guard.reward.formatting import as_dictionary

Outcome = tuple[int, AIMessage | BaseException]


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel(0, 1) noise from a random state of each row, so that the argmax is an exact sample from the softmax.

    ``generate`` samples from torch's global state, through which concurrent requests would interfere.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._states = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores plus noise; shape (rows, vocabulary)."""
        noise = torch.empty(scores.shape, dtype=torch.float32)
        for row, state in zip(noise, self._states, strict=True):
            row.exponential_(generator=state)
        return scores - noise.log_().to(scores.device)  # type: ignore[return-value]


class Progress(StoppingCriteria):
    """Reports each row as it ends, and ends all rows once the loop is no longer needed."""

    def __init__(
        self,
        prompt_length: int,
        ends: set[int],
        stops: Callable[..., torch.Tensor] | None,
        cancelled: threading.Event,
        report: Callable[[int, list[int]], None],
    ) -> None:
        self._prompt_length = prompt_length
        self._ends = ends
        self._stops = stops
        self._cancelled = cancelled
        self._report = report
        self.reported: set[int] = set()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Which rows are done."""
        if self._cancelled.is_set():
            return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]
        stopped = [False] * len(input_ids) if self._stops is None else self._stops(input_ids, scores).tolist()
        for row, token in enumerate(input_ids[:, -1].tolist()):
            # Now, before generate() fills the row up with padding that nobody drew.
            if (stopped[row] or token in self._ends) and row not in self.reported:
                self.tell(row, input_ids[row])
        return torch.tensor(stopped, device=input_ids.device)  # type: ignore[return-value]

    def tell(self, row: int, ids: torch.Tensor) -> None:
        """Report a row that has ended."""
        self.reported.add(row)
        self._report(row, ids[self._prompt_length :].tolist())


class TransformersGenerator:
    """Draws from a local causal language model.

    All draws of a loop share one prefill of the prompt and run as one batch; each has a random state of its own, so an
    answer depends on its seed alone. Work runs in one thread for each generator: a model is one resource.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer; without a chat template the contents of the messages are joined and continued.
        max_new_tokens: tokens of an answer at most.
        temperature: above 0 for sampling; 0 is greedy and refused for more than one draw.
        top_k: sample among the k likeliest tokens; None for all.
        top_p: sample among the likeliest tokens of this total probability; None for all.

    Raises:
        ConfigurationError: a sampling setting is out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        if temperature < 0 or (top_p is not None and not 0 < top_p <= 1) or (top_k is not None and top_k < 1) or max_new_tokens < 1:
            raise ConfigurationError("need temperature >= 0, 0 < top_p <= 1, top_k >= 1 and max_new_tokens >= 1")
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self._warpers = _warpers(temperature, top_k, top_p)
        self._settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        self._thread = ThreadPoolExecutor(1, "bonmini-generate")
        self._identity: str | None = None

    @classmethod
    def load(
        cls, path: str, *, device: str | None = None, dtype: torch.dtype | None = None, **settings: Any
    ) -> TransformersGenerator:
        """Load a checkpoint: safetensors only, no remote code; bf16 on CUDA, float32 on CPU unless told otherwise.

        Raises:
            CheckpointError: there is no causal language model at ``path``.
        """
        check_place(path)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: no causal language model in safetensors ({str(error).splitlines()[0]})") from error
        return cls(model.to(device).eval(), tokenizer, **settings)  # type: ignore[arg-type]

    @property
    def deterministic(self) -> bool:
        """Whether every draw would be the same."""
        return self.temperature == 0

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer."""
        async with contextlib.aclosing(self.draw_group([request])) as outcomes:
            async for _, outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                return outcome
        raise RuntimeError("the generator ended without an answer")

    async def draw_group(self, requests: Sequence[DrawRequest]) -> AsyncGenerator[Outcome]:
        """Yield each draw's answer as it ends; closing the iterator stops the model at its next token.

        Raises:
            InputError: the prompt with the answer exceeds the model's context.
        """
        loop = asyncio.get_running_loop()
        finished: asyncio.Queue[Outcome | None] = asyncio.Queue()
        cancelled = threading.Event()

        def report(outcome: Outcome | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(finished.put_nowait, outcome)

        work = loop.run_in_executor(self._thread, self._generate, requests, cancelled, report)
        work.add_done_callback(lambda _: report(None))
        try:
            while (outcome := await finished.get()) is not None:
                yield outcome
            await work
        finally:
            cancelled.set()
            # Nobody is left to hear its error; what has begun ends at its next token.
            work.cancel()

    def fingerprint(self) -> str:
        """SHA-256 of the model's weights, its chat template and the sampling settings."""
        if self._identity is None:
            digest = hashlib.sha256(json.dumps([self._settings, self.tokenizer.chat_template, str(self.model.dtype)]).encode())
            for name, weight in sorted(self.model.state_dict().items()):
                digest.update(name.encode() + weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            self._identity = f"sha256:{digest.hexdigest()}"
        return self._identity

    @torch.inference_mode()
    def _generate(self, requests: Sequence[DrawRequest], cancelled: threading.Event, report: Callable[[Outcome], None]) -> None:
        if cancelled.is_set():
            return
        options = requests[0].options
        limit = int(options.get("max_tokens") or self.max_new_tokens)
        ids = self.encode(requests[0].messages, limit)
        stop = _stop_strings(options)
        # generate() computes only the last prompt token itself: the rest comes from the shared prefill.
        cache = None
        if len(ids) > 1:
            start = torch.tensor([ids[:-1]], device=self.model.device)
            cache = self.model(start, use_cache=True, logits_to_keep=1).past_key_values
            cache.batch_repeat_interleave(len(requests))
        rows = torch.tensor([ids] * len(requests), device=self.model.device)
        ends = self._end_tokens()
        stops = StopStringCriteria(self.tokenizer, stop) if stop else None
        progress = Progress(
            len(ids), ends, stops, cancelled, lambda row, answer: report((row, self._message(ids, answer, stop, ends)))
        )
        output = self.model.generate(  # type: ignore[operator]
            rows,
            attention_mask=torch.ones_like(rows),
            past_key_values=cache,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            max_new_tokens=limit,
            logits_processor=LogitsProcessorList(self._processors(requests)),
            stopping_criteria=StoppingCriteriaList([progress]),
        )
        if not cancelled.is_set():
            for row in range(len(requests)):
                if row not in progress.reported:
                    progress.tell(row, output[row])

    def encode(self, messages: Sequence[BaseMessage], new_tokens: int | None = None) -> list[int]:
        """Token ids of a conversation, ready to be continued by ``new_tokens`` (default: ``max_new_tokens``).

        Raises:
            InputError: the prompt with its answer exceeds the model's context.
        """
        new_tokens = self.max_new_tokens if new_tokens is None else new_tokens
        if self.tokenizer.chat_template is None:
            text = "".join(message.text for message in messages)
            ids = list(self.tokenizer(text)["input_ids"])
        else:
            rendered = self.tokenizer.apply_chat_template(
                [as_dictionary(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
            ids = list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and len(ids) + new_tokens > limit:
            raise InputError(
                f"the prompt has {len(ids)} tokens; with {new_tokens} new ones it exceeds the model's context of {limit}"
            )
        return ids

    def _processors(self, requests: Sequence[DrawRequest]) -> list[LogitsProcessor]:
        return [] if self.deterministic else [*self._warpers, GumbelNoise([request.seed for request in requests])]

    def _end_tokens(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set() if ends is None else set(ends) if isinstance(ends, list) else {int(ends)}

    def _message(self, prompt: list[int], answer: list[int], stop: list[str], ends: set[int]) -> AIMessage:
        ended = next((position for position, token in enumerate(answer) if token in ends), None)
        kept = answer if ended is None else answer[: ended + 1]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        cuts = [text.index(string) for string in stop if string in text]
        reason = "stop" if ended is not None or cuts else "length"
        used = {"input_tokens": len(prompt), "output_tokens": len(kept), "total_tokens": len(prompt) + len(kept)}
        return AIMessage(text[: min(cuts)] if cuts else text, usage_metadata=used, response_metadata={"finish_reason": reason})  # type: ignore[arg-type]


def _warpers(temperature: float, top_k: int | None, top_p: float | None) -> list[LogitsProcessor]:
    warpers: list[LogitsProcessor] = []
    if temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(temperature))
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


def _stop_strings(options: Mapping[str, Any]) -> list[str]:
    stop = options.get("stop") or []
    return [stop] if isinstance(stop, str) else list(stop)
