"""Arguments that are checked by their annotations, and refused in our words. Standard library only.

::

    @checked
    def __init__(self, limit: Count, share: Share = 1.0, seconds: Seconds | None = None) -> None: ...
"""

from __future__ import annotations

import inspect
import ipaddress
import math
import sys
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, wraps
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from bonmini_guard.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Must:
    """What a value must be; stands in an ``Annotated``. The other members of a union are let through.

    Attributes:
        be: in words that go on after "must be".
        holds: whether a value is that.
    """

    be: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether it is an int or a float, not a bool, not NaN, and none that is too large for a float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max or abs(value) == math.inf


def is_integer(value: Any) -> bool:
    """Whether it is an int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


Integer = Annotated[int, Must("an integer", is_integer)]
Count = Annotated[int, Must("a positive integer", lambda value: is_integer(value) and value > 0)]
Draws = Annotated[int, Must("a positive integer of at most 1,000,000", lambda value: is_integer(value) and 0 < value <= 10**6)]
Natural = Annotated[int, Must("an integer of 0 or more", lambda value: is_integer(value) and value >= 0)]
Positive = Annotated[float, Must("a number above 0", lambda value: is_number(value) and value > 0)]
Amount = Annotated[float, Must("a number of 0 or more", lambda value: is_number(value) and 0 <= value < math.inf)]
Seconds = Annotated[float, Must("a positive number of seconds", lambda value: is_number(value) and value > 0)]
Share = Annotated[float, Must("a share between 0 and 1", lambda value: is_number(value) and 0 <= value <= 1)]
Portion = Annotated[float, Must("a share of at least 0 and below 1", lambda value: is_number(value) and 0 <= value < 1)]
Names = Annotated[
    Collection[str], Must("a list of names", lambda value: isinstance(value, Collection) and not isinstance(value, str))
]
Flag = Annotated[bool, Must("True or False", lambda value: isinstance(value, bool))]


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Check values by the annotations of their names; ConfigurationError if one is not what it must be."""
    for name, value in values.items():
        rule, others = _rule(hints.get(name))
        if rule is not None and not isinstance(value, others) and not rule.holds(value):
            raise ConfigurationError(f"{name} must be {rule.be}, not {value!r}")


def check_names(given: Collection[str], known: Collection[str], required: Collection[str] = ()) -> None:
    """Check the names of arguments; ConfigurationError if one is unknown, or a required one is missing."""
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            cure = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
            raise ConfigurationError(f"unknown argument {name!r}: {cure}")
    for name in required:
        if name not in given:
            raise ConfigurationError(f"{name}= is missing")


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check the arguments of a function, or those of a dataclass's or another ``__init__``, before it runs: see :func:`check`."""
    signature, hints = inspect.signature(function), cache(lambda: get_type_hints(function, include_extras=True))

    @wraps(function)
    def checking(*arguments: P.args, **named: P.kwargs) -> T:
        check(signature.bind(*arguments, **named).arguments, hints())
        return function(*arguments, **named)

    return checking


def _rule(hint: Any) -> tuple[Must | None, tuple[type, ...]]:
    """The rule of an annotation, and the types that it does not hold for."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    rules = [extra for member in members for extra in getattr(member, "__metadata__", ()) if isinstance(extra, Must)]
    others = tuple(member for member in members if isinstance(member, type))
    words = [word for member in members if get_origin(member) is Literal for word in get_args(member)]
    if words and all(member in others or get_origin(member) is Literal for member in members):
        rules.append(Must(" or ".join(filter(None, (", ".join(map(repr, words[:-1])), repr(words[-1])))), words.__contains__))
    return (rules[0] if rules else None), others
