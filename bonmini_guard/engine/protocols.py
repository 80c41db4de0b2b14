"""The two boundaries of the engine: what draws candidates, and what scores them. Retries, limits and timeouts live above them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from langchain_core.messages import AIMessage, BaseMessage

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(slots=True)
class DrawRequest:
    """One draw that the engine asks for; nobody else holds it.

    Attributes:
        messages: the conversation; treat it as read-only.
        seed: a seed in [0, 2**31), different for each draw, derived from the request's seed.
        index: the draw's number in the request, from 0.
        options: call options of this request (stop sequences, tools, ...), as a chat model takes them.
    """

    messages: Sequence[BaseMessage]
    seed: int
    index: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


class EndRequest(Exception):  # noqa: N818 - not an error
    """Raised by a draw to end its request at once: what still runs is cancelled, and nothing more is scored.

    The request is neither traced nor explored.

    Args:
        reason: for the record.
        serve: number of the draw to serve, unscored: one that has arrived, or the one that raises.
        message: the answer of the draw that raises; without it the draw has failed, with the error that this is raised from.
        signal: is raised by the request, instead of serving anything.
    """

    def __init__(
        self, reason: str, *, serve: int = 0, message: AIMessage | None = None, signal: BaseException | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.serve = serve
        self.message = message
        self.signal = signal


@runtime_checkable
class Generator(Protocol):
    """Draws one candidate answer a call. The engine calls it concurrently and cancels calls it no longer needs.

    An optional attribute ``carries`` says how many draws it carries at a time, for the width of rolling requests; further ones wait
    in it. ``hands_over`` (True) of its own class says that nobody changes an answer that it has given: of one without it, such as a
    wrapper, or a subclass that does not say so itself, copies are scored and served.
    """

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One sampled answer. Any exception is recorded as a failed draw, but :class:`EndRequest`.

        Tokens that were billed all the same are counted if the exception (a ``CancelledError`` too) carries them in an attribute
        ``usage_metadata``, as messages do.
        """
        ...


@runtime_checkable
class GroupGenerator(Protocol):
    """A generator that draws a whole loop at once, for back ends that share the prompt's computation."""

    def draw_group(self, requests: Sequence[DrawRequest]) -> AsyncIterator[tuple[int, AIMessage | BaseException]]:
        """Yield (position in ``requests``, answer or error) as each draw finishes, each position once.

        An exception raised by the iterator itself fails every draw not yet yielded. Closing the iterator stops the work.
        """
        ...


@runtime_checkable
class ScoringSession(Protocol):
    """Scores batches of candidates of one prompt as they arrive; it may keep the prompt's computation.

    An optional attribute ``usage_metadata`` holds the tokens that its scores have cost so far: they count in the request's usage.
    """

    async def score(self, candidates: Sequence[AIMessage]) -> Sequence[float | None]:
        """One score for each candidate, in order; None or a non-finite number where scoring one of them failed.

        What the scores are made of may stand in an attribute ``parts`` then: a mapping from name to number, or None, for each
        candidate.
        """
        ...

    async def aclose(self) -> None:
        """Free what the session holds. Called once, also after errors and cancellation."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """A reward model: opens a scoring session for each request.

    Optional attributes are read with ``getattr``: ``has_zero`` (True: score 0 is the outside option; False: the scores only rank,
    which a guardrail without a profile refuses; without it nothing is known, and results carry no ``acceptance_probability``),
    ``fingerprint`` (a method without arguments that returns a str which a profile can be bound to), ``agrees_with`` (a method
    that takes a profile's fingerprint and says whether it is this scorer's, where equality is too strict), ``check`` (a
    method without arguments, called when a guard is built, that raises ConfigurationError for a scorer that cannot work),
    ``reads_calls`` (False for one that reads texts alone, and cannot judge tool calls), ``not_shown`` (kinds of parts of
    answers that it does not read, such as "reasoning": they are not served), ``only_reads`` (True: it changes no message that it
    is given, so it gets those that are served themselves; others get copies), and ``none_scored`` (the reason of a request whose
    every candidate was given no score, default "scorer_failed").
    """

    def session(self, messages: Sequence[BaseMessage]) -> ScoringSession:
        """A session on one prompt; must not block."""
        ...
