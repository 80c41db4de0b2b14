"""Structured output under guard: a draw that cannot be parsed counts as a draw that did not pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable

from bonmini_guard.detach import langsmith_set
from bonmini_guard.guard import BestOfMiniN
from bonmini_guard.protocols import Scorer, ScoringSession
from bonmini_guard.result import GuardResult


class ValidatingScorer:
    """Scores the candidates that a parser understands; the others get no score.

    The draw itself succeeds: its tokens were billed and are counted. Everything else about the scorer is the inner one's.

    Args:
        scorer: scores the valid candidates.
        parser: takes a message; it raises, or gives None, for an invalid one.
    """

    def __init__(self, scorer: Scorer, parser: Runnable[Any, Any]) -> None:
        self.inner = scorer
        self._parser = parser

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def session(self, messages: Sequence[BaseMessage]) -> ValidatingSession:
        """A session on one prompt."""
        return ValidatingSession(self.inner.session(messages), self)

    async def valid(self, candidate: AIMessage) -> bool:
        """Whether the parser understands a candidate; nobody is told what it said."""
        try:
            with langsmith_set(False):
                return await self._parser.ainvoke(candidate, {"callbacks": AsyncCallbackManager([])}) is not None
        except Exception:
            return False


class ValidatingSession:
    """A session of :class:`ValidatingScorer`."""

    def __init__(self, inner: ScoringSession, scorer: ValidatingScorer) -> None:
        self._inner = inner
        self._scorer = scorer

    async def score(self, candidates: Sequence[AIMessage]) -> list[float | None]:
        """One score for each valid candidate, None for the others."""
        valid = [index for index, candidate in enumerate(candidates) if await self._scorer.valid(candidate)]
        scores: list[float | None] = [None] * len(candidates)
        if valid:
            given = await self._inner.score([candidates[index] for index in valid])
            for index, score in zip(valid, given, strict=True):
                scores[index] = score
        return scores

    async def aclose(self) -> None:
        """Close the inner session."""
        await self._inner.aclose()


class StructuredGuard(BestOfMiniN):
    """A guard whose scorer leaves invalid candidates without a score, which is no failure of the scorer."""

    def _finalize(self, result: GuardResult) -> GuardResult:
        if result.reason == "scorer_failed" and result.scorer_error is None:
            return replace(result, reason="invalid_output")
        return result
