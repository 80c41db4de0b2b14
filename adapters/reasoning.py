"""Thoughts that a server or a model writes into its answer, as ``<think>...</think>``, moved to where other reasoning is."""

from __future__ import annotations

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
    """A message whose thoughts stand in ``additional_kwargs["reasoning_content"]``, and no more in its text."""
    if tags is None or not isinstance(message.content, str):
        return message
    thought, rest = split_thoughts(message.content, tags)
    if not thought and rest == message.content:
        return message
    reasoning = "\n".join(filter(None, (message.additional_kwargs.get("reasoning_content"), thought)))
    more = {**message.additional_kwargs, **({"reasoning_content": reasoning} if reasoning else {})}
    return message.model_copy(update={"content": rest, "additional_kwargs": more})
