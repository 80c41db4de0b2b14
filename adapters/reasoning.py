"""Thoughts that a server or a model writes into its answer, as ``<think>...</think>``, moved to where other reasoning is."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage

from bonmini_guard.errors import ConfigurationError

#: What opens and closes thoughts; a bool for the usual tags, or for none.
Tags = bool | tuple[str, str]
_USUAL = ("<think>", "</think>")


def checked_tags(split: Tags) -> tuple[str, str] | None:
    """The two tags, or None; ConfigurationError if they are none."""
    if isinstance(split, bool):
        return _USUAL if split else None
    if not isinstance(split, list | tuple) or len(split) != 2 or not all(isinstance(tag, str) and tag for tag in split):
        raise ConfigurationError("split_reasoning is True, False, or the two tags around thoughts, such as ('<think>', '</think>')")
    return split[0], split[1]


def split_thoughts(text: str, tags: tuple[str, str]) -> tuple[str, str]:
    """The thoughts at the beginning of a text, and the rest. A template may have opened them; they may not have been closed."""
    opening, closing = tags
    opened = text.lstrip().startswith(opening)
    thought, closed, rest = (text.lstrip().removeprefix(opening)).partition(closing)
    if not closed:
        return (thought.strip(), "") if opened else ("", text)
    return thought.strip(), rest.lstrip()


def without_thoughts(message: AIMessage, tags: tuple[str, str] | None) -> AIMessage:
    """A message whose thoughts stand in ``additional_kwargs["reasoning_content"]``, and no more in its (first) text."""
    whole = isinstance(message.content, str)
    parts: list[Any] = [message.content] if whole else list(message.content)
    # Blocks have texts of their own; that of a thought is under another name.
    texts = [part if isinstance(part, str) else part.get("text") for part in parts]
    place = next((place for place, text in enumerate(texts) if isinstance(text, str)), None)
    if tags is None or place is None:
        return message
    thought, rest = split_thoughts(texts[place], tags)
    if rest == texts[place]:
        return message
    parts[place : place + 1] = [rest if isinstance(parts[place], str) else {**parts[place], "text": rest}] if rest or whole else []
    reasoning = "\n".join(filter(None, (message.additional_kwargs.get("reasoning_content"), thought)))
    more = {**message.additional_kwargs, **({"reasoning_content": reasoning} if reasoning else {})}
    return message.model_copy(update={"content": parts[0] if whole else parts, "additional_kwargs": more})
