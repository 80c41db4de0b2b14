"""TGI's words: request bodies from a draw, answers from what the server said. No effects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, InvalidToolCall, ToolCall, convert_to_openai_messages
from langchain_core.messages.tool import invalid_tool_call, tool_call
from langchain_core.utils.function_calling import convert_to_openai_tool

from bonmini_guard.adapters.http_errors import GenerationFailedAtEndpoint, MalformedAnswer
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.protocols import DrawRequest

#: Call options that mean the same thing under another name.
_ALIASES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
_COMMON = frozenset({"max_new_tokens", "temperature", "top_p", "stop", "frequency_penalty"})
_CHAT_ONLY = frozenset({"tools", "tool_choice", "tool_prompt", "response_format", "logit_bias"})
_COMPLETION_ONLY = frozenset({"top_k", "typical_p", "repetition_penalty", "truncate", "grammar", "adapter_id", "watermark"})
_SPOILING = {
    "n": "the guard draws one answer a request",
    "best_of": "the likeliest of several draws is no fair draw",
    "presence_penalty": "TGI adds 2 to it and takes it for a repetition penalty",
    "seed": "each draw has its own: give the guard a seed",
}


@dataclass(frozen=True)
class Answer:
    """What a server answered to one draw."""

    text: str
    finish_reason: str
    input_tokens: int = 0
    output_tokens: int = 0
    seed: int | None = None
    model: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    invalid_tool_calls: list[InvalidToolCall] = field(default_factory=list)
    reasoning: str | None = None

    @property
    def truncated(self) -> bool:
        """Whether the token limit cut it."""
        return self.finish_reason == "length"


def chat_body(request: DrawRequest, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``chat_completion`` for one draw.

    Raises:
        ConfigurationError: a call option is unknown, or would spoil the draw.
    """
    body = _parameters(request, settings, _COMMON | _CHAT_ONLY)
    if "tools" in body:
        body["tools"] = [convert_to_openai_tool(tool) for tool in body["tools"]]
    if body.get("tool_choice") == "any":
        body["tool_choice"] = "required"
    return {"messages": _turns(request.messages), "max_tokens": body.pop("max_new_tokens"), **body}


def completion_body(request: DrawRequest, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``text_generation`` for one draw.

    Raises:
        ConfigurationError: a call option is unknown, or would spoil the draw.
    """
    body = _parameters(request, settings, _COMMON | _COMPLETION_ONLY)
    prompt = "".join(message.text for message in request.messages)
    # The route is greedy unless told otherwise, and takes no temperature of 0.
    temperature = body.pop("temperature")
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
    return {"prompt": prompt, "return_full_text": False, **sampling, **body}


def chat_answer(chunks: Sequence[Any]) -> Answer:
    """The answer in a ``ChatCompletionOutput``, or in the chunks of a stream.

    Raises:
        MalformedAnswer: there is none.
        GenerationFailedAtEndpoint: the stream ended before the answer did.
    """
    # The last chunk of a stream has usage and no choice. A choice of another index would be another draw.
    choices = [choice for chunk in chunks for choice in chunk.choices or [] if not choice.index]
    parts: list[Any] = [getattr(choice, "message", None) or getattr(choice, "delta", None) for choice in choices]
    if not parts or any(part is None or not isinstance(part.content, str | None) for part in parts):
        raise MalformedAnswer("the endpoint answered without a message", status=200, retryable=True)
    reason = _reason(choices[-1].finish_reason)
    called = [call for part in parts for call in part.tool_calls or []]
    calls = [_tool_call(call.function.name, call.function.arguments, call.id) for call in called]
    usage = next((chunk.usage for chunk in reversed(chunks) if chunk.usage), None)
    return Answer(
        text="".join(part.content or "" for part in parts),
        finish_reason=reason,
        input_tokens=(usage.prompt_tokens if usage else 0) or 0,
        output_tokens=(usage.completion_tokens if usage else 0) or 0,
        model=chunks[0].model,
        tool_calls=[call for call in calls if call["type"] == "tool_call"],
        invalid_tool_calls=[call for call in calls if call["type"] == "invalid_tool_call"],
        reasoning="".join(getattr(part, "reasoning", None) or "" for part in parts) or None,
    )


def completion_answer(chunks: Sequence[Any], prompt_tokens: int = 0) -> Answer:
    """The answer in a ``TextGenerationOutput`` with details, or in the events of a stream.

    Raises:
        MalformedAnswer: there is none.
        GenerationFailedAtEndpoint: the stream ended before the answer did.
    """
    # The last event of a stream has the whole text.
    text = chunks[-1].generated_text if chunks else None
    if text is None and chunks and hasattr(chunks[-1], "token"):
        raise _broken_off()
    if not isinstance(text, str):
        raise MalformedAnswer("the endpoint answered without a text", status=200, retryable=True)
    details = chunks[-1].details
    reason = _reason(details.finish_reason if details else None)
    return Answer(
        text=text,
        finish_reason=reason,
        input_tokens=getattr(details, "input_length", None) or len(getattr(details, "prefill", None) or []) or prompt_tokens,
        output_tokens=details.generated_tokens or 0,
        seed=details.seed,
    )


def to_message(answer: Answer, seed: int, stop: Sequence[str]) -> AIMessage:
    """An answer as a candidate; a stop string that ended it is cut off, as chat models do it."""
    ended = () if answer.finish_reason in {"length", "eos_token"} else tuple(stop)
    text = next((answer.text.removesuffix(string) for string in ended if string and answer.text.endswith(string)), answer.text)
    used = {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens}
    about = {
        "finish_reason": answer.finish_reason,
        "seed": seed if answer.seed is None else answer.seed,
        **({"model_name": answer.model} if answer.model else {}),
        **({"truncated": True} if answer.truncated else {}),
    }
    return AIMessage(
        text,
        tool_calls=answer.tool_calls,
        invalid_tool_calls=answer.invalid_tool_calls,
        usage_metadata={**used, "total_tokens": sum(used.values())},
        response_metadata=about,
        additional_kwargs={"reasoning_content": answer.reasoning} if answer.reasoning else {},
    )


def _parameters(request: DrawRequest, settings: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    options = {_ALIASES.get(key, key): value for key, value in request.options.items() if value is not None}
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"TGIGenerator does not take the call option {name!r}: {_SPOILING.get(name, 'not known here')}"
            )
    if options.get("temperature") == 0:
        raise ConfigurationError("temperature 0 makes every draw the same: leave the call option out")
    merged = {**settings, **options}
    if merged.get("top_p") == 1:
        del merged["top_p"]
    if isinstance(merged["stop"], str):
        merged["stop"] = [merged["stop"]]
    # TGI's schema wants seeds above 0; draws have theirs below 2**31.
    merged |= {"seed": request.seed or 2**31, "stop": list(merged["stop"]) or None}
    return {name: value for name, value in merged.items() if value is not None}


def _turns(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    turns = convert_to_openai_messages(list(messages))
    # TGI reads a message with both as one without tool calls.
    return [{key: value for key, value in turn.items() if key != "content"} if "tool_calls" in turn else turn for turn in turns]


def _reason(reason: Any) -> str:
    if not isinstance(reason, str) or not reason:
        raise _broken_off()
    return reason


def _broken_off() -> GenerationFailedAtEndpoint:
    return GenerationFailedAtEndpoint("the endpoint's answer broke off before its end", status=200, retryable=True)


def _tool_call(name: Any, arguments: Any, identity: Any) -> ToolCall | InvalidToolCall:
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        read = None
    if isinstance(name, str) and isinstance(read, dict):
        return tool_call(name=name, args=read, id=identity)
    return invalid_tool_call(name=str(name), args=str(arguments), id=identity, error="its arguments are no JSON object")
