"""The engine: the effects around the pure policy. One async core for every face of the package.

Draws run as tasks and report to one queue; what has arrived is scored together; the policy decides; what is no longer
needed is cancelled, and the cancellation is awaited, for as long as there is time. No state survives a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Protocol

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata

from bonmini_guard.engine.background import close, to_its_end
from bonmini_guard.engine.concluding import (
    end,
    finish,
    finish_turn,
    out_of_time,
    pace,
    record,
    selected,
    without_generator,
    without_scores,
)
from bonmini_guard.engine.containment import LAST_GRACE, Quarantine, current, is_failure, quiet
from bonmini_guard.engine.detach import detached, drawing, uncached
from bonmini_guard.engine.drawing import Arrivals, begin_loop, draw_seed
from bonmini_guard.engine.held import turning
from bonmini_guard.engine.limiter import Lane, Limiter, limit_of_call, places_of, request_lane
from bonmini_guard.engine.load import LADDER, Load
from bonmini_guard.engine.outages import patience
from bonmini_guard.engine.protocols import NO_OPTIONS, EndRequest, Generator, GroupGenerator, Scorer, ScoringSession
from bonmini_guard.engine.result import Candidate, GuardResult, total_usage, used_tokens
from bonmini_guard.engine.scoring import Ended, ScoringFailed, collect
from bonmini_guard.engine.snapshot import calls_tools
from bonmini_guard.errors import GenerationError
from bonmini_guard.policy.policy import Action, Decision, Policy, State

__all__ = ["Engine", "Observer", "Request", "draw_seed"]

logger = logging.getLogger(__name__)

#: Before the first loop.
START = State()
#: Seconds that cancelled draws and a session that closes are waited for.
CANCEL_GRACE = 1.0


class Observer(Protocol):
    """Told what happens while it happens. Its errors end the request, so it should raise none."""

    async def drawn(self, candidates: Sequence[Candidate]) -> None:
        """Draws arrived or failed."""

    async def scored(self, candidates: Sequence[Candidate], seconds: float) -> None:
        """A batch was scored."""

    async def looped(self, state: State, decision: Decision) -> None:
        """A loop ended, and the policy decided."""


@dataclass(frozen=True)
class Engine:
    """Everything a request needs that does not change from one to the next.

    Attributes:
        generator: draws candidates.
        scorer: the reward model.
        policy: when to stop and what to serve.
        limiter: shared by all requests, perhaps of several guards; None for no limit. A group draw takes one place.
        lookahead: draws of later loops that are kept running while a loop finishes; they count once their loop begins.
        select: which draw an accelerator serves once it stops; None for the best.
        in_flight: for a rolling policy, the draws that a request may keep in flight, ascending; it takes one when it starts.
        timeout: seconds until the decision, whatever generator, scorer and observer do; None waits for ever.
        transform: from raw to calibrated score.
        profile: name of the profile, for the record.
        drawn_by: the generator that the profile was calibrated with, by its fingerprint; None where it does not say.
        has_zero: whether score 0 is the outside option.
        tool_turns: "text", "judge" or "pass", see :class:`~bonmini_guard.runnables.options.CommonOptions`; "answer" takes calls for
            the answer, "ignore" leaves draws that call tools without a score.
        answers: names of tools whose calls hold an answer.
        quarantine: of draws and scorings that ignored their cancellation.
        load: of the endpoint that the draws come from; it chooses among several ``in_flight``.
    """

    generator: Generator | GroupGenerator
    scorer: Scorer
    policy: Policy
    limiter: Limiter | None = None
    lookahead: int = 0
    select: Callable[[Sequence[float], Sequence[str], float], int] | None = None
    in_flight: tuple[int, ...] = LADDER
    timeout: float | None = None
    transform: Callable[[float], float] | None = None
    profile: str | None = None
    drawn_by: Any = None
    has_zero: bool = True
    tool_turns: str = "answer"
    answers: frozenset[str] = frozenset()
    quarantine: Quarantine = field(default_factory=Quarantine, compare=False, repr=False)
    load: Load = field(default_factory=Load, compare=False, repr=False)

    async def run(
        self,
        messages: Sequence[BaseMessage],
        *,
        seed: int,
        options: Mapping[str, Any] = NO_OPTIONS,
        observers: Sequence[Observer] = (),
        request_id: str = "",
    ) -> GuardResult:
        """Conduct one request.

        Raises:
            GenerationError: not one draw arrived.
            TooBusy: too many wait for the limiter already, or too much was left behind; nothing was drawn.
        """
        with uncached(), turning():
            request = Request(self, messages, seed, options, observers, request_id)
            if request.rolling:
                request.width = self.load.begin(self.in_flight, None if self.limiter is None else self.limiter.limit)
                request.policy = self.policy.at(request.width)
            try:
                result = await request.conduct_within(self.timeout)
            except GenerationError as error:
                await request.close()
                error.usage = total_usage(request.launched, request.scoring_usage)
                raise
            finally:
                # First: whoever cancels a request that closes must not leave it counted for ever.
                if request.rolling:
                    self.load.end(*pace(request))
                await request.close()
            # With the tokens of draws that were still running when it was decided.
            return replace(result, usage=total_usage(request.launched, request.scoring_usage)) if request.cut_short else result


class Request:
    """One request's state."""

    # As many attributes in a dictionary are no longer found by their place, and every draw looks at twenty.
    __slots__ = (
        *("around", "arrived", "asked", "begun", "calling", "calls", "candidates", "closed", "concluded", "context"),
        *("cut_short", "deadline", "ended", "ends", "engine", "exit", "failing", "hands_over", "keys", "known"),
        *("launched", "loops", "messages", "not_shown", "observers", "only_reads", "options", "over", "parts", "places"),
        *("policy", "request_id", "result", "rolling", "scored", "scorer_error", "scoring", "scoring_usage", "seed"),
        *("seen", "session", "state", "tasks", "turn", "width", "winner", "work", "__weakref__"),
    )

    def __init__(  # noqa: PLR0917 - called once, above
        self,
        engine: Engine,
        messages: Sequence[BaseMessage],
        seed: int,
        options: Mapping[str, Any],
        observers: Sequence[Observer],
        request_id: str,
    ) -> None:
        self.engine = engine
        self.policy = engine.policy
        self.messages = [*messages]
        # A generator that appends to the conversation must not change what answers are scored for.
        self.asked = tuple(messages)
        self.seed = seed
        self.options = options
        self.observers = observers
        self.request_id = request_id
        self.begun = perf_counter()
        self.scoring = 0.0
        self.state = START
        self.loops = 0
        # What was launched, in that order; and of it what counts: the draws of the loops that have begun.
        self.launched: list[Candidate] = []
        self.candidates: list[Candidate] = []
        self.rolling = engine.policy.exit == "rolling"
        self.width = 1
        # Among what does it look for an answer: rolling, a draw counts as it arrives.
        self.seen = self.launched if self.rolling else self.candidates
        self.scored: list[Candidate] = []
        self.winner: Candidate | None = None
        self.failing = 0  # draws in a row, up to the last arrival
        self.ends: dict[int, EndRequest] = {}
        self.arrived = Arrivals()
        self.tasks: list[asyncio.Task[None]] = []
        self.cut_short = False
        self.concluded = self.closed = False
        self.deadline = math.inf if engine.timeout is None else self.begun + engine.timeout
        # Foreign code is awaited in tasks, never here: this request goes on when its future is set, whatever they do.
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.work: asyncio.Task[None] | None = None
        self.result: GuardResult | None = None
        self.exit: BaseException | None = None
        self.ended: EndRequest | None = None
        self.session: ScoringSession | None = None
        # Tokens that the session says it has cost: a judge's.
        self.scoring_usage: UsageMetadata | None = None
        # Of answers that arrived: what makes two of them equal, by the draw; which draws call tools; and the scores of equal ones.
        self.keys: dict[int, Hashable] = {}
        self.calling: set[int] = set()
        self.known: dict[Hashable, tuple[float | None, float | None]] = {}
        self.parts: dict[Hashable, Mapping[str, float | None] | None] = {}
        self.scorer_error: BaseException | None = None
        self.turn: Candidate | None = None
        self.not_shown: frozenset[str] = frozenset(getattr(engine.scorer, "not_shown", ()))
        self.only_reads = getattr(engine.scorer, "only_reads", False)
        self.hands_over = vars(type(engine.generator)).get("hands_over", False)
        self.calls: Callable[[AIMessage], bool] = getattr(engine.generator, "calls_tools", calls_tools)
        # Drawing and scoring see no LangChain callback of the caller: a model used as a judge would show the candidates too.
        self.around = detached()
        self.context = self.around.copy()
        # Not the request itself, which holds the context: it would wait for the garbage collector, with all that it has drawn.
        lane = Lane()
        self.context.run(request_lane.set, lane)
        self.context.run(limit_of_call.set, None)
        self.context.run(drawing.set, True)
        self.places = places_of(engine.limiter, lane)

    async def conduct_within(self, seconds: float | None) -> GuardResult:
        """Loop until the policy has decided, a draw has ended the request, or the time is up."""
        self._admit()
        # The draws' tasks first: those that answer at once have done so when the work begins.
        loop, draws = asyncio.get_running_loop(), self.policy.decide(self.state).draws
        begin_loop(self, draws)
        self.work = loop.create_task(self._work(draws), context=self.around)
        self.work.add_done_callback(self._worked)
        timer = None if seconds is None else loop.call_later(seconds, self.wake, context=Context())
        try:
            await self.over
        except GeneratorExit:
            # The event loop was closed under the request: nothing of it will run again, so each part goes to its own ``finally``.
            self.closed = True
            for task in filter(None, [*self.tasks, self.work]):
                close(task)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if self.exit is not None:
            raise self.exit
        if self.ended is not None:
            return end(self, self.ended)
        if self.result is None and self.work.done():
            self.work.result()
        return out_of_time(self) if self.result is None else self.result

    async def _work(self, draws: int) -> None:
        """Decide, then close the session, in one task: what a session enters it may have to leave there."""
        self.work = current()  # an eager task may end before it is known to whoever made it
        try:
            with contextlib.suppress(Ended):
                self.result = await self.conduct(draws)
                self.wake()
        finally:
            self.concluded = True
            await self._close_session()

    def wake(self) -> None:
        """Have the request go on: it is over."""
        if not self.over.done():
            self.over.set_result(None)

    def _worked(self, work: asyncio.Task[None]) -> None:
        quiet(work)
        self.wake()

    async def conduct(self, draws: int) -> GuardResult:
        """Loop until the policy has decided; so many draws of the first loop have begun."""
        policy = self.policy
        try:
            while not self.closed:
                loop = await collect(self, draws)
                if perf_counter() >= self.deadline:
                    # Something held the event loop itself: the timer has had no chance.
                    return out_of_time(self)
                if self.turn is not None:
                    return await finish_turn(self, self.turn)
                if self.winner is not None:
                    return record(self, "accepted", "passed", self.winner)
                wait = 0.0 if loop[-1].message is not None else self._patience(loop)
                if wait is None:
                    return without_generator(self)
                if wait:
                    await asyncio.sleep(wait)
                used = used_tokens(loop) if policy.stop else (0, 0)
                self.state = policy.observe(self.state, [candidate.score for candidate in loop], used)
                decision = policy.decide(self.state)
                for observer in self.observers:
                    await observer.looped(self.state, decision)
                if decision.action is not Action.DRAW:
                    return finish(self, await selected(self, decision))
                draws = decision.draws
                begin_loop(self, draws)
        except ScoringFailed:
            return without_scores(self, "scorer_failed")
        raise Ended

    def _admit(self) -> None:
        self.engine.quarantine.admit()
        if (admit := getattr(self.engine.scorer, "admit", None)) is not None:
            admit()
        if self.places is not None:
            self.places.admit()

    async def close(self) -> None:
        """Cancel what is still running, and wait until it is gone, while there is time. Again, it does nothing."""
        if self.closed:
            return
        draws = [task for task in self.tasks if not task.done()]
        running = [*draws, self.work] if self.work is not None and not self.work.done() else draws
        self.cut_short = self.cut_short or bool(draws)
        for task in running:
            # A session that closes already is not disturbed.
            if task is not self.work or not self.concluded:
                task.cancel()
        try:
            if running:
                grace = min(CANCEL_GRACE, max(LAST_GRACE, self.deadline - perf_counter()))
                await to_its_end(self._close(running, grace), grace)
        finally:
            # From here on the record is the reader's.
            self.closed = True

    async def _close(self, running: Sequence[asyncio.Task[None]], grace: float) -> None:
        await asyncio.wait(running, timeout=grace)
        if self.work is not None:
            # Before it is told once more: what swallows that, too, must not begin anything that nobody would cancel.
            self.closed = True
            self.work.cancel()
        self.engine.quarantine.hold(running, grace)

    async def _close_session(self) -> None:
        session, self.session = self.session, None
        # Closed in the midst of another task, it could await nothing, and a timeout would cancel that one.
        if session is not None and current() is self.work:
            try:
                # Nobody is there any more to cancel it once the request has gone on, perhaps without a scorer that was stuck.
                async with asyncio.timeout(CANCEL_GRACE) if self.closed else contextlib.nullcontext():
                    await session.aclose()
            except BaseException as error:
                if not is_failure(error, [self.work]):
                    raise
                logger.warning("closing the scoring session failed: %s", type(error).__name__)

    def _patience(self, loop: Sequence[Candidate]) -> float | None:
        """As :func:`patience`; of a rolling request once no draw is in flight, of those that last were so together."""
        if not self.rolling:
            return patience(self.candidates, loop)
        return 0.0 if len(self.launched) > len(self.candidates) else patience(self.candidates, self.candidates[-self.width :])

    def elapsed(self) -> float:
        """Seconds since it began."""
        return perf_counter() - self.begun
