"""The routes of decision models: System One's protocol and OpenAI's, over the one question that a reward model answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError
from bonmini_guard.logs.sources.messages import turns_among, unpacked
from bonmini_guard.reward.questions import OneQuestion
from bonmini_guard.server.schemas import turns_in

#: Questions of a body; OpenAI's limit.
_MOST = 400


class Label(BaseModel):
    """A choice as OpenAI's protocol writes it."""

    value: str
    description: str | None = None


class Question(BaseModel):
    """A question that is answered by yes or no, or a choice among answers; OpenAI's protocol calls the former a predicate.

    The labels of a choice are ``criteria`` in System One's protocol and ``choices`` in OpenAI's.
    """

    type: Literal["noul", "predicate", "choice"]
    instructions: str
    name: str | None = None
    criteria: dict[str, Any] | None = None
    choices: list[Label] | None = None

    def labels(self) -> dict[str, Any] | None:
        """To each label of a choice what it stands for."""
        if self.type != "choice":
            return None
        listed = {one.value: one.description for one in self.choices or ()} | (self.criteria or {})
        if len(listed) < len(self.choices or ()) + len(self.criteria or ()):
            raise InputError("two choices have one value, by which the answer names them: give each its own")
        return listed


class SystemOneRequest(BaseModel):
    """A conversation and questions by name."""

    model: str | None = None
    state: str | list[dict[str, Any]] | dict[str, Any]
    questions: Annotated[dict[str, Question], Field(min_length=1, max_length=_MOST)]


class DecisionsRequest(BaseModel):
    """A conversation as items, and questions in order."""

    model: str | None = None
    input: str | list[dict[str, Any]]
    questions: Annotated[list[Question], Field(min_length=1, max_length=_MOST)]


async def systemone(asked: OneQuestion, wanted: SystemOneRequest) -> dict[str, dict[str, Any]]:
    """The answers by name; InputError for another question, or no conversation that ends in an answer."""
    questions = {name: (question.instructions, question.labels()) for name, question in wanted.questions.items()}
    return await asked.answers(turns_of(wanted.state), questions)


async def decisions(asked: OneQuestion, wanted: DecisionsRequest) -> list[dict[str, Any]]:
    """The answers in order, a refusal where there is no score; errors as for the other wire."""
    state, answers = turns_of(wanted.input), []
    for question in wanted.questions:
        found = await asked.answer(state, question.instructions, question.labels()) or {"type": "refusal"}
        if "probabilities" in found:
            found["probabilities"] = [{"value": label, "probability": share} for label, share in found["probabilities"].items()]
        elif "noul" in found:
            found = {"type": "predicate", "probability": found["noul"]}
        answers.append(found | {"name": question.name})
    return answers


def turns_of(state: str | Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> list[Turn]:
    """A conversation as either protocol writes it, or as JSON in one user message, as clients write what has more roles."""
    if isinstance(state, str):
        return [Turn("user", state)]
    listed: Any = state.get("messages", state.get("state")) if isinstance(state, Mapping) else state
    if not isinstance(listed, Sequence) or not listed:
        raise InputError("state: give a conversation: a list of messages")
    turns = turns_in(turns_among(listed), "state")
    return _inside(turns[0]) or turns if len(turns) == 1 else turns


def _inside(turn: Turn) -> list[Turn] | None:
    said = unpacked(turn.text.strip())
    said = said.get("messages") if isinstance(said, dict) else said
    if not isinstance(said, list) or not said or not all(isinstance(one, dict) and "role" in one for one in said):
        return None
    return turns_in(said, "state")
