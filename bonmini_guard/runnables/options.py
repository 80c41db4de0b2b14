"""The options of a guard: written once, unpacked by every face."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Required, TypedDict, cast, get_type_hints

from langchain_core.runnables import Runnable
from pydantic import BaseModel, Field, create_model

from bonmini_guard.engine.abstentions import Ledger
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.engine.result import GuardResult
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.logs.monitor import Monitor
from bonmini_guard.logs.traces import TraceWriter
from bonmini_guard.policy.budget import Budget
from bonmini_guard.policy.policy import Exit, Mode
from bonmini_guard.policy.profile import GuardProfile
from bonmini_guard.policy.select import MinimumBayesRisk, Soft
from bonmini_guard.validation import (
    Amount,
    Count,
    Draws,
    Flag,
    Integer,
    Must,
    Natural,
    Portion,
    Seconds,
    Share,
    check,
    check_names,
    is_integer,
)

OnAbstain = Annotated[
    Literal["error", "message"] | Runnable[Any, Any] | Callable[[GuardResult], Any],
    Must(
        "'error', 'message', a Runnable or a callable",
        lambda value: value in ("error", "message") if isinstance(value, str) else isinstance(value, Runnable) or callable(value),
    ),
]
Telemetry = Annotated[
    Monitor,
    Must(
        "bonmini_guard.adapters.telemetry.OpenTelemetry(), or another Monitor",
        lambda value: callable(getattr(value, "request", None)),
    ),
]


Selection = Literal["best", "soft", "mbr"] | Soft | MinimumBayesRisk
ToolTurns = Literal["text", "judge", "pass"]
Text = Annotated[str, Must("a text", lambda value: isinstance(value, str))]
InFlight = Annotated[
    int | Literal["auto"],
    Must("a positive integer or 'auto'", lambda value: value == "auto" or (is_integer(value) and value > 0)),
]


class CommonOptions(TypedDict, total=False):
    """What every face takes beside its generator and its reward model.

    Attributes:
        profile: a path or a ``GuardProfile``. It fixes mode, shape, threshold and exit, so none of these may be given with it.
        mode: "guardrail" (default) or "accelerator".
        mini_n: draws of a loop (default 4).
        max_loops: loops at most (default 8).
        schedule: draws of each loop, instead of the two above; growing ones such as [4, 28] keep latency low.
        threshold: the score at which a loop exits; one number, or one for each loop (default 0: as likely acceptable as not).
        exit: "loop" compares the best so far after each loop; "eager" serves the first draw to pass and cancels its siblings;
            "rolling" keeps draws in flight, compares as each arrives, and has no loops that wait for their longest draw.
        in_flight: draws that a rolling request keeps in flight: a number, or "auto" (default), one of 1, 2, 4, 8, 16 and 32 by
            the load; one of those that a profile was calibrated for. It or ``max_draws`` implies ``exit="rolling"``.
        max_draws: draws that a rolling request may start (default 32), instead of ``mini_n`` and ``max_loops``.
        lookahead: draws of later loops that are kept running while a loop finishes (default 0): the same decisions, sooner, for
            more draws, counted in ``draws_started``; for ``exit="loop"``.
        select: what an accelerator without a certified profile serves, of the draws that passed where some did, else of all: "best"
            (default), "soft" (at random by score, ``Soft(temperature)``) or "mbr" (most like the others, ``MinimumBayesRisk``).
        tool_turns: what is guarded of turns that call tools: "text" (a guardrail's default) what is said beside the calls, "judge"
            every draw with its calls, "pass" (an accelerator's default) nothing; see docs/langchain.md.
        question: what a decision model is asked of each answer, such as "Does the last answer state the delivery date?"; several
            (a list, or by name) must all hold. Its log-odds of yes are the score.
        criteria: what counts as yes and as no: ``{"true": ..., "false": ...}``, or such by name of the question.
        rubric: what an answer must meet, one criterion a line. The reward model is then a decision model or a chat model, which is
            asked about each; all must hold, and one that the model skips does not.
        retry_memory: seconds for which whoever asks the same again (a retry around the guard, a graph's node that runs again) gets
            the abstention that he was given, and no second chance; 0 gives one. ``run`` and ``arun`` always draw.
        abstain_message: text of the abstention message.
        timeout: seconds for the whole request, whatever generator, reward model and callbacks do (default 300); None waits for
            ever.
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
    """

    profile: str | os.PathLike[str] | GuardProfile | None
    mode: Mode | None
    mini_n: Draws | None
    max_loops: Draws | None
    schedule: Sequence[int] | None
    threshold: float | Sequence[float] | None
    exit: Exit | None
    in_flight: InFlight | None
    max_draws: Draws | None
    lookahead: Natural
    select: Selection
    tool_turns: ToolTurns | None
    question: str | Sequence[str] | Mapping[str, str] | None
    criteria: Mapping[str, Any] | None
    rubric: Text | None
    retry_memory: Amount | Ledger
    abstain_message: Text
    timeout: Seconds | None
    max_concurrency: Count | Limiter | None
    budget: Natural | Budget | None
    seed: Integer | None
    reload: bool | Amount
    strict: Flag
    explore: Share
    on_explored: Annotated[Callable[[GuardResult], Any], Must("a callable", callable)] | None
    trace_to: str | os.PathLike[str] | Callable[[dict[str, Any]], Any] | TraceWriter | None
    telemetry: Telemetry | None
    trace_candidates: Flag
    progress: Flag


class GuardOptions(CommonOptions, total=False):
    """What guards take beside their generator and their reward model: these and :class:`CommonOptions`.

    Attributes:
        on_abstain: "error" raises ``NoAcceptableResponse``; "message" gives ``abstain_message``; a Runnable gets the original
            input; a callable gets the ``GuardResult``, a sync one in a thread. The last two are outside any promise.
        on_abstain_reserve: the share of ``timeout`` that is kept for such a Runnable or callable (default 0.2). If it overruns what
            is left of ``timeout``, the abstention is raised.
    """

    on_abstain: OnAbstain
    on_abstain_reserve: Portion


class GuardArguments(GuardOptions, total=False):
    """All that ``BestOfMiniN`` takes.

    Attributes:
        generator: a LangChain chat model or LLM, or an object with an async ``draw`` (protocol ``Generator``).
        reward_model: a ``RewardModel``, the path of a checkpoint or of a scorer spec, any ``Scorer``, a callable
            ``(messages, candidates) -> list of scores``, sync or async, or a decision model with ``question=``.
        name: of the runnable, for callbacks.
    """

    generator: Required[Any]
    reward_model: Required[Any]
    name: str | None


#: Seconds for a request where nothing is said: longer than any answer that somebody waits for.
DEFAULT_TIMEOUT = 300.0

#: What a profile fixes.
SHAPE = ("mode", "mini_n", "max_loops", "schedule", "threshold", "exit", "max_draws")

#: What no call changes, either; models have no options of these names.
_DECIDED = {*SHAPE, "profile", "in_flight", "lookahead", "tool_turns", "on_abstain", "abstain_message", "max_concurrency"}

#: Of each option; None where nothing else is said.
DEFAULTS = cast(
    GuardOptions,
    dict.fromkeys(GuardOptions.__annotations__)
    | GuardOptions(
        lookahead=0,
        select="best",
        retry_memory=60.0,
        on_abstain="error",
        on_abstain_reserve=0.2,
        abstain_message="I cannot give an answer to this that is good enough.",
        timeout=DEFAULT_TIMEOUT,
        reload=False,
        strict=True,
        explore=0.0,
        trace_candidates=False,
        progress=False,
    ),
)

#: LangChain hands repr(model) to every callback: no parts in it.
_HIDDEN = {"on_abstain", "max_concurrency", "retry_memory", "on_explored", "trace_to", "telemetry"}


def completed(options: GuardOptions) -> GuardOptions:
    """The options with their defaults; ConfigurationError if one is unknown, or is not what it must be."""
    check_names(options, DEFAULTS)
    check(options, get_type_hints(GuardOptions, include_extras=True))
    return {**DEFAULTS, **options}


def chosen(arguments: Mapping[str, Any]) -> GuardOptions:
    """The options among arguments."""
    return {name: value for name, value in arguments.items() if name in DEFAULTS}  # type: ignore[return-value]


def of_a_call(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a call hands its draws, without the seed; ConfigurationError if one is an option of the guard."""
    if own := next((name for name in options if name in _DECIDED), None):
        raise ConfigurationError(f"{own}= is the guard's, and no call option: give it to the guard, or to model_copy(update=...)")
    return {name: value for name, value in options.items() if name != "seed"}


if TYPE_CHECKING:
    OptionFields = BaseModel
else:
    #: The options but the profile as pydantic fields, for the faces that LangChain wants to be pydantic models.
    OptionFields = create_model(
        "OptionFields",
        **{
            name: (Any, Field(default=default, frozen=True, repr=name not in _HIDDEN))
            for name, default in DEFAULTS.items()
            if name != "profile"
        },
    )
