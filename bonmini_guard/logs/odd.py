"""Records that cannot be used: left out, counted by cause, the first of each named; too many of them stop the work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bonmini_guard.errors import ConfigurationError, InputError

#: The share of odd records that readers of labelled data bear.
USUAL = 0.05

#: What code raises that meets something else than it was written for.
_SURPRISES = (TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RecursionError)


@contextmanager
def as_input(what: str) -> Iterator[None]:
    """Errors of reading a foreign record, and surprises about its shape, as errors of the record: InputError."""
    try:
        yield
    except InputError:
        raise
    except _SURPRISES as error:
        raise InputError(f"{what} ({type(error).__name__}); remove it, or see docs/data.md for the shapes that are read") from error


@dataclass
class Odd:
    """The odd records of one run.

    Attributes:
        most: the largest share of records that may be odd (ConfigurationError if it is none); 0 refuses the first.
        records: met so far, the odd ones among them.
        count: odd ones so far.
        causes: for each cause, how many records have it, and the first message.
    """

    most: float = 0.0
    records: int = 0
    count: int = 0
    causes: dict[str, tuple[int, str]] = field(default_factory=dict)
    _last: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.most <= 1:
            raise ConfigurationError(f"--max-bad is {self.most}: use a share between 0 (bear none) and 1")

    def note(self, place: str, error: InputError) -> None:
        """Count what is wrong with a record, or with a part of it; InputError if no odd record is borne."""
        said = str(error) if str(error).startswith(f"{place}: ") else f"{place}: {error}"
        if not self.most:
            raise InputError(said) from error
        cause = re.sub(r"'[^']*'|\d+", "...", said.removeprefix(f"{place}: ").partition(";")[0])
        times, first = self.causes.get(cause, (0, said))
        self.causes[cause] = times + 1, first
        self.count += place != self._last
        self._last = place

    def lose(self, place: str, error: InputError) -> None:
        """Count something that never became a record; InputError if no odd record is borne."""
        self.records += 1
        self.note(place, error)

    def check(self) -> None:
        """Refuse more odd records than ``most`` allows; the InputError names the first."""
        if self.count > self.most * self.records:
            first = next(iter(self.causes.values()))[1]
            share = f"{self.count:,} of {self.records:,} records are odd, more than --max-bad {self.most:g}"
            raise InputError(f"{first} ({share})")

    def lines(self) -> list[str]:
        """What was left out, a line a cause."""
        return [f"left out: {times:,} odd, the first: {first}" for times, first in self.causes.values()]
