"""TGI's words: request bodies from a draw, answers from what the server said. No effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bonmini_guard.adapters.answers import Answer, broken_off, finish_reason
from bonmini_guard.adapters.http_errors import MalformedAnswer
from bonmini_guard.adapters.requests import call_options, completion_prompt, stop_strings, tool_options, turns
from bonmini_guard.protocols import DrawRequest

_COMMON = frozenset({"max_new_tokens", "temperature", "top_p", "stop", "frequency_penalty"})
_CHAT_ONLY = frozenset({"tools", "tool_choice", "tool_prompt", "response_format", "logit_bias"})
_COMPLETION_ONLY = frozenset({"top_k", "typical_p", "repetition_penalty", "truncate", "grammar", "adapter_id", "watermark"})
_SPOILING = {"presence_penalty": "TGI adds 2 to it and takes it for a repetition penalty"}


def chat_body(request: DrawRequest, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``chat_completion`` for one draw.

    Raises:
        ConfigurationError: a call option is unknown, or would spoil the draw.
    """
    body = tool_options(_parameters(request, settings, _COMMON | _CHAT_ONLY))
    # TGI reads a message with both as one without tool calls.
    said = [
        {key: value for key, value in turn.items() if key != "content"} if "tool_calls" in turn else turn
        for turn in turns(request.messages)
    ]
    return {"messages": said, "max_tokens": body.pop("max_new_tokens"), **body}


def completion_body(request: DrawRequest, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``text_generation`` for one draw.

    Raises:
        ConfigurationError: a call option is unknown, or would spoil the draw.
    """
    body = _parameters(request, settings, _COMMON | _COMPLETION_ONLY)
    prompt = completion_prompt(request.messages)
    # The route is greedy unless told otherwise, and takes no temperature of 0.
    temperature = body.pop("temperature")
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
    return {"prompt": prompt, "return_full_text": False, **sampling, **body}


def completion_answer(chunks: Sequence[Any], prompt_tokens: int = 0) -> Answer:
    """The answer in a ``TextGenerationOutput`` with details, or in the events of a stream.

    Raises:
        MalformedAnswer: there is none.
        GenerationFailedAtEndpoint: the stream ended before the answer did.
    """
    # The last event of a stream has the whole text.
    text = chunks[-1].generated_text if chunks else None
    if text is None and chunks and hasattr(chunks[-1], "token"):
        raise broken_off()
    if not isinstance(text, str):
        raise MalformedAnswer("the endpoint answered without a text", status=200, retryable=True)
    details = chunks[-1].details
    reason = finish_reason(details.finish_reason if details else None)
    return Answer(
        text=text,
        finish_reason=reason,
        input_tokens=getattr(details, "input_length", None) or len(getattr(details, "prefill", None) or []) or prompt_tokens,
        output_tokens=details.generated_tokens or 0,
        seed=details.seed,
    )


def _parameters(request: DrawRequest, settings: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    aliases = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
    merged = {**settings, **call_options(request, "TGIGenerator", known, aliases, _SPOILING)}
    if merged.get("top_p") == 1:
        del merged["top_p"]
    # TGI's schema wants seeds above 0; draws have theirs below 2**31.
    merged |= {"seed": request.seed or 2**31, "stop": stop_strings(merged["stop"]) or None}
    return {name: value for name, value in merged.items() if value is not None}
