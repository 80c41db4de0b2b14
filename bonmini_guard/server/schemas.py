"""What the routes take and give. Bodies are checked here and nowhere else; errors never quote them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bonmini_guard.conversation import Turn, clean, deeper_than
from bonmini_guard.errors import InputError

#: Texts of one call; more should come as more calls.
MOST_TEXTS = 1024
_ALL = Field(min_length=1, max_length=MOST_TEXTS)
_OneOrTwo = Annotated[list[str], Field(min_length=1, max_length=2)]


class Block(BaseModel):
    """A block of a content; of others than texts, the model reads that they are there."""

    model_config = ConfigDict(extra="allow")
    type: str
    text: str | None = None


class Message(BaseModel):
    """A message as chat APIs write it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Block] | None = ""
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None


class Answer(Message):
    """A candidate as a message."""

    role: Literal["assistant"] = "assistant"


class ScoreRequest(BaseModel):
    """A conversation and the candidates that may answer it."""

    model_config = ConfigDict(extra="forbid")
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    candidates: Annotated[list[str | Answer], Field(max_length=MOST_TEXTS)]

    def conversation(self) -> list[BaseMessage]:
        """The messages as LangChain has them; InputError for a malformed tool call."""
        return _messages(self.messages, "messages")

    def answers(self) -> list[AIMessage]:
        """The candidates as LangChain has them; errors as for the conversation."""
        answers = _messages([Answer(content=one) if isinstance(one, str) else one for one in self.candidates], "candidates")
        return [answer for answer in answers if isinstance(answer, AIMessage)]


#: Levels of lists and objects in the arguments of a tool call.
_DEEPEST = 64


class ScoreAnswer(BaseModel):
    """One score for each candidate, in order; null for one that does not fit. ``inputs`` is the digest of the request's body."""

    scores: list[float | None]
    fingerprint: str
    has_zero: bool
    inputs: str


class PredictRequest(BaseModel):
    """TEI's body: a text, a pair of texts that are joined, or a batch of either."""

    inputs: str | _OneOrTwo | Annotated[list[_OneOrTwo], _ALL]
    raw_scores: bool = False
    truncate: bool | None = None


class ClassifyRequest(BaseModel):
    """vLLM's body: texts or their token ids."""

    input: str | Annotated[list[str], _ALL] | Annotated[list[int], Field(min_length=1)] | Annotated[list[list[int]], _ALL]
    model: str | None = None
    use_activation: bool | None = None
    add_special_tokens: bool = True


Body = TypeVar("Body", bound=BaseModel)


def read(kind: type[Body], body: bytes) -> Body:
    """A checked body.

    Raises:
        InputError: it is not of this kind; the message says where, and quotes nothing.
    """
    try:
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            if error.errors(include_input=False)[0]["type"] != "json_invalid":
                raise
            return kind.model_validate_json(_readable(body))
    except ValidationError as error:
        # Of what may be several things the innermost says most, but for too many of what may be most.
        found = error.errors(include_input=False, include_url=False)
        told = max(found, key=lambda each: (each.get("ctx", {}).get("max_length", 0), len(each["loc"])))
        place = ".".join(str(part)[:40] for part in told["loc"]) or "body"
        raise InputError(f"{printable(place)}: {printable(told['msg'])[:200]}") from None


def _readable(body: bytes) -> bytes:
    """A body with its lone surrogates replaced, which Python's JSON reads and no other does; as it is if that is not its fault."""
    try:
        return clean(json.dumps(json.loads(body), ensure_ascii=False)).encode()
    except (ValueError, RecursionError):
        return body


def printable(text: str) -> str:
    """The text in one line of characters that every log and terminal can show."""
    return " ".join(text.encode("ascii", "backslashreplace").decode().split())


def _messages(said: Sequence[Message], name: str) -> list[BaseMessage]:
    return [turn.message() for turn in turns_in(({"content": "", **one.model_dump(exclude_none=True)} for one in said), name)]


def turns_in(said: Iterable[Any], name: str) -> list[Turn]:
    """Turns of a conversation; InputError for a malformed one, which quotes nothing."""
    try:
        turns = list(map(Turn.of, said))
        # What a chat template cannot take (numbers too large to write, and the like) is told here, and not in the middle of it.
        calls = [call for turn in turns for call in turn.calls]
        json.dumps([call.args for call in calls], allow_nan=False)
        if any(deeper_than(_DEEPEST, call.arguments) for call in calls):
            raise ValueError
    except Exception:
        raise InputError(f"{name}: a message is malformed; its role and its tool calls must be as chat APIs write them") from None
    return turns
