"""What requests to any chat or completion server have in common: call options that may pass, and turns. No effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.protocols import DrawRequest

_SPOILING = {
    "n": "the guard decides how many answers are drawn",
    "best_of": "the likeliest of several draws is no fair draw",
    "use_beam_search": "the likeliest of several beams is no fair draw",
    "seed": "each draw has its own: give the guard a seed",
    "stream": "a guard shows nothing that it has not judged",
}


def call_options(
    request: DrawRequest,
    generator: str,
    known: frozenset[str],
    aliases: Mapping[str, str],
    spoiling: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A request's call options under the server's names, without those that are None.

    Args:
        request: the draw.
        generator: who refuses, for the message.
        known: names that may pass.
        aliases: names that mean the same as one of those.
        spoiling: reasons to refuse other names with.

    Raises:
        ConfigurationError: an option is unknown, or would spoil the draw.
    """
    options = {aliases.get(key, key): value for key, value in request.options.items() if value is not None}
    for name in options:
        if name not in known:
            reason = {**_SPOILING, **(spoiling or {})}.get(name, "not known here")
            raise ConfigurationError(f"{generator} does not take the call option {name!r}: {reason}")
    refuse_greedy(options)
    return options


def refuse_greedy(options: Mapping[str, Any]) -> None:
    """Refuse a temperature of 0 among call options.

    Raises:
        ConfigurationError: there is one.
    """
    if options.get("temperature") == 0:
        raise ConfigurationError("temperature 0 makes every draw the same: leave the call option out")


def refuse_spoiling(options: Mapping[str, Any], place: str) -> None:
    """Refuse options that would change what a draw is.

    Raises:
        ConfigurationError: there is one.
    """
    for name in options:
        if name in _SPOILING:
            raise ConfigurationError(f"{place} holds {name!r}: {_SPOILING[name]}")


def tool_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body whose tools are in OpenAI's format, as every chat server takes them."""
    said = dict(body)
    if "tools" in said:
        said["tools"] = [convert_to_openai_tool(tool) for tool in said["tools"]]
    if said.get("tool_choice") == "any":
        said["tool_choice"] = "required"
    return said


def turns(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The conversation in OpenAI's format, without the reasoning of earlier turns: some servers refuse it."""
    said = [_without(Turn.of(message).openai(), "reasoning_content") for message in messages]
    # An empty content beside tool calls says nothing, and TGI reads such a turn as one without tool calls.
    return [_without(turn, "content") if turn.get("tool_calls") and not turn.get("content") else turn for turn in said]


def completion_prompt(messages: Sequence[BaseMessage]) -> str:
    """The conversation as one text, for routes that continue texts."""
    return "".join(Turn.of(message).plain() for message in messages)


def stop_strings(stop: str | Sequence[str] | None) -> list[str]:
    """Stop strings as a list: users give one or several."""
    return [stop] if isinstance(stop, str) else list(stop or ())


def _without(turn: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in turn.items() if name != key}
