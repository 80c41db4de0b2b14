"""Only valid draws are scored: one that cannot be parsed counts as a draw that did not pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable

from bonmini_guard.engine.detach import langsmith_set
from bonmini_guard.engine.protocols import Scorer, ScoringSession
from bonmini_guard.engine.scorers import FunctionSession, score_some

Valid = Callable[[AIMessage], Awaitable[bool]]


class ValidatingScorer:
    """Scores the candidates that are valid; the others get no score, which is no failure of the scorer.

    The draw itself succeeds: its tokens were billed and are counted. Everything else about the scorer is the inner one's.
    """

    none_scored = "invalid_output"
    only_reads = False  # what parses a candidate may change it

    def __init__(self, scorer: Scorer, valid: Valid) -> None:
        self.inner = scorer
        self.valid = valid

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def session(self, messages: Sequence[BaseMessage]) -> ScoringSession:
        """A session on one prompt."""
        inner = self.inner.session(messages)

        async def score(candidates: Sequence[AIMessage]) -> list[float | None]:
            return await score_some(inner, candidates, [await self.valid(candidate) for candidate in candidates])

        return FunctionSession(score, [inner])


async def parses(parser: Runnable[Any, Any], candidate: AIMessage) -> bool:
    """Whether a parser understands it: it neither raises nor gives None. Nobody is told what the candidate said."""
    try:
        with langsmith_set(False):
            return await parser.ainvoke(candidate, {"callbacks": AsyncCallbackManager([])}) is not None
    except Exception:
        return False
