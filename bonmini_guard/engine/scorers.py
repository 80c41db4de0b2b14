"""Functions as reward models."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import math
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from functools import reduce
from itertools import compress
from typing import Any, Literal, cast

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage

from bonmini_guard.engine.protocols import Scorer, ScoringSession
from bonmini_guard.engine.workers import Workers
from bonmini_guard.errors import ConfigurationError

#: Calls of a sync function at a time, those included that nobody waits for any more.
THREADS = 64

Scale = Literal["raw", "probability"]
ScoreFunction = Callable[[list[BaseMessage], list[AIMessage]], Any]

#: A probability is read as the log-odds of one this near to 0 or 1 at most: beyond, single precision has no digits left.
NEAREST = 1e-7


def reward_function(*, has_zero: bool | None = None, scale: Scale | None = None) -> Callable[[ScoreFunction], CallableScorer]:
    """Decorator: say what the scores of a function ``(messages, candidates) -> scores`` mean.

    Example::

        @reward_function(has_zero=True, scale="probability")
        def acceptable(messages, candidates):
            return [judge(messages, candidate) for candidate in candidates]  # each in [0, 1]

    Args:
        has_zero: True if score 0 means "as likely acceptable as not" (a probability of one half), False if the scores only rank.
            None says nothing: the function runs, and its results carry no ``acceptance_probability``.
        scale: "probability" for numbers in [0, 1], whose log-odds become the scores; "raw" takes scores as they are. None does,
            too, and warns if the first ones look like probabilities.

    Raises:
        ConfigurationError: there is no such scale.
    """
    return lambda function: CallableScorer(function, has_zero=has_zero, scale=scale)


class CallableScorer:
    """Scores with a function; a sync one runs in a thread of this scorer's own, so it may block, and holds up no other.

    What it does not say by arguments, the function may say by attributes of the same names.

    Args:
        function: takes (messages, candidates) and gives one score for each candidate; may be async.
        has_zero: see :func:`reward_function`.
        scale: see :func:`reward_function`.

    Raises:
        ConfigurationError: there is no such scale, or the function does not take two arguments.
    """

    def __init__(self, function: ScoreFunction, *, has_zero: bool | None = None, scale: Scale | None = None) -> None:
        _check_signature(function)
        self.function = function
        self._workers = Workers(THREADS, "bonmini-guard-scorer")
        self.has_zero: bool | None = getattr(function, "has_zero", None) if has_zero is None else has_zero
        self.scale: Scale | None = getattr(function, "scale", None) if scale is None else scale
        if self.scale not in (None, "raw", "probability"):
            raise ConfigurationError(f"scale is {self.scale!r}: use 'raw' or 'probability'")
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
        self._suspected = False

    def __call__(self, messages: list[BaseMessage], candidates: list[AIMessage]) -> Any:
        """What the function says."""
        return self.function(messages, candidates)

    def suspect_probabilities(self) -> None:
        """Warn if all scores of the next request lie within [0, 1], where a threshold of 0 would accept everything."""
        self._suspected = self.scale is None

    def admit(self) -> None:
        """Raise TooBusy if calls of the function that never returned hold all of its threads."""
        self._workers.admit()

    def session(self, messages: Sequence[BaseMessage]) -> FunctionSession:
        """A session on one prompt; it holds nothing but the prompt and its scores."""
        given: list[float | None] = []

        async def score(candidates: Sequence[AIMessage]) -> list[float | None]:
            scores = await self.score(messages, candidates)
            given.extend(scores)
            return scores

        return FunctionSession(score, close=lambda: self.sampled(given))

    async def score(self, messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> list[float | None]:
        """One score for each candidate.

        Raises:
            TypeError: the function gave no list of numbers.
            ValueError: it gave another number of them, or a declared probability outside [0, 1].
        """
        arguments = (list(messages), list(candidates))
        given = self.function(*arguments) if self._is_async else await self._workers.run(self.function, *arguments)
        scores = as_scores(await given if inspect.isawaitable(given) else given, len(candidates))
        return [None if score is None else log_odds(score) for score in scores] if self.scale == "probability" else scores

    def sampled(self, scores: Sequence[float | None]) -> None:
        """Told the scores of a request that is over."""
        numbers = [score for score in scores if score is not None]
        if not self._suspected or not numbers:
            return
        self._suspected = False
        if all(0 <= number <= 1 for number in numbers):
            warnings.warn(
                "every score of the first request lies between 0 and 1: these look like probabilities, of which a threshold of 0 "
                "accepts all; declare @reward_function(scale='probability'), which takes their log-odds, or scale='raw' if they "
                "are raw after all",
                UserWarning,
                stacklevel=2,
            )


def _check_signature(function: ScoreFunction) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions of other languages have none
        return
    try:
        signature.bind([], [])
    except TypeError:
        name = getattr(function, "__name__", type(function).__name__)
        raise ConfigurationError(
            f"the reward function {name}{signature} cannot be called as {name}(messages, candidates), which gives a list of scores"
        ) from None


class FunctionSession:
    """A session whose scores are a function's; see :class:`bonmini_guard.engine.protocols.ScoringSession`.

    Args:
        score: takes candidates, and gives one score for each.
        inner: sessions that it asks. They are closed with this one, which costs what they cost.
        close: called when it is closed.

    Attributes:
        spent: tokens that the function itself has paid for so far.
    """

    def __init__(
        self,
        score: Callable[[Sequence[AIMessage]], Awaitable[list[float | None]]],
        inner: Sequence[ScoringSession] = (),
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._score, self._inner, self._close = score, inner, close
        self.spent: UsageMetadata | None = None
        self._parts: Sequence[Mapping[str, float | None] | None] = ()

    async def score(self, candidates: Sequence[AIMessage]) -> list[float | None]:
        """One score for each candidate, in order; None for one that cannot be scored."""
        return await self._score(candidates)

    @property
    def parts(self) -> Sequence[Mapping[str, float | None] | None]:
        """What the scores last given consist of, by name; those of the one session that it asks, unless it has its own."""
        asked: Any = self._inner[0] if len(self._inner) == 1 else None
        return self._parts or getattr(asked, "parts", ())

    @parts.setter
    def parts(self, parts: Sequence[Mapping[str, float | None] | None]) -> None:
        self._parts = parts

    @property
    def usage_metadata(self) -> UsageMetadata | None:
        """All that was paid for; None where nobody says."""
        known = [self.spent, *(getattr(session, "usage_metadata", None) for session in self._inner)]
        return reduce(add_usage, filter(None, known)) if any(known) else None

    async def aclose(self) -> None:
        """Close what it asks."""
        await asyncio.gather(*(session.aclose() for session in self._inner))
        self._close()


async def score_once(scorer: Scorer, messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> list[float | None]:
    """Scores in a session of their own."""
    session = scorer.session(messages)
    try:
        return list(await session.score(candidates))
    finally:
        await session.aclose()


async def score_some(session: ScoringSession, candidates: Sequence[AIMessage], wanted: Sequence[bool]) -> list[float | None]:
    """Scores of those candidates that are wanted, None for the others; a session that nobody is wanted of is not asked."""
    some = list(compress(candidates, wanted))
    given = iter(as_scores(await session.score(some), len(some)) if some else ())
    if parts := getattr(session, "parts", None):
        told, asked = iter(parts), cast(Any, session)
        asked.parts = [next(told, None) if each else None for each in wanted]
    return [next(given) if each else None for each in wanted]


def as_scores(given: Any, count: int) -> list[float | None]:
    """What a reward model gave, as one float or None for each candidate.

    Raises:
        TypeError: it is no list, or holds something that is no number; a truth value is none.
        ValueError: it is of another length.
        OverflowError: a number is too large for a float.
    """
    if type(given) is not list and isinstance(given, str | bytes | bytearray | Mapping | Set):
        raise TypeError(f"the reward model gave a {type(given).__name__}: give a list with one float for each candidate, in order")
    scores = [score if type(score) is float or score is None else _number(score) for score in given]
    if len(scores) != count:
        raise ValueError(f"the reward model gave {len(scores)} scores for {count} candidates")
    return scores


def inputs_digest(body: bytes) -> str:
    """What our own scoring protocol says of the request that an answer belongs to: 128 bits of BLAKE2b, in hex."""
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def log_odds(probability: float, nearest: float = NEAREST) -> float:
    """The score behind a probability, which is taken for no nearer to 0 and 1 than ``nearest``.

    Raises:
        ConfigurationError: it is none.
    """
    if not 0 <= probability <= 1:
        raise ConfigurationError(f"{probability:.3g} is declared as a probability and lies outside [0, 1]: leave the scale out")
    inside = min(max(probability, nearest), 1 - nearest)
    return math.log(inside) - math.log1p(-inside)


def _number(score: Any) -> float:
    # Arrays and tensors of one number are numbers; bool, and what libraries call so, is none.
    is_bool = isinstance(score, bool) or "bool" in str(getattr(score, "dtype", ""))
    if is_bool or tuple(getattr(score, "shape", ())) or not hasattr(score, "__float__"):
        raise TypeError(f"the reward model gave a {type(score).__name__} as a score: give a float")
    return float(score)
