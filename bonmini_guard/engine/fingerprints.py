"""What a fingerprint says of a part of a guard, and whether two say the same.

A generator's fingerprint is the JSON of a description: what it is made of, part by part. What could not be described is
``"unknown"`` there, and a profile does not vouch for it. Other fingerprints are plain texts, equal or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bonmini_guard.engine.protocols import NO_OPTIONS

#: Stands in a description for what cannot be described.
UNKNOWN = "unknown"

#: Call options that belong to the question, or to the way of asking it; all others shape the draws.
_OF_THE_QUESTION = {
    *("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls", "strict", "response_format"),
    *("ls_structured_output_format", "structured_output_format", "seed", "n", "user", "metadata", "timeout", "extra_headers"),
    *("stream", "stream_options", "stream_usage", "logprobs", "top_logprobs", "prompt_cache_key", "safety_identifier"),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a part compares with what a profile says of it.

    Attributes:
        differing: what differs, or cannot be compared although the profile knows it, each in words; none if they agree.
        unknown: the places that the profile itself does not know.
    """

    differing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def text_of(description: Any) -> str:
    """A description as the text that stands in profiles, logs and keys of caches."""
    return json.dumps(description, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def as_text(fingerprint: Any) -> str | None:
    """A fingerprint as a text; profiles by hand may have it as an object."""
    return fingerprint if fingerprint is None or isinstance(fingerprint, str) else text_of(fingerprint)


def sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """The call options that shape the draws, also of those in ``extra_body``."""
    given = {key: value for key, value in options.items() if value is not None and key not in _OF_THE_QUESTION}
    if isinstance(further := given.pop("extra_body", None), Mapping) and (shaping := sampling(further)):
        given["extra_body"] = shaping
    return given


def fingerprint_of(part: Any, options: Mapping[str, Any] = NO_OPTIONS) -> str | None:
    """What a part is that is called with options; None if it does not say.

    May block: it reads weights, or asks a server for its model's name.
    """
    if callable(getattr(part, "describe", None)):
        return text_of(part.describe(options))
    if not callable(getattr(part, "fingerprint", None)):
        return None
    said = part.fingerprint()
    given = sampling(options)
    return text_of({"part": said, "options": json.loads(json.dumps(given, default=repr))}) if given and said else said


def compare(expected: Any, found: str | None) -> Comparison:
    """Compare a profile's fingerprint with a part's."""
    wanted, here = _tree(expected), _tree(found)
    if isinstance(wanted, dict) and isinstance(here, dict):
        differing, unknown = [], []
        for place, one, other in _leaves(wanted, here, ""):
            if one == UNKNOWN:
                unknown.append(place)
            elif one != other:
                differing.append(_in_words(place, one, other))
        return Comparison(tuple(differing), tuple(unknown))
    if wanted == here:
        return Comparison()
    if isinstance(wanted, str) and wanted.startswith("sha256:") and str(found).startswith(f"{wanted}:"):
        return Comparison(unknown=("what it reads",))  # a reward model's of schema 1: its weights alone
    return Comparison(("it cannot be compared: it has no fingerprint" if found is None else f"it has fingerprint {found}",))


def is_description(fingerprint: Any) -> bool:
    """Whether it says part by part what a generator is made of, as those of schema 1 do not."""
    return isinstance(_tree(fingerprint), dict)


def unknown_in(fingerprint: Any) -> tuple[str, ...]:
    """The places that a fingerprint does not know."""
    tree = _tree(fingerprint)
    return compare(fingerprint, text_of(tree)).unknown if isinstance(tree, dict) else ()


def _tree(fingerprint: Any) -> Any:
    fingerprint = as_text(fingerprint)
    if not isinstance(fingerprint, str) or not fingerprint.startswith("{"):
        return fingerprint
    try:
        return json.loads(fingerprint)
    except ValueError:
        return fingerprint


_ABSENT = object()


def _leaves(one: Any, other: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two trees end, with what stands there in each."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys((*one, *other)):
            yield from _leaves(one.get(key, _ABSENT), other.get(key, _ABSENT), f"{place}.{key}" if place else str(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _leaves(left, right, f"{place}[{number}]")
    else:
        yield place, one, other


def _in_words(place: str, one: Any, other: Any) -> str:
    if other == UNKNOWN:
        return f"its {place} cannot be compared"
    here = "is left out" if other is _ABSENT else f"is {_short(other)}"
    return f"its {place} {here}, not {'left out' if one is _ABSENT else _short(one)}"


def _short(value: Any) -> str:
    text = text_of(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
