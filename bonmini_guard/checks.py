"""Checks as reward models: what a program can say of an answer, as finite scores whose zero is "passed".

Example::

    from bonmini_guard import BestOfMiniN, checks

    guard = BestOfMiniN(generator=llm, reward_model=checks.python(["assert add(2, 3) == 5", "assert add(-1, 1) == 0"]))

An answer that passes scores ``PASSED``. One that does not scores less than 0, and more the nearer it comes, so that the best of bad
answers is the one to mend. Expected answers and tests are given once, or by a function of the conversation where each prompt has
its own.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.engine.scorers import CallableScorer
from bonmini_guard.errors import ConfigurationError, needing
from bonmini_guard.reward.trial import share_passed
from bonmini_guard.validation import Amount, Count, Flag, Must, Positive, checked

T = TypeVar("T")
Asked = Callable[[list[BaseMessage]], T]

#: The score of an answer that passes: a check is sure, and sigmoid(6) = 0.998.
PASSED = 6.0
#: Scores of answers that do not: from nothing right to almost.
FAILED, ALMOST = -6.0, -3.0

_TEXT = Must("a text, or a function of the conversation", lambda value: isinstance(value, str) or callable(value))
_NUMERIC = Must("a number, or a function of the conversation", lambda value: hasattr(value, "__float__") or callable(value))
_TESTS = Must("a text, several, or a function of the conversation", lambda value: isinstance(value, Sequence) or callable(value))
_SCHEMA = Must("an object", lambda value: isinstance(value, Mapping | bool))
#: A minus as models typeset it counts; a hyphen behind a word or a number ("3-5") is none.
_NUMBER = re.compile(r"(?:(?<![\w)])[-+\u2212])?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
#: Where a line begins so, more than the language may follow, such as a title; lines may end as those of Windows do.
_FENCE = re.compile(r"(?:^[ \t]*```([\w+-]++)[^\n`]*|```([\w+-]*+)[ \t\r]*)\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@checked
def exact(expected: Annotated[str | Asked[str], _TEXT], *, ignore_case: Flag = False) -> CallableScorer:
    """The answer is the expected text, white space at its ends and its length aside.

    Args:
        expected: the text, or a function of the conversation that gives it.
        ignore_case: take capitals for small letters.
    """

    def plain(text: str) -> str:
        words = " ".join(text.split())
        return words.casefold() if ignore_case else words

    return _check(lambda messages, text: plain(text) == plain(_of(expected, messages)))


@checked
def number(expected: Annotated[float | Asked[float], _NUMERIC], *, tolerance: Amount = 1e-6) -> CallableScorer:
    """The last number in the answer is the expected one, as graders of arithmetic read answers.

    Args:
        expected: the number, or a function of the conversation that gives it.
        tolerance: how far it may be off, times the larger of 1 and the expected number's size.
    """

    def passes(messages: list[BaseMessage], text: str) -> bool:
        wanted = float(_of(expected, messages))
        found = [float(one.replace(",", "").replace("\u2212", "-")) for one in _NUMBER.findall(text)]
        return bool(found) and math.isfinite(wanted) and abs(found[-1] - wanted) <= tolerance * max(1.0, abs(wanted))

    return _check(passes)


@checked
def regex(pattern: str, *, absent: Flag = False) -> CallableScorer:
    """The pattern occurs in the answer.

    Args:
        pattern: in Python's syntax, case and all; one that can read a text in many ways, such as ``(a+)+$``, can take for ever.
        absent: it must not occur.

    Raises:
        ConfigurationError: it is no pattern.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigurationError(f"pattern {pattern!r} is no regular expression: {error}") from error
    return _check(lambda _, text: (compiled.search(text) is None) == absent)


@checked
def json_schema(schema: Annotated[Mapping[str, Any] | bool, _SCHEMA]) -> CallableScorer:
    """The answer is JSON, alone or in a fenced block, that a JSON schema holds for.

    Raises:
        MissingExtraError: jsonschema is not installed.
        ConfigurationError: it is no schema, or refers to a part that it does not have.
    """
    with needing("checks"):
        from jsonschema import exceptions, validators
        from referencing import Resource, jsonschema
        from referencing.exceptions import Unresolvable
    kind = validators.validator_for(schema)

    def check_references(resource: Resource[Any], resolver: Any) -> None:
        resolver, said = resolver.in_subresource(resource), resource.contents
        if isinstance(said, Mapping) and "://" not in (reference := said.get("$ref", "#")):
            try:
                resolver.lookup(reference)
            except Unresolvable:
                raise ConfigurationError(f"schema refers to {reference!r}, which is not in it") from None
        for part in resource.subresources():
            check_references(part, resolver)

    try:
        kind.check_schema(schema)
        whole = Resource.from_contents(schema, jsonschema.specification_with(kind.META_SCHEMA["$schema"]))
        check_references(whole, jsonschema.EMPTY_REGISTRY.with_resource("", whole).resolver())
    except exceptions.SchemaError as error:
        raise ConfigurationError(f"schema is no JSON schema: {error.message}") from error
    validator = kind(schema)

    def passes(_: list[BaseMessage], text: str) -> bool:
        try:
            # NaN and Infinity are no JSON: int() refuses them.
            return bool(validator.is_valid(json.loads(fenced(text, "json"), parse_constant=int)))
        except (ValueError, RecursionError):
            return False

    return _check(passes)


@checked
def python(
    tests: Annotated[str | Sequence[str] | Asked[str | Sequence[str]], _TESTS],
    *,
    seconds: Positive = 5.0,
    memory_mb: Count = 512,
    workers: Count | None = None,
) -> CallableScorer:
    """The answer's Python code passes tests, run in a process of its own.

    Its code is its last fenced block, or all of it. Tests see what it defines; one that raises has failed, and functions of a test
    that are called ``test_...`` are run. The process has a folder of its own that goes with it, an empty environment, no network,
    no processes beside it, and the limits below, as far as the system and Python themselves keep them. That holds off mistakes. It
    is no cell for code that means harm: where answers come from strangers, run the guard in a container.

    Args:
        tests: one or several, or a function of the conversation that gives them.
        seconds: for all tests of one answer.
        memory_mb: of the process (on Linux).
        workers: answers tried at a time; by default one for each processor.
    """
    places = workers or os.cpu_count() or 1

    def score(messages: list[BaseMessage], candidates: list[AIMessage]) -> list[float]:
        wanted = _of(tests, messages)
        codes = [fenced(candidate.text, "python", "py") for candidate in candidates]
        listed = [wanted] if isinstance(wanted, str) else list(wanted)
        with ThreadPoolExecutor(places) as pool:
            return [graded(share) for share in pool.map(lambda code: share_passed(code, listed, seconds, memory_mb), codes)]

    return CallableScorer(score, has_zero=True, scale="raw")


def graded(share: float) -> float:
    """The score of an answer that passes a share of its tests: 0 or more only for all of them."""
    return PASSED if share >= 1 else FAILED + (ALMOST - FAILED) * share


def fenced(text: str, *languages: str) -> str:
    """The last fenced block of one of the languages, else the last fenced block, else the whole text."""
    blocks = _FENCE.findall(text)
    named = [body for titled, bare, body in blocks if (titled or bare).lower() in languages]
    return str((named or [body for *_, body in blocks] or [text])[-1])


def _check(passes: Callable[[list[BaseMessage], str], bool]) -> CallableScorer:
    def score(messages: list[BaseMessage], candidates: list[AIMessage]) -> list[float]:
        return [graded(float(passes(messages, candidate.text))) for candidate in candidates]

    return CallableScorer(score, has_zero=True, scale="raw")


def _of(given: T | Asked[T], messages: list[BaseMessage]) -> T:
    return given(messages) if callable(given) else given
