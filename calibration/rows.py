"""One log row: what is allowed in it, and its scores and labels. Every refusal names the place and the cure."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from bonmini_guard.errors import InputError
from bonmini_guard.policy import check_schedule, check_thresholds

#: Scores beyond this are no scores: half the largest double, so that thresholds between scores, and beyond the least, have room.
LARGEST = sys.float_info.max / 2
_NAN = math.nan


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """The numbers of one row.

    Attributes:
        scores: one for each candidate, in the order drawn; NaN for a failed draw.
        labels: 1.0 acceptable, 0.0 not, NaN unlabelled or failed.
        scored: False if no candidate of the row was ever scored (and not all of them failed).
        random: False if the row's labels were not drawn at random, so that they are not given.
    """

    scores: list[float]
    labels: list[float]
    scored: bool = True
    random: bool = True


def row_id(row: Mapping[str, Any], place: str) -> str:
    """The row's id.

    Raises:
        InputError: it is missing or not a string.
    """
    value = row.get("id")
    if not isinstance(value, str) or not value:
        raise InputError(f'{place}: the row has no "id"; give each row a different non-empty string')
    return value


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
    except (ValueError, TypeError, AttributeError):
        return None
    return Regime(tuple(schedule), numbers, str(row.get("exit")), scale)


def whole_loops(regime: Regime | None, reason: Any, draws: int) -> int:
    """How many loops a request made whose end its thresholds and its budget alone explain; 0 if something else had a part in it."""
    if regime is None or regime.exit != "loop" or reason not in ("passed", "budget_spent"):
        return 0
    ends = list(accumulate(regime.schedule))
    return ends.index(draws) + 1 if draws in ends else 0


def loops_of_cut(row: Mapping[str, Any], regime: Regime | None) -> int:
    """:func:`whole_loops` of a row that a guard cut short; 0 where a draw was cut short itself."""
    candidates = row.get("candidates")
    if not isinstance(candidates, list) or any(isinstance(c, Mapping) and c.get("unfinished") for c in candidates):
        return 0
    return whole_loops(regime, row.get("reason"), len(candidates))


def unit_of(group: Any, prompt: Any, alone: int) -> tuple[int, bool]:
    """A 64-bit code, of this process, of the unit that a row belongs to, and whether the prompt made it.

    Args:
        group: the row's own, or None.
        prompt: looked at where there is no group; equal prompts are one unit, whatever their white space.
        alone: the row's own code, for a row that has neither.
    """
    if group is not None:
        return hash(("group", str(group))), False
    code = _prompt_code(prompt)
    return (alone, False) if code is None else (code, True)


def _prompt_code(prompt: Any) -> int | None:
    """None for a prompt without text, such as a redacted one."""
    if isinstance(prompt, str):
        text = " ".join(prompt.split())
        return hash(text) if text else None
    if not isinstance(prompt, list):
        return None
    turns = tuple(_turn(turn) for turn in prompt)
    if len(turns) == 1 and turns[0][0] == "user":  # what a string is short for
        return _prompt_code(turns[0][1])
    return hash(turns) if any(text for _, text in turns) else None


def _turn(turn: Any) -> tuple[str, str]:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, turn)
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True, default=str) if content else ""
    return str(role), " ".join(text.split())


#: What ``label_sampling`` may say of a row whose labels were not drawn at random.
NOT_RANDOM = ("informative", "choices")


def drawn_at_random(row: Mapping[str, Any], place: str) -> bool:
    """Whether the row's labels may be calibrated on.

    They may unless ``label_sampling`` says otherwise: ``informative`` rows were picked for labelling by their scores, and of rows
    labelled by ``choices`` the answers not chosen stay unlabelled. Rates over either would be those of a selection.

    Raises:
        InputError: ``label_sampling`` says something unknown.
    """
    value = row.get("label_sampling")
    if value is not None and value not in ("random", *NOT_RANDOM):
        raise InputError(
            f'{place}: "label_sampling" is {value!r}; write "random", or leave it out if labelled rows were drawn at random'
        )
    return value not in NOT_RANDOM


def is_traced(row: Mapping[str, Any]) -> bool:
    """Whether a guard wrote the row, so that its candidates stand in the order of drawing."""
    return row.get("decision") is not None


def is_complete(row: Mapping[str, Any], place: str) -> bool:
    """Whether all candidates were drawn whatever their scores.

    Rows count as complete unless they say otherwise. A row with a guard's ``decision`` was cut short by it unless it says
    that it is complete: calibrating on early-exited requests would promise far too much.

    Raises:
        InputError: ``complete`` is not a boolean.
    """
    value = row.get("complete")
    if value is None:
        return not is_traced(row)
    if not isinstance(value, bool):
        raise InputError(f'{place}: "complete" is {value!r}; write true or false')
    return value


def scored_row(row: Mapping[str, Any], place: str, cut: bool = False) -> ScoredRow:
    """The numbers of a row.

    Args:
        row: a complete one, or one that a guard cut short.
        place: for messages.
        cut: whether it was cut short; a trace's draw without a score could not be scored, and counts as failed.

    Raises:
        InputError: candidates are missing, come from several policies, or carry a bad score or label.
    """
    candidates = _candidates(row, place)
    _refuse_several_policies(candidates, place)
    failed = [
        _failed(candidate, place, number) or (cut and raw_or_score(candidate) is None)
        for number, candidate in enumerate(candidates, start=1)
    ]
    drawn = [candidate for candidate, lost in zip(candidates, failed, strict=True) if not lost]
    if drawn and all(candidate.get("score") is None for candidate in drawn):
        return ScoredRow([], [], scored=False)
    random = drawn_at_random(row, place)
    numbered = list(enumerate(zip(candidates, failed, strict=True), start=1))
    scores = [_NAN if lost else _score(candidate, place, number) for number, (candidate, lost) in numbered]
    labels = [_NAN if lost else _label(candidate, place, number) for number, (candidate, lost) in numbered]
    return ScoredRow(scores, labels if random else [_NAN] * len(labels), random=random)


def _candidates(row: Mapping[str, Any], place: str) -> list[Mapping[str, Any]]:
    value = row.get("candidates")
    if not isinstance(value, list) or not value:
        raise InputError(f'{place}: the row has no "candidates"; list at least one {{"text", "score", "acceptable"}}')
    for number, candidate in enumerate(value, start=1):
        if not isinstance(candidate, Mapping):
            raise InputError(f'{place}: candidate {number} is not an object; write {{"text", "score", "acceptable"}}')
    return value


def _refuse_several_policies(candidates: list[Mapping[str, Any]], place: str) -> None:
    policies = {str(candidate["by"]) for candidate in candidates if candidate.get("by") is not None}
    if len(policies) > 1:
        some = ", ".join(sorted(policies)[:3])
        raise InputError(
            f"{place}: candidates of one row must come from one policy, and these come from {len(policies)} ({some}); "
            f"write one log for each policy"
        )


def _failed(candidate: Mapping[str, Any], place: str, number: int) -> bool:
    value = candidate.get("failed")
    if value is not None and not isinstance(value, bool):
        raise InputError(f'{place}: "failed" of candidate {number} is {value!r}; write true or false')
    return bool(value)


def first_scores(row: Mapping[str, Any], place: str, draws: int) -> list[float | None] | None:
    """The scores of a trace's first draws, None for failed ones; None altogether if there are fewer, or one is ``unfinished``.

    A trace's draw without a score could not be scored: unlike in a complete row, that is no error. One that was cut short says
    that the loop was not finished: what arrived in time is no fair sample of it.

    Raises:
        InputError: candidates are missing or carry a bad score.
    """
    candidates = _candidates(row, place)
    if len(candidates) < draws or any(candidate.get("unfinished") for candidate in candidates[:draws]):
        return None
    return [
        None if _failed(candidate, place, number) or candidate.get("score") is None else _score(candidate, place, number)
        for number, candidate in enumerate(candidates[:draws], start=1)
    ]


def labels_of(row: Mapping[str, Any], place: str) -> list[float]:
    """1.0 acceptable, 0.0 not, NaN unlabelled (or not drawn at random), for each candidate.

    Raises:
        InputError: a label is not a boolean.
    """
    labels = [_label(candidate, place, number) for number, candidate in enumerate(_candidates(row, place), start=1)]
    return labels if drawn_at_random(row, place) else [_NAN] * len(labels)


def selected_index(row: Mapping[str, Any], place: str) -> int | None:
    """The candidate that the row says was selected, from 0; None if it does not say.

    Raises:
        InputError: ``selected`` is not the index of a candidate.
    """
    value = row.get("selected")
    if value is None:
        return None
    count = len(_candidates(row, place))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise InputError(f'{place}: "selected" is {value!r}; give the index of the answer served, 0 to {count - 1}, or null')
    return value


def candidate_costs(row: Mapping[str, Any], place: str, key: str) -> list[float]:
    """A cost of every candidate, ``tokens`` or ``seconds``; 0 for a failed draw that lacks it.

    Raises:
        InputError: another candidate lacks it, or it is not a number of 0 or more.
    """
    costs = []
    for number, candidate in enumerate(_candidates(row, place), start=1):
        value = candidate.get(key)
        if value is None and _failed(candidate, place, number):
            value = 0.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f'{place}: "{key}" of candidate {number} is {value!r}; log it for each draw, or use --cost draws')
        costs.append(float(value))
    return costs


def raw_or_score(candidate: Mapping[str, Any]) -> Any:
    """What the reward model itself said of a candidate: a guard's traces carry both, and a profile's transform is in ``score``."""
    raw = candidate.get("raw_score")
    return candidate.get("score") if raw is None else raw


def _score(candidate: Mapping[str, Any], place: str, number: int) -> float:
    value = raw_or_score(candidate)
    if value is None:
        raise InputError(
            f"{place}: candidate {number} has no score; run 'bonmini-guard score', or mark a failed draw with \"failed\": true"
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place}: the score of candidate {number} is {value!r}, not a number; run 'bonmini-guard score'")
    if not _is_finite(value):
        raise InputError(
            f"{place}: the score of candidate {number} is {str(value)[:20]}, not finite; run 'bonmini-guard score', "
            f'or write null with "failed": true'
        )
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return abs(float(value)) < LARGEST
    except OverflowError:  # an integer that no double can hold
        return False


def _label(candidate: Mapping[str, Any], place: str, number: int) -> float:
    value = candidate.get("acceptable")
    if value is None:
        return _NAN
    if not isinstance(value, bool):
        raise InputError(f'{place}: "acceptable" of candidate {number} is {value!r}; write true, false or null')
    return float(value)
