"""Explored requests: the full budget drawn and scored in the background, so that logs can be calibrated on (docs/traces.md).

An early-exited request shows only the draws up to its exit: calibrating on such rows understates the risk.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import random
from collections.abc import Callable
from time import perf_counter
from typing import Any

from bonmini_guard.engine.background import Background
from bonmini_guard.engine.result import Candidate, GuardResult
from bonmini_guard.forks import Lock
from bonmini_guard.logs.monitor import Monitor
from bonmini_guard.logs.trace_row import Explored, RequestRecord
from bonmini_guard.logs.traces import TraceWriter
from bonmini_guard.policy.policy import best_of_n

logger = logging.getLogger(__name__)

#: Requests completed in the background at a time. More would compete with live traffic; those above are not explored.
MOST_AT_A_TIME = 4

#: Seconds for a request from which on an answer is taken never to be too long for it.
UNHURRIED = 240.0

Sink = Callable[[GuardResult], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class ExplorationCost:
    """What exploring has cost so far, in this process.

    Attributes:
        explored: requests completed.
        skipped: requests chosen but left out because too many were under way, or because completing them failed or ran out of time.
        draws: draws made in the background.
        tokens: what they were billed, where the back end says.
    """

    explored: int = 0
    skipped: int = 0
    draws: int = 0
    tokens: int = 0


class Explorer:
    """Completes a random share of requests. The guard's limiter holds for it too, so exploring never exceeds its concurrency.

    Args:
        share: probability that a request is explored.
        sink: called with each completed result; may be async. Its errors are logged.
        writer: gets the trace of every request that was chosen: complete, or as it was served if it could not be completed.
        monitor: told of each request that was chosen.
    """

    def __init__(
        self, share: float, sink: Sink | None = None, writer: TraceWriter | None = None, monitor: Monitor | None = None
    ) -> None:
        self._share = share
        self._sink = sink
        self._writer = writer
        self._monitor = monitor
        self._lock = Lock()
        self.background = Background()
        self.cost = ExplorationCost()

    def chosen(self) -> bool:
        """Whether the next request is to be explored. The choice looks at nothing but chance."""
        return random.random() < self._share

    def consider(self, request: RequestRecord) -> bool:
        """Perhaps complete a request in the background; whether it was chosen, so that the explorer sees to its trace."""
        if not self.chosen():
            return False
        if not self.background.start(lambda: self._explore(request), MOST_AT_A_TIME):
            self._record(self.missed(request, "busy"), None)
        return True

    async def _explore(self, request: RequestRecord) -> None:
        # Cut off with its event loop, perhaps: the row of the request as it was served must not be lost.
        row: tuple[RequestRecord, Explored | None] = (dataclasses.replace(request, missed="ended"), None)
        try:
            row = await self.complete(request)
        finally:
            self._record(*row)
        if row[1] is not None:
            await self._tell(row[1].result)

    def _record(self, request: RequestRecord, explored: Explored | None) -> None:
        if self._writer is not None:
            self._writer.record(request, explored)

    async def complete(self, request: RequestRecord, fair: bool = False) -> tuple[RequestRecord, Explored | None]:
        """Draw and score what is missing of the budget; if that fails, the request says why.

        The draws of a ``fair`` one are a fair sample whatever its policy: they were made for another reason.
        """
        try:
            explored = await self._full_budget(request, fair)
        except BaseException as error:
            logger.warning("exploring request %s failed: %s", request.result.request_id, type(error).__name__)
            late = isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError)
            missed = self.missed(request, "deadline" if late else "failed")
            if isinstance(error, Exception):
                return missed, None
            raise
        self._add(explored=1)
        if self._monitor is not None:
            self._monitor.explored(explored)
        return request, explored

    async def _full_budget(self, request: RequestRecord, fair: bool) -> Explored:
        """The request with every draw of the budget made and scored; decision and answer as they were."""
        begun, result = perf_counter(), request.result
        kept = {draw.index: draw for draw in result.candidates} if fair else _kept(request)
        missing = [index for index in range(request.engine.policy.budget) if index not in kept]
        if not missing:
            return Explored(result, 0, {}, 0.0)
        turns = request.engine.tool_turns if request.engine.tool_turns in ("judge", "answer") else "ignore"
        engine = dataclasses.replace(request.engine, policy=best_of_n(len(missing)), tool_turns=turns)
        more = await engine.run(request.messages, seed=result.seed + 1, options=request.options, request_id=result.request_id)
        self._add(draws=more.draws, tokens=more.usage.get("total_tokens", 0))
        if any(candidate.unfinished for candidate in more.candidates):
            kind = TimeoutError if more.reason == "deadline" else RuntimeError
            raise kind(f"not every draw was made and scored: {more.reason}")
        # With the numbers and loops that they would have had in the live request.
        loops = [loop for loop, draws in enumerate(request.engine.policy.schedule) for _ in range(draws)]
        drawn = zip(missing, more.candidates, strict=True)
        candidates = kept | {index: dataclasses.replace(each, index=index, loop=loops[index]) for index, each in drawn}
        complete = dataclasses.replace(result, candidates=tuple(candidates[index] for index in sorted(candidates)), ahead=0)
        return Explored(complete, more.draws, more.usage, perf_counter() - begun)

    async def _tell(self, complete: GuardResult) -> None:
        if self._sink is None:
            return
        try:
            answer = self._sink(complete)
            if inspect.isawaitable(answer):
                await answer
        except Exception as error:
            logger.warning("the sink of explored request %s failed: %s", complete.request_id, type(error).__name__)

    def missed(self, request: RequestRecord, why: str) -> RequestRecord:
        """Count a request that was chosen and cannot be completed; the request, which says why."""
        self._add(skipped=1)
        if self._monitor is not None:
            self._monitor.explored(None)
        return dataclasses.replace(request, missed=why)

    def _add(self, **more: int) -> None:
        with self._lock.held:  # requests run on several event loops
            self.cost = dataclasses.replace(self.cost, **{name: getattr(self.cost, name) + number for name, number in more.items()})


def _kept(request: RequestRecord) -> dict[int, Candidate]:
    """The live draws, by number, that are a fair sample of what the generator says.

    Where scores or durations can cut a draw short (an exit at an arrival, a timeout), those that arrived are no such sample; nor
    are they where none was cut short, for just that depends on them. Then every draw is made anew, whatever happened. A timeout of
    minutes cuts draws that hang, and not long ones.
    """
    candidates, engine = request.result.candidates, request.engine
    hurried = engine.timeout is not None and engine.timeout < UNHURRIED
    cut_short = any(candidate.unfinished and not candidate.refused for candidate in candidates)
    if engine.policy.exit != "loop" or hurried or cut_short:
        return {}
    return {candidate.index: candidate for candidate in candidates if not candidate.refused}
