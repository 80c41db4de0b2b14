"""Converters from the common shapes of labelled data to choice rows (``docs/data.md`` tells each with an example)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.logs.rows import Candidate, Row
from bonmini_guard.training.choices import Answer, ChoiceRow, as_answer, choice_row
from bonmini_guard.training.data.fields import Record, answer_of, listed, number_of, prompt_of, transcript
from bonmini_guard.training.data.judged import EMITTERS, Judged, one_of

Value = dict[str, Any]


@dataclass(frozen=True)
class ConversionOptions:
    """How to read labels.

    Attributes:
        cut: the lowest rating of an acceptable answer.
        rating: the key of the rating, with dots for deeper ones; None looks under the usual names.
        ties: what a plain "tie" means: "drop" (it says nothing about zero) or "winner" (both are acceptable, in data whose
            labellers could also answer "both bad"; then a random one wins).
        rows: what judged answers become: "single" (accept/reject), "pairs" or "choice" (one row a prompt).
        none_offered: False where labellers could only compare; None takes the format's own default.
        seed: of random winners.
    """

    cut: float | None = None
    rating: str | None = None
    ties: str = "drop"
    rows: str = "single"
    none_offered: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ties not in ("drop", "winner"):
            raise ConfigurationError(f"unknown ties {self.ties!r}: use drop or winner")
        if self.rows not in EMITTERS:
            raise ConfigurationError(f"unknown rows {self.rows!r}: use one of {', '.join(EMITTERS)}")


@dataclass
class Tally:
    """What a conversion met: records read, rows made, and what was left out by reason."""

    records: int = 0
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


Converter = Callable[[Record, ConversionOptions, Tally], Iterable[Value]]


def convert(
    records: Iterable[tuple[str, Record]], source: str, options: ConversionOptions | None = None, tally: Tally | None = None
) -> Iterator[ChoiceRow]:
    """Choice rows of foreign records, one by one.

    Args:
        records: (place, record) pairs, such as those of :class:`bonmini_guard.logs.reading.RowFile`.
        source: a name of ``FORMATS``.
        options: how to read the labels.
        tally: counts what was met, if given.

    Raises:
        ConfigurationError: no such format, or the format needs an option that is missing.
        InputError: a record is malformed: ``place: problem; cure``.
    """
    if source not in FORMATS:
        raise ConfigurationError(f"unknown format {source!r}: use one of {', '.join(FORMATS)}")
    options, tally = options or ConversionOptions(), tally if tally is not None else Tally()
    if source == "ratings" and options.cut is None:
        raise ConfigurationError("ratings do not say which answers are acceptable; give the lowest acceptable rating with --cut")
    for place, record in records:
        tally.records += 1
        try:
            rows = [choice_row(value) for value in FORMATS[source](record, options, tally)]
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        tally.rows += len(rows)
        yield from rows


def in_held_out(row: ChoiceRow, share: float, seed: int = 0) -> bool:
    """Whether a row's prompt belongs to the held-out part: decided by the prompt alone, so no prompt is in both parts."""
    said = [[turn.role, turn.text, *([] if turn.is_plain else [turn.digest()])] for turn in row.prompt]
    digest = hashlib.sha256(json.dumps([seed, said]).encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def from_choices(record: Record, options: ConversionOptions, tally: Tally) -> Iterator[Value]:
    """Choice rows as they are."""
    yield dict(record)


def from_pairs(record: Record, options: ConversionOptions, tally: Tally) -> Iterator[Value]:
    """``chosen`` and ``rejected``: a comparison, in which "none" was not offered unless the options say otherwise.

    Without a prompt, the two are conversations that share all turns but the last, or "Human: ... Assistant: ..." transcripts.
    """
    if record.get("chosen") is None or record.get("rejected") is None:
        raise InputError('no "chosen" or no "rejected"; give both, or use another format')
    prompt, chosen, rejected = _pair(record)
    if chosen == rejected:
        tally.left_out["equal answers"] += 1
        return
    yield _offered({"prompt": prompt, "responses": [chosen, rejected], "choice": 0}, bool(options.none_offered))


def from_preferences(record: Record, options: ConversionOptions, tally: Tally) -> Iterator[Value]:
    """Two answers with a label: A, B, neither (or both bad), both good, or tie.

    A tie is not "neither": it says that two answers are alike, not that both are bad.
    """
    label = preference(_label_of(record))
    first, second = _two(record)
    if first == second:
        tally.left_out["equal answers"] += 1
    elif label == "tie" and options.ties == "drop":
        tally.left_out["ties"] += 1
    else:
        prompt, texts = prompt_of(record), [first, second]
        tied = label in ("tie", "both_good")
        choice = one_of([0, 1], (prompt, texts), options.seed) if tied else {"a": 0, "b": 1, "none": "none"}[label]
        yield _offered({"prompt": prompt, "responses": texts, "choice": choice}, options.none_offered is not False)


def from_accept_reject(record: Record, options: ConversionOptions, tally: Tally) -> Iterator[Value]:
    """One answer and whether it is acceptable, under ``label``, ``acceptable`` or ``accepted``: true or false."""
    label = next((record[key] for key in ("acceptable", "label", "accepted") if record.get(key) is not None), None)
    if not isinstance(label, bool):
        raise InputError('no label; write true or false under "label" or "acceptable"')
    text = answer_of(record, "the answer")
    yield {"prompt": prompt_of(record), "responses": [text], "choice": 0 if label else "none"}


def from_ratings(record: Record, options: ConversionOptions, tally: Tally) -> Iterator[Value]:
    """Rated answers, acceptable from ``options.cut`` on: a list of them in a record, or one record an answer."""
    if options.cut is None:
        raise InputError("ratings need a cut; give the lowest acceptable rating with --cut")
    answers = []
    for number, answer in enumerate(_rated(record), start=1):
        rating = number_of(answer, options.rating)
        if rating is None:
            where = f'under "{options.rating}"' if options.rating else "under the usual names; name its key with --rating"
            raise InputError(f"answer {number} has no rating {where}")
        answers.append(Judged(answer_of(answer, f"answer {number}"), rating >= options.cut, rating))
    yield from EMITTERS[options.rows](prompt_of(record), answers, options.seed)


def from_log(record: Record, options: ConversionOptions, tally: Tally) -> Iterator[Value]:
    """Log rows and guard traces: labelled candidates; with a cut, unlabelled ones are judged by their score."""
    answers = []
    for candidate in Row(record, "").candidates:
        label = _acceptable(candidate, options)
        turn = candidate.turn if candidate.value.get("text") or candidate.value.get("message") else Turn("assistant")
        reason = "failed draws" if candidate.failed else "without a label" if label is None else None
        reason = reason or ("without a text" if turn.is_blank else None)
        if reason is not None:
            tally.left_out[reason] += 1
        else:
            answers.append(Judged(as_answer(turn), bool(label), 0.0))
    if answers:
        yield from EMITTERS[options.rows](prompt_of(record), answers, options.seed)


#: The formats by the names that the command line knows.
FORMATS: Mapping[str, Converter] = {
    "choices": from_choices,
    "pairs": from_pairs,
    "preferences": from_preferences,
    "accept-reject": from_accept_reject,
    "ratings": from_ratings,
    "log": from_log,
}

_NAMES = {
    "a": "a model_a answer_a response_a response_1",
    "b": "b model_b answer_b response_b response_2",
    "none": "none neither both_bad bothbad tie_(bothbad) tie_(both_bad)",
    "both_good": "both_good bothgood tie_(bothgood) tie_(both_good)",
    "tie": "tie equal same",
}
_LABELS = {name: label for label, names in _NAMES.items() for name in names.split()}


def preference(label: Any) -> str:
    """A label as one of "a", "b", "none", "both_good", "tie".

    Raises:
        InputError: it is none of the known ones; numbers are refused, because sets differ in what they count from.
    """
    known = _LABELS.get(label.strip().lower().replace(" ", "_").replace("-", "_")) if isinstance(label, str) else None
    if known is None:
        raise InputError(f"unknown choice {str(label)[:20]!r}; use A, B, neither, both_good or tie")
    return known


def _label_of(record: Record) -> Any:
    label = next((record[key] for key in ("preference", "winner", "choice", "label") if record.get(key) is not None), None)
    if label is None:
        raise InputError('no label; give A, B, neither, both_good or tie under "preference" or "winner"')
    return label


def _pair(record: Record) -> tuple[Any, Answer, Answer]:
    chosen, rejected = record["chosen"], record["rejected"]
    if any(record.get(key) is not None for key in ("prompt", "messages", "instruction", "question")):
        return prompt_of(record), answer_of(chosen, "chosen"), answer_of(rejected, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        (prompt, said), (other, refused) = transcript(chosen), transcript(rejected)
        first, second = answer_of(said, "chosen"), answer_of(refused, "rejected")
    elif isinstance(chosen, list) and isinstance(rejected, list):
        prompt, first = prompt_of({"messages": chosen[:-1]}), answer_of(chosen, "chosen")
        other, second = prompt_of({"messages": rejected[:-1]}), answer_of(rejected, "rejected")
    else:
        raise InputError('no prompt; give one under "prompt"')
    if prompt != other:
        raise InputError("chosen and rejected do not answer the same conversation; give pairs that differ in the last turn only")
    return prompt, first, second


def _two(record: Record) -> tuple[Answer, Answer]:
    for first, second in (("response_a", "response_b"), ("answer_a", "answer_b"), ("conversation_a", "conversation_b")):
        if record.get(first) is not None and record.get(second) is not None:
            return answer_of(record[first], first), answer_of(record[second], second)
    answers = listed(record)
    if len(answers) != 2:
        raise InputError(f'{len(answers)} answers; give two, under "response_a" and "response_b" or in a list')
    return answer_of(answers[0], "answer 1"), answer_of(answers[1], "answer 2")


def _rated(record: Record) -> list[Record]:
    if record.get("chosen") is not None and record.get("score_chosen") is not None:
        both = [(record["chosen"], record["score_chosen"]), (record.get("rejected"), record.get("score_rejected"))]
        return [{"text": answer_of(answer, "an answer"), "rating": rating} for answer, rating in both]
    answers = listed(record)
    for number, answer in enumerate(answers, start=1):
        if not isinstance(answer, Mapping):
            raise InputError(f"answer {number} is not an object; write {{text, rating}}")
    return answers


def _acceptable(candidate: Candidate, options: ConversionOptions) -> bool | None:
    if candidate.label is not None or options.cut is None:
        return candidate.label
    rating = number_of(candidate.value, options.rating)
    return None if rating is None else rating >= options.cut


def _offered(value: Value, offered: bool) -> Value:
    return value if offered else value | {"none_offered": False}
