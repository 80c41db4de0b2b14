"""What is sent to a chat or completion server: call options that may pass, and turns. No effects.

An option that is unknown, would spoil the draws, or cannot be sent, raises ConfigurationError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from bonmini_guard.adapters.http_errors import shorten
from bonmini_guard.conversation import Turn
from bonmini_guard.errors import BonMiniGuardError, ConfigurationError
from bonmini_guard.unseen import tell_of

_SPOILING = {
    "n": "the guard decides how many answers are drawn",
    "best_of": "the likeliest of several draws is no fair draw",
    "use_beam_search": "the likeliest of several beams is no fair draw",
    "seed": "each draw has its own: give the guard a seed",
    "stream": "a guard shows nothing that it has not judged",
}
#: Call options that all servers take, and all that chat.
COMMON = frozenset(["temperature", "top_p", "stop", "frequency_penalty"])
CHAT = frozenset(["tools", "tool_choice", "response_format"])


@dataclass(frozen=True)
class Dialect:
    """What one route of one family of servers understands.

    Attributes:
        known: call options that may pass, under the server's names.
        body: of a request, from the conversation and its parameters, but the seed.
        refused: reasons to refuse options with, beyond those that spoil every draw.
    """

    generator: str
    known: frozenset[str]
    body: Callable[[Sequence[BaseMessage], dict[str, Any]], dict[str, Any]]
    renamed: Mapping[str, str]
    refused: Mapping[str, str] = field(default_factory=dict)

    def render(self, messages: Sequence[BaseMessage], settings: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request for draws of one prompt, but the seed."""
        merged = dict(settings)
        if options:
            merged |= call_options(self.generator, options, self.known, self.renamed, self.refused)
            merged["stop"] = stop_strings(merged["stop"])
        try:
            if "extra_body" in settings:
                merged["extra_body"] = settings["extra_body"] | (options.get("extra_body") or {})
            body = self.body(messages, {name: value for name, value in merged.items() if value not in (None, [], {})})
            text = json.dumps(body, ensure_ascii=False, allow_nan=False)
        except BonMiniGuardError:
            raise
        except (TypeError, ValueError) as error:  # or tools, or a response format, that are none
            raise ConfigurationError(f"{self.generator} cannot send this request as JSON: {shorten(str(error), None)}") from None
        # Half a surrogate pair can be written in no encoding; it is read as U+FFFD, as reward models read it.
        said: dict[str, Any] = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        return said


def call_options(
    generator: str, given: Mapping[str, Any], known: frozenset[str], renamed: Mapping[str, str], refused: Mapping[str, str]
) -> dict[str, Any]:
    """Call options under the generator's names, without those that are None; for the arguments see :class:`Dialect`."""
    options = {renamed.get(key, key): value for key, value in given.items() if value is not None}
    for name in options:
        if name not in known:
            usual = "not known here; what its server knows goes into extra_body" if "extra_body" in known else "not known here"
            reason = {**_SPOILING, **refused}.get(name, usual)
            raise ConfigurationError(f"{generator} does not take the call option {name!r}: {reason}")
    refuse_greedy(options)
    return options


def refuse_greedy(options: Mapping[str, Any]) -> None:
    """Refuse a temperature of 0 among call options."""
    if options.get("temperature") == 0:
        raise ConfigurationError("temperature 0 makes every draw the same: leave the call option out")


def refuse_spoiling(options: Mapping[str, Any], place: str) -> None:
    """Refuse options that would change what a draw is."""
    if not isinstance(options, Mapping):
        raise ConfigurationError(f"{place} must be a table of names and values, not {options!r}")
    for name in options:
        if name in _SPOILING:
            raise ConfigurationError(f"{place} holds {name!r}: {_SPOILING[name]}")
    refuse_greedy(options)


def chat(messages: Sequence[BaseMessage], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A body in OpenAI's format, as every chat server takes it."""
    body = {"messages": turns(messages), **parameters}
    if "tools" in body:
        body["tools"] = [convert_to_openai_tool(tool) for tool in body["tools"]]
    choice = body.get("tool_choice")
    if choice in ("any", True):
        body["tool_choice"] = "required"
    elif isinstance(choice, str) and choice not in ("auto", "none", "required"):
        body["tool_choice"] = {"type": "function", "function": {"name": choice}}
    return body


def schema_of(shape: Any) -> tuple[str, dict[str, Any]] | None:
    """Name and JSON schema of a response format that is given as a class; None for one in a server's own words."""
    if isinstance(shape, Mapping):
        return None
    schema = convert_to_json_schema(shape)
    return schema["title"], schema


def turns(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The conversation in OpenAI's format, without the reasoning of earlier turns: some servers refuse it."""
    said = [_without(Turn.of(message).openai(), "reasoning_content") for message in messages]
    # Calls of the old form have no ids, without which no server takes their results.
    asked = (call for turn in said for call in turn.get("tool_calls", ()) if not call["id"])
    told = (turn for turn in said if turn["role"] == "tool" and not turn.get("tool_call_id"))
    for number, (call, result) in enumerate(zip(asked, told, strict=False)):
        call["id"] = result["tool_call_id"] = f"call{number:05}"
    # An empty content beside tool calls says nothing, and TGI reads such a turn as one without tool calls.
    return [_without(turn, "content") if turn.get("tool_calls") and not turn.get("content") else turn for turn in said]


def completion_prompt(messages: Sequence[BaseMessage]) -> str:
    """The conversation as one text, for routes that continue texts; what is no text is named in it, and told of once."""
    said = [Turn.of(message) for message in messages]
    for kind in {kind for turn in said for kind in turn.kinds}:
        tell_of(kind, "the completions route takes text alone, and tells the model the type")
    return "".join(turn.plain() for turn in said)


def stop_strings(stop: str | Sequence[str] | None) -> list[str]:
    """Stop strings as a list: users give one or several, and an empty one ends nothing. ConfigurationError if they are none."""
    several = [stop] if isinstance(stop, str) else stop or ()
    if not isinstance(several, Collection) or isinstance(several, Mapping) or not all(isinstance(each, str) for each in several):
        raise ConfigurationError(f"stop must be a text, or a list of texts, not {stop!r}")
    return [each for each in several if each]


def _without(turn: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in turn.items() if name != key}
