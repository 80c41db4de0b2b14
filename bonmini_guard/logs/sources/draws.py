"""One logged answer, and answers of one prompt gathered into rows of a log."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bonmini_guard.conversation import Turn
from bonmini_guard.logs.rows import name_of
from bonmini_guard.logs.sources.messages import unpacked

#: The settings of a request that make another generator of one model.
_SETTINGS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens"]
_SETTINGS += ["frequency_penalty", "presence_penalty", "reasoning_effort", "stop"]
#: Words for an acceptable answer, and for one that is not.
_YES = re.compile("true|y(es)?|good|accept(ed|able)?|(thumbs_?)?up|positive|like|👍")
_NO = re.compile("false|no?|bad|reject(ed)?|unacceptable|(thumbs_?)?down|negative|dislike|👎")


@dataclass
class Draw:
    """One answer to one prompt, as some tool logged it.

    Attributes:
        prompt: a text or turns.
        answer: None for a call that failed.
        id: of what its siblings share: the sample, the request, the run.
        group: the unit of exchangeability, where the tool has one.
        generator: the model and its settings, as far as they are known.
        verdicts: what else was said of the answer: feedback, metrics, scorers, further columns.
        fields: of the candidate: score, acceptable, tokens, started, finished.
        more: what its row says of itself; draws whose rows say different things share none.
    """

    prompt: str | list[dict[str, Any]]
    answer: Turn | None
    id: str | None = None
    group: str | None = None
    generator: str | None = None
    verdicts: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def candidate(self) -> dict[str, Any]:
        """As a candidate of a log row."""
        known = {key: value for key, value in self.fields.items() if value is not None}
        if self.answer is None:
            return {"text": None, "failed": True, **known}
        said: dict[str, Any] = {"text": self.answer.text}
        if not self.answer.is_plain:
            said["message"] = self.answer.openai()
        return said | known


@dataclass
class Rows:
    """Draws, gathered.

    Args:
        gather: what makes draws one row: ``id``, ``prompt``, or ``none``: those of one call alone.

    Attributes:
        generators: how many answers each has drawn.
    """

    gather: str
    _rows: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)
    generators: Counter[str] = field(default_factory=Counter)

    def add(self, draw: Draw, place: str) -> None:
        """Put a draw into its row, whose draws answer one prompt and come from one generator."""
        key = self._key(draw, place)
        about = {"id": draw.id, "prompt": draw.prompt, "group": draw.group, "candidates": []}
        row = self._rows.setdefault(key, draw.more | about)
        if draw.generator is not None:
            self.generators[draw.generator] += 1
            row["generated_by"] = draw.generator
        row["id"] = row["id"] or place.rpartition("/")[2]
        row["candidates"].append(draw.candidate())

    def finished(self) -> list[dict[str, Any]]:
        """The rows, each with an id of its own."""
        rows = [{key: value for key, value in row.items() if value is not None} for row in self._rows.values()]
        times = Counter(row["id"] for row in rows)
        again: Counter[str] = Counter()
        for row in rows:
            name = row["id"]
            while times[name] > 1 and row["id"] in times:
                again[name] += 1
                row["id"] = f"{name}#{again[name]}"
        return rows

    def _key(self, draw: Draw, place: str) -> tuple[str, ...]:
        if self.gather == "none" or (self.gather == "id" and draw.id is None):
            return (place,)
        about = (draw.id or "") if self.gather == "id" else ""
        return about, json.dumps([draw.prompt, draw.more], sort_keys=True), draw.generator or ""


def of_call(answers: Sequence[Turn | None], prompt: Any, tokens: Any, times: tuple[Any, Any], **about: Any) -> Iterator[Draw]:
    """The draws of one call, whose tokens are those of an answer where it gave no other; ``about``: further fields of the draws."""
    known: dict[str, Any] = {"tokens": whole_number(tokens) if len(answers) == 1 else None}
    known |= {"started": seconds(times[0]), "finished": seconds(times[1])}
    for answer in answers:
        yield Draw(prompt, answer, fields=dict(known), **about)


def generator_of(model: Any, *settings: Any) -> str | None:
    """A model and its settings in words; None where no model is named."""
    name = None if isinstance(model, Mapping | list) else name_of(model)
    if name is None:
        return None
    known: dict[str, Any] = {}
    for each in settings:
        if isinstance(each, Mapping):
            given = {key: each[key] for key in _SETTINGS if each.get(key) is not None}
            known |= {key: f"{value:g}" if isinstance(value, float) else value for key, value in given.items()}
    return " ".join([name, *(f"{key}={value}" for key, value in sorted(known.items()))])


def seconds(value: Any) -> float | None:
    """A time as seconds since 1970: of ISO 8601, or of numbers of seconds, milliseconds or nanoseconds."""
    number = _figure(value)
    if number is not None:
        return number / next((scale for scale in (1e9, 1e6, 1e3) if number / scale > 1e8), 1.0)
    try:
        time = datetime.fromisoformat(str(value).replace(" UTC", "+00:00"))
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def yes_or_no(value: Any) -> bool | None:
    """Whether an answer is called acceptable: true or false, or a word for it; None for all else."""
    word = value.strip().lower().replace(" ", "_").replace("-", "_") if isinstance(value, str) else ""
    return value if isinstance(value, bool) else True if _YES.fullmatch(word) else False if _NO.fullmatch(word) else None


def first(record: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first of some keys (dots go deeper) that has one; NaN is none."""
    return next((value for key in keys if not is_nothing(value := _at(record, key))), None)


def is_nothing(value: Any) -> bool:
    """Whether a value is none: null, or NaN, which is what pandas writes for nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def whole_number(value: Any) -> int | None:
    """A count, if it is one."""
    number = _figure(value)
    return None if number is None else int(number)


def _figure(value: Any) -> float | None:
    """A finite number, also where a table writes it as a text; None for all else."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _at(record: Mapping[str, Any], key: str) -> Any:
    if key in record:  # a name may have dots itself, at any depth
        return record[key]
    part, _, rest = key.partition(".")
    inner = unpacked(record.get(part)) if rest else None
    return _at(inner, rest) if isinstance(inner, Mapping) else None
