"""What a conversation and an answer say as plain texts, for what reads no chat template: pairs, judges, questions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import NotRendered


def readable(answer: AIMessage | Turn | str, not_shown: Collection[str]) -> Turn:
    """The answer without what users do not get of it; NotRendered if it holds a part that is no text."""
    said = Turn.of(answer, "assistant")
    if said.parts or said.reasoning or said.refusal:
        said = said.without(not_shown)
    if said.parts and (kinds := said.kinds):
        raise NotRendered(f"it holds {', '.join(sorted(kinds))}, which the model cannot read: declare it not_shown= to users")
    return said


def spoken(answer: AIMessage | Turn | str, not_shown: Collection[str]) -> str:
    """What an answer says, thoughts and calls in brackets; NotRendered if it holds a part that is no text."""
    return readable(answer, not_shown).plain(thoughts=True)


def asked(messages: Sequence[BaseMessage | Turn], *, roles: bool = False) -> str:
    """What a conversation says, a line for each turn, perhaps with who says it."""
    turns = map(Turn.of, messages)
    return "\n".join(f"{turn.role}: {turn.plain()}" if roles else turn.plain() for turn in turns)
