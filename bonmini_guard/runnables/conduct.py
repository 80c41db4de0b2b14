"""``Guard``: what all faces conduct their requests with. It knows messages, and no chains, chat models or agents."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import os
import random
import secrets
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import is_
from typing import Any, TypeVar, Unpack

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import add_usage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config

from bonmini_guard.engine.abstentions import Caller, Ledger
from bonmini_guard.engine.bridge import ByLoop, run_sync
from bonmini_guard.engine.containment import LAST_GRACE, Quarantine, as_failure, is_failure, within
from bonmini_guard.engine.engine import Engine, Observer
from bonmini_guard.engine.fingerprints import as_text, fingerprint_of, sampling
from bonmini_guard.engine.generators import as_generator
from bonmini_guard.engine.held import turning
from bonmini_guard.engine.limiter import build_limiter, call_limit
from bonmini_guard.engine.load import load_of
from bonmini_guard.engine.protocols import NO_OPTIONS, Generator, GroupGenerator
from bonmini_guard.engine.result import GuardResult
from bonmini_guard.engine.scorers import THREADS
from bonmini_guard.engine.snapshot import copies
from bonmini_guard.engine.workers import Workers
from bonmini_guard.errors import ConfigurationError, InputError, ProfileError, abstention
from bonmini_guard.logs.explore import ExplorationCost, Explorer
from bonmini_guard.logs.trace_row import RequestRecord
from bonmini_guard.logs.traces import writer_for
from bonmini_guard.policy.policy import Policy
from bonmini_guard.reward.declared import as_scorer
from bonmini_guard.runnables import settings
from bonmini_guard.runnables.options import GuardOptions, completed, of_a_call
from bonmini_guard.runnables.reload import Reloader
from bonmini_guard.runnables.resumption import configurable, keep, recall, request_key, resumable
from bonmini_guard.runnables.structured import Valid, ValidatingScorer
from bonmini_guard.unseen import check_seen
from bonmini_guard.validation import is_integer

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Background:
    """What a guard does behind its requests: traces, and exploring."""

    @property
    def guard(self) -> Guard:
        """What conducts the requests."""
        raise NotImplementedError

    @property
    def exploration(self) -> ExplorationCost:
        """What ``explore`` has cost so far."""
        return ExplorationCost() if self.guard.explorer is None else self.guard.explorer.cost

    async def aflush(self) -> None:
        """Return once the trace of every request that is over is in its file; explored ones follow when they are complete."""
        if self.guard.writer is not None:
            await self.guard.writer.aflush()

    def flush(self) -> None:
        """``aflush`` for sync code."""
        if self.guard.writer is not None:
            self.guard.writer.flush()

    async def afinish(self) -> None:
        """Wait for what is being explored, then flush. Await it before the event loop ends, which cuts exploring short."""
        if self.guard.explorer is not None:
            await self.guard.explorer.background.afinish()
        await self.aflush()

    def finish(self, timeout: float | None = None) -> None:
        """``afinish`` for sync code; it waits for what async calls began too, so call it from another thread than theirs."""
        if self.guard.explorer is not None:
            self.guard.explorer.background.finish(timeout)
        self.flush()


class Guard(Background):
    """Best of mini-N around a generator; :class:`~bonmini_guard.BestOfMiniN` and the other faces have one as ``.guard``.

    Args:
        standing: call options that come with every request.
        options: these and the others, see :class:`~bonmini_guard.runnables.options.GuardArguments`.

    Attributes:
        options: with their defaults.
        explorer: completes requests in the background; None without ``explore``.
        writer: writes traces; None without ``trace_to``.
        abstentions: of the last ``retry_memory`` seconds.
        reloader: follows the profile's file; None without ``reload``.

    Raises:
        ConfigurationError: an option is wrong or unknown, or options contradict each other.
        ProfileError: the profile is malformed, or was calibrated for other parts.
    """

    def __init__(
        self, generator: Any, reward_model: Any, standing: Mapping[str, Any] = NO_OPTIONS, **options: Unpack[GuardOptions]
    ) -> None:
        self.generator, self.reward_model = generator, reward_model
        self._standing, self._vouched = dict(standing), set[tuple[Any, str | None]]()
        self.options = options = completed(options)
        self._asked = [options["question"], options["criteria"], options["rubric"]]
        memory = options["retry_memory"]
        self.abstentions = memory if isinstance(memory, Ledger) else Ledger(memory)
        self.reloader = self._follow() if options["reload"] else None
        self._engine = self._build()
        self._workers = self._common(Workers, THREADS, "bonmini-guard-on-abstain")
        self._says = self._common(ByLoop, of=[options["on_abstain"]])
        self.writer = None if options["trace_to"] is None else writer_for(options["trace_to"])
        telemetry, explore = options["telemetry"], options["explore"]
        self.explorer = self._common(Explorer, explore, options["on_explored"], self.writer, telemetry) if explore else None
        if telemetry is not None and self.writer is not None:
            telemetry.watch(self.writer)

    @property
    def guard(self) -> Guard:
        """Itself."""
        return self

    def shared(self) -> dict[str, Any]:
        """What a guard built from this one's arguments shares with it; by the abstentions it finds the rest (:meth:`_common`)."""
        return {"max_concurrency": self._engine.limiter, "retry_memory": self.abstentions, "trace_to": self.writer}

    def _common(self, make: Callable[..., T], *given: Any, of: Sequence[Any] = ()) -> T:
        """What guards that are built from one another share (``configurable_fields`` builds one a call), where made of the same."""
        common, parts = self.abstentions.common, (*given, *of)
        if make not in common:
            common[make] = parts, make(*given)
        first, made = common[make]
        return made if all(map(is_, first, parts)) else make(*given)

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        """Itself: what limits and counts requests cannot be doubled."""
        return self

    # Requests

    @property
    def engine(self) -> Engine:
        """What conducts a request that begins now; a request keeps it to its end."""
        if self.reloader is not None:
            self.reloader.look()
        return self._engine

    async def conduct(
        self,
        messages: Sequence[BaseMessage],
        options: Mapping[str, Any] = NO_OPTIONS,
        *,
        generator: Generator | GroupGenerator | None = None,
        valid: Valid | None = None,
        tool_turns: str | None = None,
        answers: frozenset[str] | None = None,
        observer: Callable[[Policy], Observer | None] | None = None,
        seed: int | None = None,
        group: str | None = None,
        promised: bool = True,
        final: bool = False,
        spent: float = 0.0,
    ) -> GuardResult:
        """Conduct one request, have it traced and perhaps explored; an abstention is a result, not an error.

        Generator and scorer find the config of the call, but its callbacks and streams, in LangChain's ambient one, of which
        ``max_concurrency`` holds for the draws.

        Args:
            messages: the conversation.
            options: call options for the generator (``stop``, ``tools``, ...); a ``seed`` among them is the request's.
            generator: draws this request, instead of the guard's own.
            valid: which of its draws can be scored; None for all.
            tool_turns: what is guarded of tool calls, instead of what the guard's option says.
            answers: tools whose calls hold an answer.
            observer: makes what is told of each draw, of the policy of this request.
            seed: overrides the guard's seed.
            group: the conversation or user it belongs to.
            promised: False for a request whose draws the profile does not speak of; its thresholds hold all the same.
            final: whether :meth:`abstain` follows an abstention: in a graph's node, an interrupt in there may then be answered, and
                the node's second run does not draw again.
            spent: seconds of the request's time that have passed already.

        Raises:
            InputError: the seed is no integer, or a guardrail's prompt holds something that the scorer cannot read.
            ConfigurationError: a call option is one of the guard's.
            ProfileError: call options or the config make another generator of it than the profile was calibrated with.
            GenerationError: not one draw arrived.
        """
        begun, engine = time.perf_counter() - spent, self.engine
        seed = options.get("seed") if seed is None else seed
        options = of_a_call(options)
        scorer = None if valid is None else ValidatingScorer(engine.scorer, valid)
        parts: dict[str, Any] = {"generator": generator, "scorer": scorer, "tool_turns": tool_turns, "answers": answers}
        if given := {name: part for name, part in parts.items() if part is not None}:
            engine = replace(engine, **given)
        if not promised:
            engine = replace(engine, profile=None, drawn_by=None)
        if engine.drawn_by is not None and await self._check_generator(engine, options, begun):
            spent = time.perf_counter() - begun
        if spent and engine.timeout is not None:
            engine = replace(engine, timeout=max(0.0, engine.timeout - spent))
        check_seen(engine.scorer, messages, refuse=engine.policy.mode == "guardrail")
        seed = self.options["seed"] if seed is None else seed
        if seed is not None and not is_integer(seed):
            raise InputError(f"seed= must be an integer, not {seed!r}")
        seed = random.getrandbits(62) if seed is None else seed
        # Writer and explorer look at them when whoever asked may have gone on with his messages.
        kept = self.writer is not None or self.explorer is not None
        messages = copies(messages) if kept else messages
        key = request_key(engine, messages, options, self._asked, self.options["profile"]) if final and self._may_ask() else None
        if key is not None and (known := recall(key, engine)) is not None:
            return known
        with call_limit(var_child_runnable_config.get()):
            result = await self._run(engine, messages, seed, options, None if observer is None else observer(engine.policy))
            if self.options["budget"] is not None and not any(each.usage for each in result.candidates):
                logger.warning("the generator reports no tokens: budget= cannot end a request")
            if key is not None and result.decision == "abstained":
                keep(key, result)
            if kept and not result.ended:
                self._record(RequestRecord(result, messages, options, engine, group, time.time()))
            return result

    def _record(self, request: RequestRecord) -> None:
        """Explore the request or have its trace written."""
        explored = self.explorer is not None and self.explorer.consider(request)
        if self.writer is not None and not explored:
            self.writer.record(request)

    def _may_ask(self) -> bool:
        """Whether ``on_abstain`` may ask a person by an interrupt, whose answer would run the node again."""
        return not isinstance(self.options["on_abstain"], str) and resumable()

    async def once(
        self,
        conduct: Callable[[], Awaitable[GuardResult]],
        messages: Sequence[BaseMessage],
        options: Mapping[str, Any],
        caller: Caller,
    ) -> GuardResult:
        """Conduct a request, unless it was asked by this caller before and answered with an abstention: that one is final."""
        if self._may_ask():
            # The graph itself keeps what was decided, among the answers to the node's interrupts.
            return await conduct()
        # Guards built from this one remember together, and may decide otherwise.
        guard = id(self.generator), id(self.reward_model), self._asked, self.engine.policy
        # A tenant, a session, a model: all but what LangGraph says of one run.
        chosen = {str(name): value for name, value in configurable().items()}
        own = [name for name in chosen if not name.startswith(("__", "checkpoint_", "thread_id"))]
        options = {**options, "guard": guard, **{f"config {name}": chosen[name] for name in own}}
        if (known := self.abstentions.find(messages, options, caller)) is not None:
            return known
        result = await conduct()
        self.abstentions.keep(result, messages, options, caller)
        return result

    async def _check_generator(self, engine: Engine, options: Mapping[str, Any], begun: float) -> bool:
        """Refuse a request that another generator draws than the profile says: what could change since the guard was built.

        Returns:
            Whether that took time.
        """
        part, given = engine.generator, sampling(options)
        if part is self._engine.generator and given == sampling(self._standing) and not getattr(part, "configurable", False):
            return False

        def look() -> tuple[str | None, Sequence[str]]:
            mark = fingerprint_of(part, given)
            return mark, () if (engine.drawn_by, mark) in self._vouched else settings.differences(engine.drawn_by, part, given)

        # May ask a server for its model's name.
        work = await self._in_time("the generator's fingerprint", self._workers.run(look), begun)
        mark, differing = (None, ["it was not known in time"]) if work is None else work.result()
        if differing:
            problem = f"{settings.refusal('generator', engine.drawn_by, differing)} (this request's options and config included)"
            if self.options["strict"]:
                raise ProfileError(f"{problem}. Leave them out, recalibrate, or pass strict=False to go on without the promise")
            warnings.warn(problem, UserWarning, stacklevel=2)
        self._vouched.add((engine.drawn_by, mark))
        return True

    async def _run(
        self, engine: Engine, messages: Sequence[BaseMessage], seed: int, options: Mapping[str, Any], observer: Observer | None
    ) -> GuardResult:
        # Not of the seeded kind: two requests of one id would be one row of a log.
        name, telemetry = secrets.token_hex(16), self.options["telemetry"]
        with contextlib.nullcontext() if telemetry is None else telemetry.request(engine.policy) as monitor:
            told = [each for each in (observer, monitor) if each is not None]
            result = await engine.run(messages, seed=seed, options=options, observers=told, request_id=name)
            if monitor is not None:
                monitor.decided(result)
        traced, with_texts = self.writer is not None and not result.ended, self.options["trace_candidates"]
        return replace(result, with_texts=with_texts, traced=traced) if traced or with_texts else result

    async def abstain(self, result: GuardResult, original: Any, config: RunnableConfig | None = None) -> AIMessage:
        """What ``on_abstain`` says to a request that was not answered; a Runnable gets its original input, and the config.

        Raises:
            NoAcceptableResponse: it says "error".
        """
        say = self.options["on_abstain"]
        if say == "error":
            # Not chained: what a scorer raises may quote the candidate, and tracers keep whole tracebacks.
            raise abstention(result)
        if say == "message":
            return stamped(AIMessage(self.options["abstain_message"]), result)
        # Within what is left of the request's time.
        fallback = self._fallback(say, result, original, config)
        work = await self._in_time("on_abstain", fallback, result.timings.decided - result.timings.total)
        if work is None:
            raise abstention(result)
        answer = work.result()
        if not isinstance(answer, AIMessage | str):
            raise ConfigurationError(f"on_abstain gave a {type(answer).__name__}: it must give an AIMessage or a string")
        from bonmini_guard.adapters.langchain import as_message

        return stamped(as_message(answer), result, fallback=True)

    async def tell(self, told: Coroutine[Any, Any, T], begun: float) -> T | None:
        """Call callbacks within what is left of the time of a request that began then; None where they took longer."""
        work = await self._in_time("callbacks", told, begun, LAST_GRACE)
        return None if work is None else work.result()

    async def _in_time(
        self, what: str, work: Coroutine[Any, Any, T], begun: float, least: float = -math.inf
    ) -> asyncio.Task[T] | None:
        """Foreign code within what is left of the time of a request that began then, and no less than so many seconds."""
        timeout = self.options["timeout"]
        left = None if timeout is None else max(least, timeout - (time.perf_counter() - begun))
        with turning():
            done = await within(work, left, self._engine.quarantine)
        if done is None:
            logger.warning("%s took longer than what was left of timeout=%g s: not waited for", what, timeout)
        elif done.cancelled():
            # By itself: the request's own cancellation would have ended this wait.
            logger.warning("%s failed: CancelledError", what)
            return None
        return done

    def tell_now(self, tell: Callable[[], T], begun: float) -> T | None:
        """As :meth:`tell`, of sync callbacks, which a thread of their own calls."""
        return run_sync(lambda: self.tell(self._workers.run(tell), begun))

    async def _fallback(self, say: Any, result: GuardResult, original: Any, config: RunnableConfig | None) -> Any:
        try:
            if isinstance(say, Runnable):
                from bonmini_guard.adapters.elsewhere import apart, with_models

                # For the running loop: its models may have connections to others.
                loop = asyncio.get_running_loop()
                here = self._says.of(loop, lambda: with_models(say, partial(apart, loop=loop)))
                return await here.ainvoke(original, config)
            answer = say(result) if inspect.iscoroutinefunction(say) else await self._workers.run(say, result)
            return await answer if inspect.isawaitable(answer) else answer
        except BaseException as error:
            raise (as_failure(error) if is_failure(error, [asyncio.current_task()]) else error) from None

    # Construction

    def _follow(self) -> Reloader:
        profile, reload, telemetry = self.options["profile"], self.options["reload"], self.options["telemetry"]
        if not isinstance(profile, str | os.PathLike):
            raise ConfigurationError("reload= follows a file: pass profile= as its path")
        tell = bool if telemetry is None else telemetry.reloaded
        return Reloader(profile, float(reload), self._take_profile, tell)  # of True, one second

    def _take_profile(self) -> bool:
        before, self._engine = self._engine, self._build(self._engine)
        if changed := before != self._engine:
            self.abstentions.clear()
        return changed

    def _build(self, current: Engine | None = None) -> Engine:
        options = self.options
        profile = settings.load_profile(options["profile"] if self.reloader is None else self.reloader.path)
        policy, strict = settings.build_policy(profile, options), options["strict"]
        if current is None:
            generator = self._common(as_generator, self.generator)
            scorer = self._common(as_scorer, self.reward_model, *self._asked)
            limiter = build_limiter(options["max_concurrency"])
        else:
            generator, scorer, limiter = current.generator, current.scorer, current.limiter
            if policy.mode != current.policy.mode:
                raise ProfileError(f"its mode is {policy.mode!r}, the guard's {current.policy.mode!r}: restart to change it")
        greedy = getattr(generator, "deterministic", False) or self._standing.get("temperature") == 0
        settings.refuse_greedy(policy, greedy, "the generator")
        settings.check_parts(policy, profile, scorer, options["threshold"] is not None)
        if profile is not None:
            settings.check_profile(profile, generator, scorer, strict, self._standing)
        return Engine(
            generator,
            scorer,
            settings.with_budget(policy, options["budget"], profile, strict),
            limiter=limiter,
            lookahead=settings.looked_ahead(policy, options["lookahead"]),
            select=settings.selection(policy, profile, options["select"]),
            in_flight=settings.widths(policy, profile, options["in_flight"]),
            timeout=settings.time_to_decide(policy, options),
            transform=None if profile is None else profile.score_transform,
            profile=settings.profile_name(options["profile"]),
            drawn_by=None if profile is None else as_text(profile.fingerprints.get("generator")),
            has_zero=settings.has_zero(scorer, profile),
            tool_turns=options["tool_turns"] or ("text" if policy.mode == "guardrail" else "pass"),
            quarantine=self._common(Quarantine, of=[generator, scorer]) if current is None else current.quarantine,
            load=load_of(limiter or getattr(generator, "circuit", None) or generator, getattr(generator, "carries", None)),
        )


def stamped(message: AIMessage, result: GuardResult, fallback: bool = False) -> AIMessage:
    """A copy that carries the decision and the tokens of all draws (of the fallback too); the original stays as it was."""
    about = result.metadata()
    usage: Any = dict(result.usage) or None
    if fallback:
        about = of_a_fallback(about)
        usage = add_usage(usage, message.usage_metadata) if message.usage_metadata else usage
    metadata = {**message.response_metadata, "bonmini_guard": about}
    return message.model_copy(update={"response_metadata": metadata, "usage_metadata": usage})


def of_a_fallback(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a message says of its decision where no score and no promise speaks of it."""
    others = {name: value for name, value in about.items() if name != "parts"}
    return others | {"decision": "fallback", "score": None, "raw_score": None, "acceptance_probability": None}
