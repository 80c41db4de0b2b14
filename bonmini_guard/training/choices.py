"""Choice rows: what labellers said when asked "which of these answers, or none of them?"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Annotated, Any, Literal

from langchain_core.messages import BaseMessage
from pydantic import BaseModel, BeforeValidator, Field, StrictBool, StrictInt, ValidationError

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError
from bonmini_guard.logs.odd import Odd
from bonmini_guard.logs.records import Records

#: An answer: its text, or a turn where there is more than a text in it.
Answer = str | Turn


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """One judgement among the answers to one prompt, or "none" of them.

    Attributes:
        prompt: the conversation; a plain string prompt is one user turn, and (role, text) pairs are taken too.
        responses: one or more answers; one answer makes an accept/reject label.
        choice: index into ``responses``, or "none".
        count: how many labellers chose so; the row's weight.
        none_offered: whether the labeller could have said "none". If not, the row compares the answers and says nothing
            about zero: the choice is the best of them, perhaps the least bad.
    """

    prompt: tuple[Turn, ...]
    responses: tuple[Answer, ...]
    choice: int | Literal["none"]
    count: int = 1
    none_offered: bool = True

    def __post_init__(self) -> None:
        if not all(isinstance(turn, Turn) for turn in self.prompt):
            turns = [self.prompt] if isinstance(self.prompt, str) else self.prompt
            object.__setattr__(self, "prompt", tuple(map(Turn.of, turns)))

    @property
    def messages(self) -> list[BaseMessage]:
        """The prompt as LangChain messages."""
        return [turn.message() for turn in self.prompt]

    @property
    def target(self) -> int:
        """The chosen index; ``len(responses)`` stands for "none"."""
        return len(self.responses) if self.choice == "none" else self.choice


def as_record(row: ChoiceRow) -> dict[str, Any]:
    """The JSON object of a choice row; defaults are left out, and a single user turn is a plain text."""
    plain = len(row.prompt) == 1 and row.prompt[0] == Turn("user", row.prompt[0].text) and row.prompt[0].text != ""
    prompt: Any = row.prompt[0].text if plain else [turn.openai() for turn in row.prompt]
    responses = [answer if isinstance(answer, str) else answer.openai() for answer in row.responses]
    more = ({"count": row.count} if row.count != 1 else {}) | ({} if row.none_offered else {"none_offered": False})
    return {"prompt": prompt, "responses": responses, "choice": row.choice, **more}


def as_answer(value: Any) -> Answer:
    """An answer from its text, its message as JSON, or its turn; InputError if it is none of these."""
    turn = Turn.of(value, "assistant")
    return turn.text if turn.is_plain else turn


def shown(answer: Answer) -> str:
    """An answer as a text."""
    return answer if isinstance(answer, str) else answer.plain()


def read_choices(path: str | PathLike[str], odd: Odd | None = None) -> list[ChoiceRow]:
    """Read choice rows from JSON lines, packed or not, an array or Parquet; ``odd`` counts malformed ones, and may bear some.

    Equal texts, prompts and lists of responses are kept once, so that many judgements of few texts stay small.

    Raises:
        InputError: the file cannot be read, is empty, ends in a torn line, or more rows are malformed than may be; one line that
            names file, line and cure.
    """
    shared: dict[Any, Any] = {}
    odd = odd or Odd()
    rows, file = [], Records(path, odd)
    for place, value in file:
        odd.records += 1
        try:
            rows.append(choice_row(value, shared))
        except InputError as error:
            odd.note(place, error)
    odd.check()
    if file.torn:
        raise InputError(f"{path}: the last line is cut off; write the file anew, or remove the line")
    if not rows:
        raise InputError(f"{path}: no rows; give JSON lines like {_EXAMPLE}")
    return rows


_EXAMPLE = '{"prompt": "...", "responses": ["...", "..."], "choice": 0} (or "choice": "none")'


def _turns(prompt: Any) -> tuple[Turn, ...]:
    if isinstance(prompt, str) and prompt:
        return (Turn("user", prompt),)
    if not isinstance(prompt, list | tuple) or not prompt:
        raise ValueError("is missing or empty; give a text or a list of {role, content}")
    if not all(isinstance(turn, Mapping | Turn) for turn in prompt):
        raise ValueError("holds a turn that is not {role, content}; give every turn both")
    return tuple(map(Turn.of, prompt))


def _answer(value: Any) -> Answer:
    if not isinstance(value, str | Mapping | Turn) or value in ("", {}):
        raise ValueError("is empty or no text; leave it out and renumber choice")
    return as_answer(value)


def _place(value: Any) -> Any:
    """A place as a number: where a column has one type, as in Parquet, it is a text beside "none"."""
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 5 else value


def _count(value: Any) -> Any:
    """A count as a number: a column with gaps is one of floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Choice(BaseModel, arbitrary_types_allowed=True):
    """The keys of a row, each checked by itself."""

    prompt: Annotated[tuple[Turn, ...], BeforeValidator(_turns)]
    responses: Annotated[list[Annotated[Answer, BeforeValidator(_answer)]], Field(min_length=1)]
    choice: Annotated[StrictInt | Literal["none"], BeforeValidator(_place)]
    count: Annotated[StrictInt, Field(ge=1, lt=2**53), BeforeValidator(_count)] = 1
    none_offered: StrictBool = True


def choice_row(value: Mapping[str, Any], shared: dict[Any, Any] | None = None) -> ChoiceRow:
    """A choice row from its JSON object; an InputError's message has no place. What is equal is kept once in ``shared``."""
    try:
        read = _Choice.model_validate(value)
    except ValidationError as error:
        raise InputError(_problem(error)) from None
    if isinstance(read.choice, int) and not 0 <= read.choice < len(read.responses):
        last = len(read.responses) - 1
        raise InputError(f'choice {str(read.choice)[:20]} is out of range; use the index of a response, 0 to {last}, or "none"')
    if not read.none_offered and read.choice == "none":
        raise InputError('choice is "none" where none_offered is false; mend one of them')
    if not read.none_offered and len(read.responses) == 1:
        raise InputError("a single response without none_offered is no judgement; leave the row out")
    kept: dict[Any, Any] = {} if shared is None else shared
    once = kept.setdefault
    prompt, responses = (tuple(once(each, each) for each in some) for some in (read.prompt, read.responses))
    return ChoiceRow(once(prompt, prompt), once(responses, responses), read.choice, read.count, read.none_offered)


def _problem(error: ValidationError) -> str:
    """The first thing that is wrong, and its cure; of the values, which may be long or hold answers, nothing."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = " ".join(str(part) for part in first["loc"][:2])
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if ";" in what else f"{where}: {what[:100]}; write {_EXAMPLE}"
