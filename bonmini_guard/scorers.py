"""Turn what a user passes as ``reward_model`` into a scorer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.protocols import Scorer

ScoreFunction = Callable[[list[BaseMessage], list[AIMessage]], list[float] | Awaitable[list[float]]]


def as_scorer(reward_model: Any) -> Scorer:
    """A scorer as it is, or a callable ``(messages, candidates) -> scores`` made into one.

    Raises:
        ConfigurationError: it is neither.
    """
    if callable(getattr(reward_model, "session", None)):
        return reward_model  # type: ignore[no-any-return]
    if callable(reward_model):
        return CallableScorer(reward_model)
    raise ConfigurationError(
        f"reward_model is a {type(reward_model).__name__}: pass RewardModel.load(...), a RemoteRewardModel, "
        "or a callable (messages, candidates) -> list of scores"
    )


class CallableScorer:
    """Scores with a function; a sync one runs in a thread, so it may block."""

    def __init__(self, function: ScoreFunction) -> None:
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
        self.has_zero = getattr(function, "has_zero", True)

    def session(self, messages: Sequence[BaseMessage]) -> _CallableSession:
        """A session on one prompt; it holds nothing but the prompt."""
        return _CallableSession(self, messages)

    async def score(self, messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> Sequence[float | None]:
        """One score for each candidate."""
        arguments = (list(messages), list(candidates))
        scores = self._function(*arguments) if self._is_async else await asyncio.to_thread(self._function, *arguments)
        return list(await scores if inspect.isawaitable(scores) else scores)


class _CallableSession:
    def __init__(self, scorer: CallableScorer, messages: Sequence[BaseMessage]) -> None:
        self._scorer = scorer
        self._messages = messages

    async def score(self, candidates: Sequence[AIMessage]) -> Sequence[float | None]:
        return await self._scorer.score(self._messages, candidates)

    async def aclose(self) -> None:
        """Nothing is held."""
