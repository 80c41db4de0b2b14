"""Draw candidates from a local transformers model: one prefill for a whole loop, a random state for each draw."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from bonmini_guard.engine.fingerprints import sampling, text_of
from bonmini_guard.engine.protocols import NO_OPTIONS, DrawRequest
from bonmini_guard.errors import ConfigurationError, InputError, needing

with needing("local"):
    import torch
    from transformers import (
        GenerationConfig,
        LogitsProcessor,
        LogitsProcessorList,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        StoppingCriteria,
        StoppingCriteriaList,
    )

from bonmini_guard.adapters.answers import used
from bonmini_guard.adapters.decoding import Decoder, Group, fits
from bonmini_guard.adapters.generation import check_sampling
from bonmini_guard.adapters.requests import call_options, stop_strings
from bonmini_guard.adapters.sampling import Sampler, signed
from bonmini_guard.engine.workers import Workers
from bonmini_guard.reward.checkpoint import load_language_model
from bonmini_guard.reward.formatting import prompt_ids, rendered
from bonmini_guard.reward.model import device_of

Outcome = tuple[int, AIMessage]
_KNOWN = frozenset({"max_new_tokens", "temperature", "top_k", "top_p", "stop", "tools"})
_RENAMED = dict.fromkeys(("max_tokens", "max_completion_tokens"), "max_new_tokens")
#: Settings of a checkpoint's own configuration that draws followed once.
_SET_ASIDE = ("repetition_penalty", "no_repeat_ngram_size", "min_length", "min_new_tokens", "suppress_tokens", "bad_words_ids")
_REFUSED = {"response_format": "a local model is held to no format; check it in the reward model"}


class Chosen(LogitsProcessor):
    """Leaves only the token that the sampler chose, so that ``generate`` takes it."""

    def __init__(self, sampler: Sampler, seeds: Sequence[int]) -> None:
        self._sampler, self._seeds = sampler, torch.tensor(list(seeds))
        self._steps = torch.zeros_like(self._seeds)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """0 for the chosen token, minus infinity elsewhere; shape (rows, vocabulary)."""
        chosen = self._sampler.choose(scores, self._seeds.to(scores.device), self._steps.to(scores.device)).unsqueeze(1)
        self._steps += 1
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)  # type: ignore[return-value]


class Progress(StoppingCriteria):
    """Reports each row as it ends, and ends all rows once the loop is no longer needed."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Which rows are done."""
        group = self._group
        # What generate() goes on to write in ended rows, nobody drew.
        for row in () if group.cancelled.is_set() else list(group.live):
            group.take(row, int(input_ids[row, -1]))
        ended = [group.cancelled.is_set() or row not in group.live for row in range(len(input_ids))]
        return torch.tensor(ended, device=input_ids.device)  # type: ignore[return-value]


class TransformersGenerator:
    """Draws from a local causal language model.

    All draws of a loop share one computation of the prompt; each has a random state of its own, so an answer depends on its
    seed alone. Work runs in one thread for each generator: a model is one resource. On plain Llama models concurrent requests
    advance together (see :mod:`bonmini_guard.adapters.decoding`), on others one after the other.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer; without a chat template the contents of the messages are joined and continued.
        max_new_tokens: tokens of an answer at most.
        temperature: above 0 for sampling; 0 is greedy and refused for more than one draw.
        top_k: sample among the k likeliest tokens; None for all.
        top_p: sample among the likeliest tokens of this total probability; None for all.

    Call options of the same names (``max_tokens``, too) stand in for these settings; ``stop`` ends answers, ``tools`` go through
    the chat template, and calls stay in the text as the model writes them. Others are refused.

    Raises:
        ConfigurationError: a sampling setting is out of range.
    """

    hands_over = True

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
        check_sampling(max_new_tokens, temperature, top_p, top_k)
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self._decoder = Decoder(model) if fits(model) else None
        self._settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        self._thread = Workers(1, "bonmini-generate")
        self._weights: str | None = None

    @classmethod
    def load(
        cls, path: str, *, device: str | None = None, dtype: torch.dtype | None = None, **settings: Any
    ) -> TransformersGenerator:
        """Load a checkpoint: safetensors only, no remote code; bf16 on CUDA, float32 on CPU unless told otherwise.

        Raises:
            CheckpointError: there is no causal language model at ``path``, or not a whole one.
            ConfigurationError: the device is not here.
        """
        place = device_of(device)
        model, tokenizer = load_language_model(path, dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32))
        return cls(model.to(place).eval(), tokenizer, **settings)

    @property
    def carries(self) -> int | None:
        """Draws that it computes at a time, for the width of rolling requests; None where one group runs after the other."""
        return None if self._decoder is None else self._decoder.most

    @property
    def deterministic(self) -> bool:
        """Whether every draw would be the same."""
        return self.temperature == 0

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer."""
        async with contextlib.aclosing(self.draw_group([request])) as outcomes:
            return (await anext(outcomes))[1]

    async def draw_group(self, requests: Sequence[DrawRequest]) -> AsyncGenerator[Outcome]:
        """Yield each draw's answer as it ends; closing the iterator stops the model at its next token.

        Raises:
            InputError: the prompt with the answer exceeds the model's context.
        """
        loop = asyncio.get_running_loop()
        finished: asyncio.Queue[Outcome | None] = asyncio.Queue()

        def report(outcome: Outcome | None) -> None:
            with contextlib.suppress(RuntimeError):  # of a loop that is closed
                loop.call_soon_threadsafe(finished.put_nowait, outcome)

        group = self._group(requests, report)
        if self._decoder is not None:
            self._decoder.add(group)
        serve = self._generate if self._decoder is None else self._decoder.serve
        work = loop.run_in_executor(self._thread, serve, group)
        work.add_done_callback(lambda _: report(None))
        try:
            for _ in requests:
                if (outcome := await finished.get()) is None:
                    await work
                    return
                yield outcome
        finally:
            group.cancelled.set()
            # Nobody is left to hear its error; what has begun ends at its next token.
            work.cancel()

    def describe(self, options: Mapping[str, Any] = NO_OPTIONS) -> dict[str, Any]:
        """What draws: digests of the weights and of the chat template, precision and settings, a call's options in their stead."""
        if self._weights is None:
            self._weights = f"sha256:{self._digest(hashlib.sha256())}"
        given = {_RENAMED.get(key, key): value for key, value in sampling(options).items()}
        template = hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16]
        about: dict[str, Any] = {"class": type(self).__name__, "weights": self._weights, "template": template}
        about["precision"] = str(self.model.dtype)
        own = [name for name in _SET_ASIDE if getattr(self.model.generation_config, name, None) not in (None, 0, 1, [])]
        if own and self._decoder is None:
            # Without a mark a profile from before would be taken for one of these draws.
            about["set_aside"] = own
        if further := self._end_tokens() - self._configured_ends():  # for the same reason
            about["ends"] = sorted(further)
        return about | {"settings": {key: value for key, value in (self._settings | given).items() if value is not None}}

    def fingerprint(self) -> str:
        """The description as text."""
        return text_of(self.describe())

    def earlier_fingerprint(self) -> str:
        """As profiles of schema 1 have it: SHA-256 of the model's weights, its chat template and the sampling settings."""
        settings = json.dumps([self._settings, self.tokenizer.chat_template, str(self.model.dtype)])
        return f"sha256:{self._digest(hashlib.sha256(settings.encode()))}"

    def _digest(self, digest: Any) -> str:
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + weight.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return str(digest.hexdigest())

    def _group(self, requests: Sequence[DrawRequest], report: Callable[[Outcome], None]) -> Group:
        # What asks for what happens anyway, as clients write it, is left out: no logprobs, any tool, several calls, a text.
        usual: tuple[Any, ...] = ("auto", {"type": "text"})
        asked = {name: value for name, value in requests[0].options.items() if name not in ("user", "parallel_tool_calls")}
        given = {name: value for name, value in asked.items() if value is not False and value not in usual}
        options = self._settings | call_options("TransformersGenerator", given, _KNOWN, _RENAMED, _REFUSED)
        limit, temperature, top_k, top_p = (options[name] for name in self._settings)
        check_sampling(limit, temperature, top_p, top_k)
        ids = self.encode(requests[0].messages, limit, options.get("tools"))
        stop, ends = stop_strings(options.get("stop")), self._end_tokens()
        return Group(
            ids,
            [signed(request.seed) for request in requests],
            limit,
            lambda answer: answer[-1] in ends or self._stopped(answer, stop),
            lambda row, answer: report((row, self._message(ids, answer, stop, ends))),
            Sampler(temperature, top_k, top_p),
        )

    @torch.inference_mode()
    def _generate(self, group: Group) -> None:
        if group.done:
            return
        ids, count = group.prompt, len(group.live)
        # generate() computes only the last prompt token itself: the rest comes from the shared prefill.
        cache = None
        if len(ids) > 1 and not self.model._is_stateful:  # a state cannot be handed out to several rows
            start = torch.tensor([ids[:-1]], device=self.model.device)
            cache = getattr(self.model(start, use_cache=True, logits_to_keep=1), "past_key_values", None)
            if cache is not None:  # the first GPT keeps nothing
                cache.batch_repeat_interleave(count)
        rows = torch.tensor([ids] * count, device=self.model.device)
        # Beams, penalties, limits of time and the like in the checkpoint's own configuration would make draws of other settings.
        model = copy.copy(self.model)
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        model.generate(  # type: ignore[operator]
            rows,
            attention_mask=torch.ones_like(rows),
            past_key_values=cache,
            max_new_tokens=group.limit,
            logits_processor=LogitsProcessorList([Chosen(group.sampler, group.seeds)]),
            stopping_criteria=StoppingCriteriaList([Progress(group)]),
        )

    def encode(
        self, messages: Sequence[BaseMessage], new_tokens: int | None = None, tools: Sequence[Any] | None = None
    ) -> list[int]:
        """Token ids of a conversation, ready to be continued by ``new_tokens`` (default: ``max_new_tokens``).

        Raises:
            InputError: the prompt is empty, or exceeds the model's context with its answer.
            ConfigurationError: there are tools, and the chat template tells of none.
        """
        new_tokens = self.max_new_tokens if new_tokens is None else new_tokens
        if tools and "tools" not in str(self.tokenizer.chat_template):
            raise ConfigurationError("TransformersGenerator does not take the call option 'tools': the chat template knows none")
        told = [convert_to_openai_tool(tool) for tool in tools or ()] or None
        ids = prompt_ids(rendered(messages, self.tokenizer), self.tokenizer, told)
        if not ids:
            raise InputError("the prompt has no tokens: there is nothing to continue")
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and 0 < limit < len(ids) + new_tokens:  # XLNet says -1 where there is none
            raise InputError(
                f"the prompt has {len(ids)} tokens; with {new_tokens} new ones it exceeds the model's context of {limit}"
            )
        return ids

    def _configured_ends(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set() if ends is None else set(ends) if isinstance(ends, list) else {int(ends)}

    def _end_tokens(self) -> set[int]:
        """None where the checkpoint names none; else the tokenizer's own, too, which its template may end turns with."""
        ends, own = self._configured_ends(), self.tokenizer.eos_token_id
        return {*ends, own} if ends and own is not None else ends

    def _stopped(self, answer: list[int], stop: list[str]) -> bool:
        # A token is a byte or more: the end of an answer shows whether the last token completed a stop string.
        end = answer[-1 - max((len(string.encode("utf-8", "replace")) for string in stop), default=0) :]
        return bool(stop) and any(string in self.tokenizer.decode(end, skip_special_tokens=True) for string in stop)

    def _message(self, prompt: list[int], answer: list[int], stop: list[str], ends: set[int]) -> AIMessage:
        text = self.tokenizer.decode(answer, skip_special_tokens=True)
        cuts = [text.index(string) for string in stop if string in text]
        # It is reported at its first end token, so that no other one comes before.
        reason = "stop" if answer[-1] in ends or cuts else "length"
        usage = used(len(prompt), len(answer))
        return AIMessage(text[: min(cuts)] if cuts else text, usage_metadata=usage, response_metadata={"finish_reason": reason})  # type: ignore[arg-type]
