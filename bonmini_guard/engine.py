"""The engine: the effects around the pure policy. One async core for every face of the package.

Draws run as tasks and report to one queue; what has arrived is scored together; the policy decides; what is no longer
needed is cancelled, and the cancellation is awaited. No state survives a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol, TypeGuard

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.arrivals import Arrivals
from bonmini_guard.background import to_its_end
from bonmini_guard.detach import detached, is_graph_signal, langsmith_set
from bonmini_guard.errors import GenerationError
from bonmini_guard.limiter import Limiter, places_of, request_lane, unlimited
from bonmini_guard.outages import decided_by_failures, nothing_arrived, patience
from bonmini_guard.policy import Action, Decision, Policy, State
from bonmini_guard.protocols import NO_OPTIONS, DrawRequest, EndRequest, Generator, GroupGenerator, Scorer, ScoringSession
from bonmini_guard.result import Candidate, GuardResult, Outcome, Timings
from bonmini_guard.scorers import as_scores
from bonmini_guard.snapshot import frozen, identity
from bonmini_guard.usage import total_usage, used_tokens

logger = logging.getLogger(__name__)

#: Seconds a cancelled draw is waited for. A generator that ignores cancellation must not hold its request for ever.
CANCEL_GRACE = 5.0


class Observer(Protocol):
    """Told what happens while it happens. Its errors end the request, so it should raise none."""

    async def drawn(self, candidate: Candidate) -> None:
        """A draw arrived or failed."""

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
        timeout: seconds for the whole request; None waits for ever.
        transform: from raw to calibrated score.
        profile: name of the profile, for the record.
        has_zero: whether score 0 is the outside option.
    """

    generator: Generator | GroupGenerator
    scorer: Scorer
    policy: Policy
    limiter: Limiter | None = None
    timeout: float | None = None
    transform: Callable[[float], float] | None = None
    profile: str | None = None
    has_zero: bool = True

    async def run(
        self,
        messages: Sequence[BaseMessage],
        *,
        seed: int,
        options: Mapping[str, Any] = NO_OPTIONS,
        observer: Observer | None = None,
        request_id: str = "",
    ) -> GuardResult:
        """Conduct one request.

        Raises:
            GenerationError: not one draw arrived.
            TooBusy: too many wait for the limiter already; nothing was drawn.
        """
        # Drawing and scoring see no LangChain callback of the caller: a model used as a judge would show the candidates too.
        with detached(), langsmith_set(False):
            return await self._run(_Request(self, messages, seed, options, observer, request_id))

    async def _run(self, request: _Request) -> GuardResult:
        try:
            result = await request.conduct_within(self.timeout)
        except GenerationError as error:
            await request.close()
            error.usage = total_usage(request.candidates)
            raise
        finally:
            await request.close()
        return request.finalize(result)


class _ScoringFailed(Exception):  # noqa: N818 - a signal, never seen outside
    """The scorer raised, or did not answer in kind."""


class _Ended(Exception):  # noqa: N818 - a signal, never seen outside
    """A draw has ended the request."""


class _Request:
    """One request's state."""

    def __init__(  # noqa: PLR0917 - called once, above
        self,
        engine: Engine,
        messages: Sequence[BaseMessage],
        seed: int,
        options: Mapping[str, Any],
        observer: Observer | None,
        request_id: str,
    ) -> None:
        self.engine = engine
        self.messages = messages
        # A generator that appends to the conversation must not change what answers are scored for.
        self.asked = tuple(messages)
        self.seed = seed
        self.options = options
        self.observer = observer
        self.request_id = request_id
        self.begun = perf_counter()
        self.scoring = 0.0
        self.state = State()
        self.loops = 0
        self.candidates: list[Candidate] = []
        self.arrived: Arrivals[Candidate] = Arrivals()
        self.tasks: list[asyncio.Task[None]] = []
        self.cut_short = False
        self.scope: asyncio.Timeout
        self.ended: EndRequest | None = None
        self.session: ScoringSession | None = None
        # Of answers that arrived: what makes two of them equal, by the draw; and the scores of equal ones.
        self.keys: dict[int, Hashable] = {}
        self.known: dict[Hashable, tuple[float | None, float | None]] = {}
        self.scorer_error: BaseException | None = None
        self.context = contextvars.copy_context()
        self.context.run(request_lane.set, self)
        self.context.run(unlimited)
        self.places = places_of(engine.limiter, self)

    async def conduct_within(self, seconds: float | None) -> GuardResult:
        """Loop until the policy has decided, a draw has ended the request, or the time is up."""
        result = None
        try:
            async with asyncio.timeout(seconds) as self.scope:
                result = await self.conduct()
        except (TimeoutError, _Ended):
            if self.ended is None and not self.scope.expired():
                raise
        if self.ended is not None:
            return self._end(self.ended)
        return self.out_of_time() if result is None else result

    async def conduct(self) -> GuardResult:
        """Loop until the policy has decided."""
        policy = self.engine.policy
        if self.places is not None:
            self.places.admit()
        try:
            while True:
                decision = policy.decide(self.state)
                if self.observer is not None and self.loops:
                    await self.observer.looped(self.state, decision)
                if decision.action is not Action.DRAW:
                    return self._finish(decision)
                loop = self._begin_loop(decision.draws)
                winner = await self._collect(loop)
                if winner is not None:
                    return self._record("accepted", "passed", winner)
                wait = patience(self.candidates, loop)
                if wait is None:
                    return self._without_generator()
                if wait:
                    await asyncio.sleep(wait)
                used = used_tokens(loop) if policy.stop else (0, 0)
                self.state = policy.observe(self.state, [candidate.score for candidate in loop], used)
        except _ScoringFailed:
            return self._without_scores("scorer_failed")

    def out_of_time(self) -> GuardResult:
        """The deadline: guardrail abstains, accelerator serves the best so far."""
        # An unfinished loop does not count in guardrail mode; what it scored may still be the best so far.
        if self.engine.policy.mode == "guardrail":
            return self._record("abstained", "deadline", self._best())
        if self._best() is not None or self._first() is not None:
            return self._without_scores("deadline")
        raise GenerationError(f"no draw arrived within the timeout of {self.engine.timeout} s: raise timeout=") from TimeoutError()

    async def close(self) -> None:
        """Cancel what is still running, wait until it is gone, close the scoring session. Again, it does nothing."""
        running = [task for task in self.tasks if not task.done()]
        self.cut_short = self.cut_short or bool(running)
        for task in running:
            task.cancel()
        if running or self.session is not None:
            await to_its_end(self._close(running), CANCEL_GRACE)

    async def _close(self, running: Sequence[asyncio.Task[None]]) -> None:
        if running:
            _, stubborn = await asyncio.wait(running, timeout=CANCEL_GRACE)
            if stubborn:
                logger.warning("%d draws ignored their cancellation for %s s and were left behind", len(stubborn), CANCEL_GRACE)
        await self._close_session()

    def finalize(self, result: GuardResult) -> GuardResult:
        """The result with the tokens of draws that were still running when it was decided."""
        return replace(result, usage=total_usage(self.candidates)) if self.cut_short else result

    async def _close_session(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            try:
                await session.aclose()
            except Exception as error:
                logger.warning("closing the scoring session failed: %s", type(error).__name__)

    # Drawing

    def _begin_loop(self, draws: int) -> list[Candidate]:
        first = len(self.candidates)
        loop = [Candidate(index, self.loops, draw_seed(self.seed, index)) for index in range(first, first + draws)]
        self.candidates += loop
        self.loops += 1
        generator = self.engine.generator
        create = asyncio.get_running_loop().create_task
        if _draws_groups(generator):
            self.tasks.append(create(self._draw_group(generator, loop), context=self.context))
        else:
            for candidate in loop:
                # A context of its own for each draw: one draw's context variables must not reach another.
                self.tasks.append(create(self._draw(generator, candidate), context=self.context.copy()))  # type: ignore[arg-type]
        return loop

    async def _draw(self, generator: Generator, candidate: Candidate) -> None:
        outcome: object
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
            if not isinstance(error, Exception):
                # Cancelled, or the generator wants to end the process: recorded first, for the request is waiting.
                self._arrive(candidate, error)
                raise
            outcome = EndRequest("interrupt", signal=error) if is_graph_signal(error) else error
        self._arrive(candidate, outcome)

    async def _draw_group(self, generator: GroupGenerator, loop: Sequence[Candidate]) -> None:
        failure: BaseException = GenerationError("the generator ended without answering this draw")
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
            if not isinstance(error, Exception):
                raise
        finally:
            for candidate in loop:
                if candidate.finished is None:
                    self._arrive(candidate, failure)

    def _arrive(self, candidate: Candidate, outcome: object) -> None:
        if isinstance(outcome, EndRequest):
            if self.ended is None:
                self.ended = outcome
                # Wakes whatever the request is waiting for; not where it is decided or out of time already.
                with contextlib.suppress(RuntimeError):
                    self.scope.reschedule(0.0)
            outcome = outcome.message or outcome.__cause__ or outcome
        if isinstance(outcome, AIMessage):
            self._freeze(candidate, outcome)
        elif isinstance(outcome, BaseException):
            candidate.error = outcome
        else:
            candidate.error = TypeError(f"a generator must give an AIMessage, this one gave {type(outcome).__name__}")
        candidate.finished = perf_counter() - self.begun
        self.arrived.put(candidate)

    def _freeze(self, candidate: Candidate, message: AIMessage) -> None:
        """Take a copy: whoever holds the original could change what is served after it was scored."""
        try:
            candidate.message, self.keys[candidate.index] = frozen(message), identity(message)
        except Exception as error:
            candidate.message, candidate.error = None, error

    # Scoring

    async def _collect(self, loop: Sequence[Candidate]) -> Candidate | None:
        """Score the loop's draws as they arrive. The winner of an eager exit, else None once all are in."""
        policy, left = self.engine.policy, len(loop)
        while left:
            batch = await self.arrived.take()
            if self.ended is not None:
                raise _Ended
            left -= len(batch)
            await self._score([candidate for candidate in batch if candidate.message is not None])
            if self.observer is not None:
                for candidate in batch:
                    await self.observer.drawn(candidate)
            if policy.exit == "eager":
                winner = next((candidate for candidate in batch if policy.passes(self.loops - 1, candidate.score)), None)
                if winner is not None:
                    return winner
        return None

    async def _score(self, batch: Sequence[Candidate]) -> None:
        fresh: dict[Hashable, AIMessage] = {}
        keys = [self.keys[candidate.index] for candidate in batch]
        for key, candidate in zip(keys, batch, strict=True):
            if key not in self.known and key not in fresh and candidate.message is not None:
                # A copy of its own: a scorer must not change what is served either.
                fresh[key] = frozen(candidate.message)
        if fresh:
            await self._score_fresh(fresh, batch)
        now = self._elapsed()
        for key, candidate in zip(keys, batch, strict=True):
            candidate.raw_score, candidate.score = self.known[key]
            candidate.scored = now

    async def _score_fresh(self, fresh: Mapping[Hashable, AIMessage], batch: Sequence[Candidate]) -> None:
        begun = perf_counter()
        try:
            if self.session is None:
                self.session = self.engine.scorer.session(list(self.asked))
            scores = as_scores(await self.session.score(list(fresh.values())), len(fresh))
            for key, raw in zip(fresh, scores, strict=True):
                self.known[key] = self._usable(raw)
        except Exception as error:
            if is_graph_signal(error):
                raise
            self.scorer_error = error
            raise _ScoringFailed from error
        finally:
            self.scoring += perf_counter() - begun
        if self.observer is not None:
            await self.observer.scored(batch, perf_counter() - begun)

    def _usable(self, raw: float | None) -> tuple[float | None, float | None]:
        if raw is None or not math.isfinite(raw):
            return raw, None
        score = raw if self.engine.transform is None else self.engine.transform(raw)
        return raw, score if math.isfinite(score) else None

    # Concluding

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
        return replace(self._record("unscored", end.reason, self.candidates[end.serve]), ended=True)

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
        if self.engine.policy.mode == "guardrail":
            return self._record("abstained", reason, best)
        return self._record("best_effort", reason, best) if best is not None else self._record("unscored", reason, self._first())

    def _best(self) -> Candidate | None:
        scored = [candidate for candidate in self.candidates if candidate.score is not None]
        return max(scored, key=lambda candidate: (candidate.score, -candidate.index), default=None)

    def _first(self) -> Candidate | None:
        return next((candidate for candidate in self.candidates if candidate.message is not None), None)

    def _record(self, decision: Outcome, reason: str, selected: Candidate | None) -> GuardResult:
        return GuardResult(
            mode=self.engine.policy.mode,
            decision=decision,
            reason=reason,
            selected=selected,
            candidates=tuple(self.candidates),
            loops=self.loops,
            usage=total_usage(self.candidates),
            timings=Timings(self._elapsed(), self.scoring),
            threshold=self.engine.policy.thresholds[self.loops - 1] if self.loops else None,
            seed=self.seed,
            request_id=self.request_id,
            profile=self.engine.profile,
            has_zero=self.engine.has_zero,
            scorer_error=self.scorer_error,
        )

    def _elapsed(self) -> float:
        return perf_counter() - self.begun


def _draws_groups(generator: object) -> TypeGuard[GroupGenerator]:
    return callable(getattr(generator, "draw_group", None))
