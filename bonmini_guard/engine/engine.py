"""The engine: the effects around the pure policy. One async core for every face of the package.

Draws run as tasks and report to one queue; what has arrived is scored together; the policy decides; what is no longer
needed is cancelled, and the cancellation is awaited, for as long as there is time. No state survives a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from time import perf_counter
from typing import Any, Protocol, TypeGuard

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata

from bonmini_guard.engine.arrivals import Arrivals
from bonmini_guard.engine.background import to_its_end
from bonmini_guard.engine.containment import LAST_GRACE, Quarantine, as_failure, current, is_failure, quiet
from bonmini_guard.engine.detach import detached, is_graph_signal
from bonmini_guard.engine.held import turning
from bonmini_guard.engine.kinds import calls_tools, why_none, words
from bonmini_guard.engine.limiter import Lane, Limiter, limit_of_call, places_of, request_lane
from bonmini_guard.engine.load import LADDER, Load
from bonmini_guard.engine.outages import decided_by_failures, nothing_arrived, patience
from bonmini_guard.engine.protocols import NO_OPTIONS, DrawRequest, EndRequest, Generator, GroupGenerator, Scorer, ScoringSession
from bonmini_guard.engine.result import Candidate, GuardResult, Outcome, Timings
from bonmini_guard.engine.scorers import as_scores
from bonmini_guard.engine.snapshot import ends, frozen, identity, shown
from bonmini_guard.engine.uncached import drawing, uncached
from bonmini_guard.engine.usage import total_usage, used_tokens
from bonmini_guard.errors import ConfigurationError, GenerationError, Unanswered, place_of
from bonmini_guard.policy.policy import Action, Decision, Policy, State

logger = logging.getLogger(__name__)

#: Seconds that cancelled draws and a session that closes are waited for.
CANCEL_GRACE = 1.0
#: A rolling exit's next draw waits for the score of the one before for so much of its time, and so many seconds at least.
SCORING_SHARE, SCORING_WAIT = 0.03, 0.05


class Observer(Protocol):
    """Told what happens while it happens. Its errors end the request, so it should raise none."""

    async def drawn(self, candidates: Sequence[Candidate]) -> None:
        """Draws arrived or failed."""

    async def scored(self, candidates: Sequence[Candidate], seconds: float) -> None:
        """A batch was scored."""

    async def looped(self, state: State, decision: Decision) -> None:
        """A loop ended, and the policy decided."""


def draw_seed(seed: int, index: int) -> int:
    """The seed of one draw, in [0, 2**31): splitmix64 of the request's seed and the draw's number."""
    z = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) >> 33


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
            request = _Request(self, messages, seed, options, observers, request_id)
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
                    self.load.end(*request.pace())
                await request.close()
            return request.finalize(result)


class _ScoringFailed(Exception):  # noqa: N818 - a signal, never seen outside
    """The scorer raised, or did not answer in kind."""


class _Ended(Exception):  # noqa: N818 - a signal, never seen outside
    """The request is over: a draw has ended it, or whoever asked has long gone on."""


class _Request:
    """One request's state."""

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
        self.state = State()
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
        self.failing = False
        self.ends: dict[int, EndRequest] = {}
        self.arrived = Arrivals()
        self.tasks: list[asyncio.Task[None]] = []
        self.cut_short = False
        self.closed = False
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
        self._begin_loop(draws)
        self.work = loop.create_task(self._work(draws), context=self.around)
        self.work.add_done_callback(self._worked)
        timer = None if seconds is None else loop.call_later(seconds, self._wake, context=Context())
        try:
            await self.over
        except GeneratorExit:
            self._abandon()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if self.exit is not None:
            raise self.exit
        if self.ended is not None:
            return self._end(self.ended)
        if self.result is None and self.work.done():
            self.work.result()
        return self.out_of_time() if self.result is None else self.result

    async def _work(self, draws: int) -> None:
        """Decide, then close the session, in one task: what a session enters it may have to leave there."""
        self.work = current()  # an eager task may end before it is known to whoever made it
        try:
            with contextlib.suppress(_Ended):
                self.result = await self.conduct(draws)
                self._wake()
        finally:
            await self._close_session()

    def _wake(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def _worked(self, work: asyncio.Task[None]) -> None:
        quiet(work)
        self._wake()

    def _abandon(self) -> None:
        """The event loop was closed under the request: nothing of it will run again, so each part goes to its own ``finally``."""
        self.closed = True
        for task in [*self.tasks, self.work]:
            coroutine = None if task is None else task.get_coro()
            with contextlib.suppress(RuntimeError):
                if coroutine is not None:
                    coroutine.close()

    async def conduct(self, draws: int) -> GuardResult:
        """Loop until the policy has decided.

        Args:
            draws: of the first loop, which has begun.
        """
        policy = self.policy
        try:
            while not self.closed:
                loop = await self._collect(draws)
                if perf_counter() >= self.deadline:
                    # Something held the event loop itself: the timer has had no chance.
                    return self.out_of_time()
                if self.turn is not None:
                    return await self._finish_turn(self.turn)
                if self.winner is not None:
                    return self._record("accepted", "passed", self.winner)
                wait = 0.0 if loop[-1].message is not None else self._patience(loop)
                if wait is None:
                    return self._without_generator()
                if wait:
                    await asyncio.sleep(wait)
                used = used_tokens(loop) if policy.stop else (0, 0)
                self.state = policy.observe(self.state, [candidate.score for candidate in loop], used)
                decision = policy.decide(self.state)
                for observer in self.observers:
                    await observer.looped(self.state, decision)
                if decision.action is not Action.DRAW:
                    return self._finish(await self._selected(decision))
                draws = decision.draws
                self._begin_loop(draws)
        except _ScoringFailed:
            return self._without_scores("scorer_failed")
        raise _Ended

    def _admit(self) -> None:
        self.engine.quarantine.admit()
        if (admit := getattr(self.engine.scorer, "admit", None)) is not None:
            admit()
        if self.places is not None:
            self.places.admit()

    def out_of_time(self) -> GuardResult:
        """The deadline: guardrail abstains, accelerator serves the best so far."""
        # An unfinished loop does not count in guardrail mode; what it scored may still be the best so far.
        if self.policy.mode == "guardrail":
            return self._record("abstained", "deadline", self._best())
        if self._best() is not None or self._first() is not None:
            return self._without_scores("deadline")
        raise GenerationError(
            f"no draw arrived within the timeout of {self.engine.timeout:.4g} s: raise timeout="
        ) from TimeoutError()

    async def close(self) -> None:
        """Cancel what is still running, and wait until it is gone, while there is time. Again, it does nothing."""
        if self.closed:
            return
        draws = [task for task in self.tasks if not task.done()]
        running = [*draws, self.work] if self.work is not None and not self.work.done() else draws
        self.cut_short = self.cut_short or bool(draws)
        for task in running:
            # A session that closes after the decision is not disturbed.
            if task is not self.work or self.result is None:
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

    def finalize(self, result: GuardResult) -> GuardResult:
        """The result with the tokens of draws that were still running when it was decided."""
        return replace(result, usage=total_usage(self.launched, self.scoring_usage)) if self.cut_short else result

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

    # Drawing

    def _begin_loop(self, draws: int) -> None:
        """The next loop: from here on its draws count, and those that were launched ahead and have arrived do so now."""
        if self.rolling:
            if not self.scored:
                self._refill()
            return
        first = len(self.candidates)
        self._launch(first + draws)
        loop = self.launched[first : first + draws]
        self.candidates += loop
        for candidate in loop:
            candidate.loop = self.loops
            if candidate.finished is not None:
                self._count(candidate)
        self.loops += 1
        if self.engine.lookahead:
            self._launch_ahead()

    def _refill(self) -> None:
        """Keep draws in flight, counting those not decided on yet; while draws fail, more of them only once none is left."""
        undecided = len(self.launched) - len(self.candidates)
        if not (self.failing and undecided):
            self._launch(min(self.policy.budget, len(self.candidates) + self.width))

    def _refill_unscored(self) -> None:
        """The same though scores are still awaited: by a slow scorer draws would arrive in another order than was certified."""
        running = sum(candidate.finished is None for candidate in self.launched)
        if not (self.failing or self.closed or self.over.done()):
            self._launch(min(self.policy.budget, len(self.launched) + self.width - running))

    def _launch_ahead(self) -> None:
        """Keep draws of later loops running, unless draws fail: a group when the last one is through, else each by itself.

        They take no turn of anybody: where there is a limiter, only as many are launched as it has places free.
        """
        running = sum(candidate.finished is None for candidate in self.launched[len(self.candidates) :])
        if self.failing or self.over.done() or (running and _draws_groups(self.engine.generator)):
            return
        more = self.engine.lookahead - running
        if self.places is not None:
            more = min(more, self.places.free - sum(candidate.started is None for candidate in self.launched))
        self._launch(min(self.policy.budget, len(self.launched) + more))

    def _launch(self, until: int) -> None:
        """Have the draws up to a number made, those that are not launched yet."""
        more = [Candidate(index, self.loops, draw_seed(self.seed, index)) for index in range(len(self.launched), until)]
        self.launched += more
        generator = self.engine.generator
        create = asyncio.get_running_loop().create_task
        if more and _draws_groups(generator):
            self.tasks.append(create(self._draw_group(generator, more), context=self.context.copy()))
            return
        for candidate in more:
            # A context of its own for each draw: one draw's context variables must not reach another.
            self.tasks.append(create(self._draw(generator, candidate), context=self.context.copy()))  # type: ignore[arg-type]

    async def _draw(self, generator: Generator, candidate: Candidate) -> None:
        outcome: object
        own = [asyncio.current_task()]  # one that is eager is not among those of the request yet
        try:
            # Not "async with": this line runs once a draw, and acquire() alone is the cheaper half of it.
            if self.places is not None:
                await self.places.acquire()
            try:
                candidate.started = perf_counter() - self.begun
                outcome = await generator.draw(DrawRequest(self.messages, candidate.seed, candidate.index, self.options))
            finally:
                if self.places is not None:
                    self.places.release()
        except BaseException as error:
            if not is_failure(error, own):
                # Cancelled, or the process is to end: recorded first, for the request is waiting.
                self._arrive(candidate, error)
                raise
            outcome = EndRequest("interrupt", signal=error) if is_graph_signal(error) else as_failure(error)
        self._arrive(candidate, outcome)

    async def _draw_group(self, generator: GroupGenerator, loop: Sequence[Candidate]) -> None:
        failure: BaseException = GenerationError("the generator ended without answering this draw")
        own = [asyncio.current_task()]
        try:
            async with self.places or contextlib.nullcontext():
                for candidate in loop:
                    candidate.started = self._elapsed()
                stream = generator.draw_group([DrawRequest(self.messages, c.seed, c.index, self.options) for c in loop])
                async with contextlib.aclosing(stream):  # type: ignore[type-var]
                    async for position, outcome in stream:
                        if position < 0 or loop[position].finished is not None:
                            raise ValueError(
                                f"the generator answered draw {position} of the loop, which is answered or was not asked for"
                            )
                        self._arrive(loop[position], outcome)
        except BaseException as error:
            failure = error
            if not is_failure(error, own):
                raise
            failure = as_failure(error)
        finally:
            for candidate in loop:
                if candidate.finished is None:
                    self._arrive(candidate, failure)

    def _arrive(self, candidate: Candidate, outcome: object) -> None:
        if self.closed:
            return
        if isinstance(outcome, EndRequest):
            self.ends[candidate.index] = outcome
            outcome = outcome.message or outcome.__cause__ or outcome
        if isinstance(outcome, AIMessage):
            self._freeze(candidate, outcome)
        elif isinstance(outcome, BaseException):
            candidate.error = outcome
            if isinstance(outcome, KeyboardInterrupt | SystemExit):
                self.exit = outcome
                self._wake()
        else:
            candidate.error = TypeError(f"a generator must give an AIMessage, this one gave {type(outcome).__name__}")
        candidate.finished = perf_counter() - self.begun
        self.failing = candidate.message is None
        if not self.rolling and candidate.index >= len(self.candidates):
            self._launch_ahead()
        elif self.ends:
            self._count(candidate)
        else:
            self.arrived.put(candidate)
            if 1 < self.width < self.policy.budget:
                wait = max(SCORING_WAIT, SCORING_SHARE * (candidate.finished - (candidate.started or 0.0)))
                asyncio.get_running_loop().call_later(wait, self._refill_unscored, context=Context())

    def _count(self, candidate: Candidate) -> None:
        """Hand on a draw that has arrived, and whose loop has begun."""
        # Not where the request is decided, cancelled or out of time already.
        if candidate.index in self.ends and not self.over.done():
            self.ended = self.ends[candidate.index]
            self._wake()
        self.arrived.put(candidate)

    def _freeze(self, candidate: Candidate, message: AIMessage) -> None:
        """Take a copy: whoever holds the original could change what is served after it was scored."""
        try:
            if (why := why_none(message, end := ends(message))) is not None:
                raise Unanswered(why, message.usage_metadata)
            called = message.tool_calls
            if called and self.calls(message) and self.engine.answers.isdisjoint(call["name"] for call in called):
                self.calling.add(candidate.index)
            candidate.message, self.keys[candidate.index] = frozen(message), identity(message, end)
        except Exception as error:
            candidate.message, candidate.error = None, error

    # Scoring

    async def _collect(self, draws: int) -> list[Candidate]:
        """Score draws as they arrive, until those of a loop are there; cut short by a turn of tools, or an eager exit's winner."""
        policy = self.policy
        while len(self.scored) < draws:
            batch = await self.arrived.take()
            if self.ended is not None or self.closed:
                raise _Ended
            self.turn = self._tool_turn()
            if self.turn is None:
                await self._score([candidate for candidate in batch if candidate.message is not None])
            for observer in self.observers:
                await observer.drawn(batch)
            self.turn = self.turn or self._tool_turn()
            self.scored += batch
            if policy.exit == "eager":
                self.winner = next((candidate for candidate in batch if policy.passes(self.loops - 1, candidate.score)), None)
            if self.turn is not None or self.winner is not None:
                return []
        if not self.rolling:
            self.scored.clear()
            return self.candidates[-draws:]
        candidate = self.scored.pop(0)
        candidate.loop = self.loops
        self.loops += 1
        self.candidates.append(candidate)
        return [candidate]

    def _patience(self, loop: Sequence[Candidate]) -> float | None:
        """As :func:`patience`; of a rolling request once no draw is in flight, of those that last were so together."""
        if not self.rolling:
            return patience(self.candidates, loop)
        return 0.0 if len(self.launched) > len(self.candidates) else patience(self.candidates, self.candidates[-self.width :])

    def _tool_turn(self) -> Candidate | None:
        """The first draw that did not fail, in order of drawing, if it is there and calls tools: it makes the turn one of tools."""
        if self.engine.tool_turns not in ("text", "pass"):
            return None
        first = next((candidate for candidate in self.seen if candidate.error is None), None)
        return first if first is not None and first.message is not None and first.index in self.calling else None

    async def _finish_turn(self, candidate: Candidate) -> GuardResult:
        """The calls go on; what is said beside them only if it passes as an answer would."""
        said = None
        if self.engine.tool_turns == "text" and candidate.message is not None:
            said = words(shown(candidate.message, self.not_shown))
        withheld = said is not None and not await self._passes(candidate, said)
        return replace(self._record("unscored", "tool_call", candidate), ended=True, withheld=withheld)

    async def _passes(self, candidate: Candidate, said: AIMessage) -> bool:
        key = identity(said)
        try:
            if key not in self.known:
                await self._score_fresh({key: frozen(said)}, [candidate])
        except _ScoringFailed:
            return False
        candidate.raw_score, candidate.score = self.known[key]
        candidate.scored = self._elapsed()
        return self.policy.passes(max(0, self.loops - 1), candidate.score)

    async def _score(self, batch: Sequence[Candidate]) -> None:
        fresh: dict[Hashable, AIMessage] = {}
        for candidate in batch:
            key = self.keys[candidate.index]
            if key in self.known or key in fresh or candidate.message is None:
                continue
            if candidate.index in self.calling and not self._judges_calls():
                self.known[key] = None, None
            else:
                # A copy of its own: a scorer must not change what is served either.
                fresh[key] = candidate.message if self.only_reads else frozen(candidate.message)
        if fresh:
            await self._score_fresh(fresh, batch)
        now = self._elapsed()
        for candidate in batch:
            candidate.raw_score, candidate.score = self.known[self.keys[candidate.index]]
            candidate.scored = now
            if self.parts:
                candidate.parts = self.parts.get(self.keys[candidate.index])

    def _judges_calls(self) -> bool:
        """Whether calls are scored.

        Raises:
            ConfigurationError: they are to be, and the reward model cannot read them.
        """
        if self.engine.tool_turns == "judge" and not getattr(self.engine.scorer, "reads_calls", True):
            raise ConfigurationError(
                "tool_turns='judge' and the reward model reads texts alone: use one that reads tool calls (a RewardModel, a "
                "function of the messages), or tool_turns='text', which scores what is said beside them"
            )
        return self.engine.tool_turns in ("judge", "answer")

    async def _score_fresh(self, fresh: Mapping[Hashable, AIMessage], batch: Sequence[Candidate]) -> None:
        begun = perf_counter()
        try:
            if self.session is None:
                # The prompt is the draws' and the caller's, too.
                self.session = self.engine.scorer.session([each if self.only_reads else frozen(each) for each in self.asked])
            given = await self.session.score(list(fresh.values()))
            self.scoring_usage = getattr(self.session, "usage_metadata", None)
            if self.closed:
                raise _Ended
            self.known |= zip(fresh, self._usable(as_scores(given, len(fresh))), strict=True)
            if parts := getattr(self.session, "parts", None):
                self.parts |= zip(fresh, [each and dict(each) for each in parts], strict=False)
        except BaseException as error:
            if self.closed or is_graph_signal(error) or not is_failure(error, [self.work]):
                raise
            self.scorer_error = as_failure(error)
            logger.warning("scoring failed: %s", place_of(self.scorer_error))
            raise _ScoringFailed from self.scorer_error
        finally:
            self.scoring += perf_counter() - begun
        for observer in self.observers:
            await observer.scored(batch, perf_counter() - begun)

    def _usable(self, raws: Sequence[float | None]) -> Iterator[tuple[float | None, float | None]]:
        """Raw scores, each with what it is transformed to; None for what is not finite."""
        transform = self.engine.transform
        for raw in raws:
            finite = raw if raw is not None and math.isfinite(raw) else None
            score = finite if finite is None or transform is None else transform(finite)
            yield raw, score if score is not None and math.isfinite(score) else None

    # Concluding

    async def _selected(self, decision: Decision) -> Decision:
        """With another draw than the best: of those that passed where one did, else of all that have a score."""
        select, policy = self.engine.select, self.policy
        if select is None or decision.action is not Action.SERVE:
            return decision
        eligible = [
            (place, each.score, each.message.text)
            for place, each in enumerate(self.candidates)
            if each.score is not None and each.message is not None
            if not decision.accepted or policy.passes(self.loops - 1, each.score)
        ]
        places, scores, texts = zip(*eligible, strict=True)
        try:
            # By a number that no draw has, and in a thread: similarities are foreign code.
            chosen = await asyncio.to_thread(select, scores, texts, draw_seed(self.seed, -1) / 2**31)
            return replace(decision, index=places[chosen])
        except Exception as error:
            logger.warning("select= failed, the best draw is served: %s", place_of(error))
            return decision

    def _finish(self, decision: Decision) -> GuardResult:
        if self._first() is None:
            return self._without_generator()
        if decision.index is None:
            return self._without_scores(getattr(self.engine.scorer, "none_scored", "scorer_failed"))
        selected = self.candidates[decision.index]
        if decision.action is Action.ABSTAIN:
            failed = decision.reason == "budget_spent" and decided_by_failures(self.candidates)
            return self._record("abstained", "generator_failed" if failed else decision.reason, selected)
        return self._record("accepted" if decision.accepted else "best_effort", decision.reason, selected)

    def _end(self, end: EndRequest) -> GuardResult:
        if end.signal is not None:
            raise end.signal
        return replace(self._record("unscored", end.reason, self.launched[end.serve]), ended=True)

    def _without_generator(self) -> GuardResult:
        """Draws fail, and more of them would."""
        if self._first() is not None:
            return self._without_scores("generator_failed")
        error = self.candidates[0].error
        if error is not None and all(candidate.refused for candidate in self.candidates):
            raise error
        raise nothing_arrived(self.candidates)

    def _without_scores(self, reason: str) -> GuardResult:
        """Scores are missing or incomplete: guardrail fails closed, accelerator serves what it has and says so."""
        best = self._best()
        if self.policy.mode == "guardrail":
            return self._record("abstained", reason, best)
        return self._record("best_effort", reason, best) if best is not None else self._record("unscored", reason, self._first())

    def _best(self) -> Candidate | None:
        scored = [candidate for candidate in self.seen if candidate.score is not None]
        return max(scored, key=lambda candidate: (candidate.score, -candidate.index), default=None)

    def _first(self) -> Candidate | None:
        return next((candidate for candidate in self.seen if candidate.message is not None), None)

    def pace(self) -> tuple[float | None, int]:
        """What the request has to tell of its endpoint's load; see :meth:`~bonmini_guard.engine.load.Load.end`."""
        refused = sum(getattr(candidate.error, "status", None) == HTTPStatus.TOO_MANY_REQUESTS for candidate in self.launched)
        first = next((candidate for candidate in self.candidates if candidate.message is not None), None)
        if first is None or first.finished is None or first.started is None:
            return None, refused
        return (first.finished - first.started) / max(1, used_tokens([first])[1]), refused

    def _record(self, decision: Outcome, reason: str, selected: Candidate | None) -> GuardResult:
        if self.rolling and selected is not None and all(each is not selected for each in self.candidates):
            # Served though not decided on: it ended the request, made a turn of tools of it, or was there at the deadline.
            self.candidates.append(selected)
        return GuardResult(
            mode=self.policy.mode,
            decision=decision,
            reason=reason,
            selected=selected,
            candidates=tuple(self.candidates),
            loops=self.loops,
            in_flight=self.width if self.rolling else None,
            ahead=len(self.launched) - len(self.candidates),
            usage=total_usage(self.launched, self.scoring_usage),
            timings=Timings(self._elapsed(), self.scoring, perf_counter()),
            threshold=self.policy.thresholds[self.loops - 1] if self.loops else None,
            seed=self.seed,
            request_id=self.request_id,
            profile=self.engine.profile,
            has_zero=self.engine.has_zero,
            scorer_error=self.scorer_error,
            not_shown=self.not_shown,
        )

    def _elapsed(self) -> float:
        return perf_counter() - self.begun


def _draws_groups(generator: object) -> TypeGuard[GroupGenerator]:
    return callable(getattr(generator, "draw_group", None))
