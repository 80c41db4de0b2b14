"""Langfuse: observations of its API, of traces with observations, and of its exports, in camel or snake case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from bonmini_guard.logs.rows import name_of
from bonmini_guard.logs.sources.draws import Draw, first, generator_of, of_call
from bonmini_guard.logs.sources.messages import answers_in, prompt_in, unpacked

#: Of a score: the observation that it is about; none, where it is about the whole trace.
_OF = ("observationId", "observation_id")


def units(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The observations of a page or of a trace, with their scores; an observation is one itself."""
    inner = record.get("data") if isinstance(record.get("data"), list) else record.get("observations")
    if not isinstance(inner, list) or not any(isinstance(each, Mapping) for each in inner):
        yield record
        return
    calls, session = [each for each in inner if isinstance(each, Mapping)], first(record, "sessionId", "session_id")
    scores = [(first(score, *_OF), score) for score in record.get("scores") or () if isinstance(score, Mapping)]
    several = sum(map(_is_call, calls)) > 1  # then what is said of the trace is said of none of them
    whole = [{"name": score.get("name")} if several else score for of, score in scores if of is None]
    for each in calls:
        own = [score for of, score in scores if of is not None and of == each.get("id")]
        yield from units({"sessionId": session, "scores": [*whole, *own], **each})


def draws(record: Mapping[str, Any], left_out: Counter[str]) -> Iterator[Draw]:
    """The answers of one generation; other observations are left out."""
    one = {re.sub(r"(?<=[a-z])([A-Z])", lambda found: f"_{found[1].lower()}", key): value for key, value in record.items()}
    if not _is_call(one):
        left_out[f"observations of type {one['type']}"] += 1
        return
    if one.get("observations"):
        left_out["traces without their observations"] += 1
        return
    settings = unpacked(one.get("model_parameters"))
    given = [score for score in one.get("scores") or () if isinstance(score, Mapping)]
    said = {str(score.get("name")): _value(score) for score in given if _value(score) is not None or score.keys() == {"name"}}
    left_out.update(f"{name} of several answers at once" for name, value in said.items() if value is None)
    usage = ("usage_details.output", "usage.output", "usage.completionTokens", "completion_tokens", "output_tokens")
    failed = one.get("level") == "ERROR" and not one.get("output")
    yield from of_call(
        [None] if failed else answers_in(one.get("output")),
        prompt_in(one.get("input")),
        first(one, *usage),
        (one.get("start_time"), one.get("end_time")),
        id=name_of(one.get("id")),
        group=name_of(one.get("session_id")),
        generator=generator_of(first(one, "model", "provided_model_name"), settings),
        verdicts=said,
    )


def _value(score: Mapping[str, Any]) -> Any:
    """A category by its name: its number is 0 where nobody has configured one."""
    keys = ("value", "stringValue", "string_value")
    return first(score, *(keys[::-1] if first(score, "dataType", "data_type") == "CATEGORICAL" else keys))


def _is_call(one: Mapping[str, Any]) -> bool:
    return str(one.get("type", "GENERATION")).upper() == "GENERATION"
