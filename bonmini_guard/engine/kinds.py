"""What a draw is: an answer, calls of tools with perhaps words beside them, or nothing at all."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from langchain_core.messages import AIMessage

from bonmini_guard.conversation import NOT_SHOWN, Turn, hides, is_call

#: Ends of answers that a filter cut, that the token limit cut, and that the server gave up on.
FILTERED = frozenset(
    {
        *("content_filter", "safety", "recitation", "prohibited_content", "blocklist", "spii"),
        *("sensitive", "guardrail_intervened", "refusal", "content_filtered"),
    }
)
CUT = frozenset({"length", "max_tokens", "model_length", "model_context_window_exceeded", "max_output_tokens"})
GIVEN_UP = frozenset(
    {"abort", "error", "cancelled", "insufficient_system_resource", "network_error", "failed", "queued", "in_progress"}
)


def why_none(message: AIMessage, ends: tuple[str, ...]) -> str | None:
    """Why a message with such :func:`~bonmini_guard.engine.snapshot.ends` is no answer; None for one that is."""
    filtered, cut, given_up = cut_short(ends)
    if filtered:
        return "a content filter withheld or cut it"
    if given_up:
        return "the server gave it up before its end"
    if "function_call" in message.additional_kwargs and not message.tool_calls:
        return "it is a function call of the old form, which nothing here reads: let the model use tools"
    if isinstance(message.content, str) and message.content.strip():
        return None
    turn = Turn.of(message)
    # Reasoning that is not told has a place all the same.
    blocks = message.content if isinstance(message.content, list) else []
    thought = any(isinstance(block, dict) and hides(str(block.get("type")), NOT_SHOWN) for block in blocks)
    thought = thought or bool(turn.reasoning or message.additional_kwargs.get("reasoning"))
    if turn.is_blank and (thought or cut):
        return "there is nothing but reasoning, or the token limit came first: raise it"
    return None


@lru_cache(maxsize=256)  # models have few words for it
def cut_short(ends: tuple[str, ...]) -> tuple[bool, bool, bool]:
    """Whether a filter, the token limit, or a failure came before the answer's end."""
    words = {end.lower().partition(":")[0] for end in ends}  # Gemini's "content_filter: RECITATION"
    return not FILTERED.isdisjoint(words), not CUT.isdisjoint(words), not GIVEN_UP.isdisjoint(words)


def calls_tools(message: AIMessage) -> bool:
    """Whether a message calls tools, and nothing else can be done with it."""
    return bool(message.tool_calls) and not message.invalid_tool_calls


def words(message: AIMessage) -> AIMessage | None:
    """What is said beside the calls, as an answer; None if there is nothing to read."""
    content: Any = message.content
    if not isinstance(content, str):
        content = [part for part in content if isinstance(part, str) or not is_call(part)]
    about = {key: value for key, value in message.additional_kwargs.items() if key not in ("tool_calls", "function_call")}
    said = message.model_copy(update={"content": content, "tool_calls": [], "invalid_tool_calls": [], "additional_kwargs": about})
    turn = Turn.of(said)
    return None if turn.is_blank and not turn.reasoning else said


def calls(message: AIMessage) -> AIMessage:
    """The calls without anything that could be read; log-probabilities and citations spell the text."""
    content: Any = "" if isinstance(message.content, str) else [part for part in message.content if is_call(part)]
    about = {key: value for key, value in message.additional_kwargs.items() if key == "tool_calls" or key.startswith("__")}
    flat = {key: value for key, value in message.response_metadata.items() if isinstance(value, str | int | float | None)}
    metadata = {key: value for key, value in flat.items() if key != "logprobs"}
    return message.model_copy(update={"content": content, "additional_kwargs": about, "response_metadata": metadata})
