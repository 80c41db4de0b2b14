"""Agent middleware: best of mini-N around the model calls of an agent made with ``langchain.agents.create_agent``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Annotated, Any, Literal, NotRequired

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

from bonmini_guard.adapters.agent_calls import AgentCall, CallScorer
from bonmini_guard.chat_model import ChatBestOfMiniN
from bonmini_guard.errors import ConfigurationError, MissingExtraError, NoAcceptableResponse, abstention
from bonmini_guard.guard import ABSTAIN_MESSAGE, BestOfMiniN, stamped
from bonmini_guard.profile import GuardProfile
from bonmini_guard.protocols import DrawRequest
from bonmini_guard.result import GuardResult
from bonmini_guard.scorers import as_scorer
from bonmini_guard.settings import check_fingerprints, load_profile
from bonmini_guard.structured import StructuredGuard

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ContextT,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
        OmitFromSchema,
        ResponseT,
    )
    from langgraph.types import Command
except ImportError as error:
    raise MissingExtraError("langchain", "agents") from error

OnAbstain = Literal["error", "continue"] | Callable[[NoAcceptableResponse], Any]

#: The model call that the current context draws for.
_CALL: ContextVar[AgentCall | None] = ContextVar("bonmini_guard_agent_call", default=None)


class GuardedState(AgentState[ResponseT]):
    """An agent's state with the guard's last decision.

    Attributes:
        bonmini_guard: what the last guarded message carries as ``response_metadata["bonmini_guard"]``; no text.
    """

    bonmini_guard: NotRequired[Annotated[dict[str, Any], OmitFromSchema(input=True, output=False)]]


class BestOfMiniNMiddleware(AgentMiddleware[GuardedState[ResponseT], ContextT, ResponseT]):
    """Middleware that draws every answer of an agent's model several times and lets only a good enough one through.

    It calls the rest of the stack (the middleware listed after it, and the model) concurrently, in loops with an early exit,
    as :class:`~bonmini_guard.BestOfMiniN` does. Middleware listed before it sees one model call.

    What is drawn runs detached: callbacks, streams and tracers see one chat model run with the served text, and under it one run
    for each draw, without text. Not caught, but passed on at once, with everything else cancelled: interrupts and parent commands
    (``GraphBubbleUp``). An interrupt raised behind this middleware is raised by every draw, so ask people in front of it. State
    updates (``Command``) of middleware listed after it are dropped, since rejected draws make them too.

    Examples:
        !!! example "Guardrail on final answers"

            ```python
            from langchain.agents import create_agent
            from bonmini_guard import RewardModel
            from bonmini_guard.adapters.agents import BestOfMiniNMiddleware

            guard = BestOfMiniNMiddleware(reward_model=RewardModel.load("my-reward-model"), profile="guardrail.json")
            agent = create_agent(model, tools=[search], middleware=[guard])
            ```

        !!! example "One draw to see whether the turn calls a tool, then loops of four"

            ```python
            guard = BestOfMiniNMiddleware(reward_model=reward_model, schedule=[1, 3, 4])
            ```

        !!! example "Another model when the guard abstains"

            ```python
            middleware = [ModelFallbackMiddleware(stronger_model), guard]
            ```
    """

    state_schema = GuardedState  # type: ignore[assignment]

    def __init__(
        self,
        *,
        reward_model: Any,
        profile: Any = None,
        guard_tool_calls: bool = False,
        on_abstain: OnAbstain = "error",
        abstain_message: str = ABSTAIN_MESSAGE,
        seed_argument: str | None = None,
        **settings: Any,
    ) -> None:
        """Initialize `BestOfMiniNMiddleware`.

        Args:
            reward_model: A ``RewardModel``, any ``Scorer``, or a callable ``(messages, candidates) -> list of scores``, sync
                or async. The messages are the system message and the conversation so far, with tool calls and their results.
            profile: A path or a ``GuardProfile``, as for ``BestOfMiniN``.
            guard_tool_calls: Which model calls are guarded.

                - `False`: Final answers only. The first draw that arrives intact, in order of drawing, decides whether the
                    turn calls tools, as it would without a guard. If so it is served as it is, unscored, and the others are
                    cancelled; otherwise tool calls among the other draws do not pass.
                - `True`: Tool calls too; the reward model must be able to judge them.

                An answer in the ``response_format`` is a final answer. One that cannot be parsed does not pass.
            on_abstain: Behavior when nothing passed.

                Options:

                - `'error'`: Raise ``NoAcceptableResponse``, stopping agent execution; middleware listed before this one
                    may catch it.
                - `'continue'`: Return an ``AIMessage`` with ``abstain_message``.
                - **Custom callable:** Function that takes the ``NoAcceptableResponse`` and returns a string or an
                    ``AIMessage``, outside any promise. May be async, and may ``interrupt`` to ask a person.
            abstain_message: The text for `'continue'`.
            seed_argument: Name of the model setting that takes each draw's seed (often ``"seed"``); `None` sends none.
            settings: All other arguments of ``BestOfMiniN``: ``mode``, ``mini_n``, ``max_loops``, ``schedule``,
                ``threshold``, ``exit``, ``timeout``, ``max_concurrency``, ``seed``, ``strict``, ``progress``, ...

        Raises:
            ConfigurationError: An argument is wrong, or arguments contradict each other.
            ProfileError: The profile is malformed, or was calibrated for other parts. The model's part is checked when the
                agent first calls it.
        """
        super().__init__()
        self.tools = []  # No additional tools registered by this middleware
        loaded = load_profile(profile)
        self._expected = None if loaded is None else loaded.fingerprints.get("generator")
        self._profile = loaded
        self._strict = settings.get("strict", True)
        self._verified: set[str] = set()
        self._judge_tool_calls = guard_tool_calls
        self._seed_argument = seed_argument
        self._chat = _AgentModel(
            name="BestOfMiniNMiddleware",
            generator=_HandlerDraws(self._expected),
            reward_model=CallScorer(as_scorer(reward_model), _current),
            profile=profile,
            on_abstain=_core_spelling(on_abstain),
            abstain_message=abstain_message,
            **settings,
        )

    @property
    def guard(self) -> BestOfMiniN:
        """The guard behind this middleware: for waiting on its traces (``await middleware.guard.afinish()``), and its counters."""
        return self._chat.guard

    def wrap_model_call(
        self, request: ModelRequest[ContextT], handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]]
    ) -> ExtendedModelResponse[ResponseT]:
        """Draw in threads, score, and return the winner.

        Threads cannot be cancelled: a draw that is no longer needed runs to its end, and nobody is told what it said.

        Args:
            request: Model request with model, messages, state, and runtime.
            handler: Callable to execute the model; it is called once for each draw, from several threads.

        Raises:
            NoAcceptableResponse: Nothing passed, and ``on_abstain`` is `'error'`.
            GenerationError: Not one draw arrived.
        """

        async def ask(draw: ModelRequest[ContextT]) -> ModelResponse[ResponseT]:
            return await asyncio.to_thread(handler, draw)

        call = self._call(request, ask)
        token = _CALL.set(call)
        try:
            message = self._chat.invoke(call.messages)
        finally:
            _CALL.reset(token)
        return _response(call, message, handler)

    async def awrap_model_call(
        self, request: ModelRequest[ContextT], handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]]
    ) -> ExtendedModelResponse[ResponseT]:
        """Draw concurrently, score, cancel what is no longer needed, and return the winner.

        Args:
            request: Model request with model, messages, state, and runtime.
            handler: Async callable to execute the model; it is called once for each draw.

        Raises:
            NoAcceptableResponse: Nothing passed, and ``on_abstain`` is `'error'`.
            GenerationError: Not one draw arrived.
        """
        call = self._call(request, handler)
        token = _CALL.set(call)
        try:
            message = await self._chat.ainvoke(call.messages)
        finally:
            _CALL.reset(token)
        return _response(call, message, handler)

    def _call(self, request: ModelRequest[Any], ask: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]) -> AgentCall:
        call = AgentCall(request, ask, self._judge_tool_calls, self._seed_argument)
        budget = self._chat.most_draws
        if budget > 1 and call.model.deterministic:
            raise ConfigurationError(
                f"the agent's model has temperature 0, so {budget} draws would be one answer {budget} times: set a positive one"
            )
        if self._profile is not None and self._expected is not None:
            self._verify(self._profile, call)
        return call

    def _verify(self, profile: GuardProfile, call: AgentCall) -> None:
        fingerprint = call.model.fingerprint()
        if fingerprint not in self._verified:
            check_fingerprints(profile, {"generator": call.model}, self._strict)
            self._verified.add(fingerprint)


class _HandlerDraws:
    """A generator whose draws are the agent's own model calls."""

    def __init__(self, expected: str | None) -> None:
        self._expected = expected

    @property
    def chat_model(self) -> Any:
        """The model of the current call."""
        call = _CALL.get()
        return None if call is None else call.model.chat_model

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer of the agent's model."""
        return await _current().draw(request)

    def fingerprint(self) -> str | None:
        """That of the current call's model. Outside a call the profile's own, for there is no model yet to compare."""
        call = _CALL.get()
        return self._expected if call is None else call.model.fingerprint()


class _AgentGuard(StructuredGuard):
    """A guard that a draw can end: by an interrupt, or by calling tools where only final answers are guarded."""

    async def _answer(self, input: LanguageModelInput, run_manager: Any, config: RunnableConfig, **options: Any) -> AIMessage:
        call = _current()
        ending = call.begin()
        try:
            answer = await super()._answer(input, run_manager, config, **options)
            if not call.ended_by_draw(ending):
                return answer
        except (asyncio.CancelledError, Exception):
            # Whatever became of the cancellation on its way: a scorer may have made an error of its own of it.
            if not call.ended_by_draw(ending):
                raise
        finally:
            call.close()
        if call.signal is not None:
            raise call.signal
        policy = self._engine.policy
        message, result = call.tool_turn(policy.mode, self._engine.profile)
        return stamped(message, result)

    async def _conduct(self, *arguments: Any) -> GuardResult:
        result = await super()._conduct(*arguments)
        _current().decided(result)
        return result


class _AgentModel(ChatBestOfMiniN):
    """The chat model run that callbacks see."""

    @property
    def most_draws(self) -> int:
        return self._guard._engine.policy.budget

    def _guard_kind(self) -> type[BestOfMiniN]:
        return _AgentGuard


def _current() -> AgentCall:
    call = _CALL.get()
    if call is None:
        raise RuntimeError("this guard draws only inside an agent's model call")
    return call


def _core_spelling(on_abstain: Any) -> Any:
    """LangChain's ``on_failure`` spelling in the guard's."""
    if on_abstain in ("error", "continue"):
        return "message" if on_abstain == "continue" else "error"
    if not callable(on_abstain):
        raise ConfigurationError(
            f"on_abstain is 'error', 'continue' or a callable, not {on_abstain!r}; for another model list "
            "ModelFallbackMiddleware before this one"
        )

    async def tell(result: GuardResult) -> Any:
        with _current().inside():
            answer = on_abstain(abstention(result))
            return await answer if inspect.isawaitable(answer) else answer

    return tell


def _response(call: AgentCall, message: AIMessage, handler: Callable[..., Any]) -> ExtendedModelResponse[Any]:
    _drop_updates(handler)
    command: Command[Any] = Command(update={"bonmini_guard": message.response_metadata["bonmini_guard"]})
    return ExtendedModelResponse(model_response=call.response(message), command=command)


def _drop_updates(handler: Callable[..., Any]) -> None:
    """Forget the state updates of inner middleware: create_agent would apply those of rejected draws too."""
    # They gather in a list that the handler closes over (langchain 1.4.7); a plain handler has none.
    names = getattr(getattr(handler, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(handler, "__closure__", None) or (), strict=False):
        if name == "accumulated_commands":
            cell.cell_contents.clear()
