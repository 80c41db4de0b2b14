"""Converters from the common shapes of labelled data to choice rows (``docs/data.md`` tells each with an example)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, get_type_hints

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.logs.odd import Odd, as_input
from bonmini_guard.logs.rows import Row
from bonmini_guard.training.choices import Answer, ChoiceRow, as_answer, choice_row
from bonmini_guard.training.data.comparisons import ApartError, Compared, Reader, comparisons, every_pair, labelled, pair, ranked
from bonmini_guard.training.data.fields import Record, answer_of, asked, listed, number_of, prompt_and_answer, prompt_of, verdict_of
from bonmini_guard.unseen import tell_of
from bonmini_guard.validation import check

Value = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer, whether it is acceptable, and how good it is among the acceptable ones.

    Of equally good ones the winner is drawn at random: leaving such rows out would leave the hard prompts over and move the zero.
    """

    text: Answer
    acceptable: bool
    rating: float


#: Of how many answers to a prompt rows are made; None: of all.
ROWS: Mapping[str, int | None] = {"single": 1, "pairs": 2, "choice": None}


def emitted(prompt: Any, answers: Sequence[Judged], rows: str, seed: int) -> Iterator[Value]:
    """Rows of answers to one prompt: the best acceptable one of each so many, or none; pairs of two different ones."""
    for some in combinations(answers, ROWS[rows] or len(answers)):
        # One text with two labels is not acceptable, as a tie of annotators is not.
        distinct = list({answer.text: answer for answer in (*some, *(one for one in some if not one.acceptable))}.values())
        texts = [answer.text for answer in distinct]
        best = max((answer.rating for answer in distinct if answer.acceptable), default=None)
        winners = [index for index, answer in enumerate(distinct) if answer.acceptable and answer.rating == best]
        if rows != "pairs" or len(distinct) > 1:
            yield {"prompt": prompt, "responses": texts, "choice": one_of(winners, (prompt, texts), seed) if winners else "none"}


def one_of(places: Sequence[int], about: Any, seed: int) -> int:
    """One of the places, at random; the same one whenever it is asked about the same thing."""
    return random.Random(f"{seed} {about!r}").choice(places)


@dataclass(frozen=True)
class ConversionOptions:
    """How to read labels: what docs/data.md says of the command's options.

    Without a ``rating``, it is looked for under the usual names; ``none_offered=None`` takes what the format says.
    """

    cut: float | None = None
    rating: str | None = None
    ties: Literal["drop", "winner"] = "drop"
    rows: Literal["single", "pairs", "choice"] = "single"
    none_offered: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check(vars(self), get_type_hints(type(self)))


@dataclass
class Tally:
    """What a conversion met.

    Attributes:
        left_out: by reason: what says nothing, although it is well formed.
        judges: how many labels who or what gave, where a log says that.
        odd: records, and those that could not be read; without it, the first of these is refused.
        place: of the record at hand.
        alone: judged answers that came one a record, by prompt; they become rows together, when all records are read.
    """

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    judges: Counter[str] = field(default_factory=Counter)
    odd: Odd = field(default_factory=Odd)
    place: str = ""
    alone: dict[tuple[Turn, ...], list[Judged]] = field(default_factory=dict)


Converter = Callable[[Record, ConversionOptions, Tally], Iterable[Value]]


def convert(
    records: Iterable[tuple[str, Record]], source: str, options: ConversionOptions | None = None, tally: Tally | None = None
) -> Iterator[ChoiceRow]:
    """Choice rows of foreign (place, record) pairs, whose format is a name of ``FORMATS``, one by one.

    Raises:
        ConfigurationError: no such format, or the format needs an option that is missing.
        InputError: a record is malformed: ``place: problem; cure``; if the tally bears some, it is left out and counted.
    """
    if source not in FORMATS:
        raise ConfigurationError(f"unknown format {source!r}: use one of {', '.join(FORMATS)}")
    options, tally = options or ConversionOptions(), tally if tally is not None else Tally()
    if source == "ratings" and options.cut is None:
        raise ConfigurationError("ratings do not say which answers are acceptable; give the lowest acceptable rating with --cut")
    for place, record in records:
        tally.odd.records += 1
        tally.place = place
        try:
            with as_input(f"is no record of {source}"):
                rows = [choice_row(value) for value in FORMATS[source](record, options, tally)]
        except InputError as error:
            tally.odd.note(place, error)
            continue
        yield from _told(rows, tally)
    alone, tally.alone = tally.alone, {}
    for prompt, answers in alone.items():
        rows = [choice_row(value) for value in emitted(prompt, answers, options.rows, options.seed)]
        tally.left_out["answers without another one to their prompt"] += 0 if rows else len(answers)
        yield from _told(rows, tally)


def _told(rows: list[ChoiceRow], tally: Tally) -> list[ChoiceRow]:
    tally.rows += len(rows)
    for kind in sorted({kind for row in rows for turn in row.prompt for kind in turn.kinds}):
        tell_of(kind, "a reward model that is trained on it is told the type, no more")
    return rows


def _rows(prompt: Any, answers: Sequence[Judged], options: ConversionOptions, tally: Tally) -> Iterable[Value]:
    if options.rows == "single" or len(answers) != 1:
        return emitted(prompt, answers, options.rows, options.seed)
    [checked] = map(choice_row, emitted(prompt, answers, "single", options.seed))  # where its record has a place
    tally.alone.setdefault(checked.prompt, []).extend(answers)
    return ()


def _compared(expected: Reader) -> Converter:
    """Comparisons, in which "none" was offered as their shape says unless the options say otherwise."""

    def convert_one(record: Record, options: ConversionOptions, tally: Tally) -> Iterator[Value]:
        each = every_pair if expected is ranked and options.rows == "pairs" else expected
        try:
            for one in each(record) if expected is ranked else comparisons(record, expected):
                yield from _comparison(one, options, tally)
        except ApartError:
            tally.left_out["answers to conversations that part before the last turn"] += 1

    return convert_one


def _comparison(one: Compared, options: ConversionOptions, tally: Tally) -> Iterator[Value]:
    answers = list(dict.fromkeys(one.answers))
    if len(answers) < 2:
        tally.left_out["equal answers"] += 1
    elif one.chosen == "tie" and options.ties == "drop":
        tally.left_out["ties"] += 1
    else:
        tied = one.chosen in ("tie", "both_good")
        best = one.best or range(len(one.answers))
        chosen = one_of(best, (one.prompt, one.answers), options.seed) if tied else one.chosen
        choice = answers.index(one.answers[chosen]) if isinstance(chosen, int) else chosen
        offered = one.offered if options.none_offered is None else options.none_offered
        yield {"prompt": one.prompt, "responses": answers, "choice": choice, **({} if offered else {"none_offered": False})}


def from_accept_reject(record: Record, options: ConversionOptions, tally: Tally) -> Iterable[Value]:
    """One answer and whether it is acceptable, or two that are safe or not (PKU-SafeRLHF)."""
    safe = [record.get(f"is_response_{number}_safe") for number in (0, 1)]
    if all(isinstance(said, bool) for said in safe):
        better = record.get("better_response_id")
        answers = [answer_of(record.get(f"response_{number}"), f"response_{number}") for number in (0, 1)]
        judged = [Judged(answer, bool(safe[at]), float(better == at)) for at, answer in enumerate(answers)]
        return _rows(prompt_of(record), judged, options, tally)
    acceptable = verdict_of(record)
    prompt, answer = prompt_and_answer(record)
    return _rows(prompt, [Judged(answer, acceptable, 0.0)], options, tally)


def from_ratings(record: Record, options: ConversionOptions, tally: Tally) -> Iterable[Value]:
    """Rated answers, acceptable from ``options.cut`` on: a list of them in a record, or one record an answer."""
    answers: list[Judged] = []
    if record.get("chosen") is not None and record.get("score_chosen") is not None:
        rated = [(record.get(name), {"rating": record.get(f"score_{name}")}) for name in ("chosen", "rejected")]
    else:
        rated = [(answer, answer) for answer in listed(record)]
    for number, (answer, about) in enumerate(rated, start=1):
        try:
            answers.append(_judged(answer, about, f"answer {number}", options))
        except InputError as error:
            tally.odd.note(tally.place, error)
    return _rows(asked(record, record.get("chosen")), answers, options, tally) if answers else ()


def _judged(answer: Any, about: Any, name: str, options: ConversionOptions) -> Judged:
    rating = number_of(about, options.rating)
    if rating is None:
        where = f'under "{options.rating}"' if options.rating else "under the usual names; name its key with --rating"
        raise InputError(f"{name} has no rating {where}")
    assert options.cut is not None  # convert refuses ratings without one
    return Judged(answer_of(answer, name), rating >= options.cut, rating)


def from_log(record: Record, options: ConversionOptions, tally: Tally) -> Iterable[Value]:
    """Log rows and guard traces: labelled candidates; with a cut, unlabelled ones are judged by their score."""
    answers = []
    for candidate in Row(record, "").candidates:
        label = candidate.label
        if label is None and options.cut is not None and (rating := number_of(candidate.value, options.rating)) is not None:
            label = rating >= options.cut
        turn = candidate.turn if candidate.value.get("text") or candidate.value.get("message") else Turn("assistant")
        reason = "failed draws" if candidate.failed else "without a label" if label is None else None
        reason = reason or ("without a text" if turn.is_blank else None)
        if reason is not None:
            tally.left_out[reason] += 1
        else:
            if candidate.label is not None and (by := candidate.value.get("acceptable_by")) is not None:
                tally.judges[str(by)] += 1
            answers.append(Judged(as_answer(turn), bool(label), 0.0))
    return _rows(prompt_of(record), answers, options, tally) if answers else ()


#: The formats by the names that the command line knows.
FORMATS: Mapping[str, Converter] = {
    "choices": lambda record, options, tally: [dict(record)],
    "pairs": _compared(pair),
    # A tie is not "neither": it says that two answers are alike, not that both are bad.
    "preferences": _compared(labelled),
    "accept-reject": from_accept_reject,
    "ratings": from_ratings,
    "ranks": _compared(ranked),
    "label-studio": _compared(labelled),
    "log": from_log,
}
