"""Fakes for your own tests: a generator and a reward model backed by a plain function. They ship, and they are kept.

Example::

    guard = BestOfMiniN(
        generator=FakeGenerator(["bad", "good"]),
        reward_model=FakeRewardModel({"bad": -1.0, "good": 2.0}),
        mode="guardrail", mini_n=2, max_loops=2,
    )
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.protocols import DrawRequest


class FakeGenerator:
    """Draws what a function says.

    Args:
        source: a sequence of answers (draw i gives answer i modulo its length), a function of the
            :class:`~bonmini_guard.protocols.DrawRequest`, or a function of (messages, index). Answers are strings or
            AIMessages; an exception instance as an answer is raised. Functions may be async.
        latency: seconds each draw takes; a function of the index for uneven ones.

    Attributes:
        requests: every request asked for, in order.
        cancelled: indices of the draws that were cancelled.
        deterministic: set it to True to play a generator that cannot sample.
    """

    def __init__(
        self, source: Sequence[str | AIMessage | Exception] | Callable[..., Any], latency: float | Callable[[int], float] = 0.0
    ) -> None:
        self._answer = _by_position(source) if isinstance(source, Sequence) else _by_request(source)
        self._latency = latency
        self.requests: list[DrawRequest] = []
        self.cancelled: list[int] = []
        self.deterministic = False

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer, after its latency."""
        self.requests.append(request)
        try:
            seconds = self._latency(request.index) if callable(self._latency) else self._latency
            if seconds:
                await asyncio.sleep(seconds)
            answer = await _resolve(self._answer(request))
        except asyncio.CancelledError:
            self.cancelled.append(request.index)
            raise
        if isinstance(answer, Exception):
            raise answer
        return AIMessage(answer) if isinstance(answer, str) else answer

    def fingerprint(self) -> str:
        """A constant name."""
        return "fake-generator"


class FakeRewardModel:
    """Scores what a function says.

    Args:
        source: a mapping from answer text to score, a function of the answer's text, or a function of
            (messages, candidates) that returns a list. Functions may be async; what they raise, scoring raises.
        latency: seconds each batch takes.
        has_zero: whether score 0 plays the outside option.

    Attributes:
        batches: the texts of every batch scored, in order.
        open_sessions: sessions opened and not yet closed.
    """

    def __init__(self, source: Mapping[str, float] | Callable[..., Any], latency: float = 0.0, has_zero: bool = True) -> None:
        self._source = source
        self._latency = latency
        self.has_zero = has_zero
        self.batches: list[list[str]] = []
        self.open_sessions = 0

    def session(self, messages: Sequence[BaseMessage]) -> FakeScoringSession:
        """A session on one prompt."""
        self.open_sessions += 1
        return FakeScoringSession(self, messages)

    async def score(self, messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> list[float | None]:
        """One score for each candidate."""
        texts = [str(candidate.text) for candidate in candidates]
        self.batches.append(texts)
        if self._latency:
            await asyncio.sleep(self._latency)
        if isinstance(self._source, Mapping):
            return [self._source[text] for text in texts]
        if _parameters(self._source) == 1:
            return [await _resolve(self._source(text)) for text in texts]
        return list(await _resolve(self._source(list(messages), list(candidates))))

    def fingerprint(self) -> str:
        """A constant name."""
        return "fake-reward-model"


class FakeScoringSession:
    """A session of :class:`FakeRewardModel`."""

    def __init__(self, model: FakeRewardModel, messages: Sequence[BaseMessage]) -> None:
        self._model = model
        self._messages = messages

    async def score(self, candidates: Sequence[AIMessage]) -> list[float | None]:
        """One score for each candidate."""
        return await self._model.score(self._messages, candidates)

    async def aclose(self) -> None:
        """Count the session as closed."""
        self._model.open_sessions -= 1


def _by_position(answers: Sequence[Any]) -> Callable[[DrawRequest], Any]:
    return lambda request: answers[request.index % len(answers)]


def _by_request(function: Callable[..., Any]) -> Callable[[DrawRequest], Any]:
    if _parameters(function) == 1:
        return function
    return lambda request: function(list(request.messages), request.index)


def _parameters(function: Callable[..., Any]) -> int:
    return len(inspect.signature(function).parameters)


async def _resolve(value: Any | Awaitable[Any]) -> Any:
    return await value if inspect.isawaitable(value) else value
