"""THE log row: what it says, checked where it is asked for. Every refusal names the place and the cure."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from bonmini_guard.conversation import Turn, as_turns
from bonmini_guard.errors import InputError
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.policy.policy import check_schedule, check_thresholds

#: Scores beyond this are no scores: half the largest double, so that thresholds between scores, and beyond the least, have room.
LARGEST = sys.float_info.max / 2
#: What ``label_sampling`` may say of a row whose labels were not drawn at random.
NOT_RANDOM = ("informative", "choices", "volunteered")


def refusal(place: str, problem: str, cure: str) -> InputError:
    """What is wrong where, and what to do; without a place where that is added later."""
    return InputError(f"{place}: {problem}; {cure}" if place else f"{problem}; {cure}")


class Candidate:
    """One draw of a row. InputError from every property and method, if what it holds is not what a log row has there."""

    __slots__ = ("number", "place", "value")

    def __init__(self, value: Any, place: str, number: int) -> None:
        if not isinstance(value, dict):
            raise refusal(place, f"candidate {number} is not an object", 'write {"text", "score", "acceptable"}')
        self.value: dict[str, Any] = value
        self.place, self.number = place, number

    @property
    def failed(self) -> bool:
        """Whether the draw failed."""
        return self._flag("failed", "write true or false") is True

    @property
    def said(self) -> Any:
        """What the reward model itself said of it: a guard's traces carry both, and a profile's transform is in ``score``."""
        raw = self.value.get("raw_score")
        return self.value.get("score") if raw is None else raw

    @property
    def score(self) -> float:
        """What the reward model said, a finite number."""
        value, cure = self.said, "run 'bonmini-guard score'"
        if value is None:
            raise refusal(self.place, f"candidate {self.number} has no score", f'{cure}, or mark a failed draw with "failed": true')
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refusal(self.place, f"the score of candidate {self.number} is {value!r}, not a number", cure)
        try:
            finite = abs(float(value)) < LARGEST
        except OverflowError:  # an integer that no double can hold
            finite = False
        if not finite:
            cure = f'{cure}, or write null with "failed": true'
            raise refusal(self.place, f"the score of candidate {self.number} is {str(value)[:20]}, not finite", cure)
        return float(value)

    @property
    def label(self) -> bool | None:
        """Whether it is acceptable; None where nobody said."""
        return self._flag("acceptable", "write true, false or null")

    @property
    def turn(self) -> Turn:
        """The answer: its ``message``, or its ``text``."""
        message, text = self.value.get("message"), self.value.get("text")
        if isinstance(message, Mapping):
            try:
                found = Turn.of(message, "assistant")
            except Exception as error:  # whatever LangChain makes of a malformed one
                problem = f'the "message" of candidate {self.number} cannot be read'
                raise refusal(self.place, problem, "give a text instead") from error
            if found.role == "assistant":
                return found
        if not isinstance(text, str):
            cure = 'log the texts (trace_candidates=True), or mark a failed draw with "failed": true'
            raise refusal(self.place, f'candidate {self.number} has no "text"', cure)
        return Turn("assistant", text)

    def cost(self, key: str) -> float:
        """A cost, ``tokens`` or ``seconds``; 0 for a failed draw that lacks it."""
        value, times = self.value.get(key), [self.value.get(time) for time in ("started", "finished")]
        if key == "seconds" and value is None and all(isinstance(time, int | float) for time in times):
            value = times[1] - times[0]  # type: ignore[operator]
        if value is None and self.failed:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            problem = f'"{key}" of candidate {self.number} is {value!r}'
            raise refusal(self.place, problem, "log it for each draw, or use --cost draws")
        return float(value)

    def _flag(self, key: str, cure: str) -> bool | None:
        value = self.value.get(key)
        if value is not None and not isinstance(value, bool):
            raise refusal(self.place, f'"{key}" of candidate {self.number} is {repr(value)[:20]}', cure)
        return value


class Row:
    """One row of a log. InputError from every property and method, if what it holds is not what a log row has there."""

    def __init__(self, value: Mapping[str, Any], place: str) -> None:
        self.value, self.place = value, place

    @property
    def id(self) -> str:
        """Its id."""
        value = self.value.get("id")
        if value is not None and not isinstance(value, str):
            kind = type(value).__name__
            raise refusal(self.place, f'the "id" is no text but {kind}', "write it in quotes, as 'bonmini-guard import' does")
        if not value:
            raise refusal(self.place, 'the row has no "id"', "give each row a different non-empty string")
        return value

    @cached_property
    def prompt(self) -> tuple[Turn, ...]:
        """The conversation."""
        try:
            return as_turns(self.value.get("prompt"))
        except InputError as error:
            raise refusal(self.place, str(error), 'give "prompt" a text or a list of {role, content}') from error

    @cached_property
    def candidates(self) -> list[Candidate]:
        """Its draws, one at least."""
        values = self.value.get("candidates")
        if not isinstance(values, list) or not values:
            problem = f'"candidates" is {str(values)[:20]!r}, and no list' if values else 'the row has no "candidates"'
            raise refusal(self.place, problem, 'list at least one {"text", "score", "acceptable"}')
        return [Candidate(value, self.place, number) for number, value in enumerate(values, start=1)]

    @property
    def is_traced(self) -> bool:
        """Whether a guard wrote it, so that its candidates stand in the order of drawing."""
        return self.value.get("decision") is not None

    @property
    def is_complete(self) -> bool:
        """Whether all candidates were drawn whatever their scores: unless it, or a guard's ``decision`` in it, says otherwise."""
        value = self.value.get("complete")
        if value is None:
            return not self.is_traced
        if not isinstance(value, bool):
            raise refusal(self.place, f'"complete" is {value!r}', "write true or false")
        return value

    @property
    def is_random(self) -> bool:
        """Whether its labels may be calibrated on: unless ``label_sampling`` says that they are a selection."""
        value = self.value.get("label_sampling")
        if value is not None and value not in ("random", *NOT_RANDOM):
            cure = 'write "random", or leave it out if labelled rows were drawn at random'
            raise refusal(self.place, f'"label_sampling" is {value!r}', cure)
        return value not in NOT_RANDOM

    @property
    def labels(self) -> list[float]:
        """1.0 acceptable, 0.0 not, NaN unlabelled (or not drawn at random), for each candidate."""
        labels, known = [candidate.label for candidate in self.candidates], self.is_random
        return [float(label) if known and label is not None else math.nan for label in labels]

    @property
    def selected(self) -> int | None:
        """The candidate that it says was selected, from 0; None if it does not say."""
        value, count = self.value.get("selected"), len(self.candidates)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count):
            cure = f"give the index of the answer served, 0 to {count - 1}, or null"
            raise refusal(self.place, f'"selected" is {value!r}', cure)
        return value

    def refuse_several_policies(self) -> None:
        """Refuse candidates that say that they come from several policies."""
        policies = sorted({str(one.value["by"]) for one in self.candidates if one.value.get("by") is not None})
        if len(policies) > 1:
            found = f"these come from {len(policies)} ({', '.join(policies[:3])})"
            problem = f"candidates of one row must come from one policy, and {found}"
            raise refusal(self.place, problem, "write one log for each policy")

    def first_scores(self, draws: int) -> list[float | None] | None:
        """The scores of a trace's first draws, None for failed ones; None altogether if there are fewer, or one is ``unfinished``.

        A trace's draw without a score could not be scored: unlike in a complete row, that is no error. One that was cut short says
        that the loop was not finished: what arrived in time is no fair sample of it.
        """
        first = self.candidates[:draws]
        if len(first) < draws or any(one.value.get("unfinished") for one in first):
            return None
        return [None if one.failed or one.value.get("score") is None else one.score for one in first]

    def decided_draws(self, regime: Regime | None) -> int | None:
        """How many of its first draws the guard decided on; None where more than thresholds, budget and outages explain its end.

        What a deadline or an outage ended had not passed before, and under laxer thresholds ends there, too, or has passed.
        Without such rows those that take many loops would be too rare. The loop that it ended does not count.
        """
        drawn, reason = self.value.get("candidates"), self.value.get("reason")
        if regime is None or regime.exit != "loop" or not isinstance(drawn, list):
            return None
        ends = [0, *accumulate(regime.schedule)]
        if reason in ("deadline", "scorer_failed") or (reason == "generator_failed" and len(drawn) < ends[-1]):
            return max((end for end in ends if end < len(drawn)), default=0)
        unfinished = any(isinstance(one, Mapping) and one.get("unfinished") for one in drawn)
        by_rule = reason in ("passed", "budget_spent", "generator_failed") and not unfinished and len(drawn) in ends
        return len(drawn) if by_rule else None


def rows_in(*paths: str | os.PathLike[str], told: Callable[[int], None] = lambda torn: None) -> Iterator[Row]:
    """The rows of files (InputError if one cannot be read); ``told`` hears at the end how many torn last lines were dropped."""
    files = [RowFile(path) for path in paths]
    yield from (Row(value, place) for file in files for place, value in file)
    told(sum(file.torn for file in files))


@dataclass(frozen=True, slots=True)
class Regime:
    """What a guard ran under when it wrote a row.

    Attributes:
        schedule: draws of each loop.
        thresholds: one for each loop, on the transformed score; infinity never exits.
        exit: the stopping procedure.
        transform: (a, b) of score = a * raw score + b.
    """

    schedule: tuple[int, ...]
    thresholds: tuple[float, ...]
    exit: str
    transform: tuple[float, float] = (1.0, 0.0)


def regime_of(row: Mapping[str, Any]) -> Regime | None:
    """What a guard's row says it ran under; None where it does not say, or was also stopped by other rules than thresholds."""
    schedule, thresholds, transform = row.get("schedule"), row.get("thresholds"), row.get("score_transform") or {}
    if not isinstance(schedule, list) or not isinstance(thresholds, list) or row.get("also") is not None:
        return None
    try:
        check_schedule(schedule)
        numbers = tuple(math.inf if number is None else float(number) for number in thresholds)
        check_thresholds(numbers, len(schedule))
        scale = float(transform.get("a", 1.0)), float(transform.get("b", 0.0))
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None
    return Regime(tuple(schedule), numbers, str(row.get("exit")), scale)


def name_of(value: Any) -> str | None:
    """An id or a group as text, also one that a table has made a float of; None where there is none: null, empty, or NaN."""
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    return None if value is None or value == "" else str(value)


def unit_of(group: Any, prompt: Any, alone: int) -> tuple[int, bool]:
    """A 64-bit code, of this process, of the unit that a row belongs to, and whether the prompt made it.

    Args:
        group: the row's own, as :func:`name_of` reads it.
        prompt: looked at where there is no group; equal prompts are one unit, whatever their white space.
        alone: the row's own code, for a row that has neither.
    """
    if (name := name_of(group)) is not None:
        return hash(("group", name)), False
    code = _prompt_code(prompt)
    return (alone, False) if code is None else (code, True)


def numbered(units: Iterable[int]) -> list[int]:
    """Units by the order in which each first comes: by their codes, chance would meet them in another order in each process."""
    places: dict[int, int] = {}
    return [places.setdefault(unit, len(places)) for unit in units]


def _prompt_code(prompt: Any) -> int | None:
    """None for a prompt without text, such as a redacted one. Read as it is: columns know role and content alone."""
    if isinstance(prompt, str):
        text = " ".join(prompt.split())
        return hash(text) if text else None
    if not isinstance(prompt, list):
        return None
    turns = tuple(map(_role_and_text, prompt))
    if len(turns) == 1 and turns[0][0] == "user":  # what a string is short for
        return _prompt_code(turns[0][1])
    return hash(turns) if any(text for _, text in turns) else None


def _role_and_text(turn: Any) -> tuple[str, str]:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, turn)
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True, default=str) if content else ""
    return str(role), " ".join(text.split())
