"""Shadow mode: the model answers as it always did, and the guard watches and says what it would have done."""

from __future__ import annotations

import dataclasses
import functools
import logging
import operator
import random
import time
from collections.abc import AsyncIterator, Iterator
from threading import Semaphore
from time import perf_counter
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import ensure_config

from bonmini_guard.conversation import as_messages
from bonmini_guard.engine.background import Background
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.engine.detach import ambient
from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.engine.result import GuardResult, Outcome, total_usage, used_tokens
from bonmini_guard.engine.snapshot import copies, frozen
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.forks import Lock, renewed_in_children
from bonmini_guard.logs.explore import MOST_AT_A_TIME
from bonmini_guard.logs.trace_row import Explored, RequestRecord, Row, trace_row
from bonmini_guard.policy.policy import Action, Policy, best_of_n, run
from bonmini_guard.runnables.callbacks import group_of
from bonmini_guard.runnables.conduct import Guard
from bonmini_guard.runnables.guard import BestOfMiniN

logger = logging.getLogger(__name__)

#: Answers scored at a time. More would compete with live traffic; those above are not watched.
MOST_WATCHED = 64


@dataclasses.dataclass(frozen=True, slots=True)
class ShadowSummary:
    """What the guard would have done so far, in this process. No text.

    Attributes:
        requests: answers served.
        scored: of those, first draws scored.
        skipped: answers not watched: too many at a time, or scoring failed.
        passed: of the scored, first draws that pass the first loop's threshold; the guard would have served after one loop.
        explored: requests drawn to the full budget by ``explore``; what follows is about those.
        accepted: the guard would have served an answer that passed.
        best_effort: an accelerator would have served its best so far (or an unscored answer).
        abstained: a guardrail would have refused.
        replaced: another answer than the first draw would have been served.
        draws: draws that the guard would have made.
    """

    requests: int = 0
    scored: int = 0
    skipped: int = 0
    passed: int = 0
    explored: int = 0
    accepted: int = 0
    best_effort: int = 0
    abstained: int = 0
    replaced: int = 0
    draws: int = 0

    def __str__(self) -> str:
        """One sentence."""
        first = f"{self.requests} answers served, {self.scored} scored, {self.passed} of them pass at once"
        if not self.explored:
            return f"{first}; none explored: set explore= to see what the guard would do with the rest"
        return (
            f"{first}; of {self.explored} explored the guard would have accepted {self.accepted}, refused {self.abstained}, "
            f"served {self.best_effort} as best effort, and changed the answer of {self.replaced}; "
            f"{self.draws / self.explored:.1f} draws each"
        )


class ShadowBestOfMiniN(Runnable[LanguageModelInput, Any]):
    """A guard on trial: serves the wrapped model's answer exactly as without a guard, and judges it afterwards.

    Calls and streams go to the model with the caller's config: its callbacks, streams and errors are those of an ordinary call.
    The answer is the guard's first draw, and the ``run_id`` of its config, where there is one, is the ``id`` of its trace. In the
    background it is scored; for the guard's ``explore`` share the rest of the budget is drawn and scored too, and the policy
    replayed. ``trace_to``, ``telemetry`` and ``reload`` work as usual. Whatever fails in the guard is logged and counted alone.

    Example::

        shadow = ShadowBestOfMiniN(BestOfMiniN(generator=llm, reward_model=rm, explore=0.05, trace_to="traces.jsonl"))
        chain = prompt | shadow | parser
        print(shadow.summary)

    Args:
        guard: as it is going to serve one day; its ``on_abstain`` has nothing to do here.

    Raises:
        ConfigurationError: it is no ``BestOfMiniN``, or its generator cannot draw a single answer.
    """

    def __init__(self, guard: BestOfMiniN | Guard) -> None:
        if not isinstance(guard, BestOfMiniN | Guard):
            raise ConfigurationError(
                f"shadow mode takes a BestOfMiniN, not a {type(guard).__name__}; a ChatBestOfMiniN has one as .guard"
            )
        self.guard = guard
        if not isinstance(guard.generator, Runnable) and not callable(getattr(guard.generator, "draw", None)):
            raise ConfigurationError("in shadow the generator draws single answers: it needs an async draw(request)")
        self.summary = ShadowSummary()
        self._guard = guard.guard if isinstance(guard, BestOfMiniN) else guard
        if self._guard.options["select"] != "best":
            raise ConfigurationError("shadow mode replays what serves the best draw: drop select=")
        self._model = guard.generator if isinstance(guard.generator, Runnable) else _as_model(guard.generator)
        self._background = Background()
        self._lock = Lock()
        self.renew()
        renewed_in_children(self)

    def __reduce__(self) -> tuple[type[ShadowBestOfMiniN], tuple[BestOfMiniN | Guard]]:
        return type(self), (self.guard,)  # a copy has watched nothing yet

    def renew(self) -> None:
        """Nothing is explored: at first, and in a child after a fork."""
        self._exploring = Semaphore(MOST_AT_A_TIME)

    # Answers: those of the model, with its errors

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """The model's answer."""
        begun = perf_counter()
        answer = self._model.invoke(input, config, **kwargs)
        self._served_sync(input, [answer], config, kwargs, begun)
        return answer

    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """The model's answer."""
        begun = perf_counter()
        answer = await self._model.ainvoke(input, config, **kwargs)
        self._served(input, [answer], config, kwargs, begun)
        return answer

    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """The model's stream; an answer whose stream was given up is not watched."""
        begun, chunks = perf_counter(), []
        for chunk in self._model.stream(input, config, **kwargs):
            chunks.append(chunk)
            yield chunk
        self._served_sync(input, chunks, config, kwargs, begun)

    async def astream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """The model's stream; an answer whose stream was given up is not watched."""
        begun, chunks = perf_counter(), []
        async for chunk in self._model.astream(input, config, **kwargs):
            chunks.append(chunk)
            yield chunk
        self._served(input, chunks, config, kwargs, begun)

    async def afinish(self) -> None:
        """Wait for what is being watched and explored, then flush the traces. Await it before the event loop ends."""
        await self._background.afinish()
        await self.guard.afinish()

    def finish(self, timeout: float | None = None) -> None:
        """``afinish`` for sync code; call it from another thread than that of async calls."""
        self._background.finish(timeout)
        self.guard.finish(timeout)

    # Watching

    def _served_sync(self, *answered: Any) -> None:
        async def begin() -> None:
            self._served(*answered)

        try:
            run_sync(begin)
        except Exception as error:
            logger.warning("shadow: an answer was not watched: %s", type(error).__name__)

    def _served(
        self, input: LanguageModelInput, chunks: list[Any], config: RunnableConfig | None, options: dict[str, Any], begun: float
    ) -> None:
        """Have an answer judged in the background; raises nothing."""
        from bonmini_guard.adapters.langchain import as_message

        self._add(requests=1)
        try:
            config, seconds = ensure_config(config), perf_counter() - begun
            group = group_of(SimpleNamespace(metadata=config.get("metadata")), config)
            with ambient(config):
                name = str(config.get("run_id") or uuid4()).replace("-", "")
                # Copies: chats append the answer to what was asked, and go on.
                messages, answer = copies(as_messages(input)), frozen(as_message(functools.reduce(operator.add, chunks)))
                watch = functools.partial(self._watch, messages, answer, options, group=group, seconds=seconds, name=name)
                if not self._background.start(watch, MOST_WATCHED):
                    self._add(skipped=1)
        except Exception as error:
            self._add(skipped=1)
            logger.warning("shadow: an answer was not watched: %s", type(error).__name__)

    async def _watch(self, *answered: Any, **about: Any) -> None:
        try:
            if (first := await self._first(*answered, **about)) is not None:
                self._tell(*await self._explored(first))
        except BaseException as error:
            self._add(skipped=1)
            logger.warning("shadow: an answer was not judged: %s", type(error).__name__)
            if not isinstance(error, Exception):
                raise

    async def _first(
        self,
        messages: list[BaseMessage],
        answer: AIMessage,
        options: dict[str, Any],
        *,
        group: str | None,
        seconds: float,
        name: str,
    ) -> RequestRecord | None:
        """The served answer as a request of one draw, scored; None for a turn of tools, which a guard passes on untraced."""
        engine = self._guard.engine

        async def served(_: DrawRequest) -> AIMessage:
            return answer

        judge = dataclasses.replace(engine, generator=SimpleNamespace(draw=served), policy=best_of_n(1), limiter=None)
        result = await judge.run(messages, seed=random.getrandbits(62), request_id=name)
        if result.ended:
            return None
        (draw,) = result.candidates
        if draw.unfinished:
            raise RuntimeError("the answer could not be scored")
        draw.started, draw.finished = 0.0, seconds
        result = dataclasses.replace(result, mode=engine.policy.mode, threshold=engine.policy.thresholds[0])
        return RequestRecord(result, messages, options, engine, group, time.time())

    async def _explored(self, first: RequestRecord) -> tuple[RequestRecord, Explored | None]:
        explorer = self._guard.explorer
        if explorer is None or not explorer.chosen():
            return first, None
        if not self._exploring.acquire(blocking=False):
            return explorer.missed(first, "busy"), None
        try:
            return await explorer.complete(first, fair=True)
        finally:
            self._exploring.release()

    def _tell(self, first: RequestRecord, explored: Explored | None) -> None:
        passed = first.engine.policy.passes(0, first.result.score)
        would = None if explored is None else would_have(first.engine.policy, explored.result, first.engine.in_flight[-1])
        self._add(scored=1, passed=int(passed))
        if would is not None:
            replaced = would.served and would.selected is not None and would.selected.index != 0
            kind = "best_effort" if would.decision == "unscored" else would.decision
            self._add(explored=1, draws=would.draws, replaced=int(replaced), **{kind: 1})
        if (telemetry := self._guard.options["telemetry"]) is not None:
            telemetry.shadowed(would.decision if would is not None else "accepted" if passed else None)
        if (writer := self._guard.writer) is not None:
            writer.record(first if would is None else dataclasses.replace(first, result=would), explored, _shadow_row)

    def _add(self, **more: int) -> None:
        with self._lock.held:
            counts = {name: getattr(self.summary, name) + number for name, number in more.items()}
            self.summary = dataclasses.replace(self.summary, **counts)


def would_have(policy: Policy, complete: GuardResult, in_flight: int = 1) -> GuardResult:
    """What a guard would have given, from all draws of the budget in the order in which it would have asked for them.

    Where an exit asks for the order of arrival, it is what the draws' durations make it: of an eager one within its loops, of a
    rolling one with as many in flight as it may have.
    """
    drawn = complete.candidates
    seconds = [(draw.finished or 0.0) - (draw.started or 0.0) for draw in drawn]
    ran = run(policy, [draw.score for draw in drawn], seconds, [used_tokens([draw]) for draw in drawn], in_flight)
    decision, candidates = ran.decision, tuple(drawn[index] for index in ran.order)
    outcome: Outcome = "accepted" if decision.accepted else "best_effort"
    if decision.action is Action.ABSTAIN:
        outcome = "abstained" if policy.mode == "guardrail" else "unscored"
    return dataclasses.replace(
        complete,
        decision=outcome,
        reason=decision.reason,
        selected=None if decision.index is None else drawn[decision.index],
        candidates=candidates,
        loops=ran.loops,
        usage=total_usage(candidates),
        threshold=decision.threshold,
    )


def _shadow_row(request: RequestRecord, explored: Explored | None) -> Row:
    """A row that says what the guard would have decided, where that is known, and that the first draw was served."""
    row = trace_row(request, explored)
    row["candidates"][0]["seed"] = None  # an ordinary call
    if explored is None:
        row = {key: value for key, value in row.items() if key not in ("decision", "reason", "selected", "loops")}
    return row | {"shadow": True, "served": 0}


def _as_model(generator: Any) -> Runnable[Any, Any]:
    """A generator as a model that answers once."""

    async def answer(input: LanguageModelInput, config: RunnableConfig, **options: Any) -> AIMessage:
        message: AIMessage = await generator.draw(DrawRequest(as_messages(input), random.getrandbits(31), 0, options))
        return message

    def answer_sync(input: LanguageModelInput, config: RunnableConfig, **options: Any) -> AIMessage:
        return run_sync(lambda: answer(input, config, **options))

    return RunnableLambda(answer_sync, answer)
