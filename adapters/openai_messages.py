"""OpenAI's words: request bodies from a draw, for every server that speaks them. No effects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bonmini_guard.adapters.requests import (
    call_options,
    completion_prompt,
    refuse_greedy,
    refuse_spoiling,
    stop_strings,
    tool_options,
    turns,
)
from bonmini_guard.protocols import DrawRequest

_ALIASES = {"max_new_tokens": "max_tokens"}
_COMMON = frozenset(
    {
        "max_tokens",
        "temperature",
        "top_p",
        "stop",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "logprobs",
        "user",
        "extra_body",
    }
)
_CHAT_ONLY = frozenset(
    {
        "max_completion_tokens",
        "top_logprobs",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "reasoning_effort",
    }
)


def chat_body(request: DrawRequest, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``chat.completions.create`` for draws of one prompt, but the model.

    Raises:
        ConfigurationError: a call option is unknown, or would spoil the draw.
    """
    body = tool_options(_parameters(request, settings, _COMMON | _CHAT_ONLY))
    return {"messages": turns(request.messages), **body}


def completion_body(request: DrawRequest, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``completions.create`` for draws of one prompt, but the model.

    Raises:
        ConfigurationError: a call option is unknown, or would spoil the draw.
    """
    body = _parameters(request, settings, _COMMON)
    return {"prompt": completion_prompt(request.messages), **body}


def check_extra(extra: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Keys of a body beyond OpenAI's, such as ``top_k`` or ``chat_template_kwargs``.

    Raises:
        ConfigurationError: one of them would spoil the draw.
    """
    refuse_spoiling(extra, place)
    refuse_greedy(extra)
    return dict(extra)


def _parameters(request: DrawRequest, settings: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    options = call_options(request, "OpenAICompatibleGenerator", known, _ALIASES)
    extra = check_extra(options.pop("extra_body", {}), "extra_body")
    merged = {**settings, **options, "extra_body": {**settings["extra_body"], **extra}}
    if "max_completion_tokens" in options:
        # Two names of one limit, and servers refuse both together.
        del merged["max_tokens"]
    # Some servers take 0 for "none"; draws have their seeds below 2**31.
    merged |= {"seed": request.seed or 2**31, "stop": stop_strings(merged["stop"])}
    return {name: value for name, value in merged.items() if value is not None and value not in ([], {})}
