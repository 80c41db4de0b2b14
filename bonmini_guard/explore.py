"""Explored requests: the full budget drawn and scored in the background, so that logs can be calibrated on.

An early-exited request shows only the draws up to its exit: such rows are censored by their own scores, and calibrating on
them understates the risk. Exploring a random share of requests, whatever they scored, gives rows without that bias.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from bonmini_guard.engine import Engine
from bonmini_guard.policy import Policy, best_of_n
from bonmini_guard.result import Candidate, GuardResult

logger = logging.getLogger(__name__)

#: Requests completed in the background at a time. More would compete with live traffic; those above are not explored.
MOST_AT_A_TIME = 4

Sink = Callable[[GuardResult], Any]


class Explorer:
    """Completes a random share of requests.

    Args:
        engine: the live engine; its limiter is shared, so exploration never exceeds the guard's concurrency.
        share: probability that a request is explored.
        sink: called with each completed result; may be async. Its errors are logged.

    Attributes:
        explored: requests completed so far.
        skipped: requests chosen but left out because too many were under way, or because completing them failed or ran out of time.
        draws: draws made in the background: what exploration cost.
    """

    def __init__(self, engine: Engine, share: float, sink: Sink | None) -> None:
        self._engine = engine
        self._share = share
        self._sink = sink
        self._tasks: set[asyncio.Task[None]] = set()
        self.explored = self.skipped = self.draws = 0

    def consider(self, result: GuardResult, messages: Sequence[BaseMessage], options: Mapping[str, Any]) -> None:
        """Perhaps complete a request in the background. The choice looks at nothing but chance."""
        if random.random() >= self._share:
            return
        if len(self._tasks) >= MOST_AT_A_TIME:
            self.skipped += 1
            return
        task = asyncio.get_running_loop().create_task(self._complete(result, messages, options))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _complete(self, result: GuardResult, messages: Sequence[BaseMessage], options: Mapping[str, Any]) -> None:
        try:
            complete = await self._full_budget(result, messages, options)
        except Exception as error:
            self.skipped += 1
            logger.warning("exploring request %s failed: %s", result.request_id, type(error).__name__)
            return
        self.explored += 1
        await self._tell(complete)

    async def _tell(self, complete: GuardResult) -> None:
        if self._sink is None:
            return
        try:
            answer = self._sink(complete)
            if inspect.isawaitable(answer):
                await answer
        except Exception as error:
            logger.warning("the sink of explored request %s failed: %s", complete.request_id, type(error).__name__)

    async def _full_budget(self, result: GuardResult, messages: Sequence[BaseMessage], options: Mapping[str, Any]) -> GuardResult:
        """The result with every draw of the budget made and scored; decision and answer as they were."""
        # Once a draw was cut short, those that arrived are the fast ones, not a fair sample: every draw is made anew.
        kept = result.candidates if all(map(_complete, result.candidates)) else ()
        missing = self._engine.policy.budget - len(kept)
        if missing == 0:
            return result
        more = await self._engine_for(missing).run(messages, seed=result.seed + 1, options=options, request_id=result.request_id)
        self.draws += more.draws
        if not all(map(_complete, more.candidates)):
            raise RuntimeError(f"not every draw was made and scored: {more.reason}")
        return dataclasses.replace(result, candidates=kept + self._renumbered(more, len(kept)))

    def _engine_for(self, draws: int) -> Engine:
        policy: Policy = best_of_n(draws)
        return dataclasses.replace(self._engine, policy=policy)

    def _renumbered(self, more: GuardResult, first: int) -> tuple[Candidate, ...]:
        """The further draws with the numbers and loops they would have had in the live request."""
        loops = [loop for loop, draws in enumerate(self._engine.policy.schedule) for _ in range(draws)]
        return tuple(dataclasses.replace(c, index=first + c.index, loop=loops[first + c.index]) for c in more.candidates)


def _complete(candidate: Candidate) -> bool:
    """Whether the draw ran to its end: scored, if only as not a number, or failed by itself rather than cancelled."""
    return candidate.scored is not None or isinstance(candidate.error, Exception)
