"""``BestOfMiniN``: the guard as a LangChain runnable."""

from __future__ import annotations

import inspect
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import get_async_callback_manager_for_config, patch_config
from pydantic import ConfigDict, PrivateAttr, ValidationError

from bonmini_guard.bridge import run_sync
from bonmini_guard.budget import Budget
from bonmini_guard.callbacks import group_of, observer_for
from bonmini_guard.conversation import as_messages
from bonmini_guard.engine import Engine, Observer
from bonmini_guard.errors import ConfigurationError, InputError, ProfileError, abstention
from bonmini_guard.explore import ExplorationCost, Explorer
from bonmini_guard.generators import as_generator
from bonmini_guard.limiter import Limiter, build_limiter
from bonmini_guard.monitor import Observers
from bonmini_guard.reload import DEFAULT_INTERVAL, Reloader
from bonmini_guard.result import GuardResult
from bonmini_guard.scorers import as_scorer
from bonmini_guard.settings import (
    build_policy,
    check_parts,
    has_zero,
    load_profile,
    profile_name,
    with_budget,
)
from bonmini_guard.trace_row import RequestRecord
from bonmini_guard.traces import TraceWriter, writer_for

logger = logging.getLogger(__name__)

ABSTAIN_MESSAGE = "I cannot give an answer to this that is good enough."

#: The arguments that a profile fixes.
SHAPE = ("mode", "mini_n", "max_loops", "schedule", "threshold", "exit")


class BestOfMiniN(RunnableSerializable[LanguageModelInput, AIMessage]):
    """Best of mini-N in loops around a language model (arXiv 2510.04087).

    Draws candidates in small loops, scores them with a reward model whose zero means "acceptable", and stops as soon as the
    best one passes the threshold. A guardrail abstains when nothing passes; an accelerator serves the best so far.

    Example::

        guard = BestOfMiniN(generator=llm, reward_model=RewardModel.load("my-reward-model"), profile="guardrail.json")
        chain = prompt | guard | StrOutputParser()

    Args:
        generator: a LangChain chat model or LLM, or an object with an async ``draw`` (protocol ``Generator``).
        reward_model: a ``RewardModel``, any ``Scorer``, or a callable ``(messages, candidates) -> list of scores``, sync or async.
        profile: a path or a ``GuardProfile``. It fixes the six arguments that follow, so none may be given with it.
        mode: "guardrail" (default) or "accelerator".
        mini_n: draws of a loop (default 4).
        max_loops: loops at most (default 8).
        schedule: draws of each loop, instead of the two above; growing ones such as [4, 28] keep latency low.
        threshold: the score at which a loop exits; one number, or one for each loop (default 0: as likely acceptable as not).
        exit: "loop" compares the best so far after each loop; "eager" serves the first draw to pass and cancels its siblings.
        on_abstain: "error" raises ``NoAcceptableResponse``; "message" gives ``abstain_message``; a Runnable gets the original
            input; a callable gets the ``GuardResult``. The last two are outside any promise.
        abstain_message: text of the abstention message.
        timeout: seconds for the whole request.
        max_concurrency: draws in flight at a time over all requests of this guard, or a ``Limiter`` that several guards share;
            requests that wait take turns. None sets no limit.
        budget: tokens that a request may use up, or a ``Budget`` in tokens or money; once spent, no further loop begins.
        seed: makes every request repeatable, with generators that honour seeds; None draws a fresh seed for each request.
        reload: take over a changed profile file without a restart: True looks once a second at most, a number sets the seconds.
            A file that is bad, or was made for other parts or another mode, is refused, and the old profile stays in force.
            Requests end under the profile they began with.
        strict: refuse a profile that was calibrated for other parts; False warns.
        explore: share of requests (0 to 1) whose full budget is drawn and scored in the background, for calibration.
        on_explored: called with the complete ``GuardResult`` of each explored request; may be async.
        trace_to: a path, a function of the row, or a ``TraceWriter`` with further options: one log row is written for each request,
            by a background thread. See docs/traces.md.
        telemetry: ``bonmini_guard.adapters.telemetry.OpenTelemetry()``, or another ``Monitor``: spans and metrics without text.
        trace_candidates: put candidate texts into the callbacks' child runs.
        progress: send a custom event ``bonmini_guard.progress`` after each loop, and the same to LangGraph's ``custom`` stream.

    Raises:
        ConfigurationError: an argument is wrong, or arguments contradict each other.
        ProfileError: the profile is malformed, or was calibrated for other parts.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True)

    generator: Any
    reward_model: Any
    profile: Any = None
    mode: Any = None
    mini_n: Any = None
    max_loops: Any = None
    schedule: Any = None
    threshold: Any = None
    exit: Any = None
    on_abstain: Any = "error"
    abstain_message: str = ABSTAIN_MESSAGE
    timeout: float | None = None
    max_concurrency: int | Limiter | None = None
    budget: int | Budget | None = None
    seed: int | None = None
    reload: bool | float = False
    strict: bool = True
    explore: float = 0.0
    on_explored: Callable[[GuardResult], Any] | None = None
    trace_to: Any = None
    telemetry: Any = None
    trace_candidates: bool = False
    progress: bool = False

    _engine: Engine = PrivateAttr()
    _reloader: Reloader[Engine] | None = PrivateAttr(default=None)
    _writer: TraceWriter | None = PrivateAttr(default=None)
    _explorer: Explorer | None = PrivateAttr(default=None)

    def __init__(self, **arguments: Any) -> None:
        try:
            super().__init__(**arguments)
        except ValidationError as error:
            problem = error.errors()[0]
            raise ConfigurationError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
        self._check_arguments()
        self._reloader = self._build_reloader() if self.reload else None
        self._engine = self._build_engine()
        self._writer = None if self.trace_to is None else writer_for(self.trace_to)
        self._explorer = Explorer(self.explore, self.on_explored, self._writer, self.telemetry) if self.explore else None
        if self.telemetry is not None and self._writer is not None:
            self.telemetry.watch(self._writer)

    # Results

    async def arun(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        seed: int | None = None,
        **options: Any,
    ) -> GuardResult:
        """Conduct one request and give its whole record; an abstention is a result, not an error.

        Args:
            input: a string (one user turn), messages or a prompt value.
            config: its callbacks see one run, without candidate texts.
            seed: overrides the guard's seed for this request.
            options: call options for the generator (``stop``, ``tools``, ...).

        Raises:
            InputError: the prompt is empty or unreadable.
            GenerationError: not one draw arrived.
        """
        messages = as_messages(input)
        if not config:
            return await self._conduct(messages, seed, options)
        manager: AsyncCallbackManager = get_async_callback_manager_for_config(config)
        run = await manager.on_chain_start({}, {"messages": len(messages)}, name="BestOfMiniN.run")
        try:
            result = await self._conduct(messages, seed, options, run, config)
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end(result.metadata())
        return result

    def run(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        seed: int | None = None,
        **options: Any,
    ) -> GuardResult:
        """``arun`` for sync code; it works inside a running event loop too."""
        return run_sync(lambda: self.arun(input, config, seed=seed, **options))

    # Messages

    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """The served answer, or what ``on_abstain`` says."""
        return await self._acall_with_config(self._answer, input, config, run_type="chain", **kwargs)

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """``ainvoke`` for sync code; it works inside a running event loop too."""
        return self._call_with_config(self._answer_sync, input, config, run_type="chain", **kwargs)

    def _answer_sync(self, input: LanguageModelInput, run_manager: Any, config: RunnableConfig, **options: Any) -> AIMessage:
        return run_sync(lambda: self._answer(input, run_manager=run_manager, config=config, **options))

    async def _answer(self, input: LanguageModelInput, run_manager: Any, config: RunnableConfig, **options: Any) -> AIMessage:
        result = await self._conduct(as_messages(input), options.pop("seed", None), options, run_manager, config)
        if result.message is not None:
            return stamped(result.message, result)
        return await self._abstain(input, result, patch_config(config, callbacks=run_manager.get_child()))

    async def _abstain(self, original: LanguageModelInput, result: GuardResult, config: RunnableConfig) -> AIMessage:
        if self.on_abstain == "error":
            # Not chained: what a scorer raises may quote the candidate, and tracers keep whole tracebacks.
            raise abstention(result)
        if self.on_abstain == "message":
            return stamped(AIMessage(self.abstain_message), result)
        if isinstance(self.on_abstain, Runnable):
            answer = await self.on_abstain.ainvoke(original, config)
        else:
            answer = self.on_abstain(result)
            answer = await answer if inspect.isawaitable(answer) else answer
        return stamped(_fallback_message(answer), result, fallback=True)

    async def _conduct(
        self,
        messages: Sequence[BaseMessage],
        seed: int | None,
        options: dict[str, Any],
        run_manager: Any = None,
        config: RunnableConfig | None = None,
    ) -> GuardResult:
        engine = self._live()
        observer = observer_for(run_manager, self.trace_candidates, engine.policy if self.progress else None, config)
        seed = self.seed if seed is None else seed
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise InputError(f"seed= must be an integer, not {seed!r}")
        seed = random.getrandbits(62) if seed is None else seed
        result = self._finalize(await self._run(engine, messages, seed, options, observer))
        if self.budget is not None and not result.usage:
            logger.warning("the generator reports no tokens: budget= cannot end a request")
        if self._explorer is None and self._writer is None:
            return result
        return self._record(RequestRecord(result, messages, options, engine, group_of(run_manager, config), time.time()))

    def _live(self) -> Engine:
        """The engine for a request that begins now; a request keeps it to its end."""
        if self._reloader is not None:
            self._reloader.look()
        return self._engine

    async def _run(
        self, engine: Engine, messages: Sequence[BaseMessage], seed: int, options: dict[str, Any], observer: Observer | None
    ) -> GuardResult:
        # Not of the seeded kind: two requests of one id would be one row of a log.
        name = secrets.token_hex(16)
        if self.telemetry is None:
            return await engine.run(messages, seed=seed, options=options, observer=observer, request_id=name)
        with self.telemetry.request(engine.policy) as monitor:
            both = Observers(observer, monitor)
            result = await engine.run(messages, seed=seed, options=options, observer=both, request_id=name)
            monitor.decided(self._finalize(result))
            return result

    def _finalize(self, result: GuardResult) -> GuardResult:
        """The result as it is recorded and given out."""
        return result

    def _record(self, request: RequestRecord) -> GuardResult:
        """Explore the request or have its trace written; the result, which names its row."""
        if self._writer is not None:
            request = replace(request, result=replace(request.result, traced=True))
        explored = self._explorer is not None and self._explorer.consider(request)
        if self._writer is not None and not explored:
            self._writer.record(request)
        return request.result

    # What happens in the background

    @property
    def exploration(self) -> ExplorationCost:
        """What ``explore`` has cost so far."""
        return ExplorationCost() if self._explorer is None else self._explorer.cost

    async def aflush(self) -> None:
        """Return once the trace of every request that is over is in its file; explored ones follow when they are complete."""
        if self._writer is not None:
            await self._writer.aflush()

    def flush(self) -> None:
        """``aflush`` for sync code."""
        if self._writer is not None:
            self._writer.flush()

    async def afinish(self) -> None:
        """Wait for what is being explored, then flush. Await it before the event loop ends, which cuts exploring short."""
        if self._explorer is not None:
            await self._explorer.background.afinish()
        await self.aflush()

    def finish(self, timeout: float | None = None) -> None:
        """``afinish`` for sync code; it waits for what async calls began too, so call it from another thread than theirs."""
        if self._explorer is not None:
            self._explorer.background.finish(timeout)
        self.flush()

    # Construction

    def _check_arguments(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise ConfigurationError(f"timeout must be a positive number of seconds, not {self.timeout}")
        if isinstance(self.max_concurrency, int) and self.max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency must be 1 or more, not {self.max_concurrency}")
        if not 0 <= self.explore <= 1:
            raise ConfigurationError(f"explore is a share of requests between 0 and 1, not {self.explore}")
        if self.telemetry is not None and not callable(getattr(self.telemetry, "request", None)):
            raise ConfigurationError("telemetry is bonmini_guard.adapters.telemetry.OpenTelemetry(), or another Monitor")
        named = isinstance(self.on_abstain, str) and self.on_abstain in ("error", "message")
        if not named and not isinstance(self.on_abstain, Runnable) and not callable(self.on_abstain):
            raise ConfigurationError(f"on_abstain is 'error', 'message', a Runnable or a callable, not {self.on_abstain!r}")

    def _build_reloader(self) -> Reloader[Engine]:
        if not isinstance(self.profile, str | os.PathLike):
            raise ConfigurationError("reload= follows a file: pass profile= as its path")
        interval = DEFAULT_INTERVAL if self.reload is True else float(self.reload)
        tell = bool if self.telemetry is None else self.telemetry.reloaded
        return Reloader(self.profile, interval, lambda: self._build_engine(self._engine), self._adopt, tell)

    def _adopt(self, engine: Engine) -> bool:
        changed = engine != self._engine
        self._engine = engine
        return changed

    def _build_engine(self, current: Engine | None = None) -> Engine:
        profile = load_profile(self.profile)
        policy = build_policy(profile, {name: getattr(self, name) for name in SHAPE})
        generator, scorer = as_generator(self.generator), as_scorer(self.reward_model)
        if current is not None:
            generator, scorer = current.generator, current.scorer
            if policy.mode != current.policy.mode:
                raise ProfileError(f"its mode is {policy.mode!r}, the guard's {current.policy.mode!r}: restart to change it")
        check_parts(policy, profile, generator, scorer, self.strict)
        return Engine(
            generator,
            scorer,
            with_budget(policy, self.budget, profile, self.strict),
            limiter=build_limiter(self.max_concurrency) if current is None else current.limiter,
            timeout=self.timeout,
            transform=None if profile is None else profile.score_transform,
            profile=profile_name(self.profile),
            has_zero=has_zero(scorer, profile),
        )


def stamped(message: AIMessage, result: GuardResult, fallback: bool = False) -> AIMessage:
    """A copy that carries the decision and the tokens of all draws (of the fallback too); the original stays as it was."""
    about = result.metadata()
    usage: Any = dict(result.usage) or None
    if fallback:
        about |= {"decision": "fallback", "score": None, "raw_score": None, "acceptance_probability": None}
        usage = add_usage(_usage(result), message.usage_metadata)
    metadata = {**message.response_metadata, "bonmini_guard": about}
    return message.model_copy(update={"response_metadata": metadata, "usage_metadata": usage or None})


def _usage(result: GuardResult) -> UsageMetadata | None:
    return UsageMetadata(**result.usage) if result.usage else None  # type: ignore[typeddict-item]


def _fallback_message(answer: Any) -> AIMessage:
    if isinstance(answer, AIMessage):
        return answer
    if isinstance(answer, str):
        return AIMessage(answer)
    raise ConfigurationError(f"on_abstain gave a {type(answer).__name__}: it must give an AIMessage or a string")
