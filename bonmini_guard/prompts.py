"""A runnable's input as a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue

from bonmini_guard.errors import InputError


def as_messages(prompt: Any) -> list[BaseMessage]:
    """Messages of a string (one user turn), a prompt value, or anything LangChain takes as messages.

    Raises:
        InputError: the prompt is empty, or not something that holds messages.
    """
    messages = _convert(prompt)
    if not messages:
        raise InputError("the prompt holds no messages: pass a string or at least one message")
    if not any(_has_substance(message) for message in messages):
        raise InputError("the prompt is empty: every message is blank")
    return messages


def _convert(prompt: Any) -> list[BaseMessage]:
    if isinstance(prompt, str):
        return [HumanMessage(prompt)]
    if isinstance(prompt, PromptValue):
        return prompt.to_messages()
    if isinstance(prompt, BaseMessage):
        return [prompt]
    if not isinstance(prompt, Sequence):
        raise InputError(f"a prompt is a string, a prompt value or a list of messages, not a {type(prompt).__name__}")
    try:
        return convert_to_messages(list(prompt))
    except (ValueError, TypeError, NotImplementedError, KeyError) as error:
        problem = f"the prompt's messages cannot be read: {type(error).__name__}; pass (role, content) pairs or messages"
        raise InputError(problem) from error


def _has_substance(message: BaseMessage) -> bool:
    if isinstance(message.content, str):
        return bool(message.content.strip()) or bool(getattr(message, "tool_calls", None))
    return bool(message.content)
