"""Child runs for draws and scoring, and progress: ids, scores, tokens and times, but no text of a rejected candidate."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

from langchain_core.callbacks import AsyncCallbackManager, AsyncCallbackManagerForChainRun, BaseCallbackHandler, BaseRunManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config

from bonmini_guard.conversation import Turn
from bonmini_guard.engine.containment import as_failure, current, is_failure
from bonmini_guard.engine.detach import langsmith, langsmith_set
from bonmini_guard.engine.result import Candidate, finite
from bonmini_guard.policy.policy import Decision, Policy, State
from bonmini_guard.runnables.options import GuardOptions

logger = logging.getLogger(__name__)

#: What a handler is told: the name of its method, and what that is given.
Event = tuple[str, tuple[Any, ...], dict[str, Any]]
#: Name of the custom event that tells how far a request is.
PROGRESS = "bonmini_guard.progress"


@dataclass(eq=False)
class CallbackObserver:
    """Reports to LangChain callbacks under the guard's own run.

    Attributes:
        manager: the children's callback manager.
        with_text: opt in to candidate texts in the children's outputs.
        policy: opt in to progress events; they tell its loops and its budget.
        writer: LangGraph's stream writer, which gets progress too.
        langsmith: off while drawing and scoring, and LangSmith's tracer asks at every run; ours hold no text.
    """

    manager: AsyncCallbackManager
    with_text: bool
    policy: Policy | None = None
    writer: Callable[[Any], None] | None = None
    langsmith: Any = field(default_factory=langsmith)

    async def drawn(self, candidates: Sequence[Candidate]) -> None:
        """One child run for each draw that arrived or failed."""
        inputs = [{"index": each.index, "loop": each.loop, "seed": each.seed} for each in candidates]
        await self._children("bonmini_guard.draw", inputs, map(self._about, candidates))

    async def scored(self, candidates: Sequence[Candidate], seconds: float) -> None:
        """One child run for each batch of scores."""
        await self._children("bonmini_guard.score", [{"draws": [each.index for each in candidates]}], [{"seconds": seconds}])

    async def looped(self, state: State, decision: Decision) -> None:
        """How far the request is, to those who asked; the decision itself is told by the parent run."""
        if self.policy is None:
            return
        about = {
            "loop": state.loops,
            "loops": len(self.policy.schedule),
            "draws": state.drawn,
            "budget": self.policy.budget,
            "best_score": finite(state.best),
            "threshold": finite(decision.threshold),
        }
        if self.writer is not None:
            self.writer({"type": PROGRESS, **about})
        if self.manager.handlers and self.manager.parent_run_id is not None:
            with langsmith_set(self.langsmith):
                await self.manager.on_custom_event(PROGRESS, about, run_id=self.manager.parent_run_id)

    def _about(self, candidate: Candidate) -> dict[str, Any]:
        about: dict[str, Any] = {
            "score": candidate.score,
            "raw_score": finite(candidate.raw_score),
            "failed": candidate.failed,
            "error": type(candidate.error).__name__ if candidate.error is not None else None,
            "seconds": None if candidate.started is None or candidate.finished is None else candidate.finished - candidate.started,
            "usage": candidate.usage,
        }
        if candidate.parts:
            about["parts"] = dict(candidate.parts)
        if self.with_text and candidate.message is not None:
            about["text"] = Turn.of(candidate.message).plain(thoughts=True)
        return about

    async def _children(self, name: str, inputs: Iterable[dict[str, Any]], outputs: Iterable[dict[str, Any]]) -> None:
        """Child runs, told when they are over. Not through the manager, whose tasks for each event cost more than a draw."""
        manager = self.manager
        hearing = [handler for handler in manager.handlers if not handler.ignore_chain]
        if not hearing:
            return
        events: list[Event] = []
        for asked, given in zip(inputs, outputs, strict=True):
            about: dict[str, Any] = {"run_id": uuid4(), "parent_run_id": manager.parent_run_id, "tags": manager.tags}
            events.append(("on_chain_start", ({}, asked), {**about, "metadata": manager.metadata, "name": name}))
            events.append(("on_chain_end", (given,), about))
        with langsmith_set(self.langsmith):
            if len(hearing) == 1:
                await _tell(hearing[0], events)
            else:
                await asyncio.gather(*(_tell(handler, events) for handler in hearing))


async def _tell(handler: BaseCallbackHandler, events: Sequence[Event]) -> None:
    """Tell a handler, as LangChain does it: a sync one in a thread unless it asks for the contrary, its errors logged likewise."""
    if handler.run_inline or any(map(inspect.iscoroutinefunction, (handler.on_chain_start, handler.on_chain_end))):
        await _told(handler, events)
    else:
        # There is nothing in it to be awaited, so it needs no event loop.
        in_context = partial(contextvars.copy_context().run, lambda: next(_told(handler, events).__await__(), None))
        await asyncio.get_running_loop().run_in_executor(None, in_context)


async def _told(handler: BaseCallbackHandler, events: Sequence[Event]) -> None:
    for name, arguments, named in events:
        try:
            answer = getattr(handler, name)(*arguments, **named)
            if inspect.isawaitable(answer):
                await answer
        except BaseException as error:
            if not is_failure(error, [current()]):
                raise
            logger.warning("%s.%s failed: %s", type(handler).__name__, name, type(error).__name__)
            if handler.raise_error:
                raise as_failure(error) from None


def stream_writer(config: RunnableConfig) -> Callable[[Any], None] | None:
    """The writer of LangGraph's ``custom`` stream, if the call is made inside a graph."""
    # LangGraph keeps its runtime among the configurable values; looked up by what it offers, so that it need not be installed.
    values = (config.get("configurable") or {}).values()
    writer = next((value.stream_writer for value in values if callable(getattr(value, "stream_writer", None))), None)
    if writer is None:
        return None
    # It reads the ambient config, from which requests are detached.
    context = contextvars.copy_context()
    context.run(var_child_runnable_config.set, config)
    return partial(context.run, writer)


def observer_for(run_manager: Any, config: RunnableConfig | None, options: GuardOptions, policy: Policy) -> CallbackObserver | None:
    """An observer that reports under a run, or None when nobody listens."""
    # A child's handlers are those that are inherited.
    if not isinstance(run_manager, BaseRunManager) or not (run_manager.inheritable_handlers or options["progress"]):
        return None
    manager = parent_of(run_manager).get_child()
    writer = stream_writer(config or {}) if options["progress"] else None
    if not manager.handlers and writer is None:
        return None
    return CallbackObserver(manager, options["trace_candidates"], policy if options["progress"] else None, writer)


def group_of(run_manager: Any, config: RunnableConfig | None) -> str | None:
    """The conversation or user that a call belongs to: its metadata's ``group``, or else LangGraph's ``thread_id``."""
    group = (getattr(run_manager, "metadata", None) or {}).get("group")
    if group is None:
        group = ((config or {}).get("configurable") or {}).get("thread_id")
    return None if group is None else str(group)


def parent_of(run_manager: BaseRunManager | None) -> AsyncCallbackManagerForChainRun:
    """A manager of the same run that can have children; a chat model's own cannot."""
    manager = AsyncCallbackManagerForChainRun.get_noop_manager()
    vars(manager).update({} if run_manager is None else vars(run_manager))
    return manager
