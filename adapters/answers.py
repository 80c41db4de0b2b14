"""What chat and completion servers answer, whatever their protocol's details: from choices to candidates. No effects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.messages import AIMessage, InvalidToolCall, ToolCall
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call

from bonmini_guard.adapters.http_errors import EndpointError, GenerationFailedAtEndpoint, MalformedAnswer
from bonmini_guard.adapters.usage import proportional

#: Finish reasons of answers that the server gave up on.
_GIVEN_UP = frozenset({"abort", "error"})


@dataclass(frozen=True)
class Answer:
    """What a server answered to one draw; token counts are None where it told none."""

    text: str
    finish_reason: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    seed: int | None = None
    model: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    invalid_tool_calls: list[InvalidToolCall] = field(default_factory=list)
    reasoning: str | None = None
    refusal: str | None = None
    logprobs: Any = None
    choice: int | None = None

    @property
    def truncated(self) -> bool:
        """Whether the token limit cut it."""
        return self.finish_reason == "length"


def whole_answers(answer: Any) -> list[Answer]:
    """The answers in a response that is no stream, in the order of their indices: servers send them in any order.

    Choices that are no answer are left out while another one is.

    Raises:
        MalformedAnswer: there is none.
        GenerationFailedAtEndpoint: not one of them ended.
    """
    choices = sorted(answer.choices or [], key=lambda choice: choice.index or 0)
    read = _readable([[choice] for choice in choices], answer.model)
    return share_usage(read, answer.usage)


def streamed_answers(chunks: Sequence[Any]) -> list[Answer]:
    """The answers in the chunks of a stream, in the order of their indices.

    Raises:
        MalformedAnswer: there is none.
        GenerationFailedAtEndpoint: the stream ended before any answer did.
    """
    parts: dict[int, list[Any]] = {}
    own: dict[int, Any] = {}
    for chunk in chunks:
        for choice in chunk.choices or []:
            parts.setdefault(choice.index or 0, []).append(choice)
            own[choice.index or 0] = chunk.usage
    read = _readable([parts[index] for index in sorted(parts)], chunks[0].model if chunks else None)
    # The last chunk tells the usage of all and has no choice; some servers tell each choice's own with its end.
    whole = next((chunk.usage for chunk in reversed(chunks) if chunk.usage and not chunk.choices), None)
    if whole is not None:
        return share_usage(read, whole)
    return [share_usage([answer], own.get(answer.choice or 0))[0] for answer in read]


def share_usage(answers: Sequence[Answer], usage: Any) -> list[Answer]:
    """The tokens of one request, shared among its answers so that their sum is the bill.

    The prompt was computed once, so the first answer bears it. What was generated is shared in proportion to the answers'
    log-probabilities where they were asked for (that is, exactly), else to their lengths in characters.
    """
    if usage is None:
        return list(answers)
    generated = proportional(usage.completion_tokens or 0, [_size(answer) for answer in answers])
    shared = [replace(answer, input_tokens=0, output_tokens=tokens) for answer, tokens in zip(answers, generated, strict=True)]
    cached = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None)
    reasoned = getattr(getattr(usage, "completion_tokens_details", None), "reasoning_tokens", None)
    first = replace(shared[0], input_tokens=usage.prompt_tokens or 0, cached_tokens=cached, reasoning_tokens=reasoned)
    return [first, *shared[1:]]


def keep(answers: Sequence[Answer], count: int) -> list[Answer]:
    """The first so many answers; the last of them bears the tokens of those that are left out, which were billed too."""
    kept, left_out = list(answers[:count]), answers[count:]
    lost = sum(answer.output_tokens or 0 for answer in left_out)
    return [*kept[:-1], replace(kept[-1], output_tokens=(kept[-1].output_tokens or 0) + lost)] if lost else kept


def to_message(answer: Answer, seed: int | None, stop: Sequence[str]) -> AIMessage:
    """An answer as a candidate; a stop string that ended it is cut off, as chat models do it."""
    ended = () if answer.finish_reason in {"length", "eos_token"} else tuple(stop)
    text = next((answer.text.removesuffix(string) for string in ended if string and answer.text.endswith(string)), answer.text)
    about = {
        "finish_reason": answer.finish_reason,
        "seed": seed if answer.seed is None else answer.seed,
        "model_name": answer.model or None,
        "truncated": answer.truncated or None,
        "logprobs": answer.logprobs,
    }
    more = {"reasoning_content": answer.reasoning, "refusal": answer.refusal}
    return AIMessage(
        text,
        tool_calls=answer.tool_calls,
        invalid_tool_calls=answer.invalid_tool_calls,
        usage_metadata=usage_of(answer),
        response_metadata={name: value for name, value in about.items() if value is not None},
        additional_kwargs={name: value for name, value in more.items() if value},
    )


def finish_reason(reason: Any) -> str:
    """A finish reason that says that the answer came to an end.

    Raises:
        GenerationFailedAtEndpoint: it says the opposite, or nothing.
    """
    if not isinstance(reason, str) or not reason or reason in _GIVEN_UP:
        raise broken_off()
    return reason


def broken_off() -> GenerationFailedAtEndpoint:
    """The error for an answer without an end."""
    return GenerationFailedAtEndpoint("the endpoint's answer broke off before its end", status=200, retryable=True)


def _readable(several: Sequence[Sequence[Any]], model: Any) -> list[Answer]:
    read: list[Answer] = []
    failure: EndpointError = MalformedAnswer("the endpoint answered without a choice", status=200, retryable=True)
    for parts in several:
        try:
            read.append(_read(parts, model))
        except EndpointError as error:
            failure = error
    if not read:
        raise failure
    return read


def _read(choices: Sequence[Any], model: Any) -> Answer:
    """One answer from its choice, or from all its choices in a stream."""
    parts = [_message(choice) for choice in choices]
    reason = finish_reason(next((choice.finish_reason for choice in reversed(choices) if choice.finish_reason), None))
    called = [call for part in parts for call in getattr(part, "tool_calls", None) or []]
    calls = [_tool_call(call.function.name, call.function.arguments, call.id) for call in called]
    logprobs = getattr(choices[-1], "logprobs", None) if len(choices) == 1 else None
    return Answer(
        text="".join(_content(part) for part in parts),
        finish_reason=reason,
        model=model if isinstance(model, str) else None,
        tool_calls=[call for call in calls if call["type"] == "tool_call"],
        invalid_tool_calls=[call for call in calls if call["type"] == "invalid_tool_call"],
        reasoning=_joined(parts, "reasoning_content", "reasoning"),
        refusal=_joined(parts, "refusal"),
        logprobs=_plain(logprobs),
        choice=choices[-1].index or 0,
    )


def _plain(logprobs: Any) -> Any:
    return logprobs.model_dump() if hasattr(logprobs, "model_dump") else logprobs


def _message(choice: Any) -> Any:
    """The message or delta of a chat choice; a completion's choice is its own, with ``text``."""
    part = getattr(choice, "message", None) or getattr(choice, "delta", None)
    part = choice if part is None and isinstance(getattr(choice, "text", None), str) else part
    if part is None or not isinstance(_content(part), str):
        raise MalformedAnswer("the endpoint answered without a message", status=200, retryable=True)
    return part


def _content(part: Any) -> Any:
    content = getattr(part, "content", None)
    return (getattr(part, "text", None) or "") if content is None else content


def _joined(parts: Sequence[Any], *names: str) -> str | None:
    # Servers name it differently, and some give it under both names.
    for name in names:
        said = "".join(value for part in parts if isinstance(value := getattr(part, name, None), str))
        if said:
            return said
    return None


def _tool_call(name: Any, arguments: Any, identity: Any) -> ToolCall | InvalidToolCall:
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        read = None
    if isinstance(name, str) and isinstance(read, dict):
        return tool_call(name=name, args=read, id=identity)
    return invalid_tool_call(name=str(name), args=str(arguments), id=identity, error="its arguments are no JSON object")


def _size(answer: Answer) -> int:
    logprobs: Mapping[str, Any] = answer.logprobs if isinstance(answer.logprobs, Mapping) else {}
    tokens = logprobs.get("content") or logprobs.get("tokens")
    return len(tokens) if tokens else len(answer.text) + len(answer.reasoning or "") + 1


def usage_of(answer: Answer) -> UsageMetadata | None:
    """An answer's tokens as messages have them; None where the server told none."""
    if answer.input_tokens is None and answer.output_tokens is None:
        return None
    used, made = answer.input_tokens or 0, answer.output_tokens or 0
    usage = UsageMetadata(input_tokens=used, output_tokens=made, total_tokens=used + made)
    if answer.cached_tokens is not None:
        usage["input_token_details"] = InputTokenDetails(cache_read=answer.cached_tokens)
    if answer.reasoning_tokens is not None:
        usage["output_token_details"] = OutputTokenDetails(reasoning=answer.reasoning_tokens)
    return usage
