"""Child runs for draws and scoring: ids, scores, tokens and times, but no text of a rejected candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from langchain_core.callbacks import AsyncCallbackManager, AsyncCallbackManagerForChainRun, BaseCallbackManager, BaseRunManager

from bonmini_guard.policy import Decision, State
from bonmini_guard.result import Candidate


class CallbackObserver:
    """Reports to LangChain callbacks under the guard's own run.

    Args:
        manager: the children's callback manager.
        with_text: opt in to candidate texts in the children's outputs.
    """

    def __init__(self, manager: AsyncCallbackManager, with_text: bool) -> None:
        self._manager = manager
        self._with_text = with_text

    async def drawn(self, candidate: Candidate) -> None:
        """One child run for each draw that arrived or failed."""
        inputs = {"index": candidate.index, "loop": candidate.loop, "seed": candidate.seed}
        await self._child("bonmini_guard.draw", inputs, self._about(candidate))

    async def scored(self, candidates: Sequence[Candidate], seconds: float) -> None:
        """One child run for each batch of scores."""
        await self._child("bonmini_guard.score", {"draws": [c.index for c in candidates]}, {"seconds": seconds})

    async def looped(self, state: State, decision: Decision) -> None:
        """Nothing: the parent run tells the decision."""

    def _about(self, candidate: Candidate) -> dict[str, Any]:
        about: dict[str, Any] = {
            "score": candidate.score,
            "raw_score": candidate.raw_score,
            "failed": candidate.failed,
            "error": type(candidate.error).__name__ if candidate.error is not None else None,
            "seconds": _span(candidate.started, candidate.finished),
            "usage": candidate.usage,
        }
        if self._with_text and candidate.message is not None:
            about["text"] = candidate.message.text
        return about

    async def _child(self, name: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        run = await self._manager.on_chain_start({}, inputs, run_id=uuid4(), name=name)
        await run.on_chain_end(outputs)


def observer_for(run_manager: Any, with_text: bool) -> CallbackObserver | None:
    """An observer that reports under a run, or None when nobody listens."""
    if not isinstance(run_manager, BaseRunManager):
        return None
    children: BaseCallbackManager = run_manager.get_child()  # type: ignore[attr-defined]
    if not children.handlers:
        return None
    manager = AsyncCallbackManager(
        handlers=list(children.handlers),
        inheritable_handlers=list(children.inheritable_handlers),
        parent_run_id=children.parent_run_id,
        tags=list(children.tags),
        inheritable_tags=list(children.inheritable_tags),
        metadata=dict(children.metadata),
        inheritable_metadata=dict(children.inheritable_metadata),
    )
    return CallbackObserver(manager, with_text)


def parent_of(run_manager: BaseRunManager | None) -> AsyncCallbackManagerForChainRun:
    """A manager of the same run that can have children; a chat model's own cannot."""
    if run_manager is None:
        return AsyncCallbackManagerForChainRun.get_noop_manager()
    return AsyncCallbackManagerForChainRun(
        run_id=run_manager.run_id,
        handlers=run_manager.handlers,
        inheritable_handlers=run_manager.inheritable_handlers,
        parent_run_id=run_manager.parent_run_id,
        tags=run_manager.tags,
        inheritable_tags=run_manager.inheritable_tags,
        metadata=run_manager.metadata,
        inheritable_metadata=run_manager.inheritable_metadata,
    )


def _span(started: float | None, finished: float | None) -> float | None:
    return None if started is None or finished is None else finished - started
