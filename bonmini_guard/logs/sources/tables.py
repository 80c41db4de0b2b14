"""Tables: one answer a row, in CSV, Parquet or JSON; also log rows that only want mending, such as those with numbers as ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError
from bonmini_guard.logs.rows import LARGEST, Row, name_of
from bonmini_guard.logs.sources.draws import Draw, generator_of, is_nothing, seconds, whole_number, yes_or_no
from bonmini_guard.logs.sources.messages import PROMPT_KEYS, TEXT_KEYS, answers_in, prompt_in, prompt_under

_TAKEN = {"id", "group", "generated_by", "model", "failed", "tokens", "started", "finished", "score", "acceptable", "acceptable_by"}
_TIMES = ("started", "finished")
_OF_ROWS = ("id", "group", "generated_by", "prompt", "candidates")


def draws(record: Mapping[str, Any], left_out: Counter[str]) -> Iterator[Draw]:
    """The answer in a row of a table, or those of a row of a log."""
    if isinstance(record.get("candidates"), list):
        yield from _of_log(record)
        return
    record = {key: value for key, value in record.items() if not is_nothing(value)}
    asked, said = (next((key for key in keys if record.get(key) is not None), "") for keys in (PROMPT_KEYS, TEXT_KEYS))
    failed = _word(record.get("failed"), "failed") is True
    answers: list[Turn | None] = [*answers_in(record[said])] if said and not failed else [None]
    if len(answers) > 1:
        raise InputError(f"{len(answers)} answers in one row; give each a row, or list them as the candidates of a log row")
    if answers == [None] and not failed:
        raise InputError("no answer; give one under " + " or ".join(TEXT_KEYS) + ", or name its column with --map COLUMN=text")
    prompt = prompt_in(prompt_under(record))
    taken = _TAKEN | {asked, said} | ({"input"} if asked == "instruction" else set())
    yield Draw(
        prompt,
        answers[0],
        id=name_of(record.get("id")),
        group=name_of(record.get("group")),
        generator=name_of(record.get("generated_by")) or generator_of(record.get("model"), record),
        verdicts={key: value for key, value in record.items() if key not in taken},
        fields={key: record.get(key) for key in ("tokens", "score", "acceptable", "acceptable_by", *_TIMES)},
    )


def fields_of(record: Mapping[str, Any], left_out: Counter[str]) -> dict[str, Any]:
    """What a candidate has beside its text; counts and times that are none are left out and counted.

    InputError if score, failed or verdict are something else.
    """
    score, said = record.get("score"), record.get("acceptable")
    try:
        score = float(str(score)) if isinstance(score, str | bool) else score
        score = None if is_nothing(score) else score
        if score is not None and abs(score) >= LARGEST:
            raise ValueError
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"the score {str(score)[:20]!r} is no number; mend it, or leave it empty") from error
    found = {"tokens": whole_number(record.get("tokens"))} | {key: seconds(record.get(key)) for key in _TIMES}
    lost = [key for key, value in found.items() if value is None and not is_nothing(record.get(key))]
    left_out.update(f'"{key}" that cannot be read' for key in lost)
    by = None if said is None else name_of(record.get("acceptable_by"))
    said, failed = (_word(record.get(key), key) for key in ("acceptable", "failed"))
    return {**found, "score": score, "acceptable": said, "acceptable_by": by, "failed": failed or None}


def _of_log(record: Mapping[str, Any]) -> Iterator[Draw]:
    row = Row(record, "")
    shared: dict[str, Any] = {
        "id": name_of(record.get("id")),
        "group": name_of(record.get("group")),
        "generator": name_of(record.get("generated_by")),
        "more": {key: value for key, value in record.items() if key not in _OF_ROWS},
    }
    shared["more"]["complete"] = _word(record.get("complete"), "complete")
    prompt = [turn.openai() for turn in row.prompt]
    only = prompt[0] if len(prompt) == 1 else {}
    plain = only.get("content") if only.get("role") == "user" and set(only) == {"role", "content"} else None
    for one in row.candidates:
        answer = None if one.failed else one.turn
        kept = {key: value for key, value in one.value.items() if key not in ("text", "message", "failed")}
        yield Draw(plain if isinstance(plain, str) else prompt, answer, fields=kept, **shared)


def _word(value: Any, name: str) -> bool | None:
    """True or false, also as tables write them."""
    word = str(value).strip()
    said = {"1": True, "1.0": True, "0": False, "0.0": False}.get(word, yes_or_no(word))
    if said is None and value is not None and word:
        raise InputError(f'"{name}" is {str(value)[:20]!r}; write true or false')
    return said
