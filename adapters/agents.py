"""Agent middleware: best of mini-N around the model calls of an agent made with ``langchain.agents.create_agent``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Annotated, Any, Literal, NotRequired, Unpack

from langchain_core.messages import AIMessage

from bonmini_guard.adapters.agent_calls import AgentCall, settings_of
from bonmini_guard.engine.fingerprints import as_text
from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.errors import BonMiniGuardError, ConfigurationError, NoAcceptableResponse, abstention, needing
from bonmini_guard.forks import Lock
from bonmini_guard.runnables.chat_model import ChatBestOfMiniN
from bonmini_guard.runnables.conduct import Guard, of_a_fallback
from bonmini_guard.runnables.options import CommonOptions, GuardOptions
from bonmini_guard.runnables.settings import load_profile, refuse_greedy
from bonmini_guard.validation import check_names

with needing("agents"):
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

#: Seconds for which a refused request is remembered, and how many are: another model is asked at once, or never.
REMEMBERED, MOST_REMEMBERED = 60.0, 64

OnAbstain = Literal["error", "continue"] | Callable[[NoAcceptableResponse], Any]


class GuardedState(AgentState[ResponseT]):
    """An agent's state with the guard's last decision.

    Attributes:
        bonmini_guard: what the last guarded message carries as ``response_metadata["bonmini_guard"]``; no text.
    """

    bonmini_guard: NotRequired[Annotated[dict[str, Any], OmitFromSchema(input=True, output=False)]]


class BestOfMiniNMiddleware(AgentMiddleware[GuardedState[ResponseT], ContextT, ResponseT]):
    """Middleware that draws every answer of an agent's model several times and lets only a good enough one through.

    What is drawn runs detached: callbacks, streams and tracers see one chat model run with the served text, and under it one run
    for each draw, without text. How it goes with other middleware, interrupts and state updates: docs/langchain.md.
    """

    state_schema = GuardedState  # type: ignore[assignment]

    def __init__(
        self,
        *,
        reward_model: Any,
        on_abstain: OnAbstain = "error",
        seed_argument: str | None = None,
        **options: Unpack[CommonOptions],
    ) -> None:
        """Initialize `BestOfMiniNMiddleware`.

        Args:
            reward_model: A ``RewardModel``, any ``Scorer``, or a callable ``(messages, candidates) -> list of scores``, sync
                or async. The messages are the system message and the conversation so far, with tool calls and their results.
            on_abstain: When nothing passed, ``"error"`` raises ``NoAcceptableResponse``, ``"continue"`` returns an ``AIMessage``
                with the text ``abstain_message``, and a callable (sync or async) takes the error and returns a string or an
                ``AIMessage``, outside any promise.
            seed_argument: Name of the model setting that takes each draw's seed (often ``"seed"``); `None` sends none.
            options: All other options of ``BestOfMiniN``; see ``bonmini_guard.runnables.options.CommonOptions``.

                An answer in the ``response_format`` is a final answer. One that cannot be parsed does not pass.

        Raises:
            ConfigurationError: An argument is wrong, or arguments contradict each other.
            ProfileError: The profile is malformed, or was calibrated for other parts. The model's part is checked when the
                agent first calls it.
        """
        if "generator" in options:
            raise ConfigurationError("generator= is the agent's own model here: leave it out, and give create_agent that model")
        check_names(options, {*GuardOptions.__annotations__})
        super().__init__()
        self.tools = []  # No additional tools registered by this middleware
        profile, self._refusals = load_profile(options.get("profile")), _Refusals()
        self._seed_argument = seed_argument
        self._chat = ChatBestOfMiniN(
            name="BestOfMiniNMiddleware",
            generator=_ModelToCome(None if profile is None else as_text(profile.fingerprints.get("generator"))),
            reward_model=reward_model,
            on_abstain=_core_spelling(on_abstain),
            **options,
        )

    @property
    def guard(self) -> Guard:
        """The guard behind this middleware: for waiting on its traces (``await middleware.guard.afinish()``), and its counters."""
        return self._chat.guard

    def wrap_model_call(
        self, request: ModelRequest[ContextT], handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]]
    ) -> ExtendedModelResponse[ResponseT]:
        """Draw in threads, which run to their ends whatever becomes of them, score, and return the winner.

        Raises:
            NoAcceptableResponse: Nothing passed, and ``on_abstain`` is `'error'`.
            GenerationError: Not one draw arrived.
        """

        async def ask(draw: ModelRequest[ContextT]) -> ModelResponse[ResponseT]:
            return await asyncio.to_thread(handler, draw)

        call, chat = self._call(request, ask)
        with self._refusals.noted(request):
            message = chat.invoke(call.messages)
        return _response(call, message, handler)

    async def awrap_model_call(
        self, request: ModelRequest[ContextT], handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]]
    ) -> ExtendedModelResponse[ResponseT]:
        """As :meth:`wrap_model_call`, on the event loop: what is no longer needed is cancelled."""
        call, chat = self._call(request, handler)
        with self._refusals.noted(request):
            message = await chat.ainvoke(call.messages)
        return _response(call, message, handler)

    def _call(
        self, request: ModelRequest[Any], ask: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> tuple[AgentCall, ChatBestOfMiniN]:
        """A call, and the chat model that conducts it."""
        state: Any = request.state
        told, last = state.get("bonmini_guard"), request.messages[-1:]
        ours = bool(last) and told is not None and last[0].response_metadata.get("bonmini_guard") == told
        if ours and told["decision"] in ("abstained", "fallback"):
            raise ConfigurationError(
                "create_agent asks again after an abstention, for a middleware has an after_model hook: use on_abstain='error'"
            )
        call = AgentCall(request, ask, self._seed_argument, not self._refusals.of_another_model(request))
        refuse_greedy(self.guard.engine.policy, call.model.deterministic, "the agent's model")
        return call, self._chat.conducted_by(partial(call.conduct, self.guard), call, call.asked)


class _ModelToCome:
    """Stands in for the agent's model, which only its calls bring; its fingerprint is the one that the profile expects."""

    def __init__(self, expected: str | None) -> None:
        self._expected = expected

    async def draw(self, request: DrawRequest) -> AIMessage:
        raise RuntimeError("this guard draws only inside an agent's model call")

    def fingerprint(self) -> str | None:
        return self._expected


def _core_spelling(on_abstain: Any) -> Any:
    """LangChain's ``on_failure`` spelling in the guard's."""
    if on_abstain in ("error", "continue"):
        return "message" if on_abstain == "continue" else "error"
    if not callable(on_abstain):
        raise ConfigurationError(
            f"on_abstain is 'error', 'continue' or a callable, not {on_abstain!r}; for another model list "
            "ModelFallbackMiddleware before this one"
        )
    return partial(_tell, on_abstain)


def _tell(on_abstain: Callable[[NoAcceptableResponse], Any], result: Any) -> Any:
    return on_abstain(abstention(result))


class _Refusals:
    """Requests that the guard has just refused to answer, and of which model: middleware in front may ask another one the same."""

    def __init__(self) -> None:
        self._lock = Lock()
        # By identity of the agent's state, which is kept so that no other takes its place, for as long as somebody may ask.
        self._noted: dict[int, tuple[Any, Any, float]] = {}

    def __reduce__(self) -> tuple[type[_Refusals], tuple[()]]:
        return _Refusals, ()  # by place in memory they are this process's

    @contextmanager
    def noted(self, request: ModelRequest[Any]) -> Iterator[None]:
        """Note a request that ends without an answer."""
        try:
            yield
        except BonMiniGuardError:
            with self._lock.held:
                recent = [(name, each) for name, each in self._noted.items() if each[2] > monotonic() - REMEMBERED]
                told = (request.state, settings_of(request.model), monotonic())
                self._noted = dict(recent[1 - MOST_REMEMBERED :]) | {id(request.state): told}
            raise

    def of_another_model(self, request: ModelRequest[Any]) -> bool:
        """Whether another model is asked what the guard has refused to answer: its profile does not speak of that one."""
        refused = self._noted.get(id(request.state))
        return refused is not None and refused[1] != settings_of(request.model)


def _response(call: AgentCall, message: AIMessage, handler: Callable[..., Any]) -> ExtendedModelResponse[Any]:
    _drop_updates(handler)
    about = message.response_metadata["bonmini_guard"]
    if not call.promised and about["decision"] in ("accepted", "best_effort"):
        about = of_a_fallback(about)
        message = message.model_copy(update={"response_metadata": {**message.response_metadata, "bonmini_guard": about}})
    end = {"jump_to": "end"} if call.unanswered and not message.tool_calls else {}
    command: Command[Any] = Command(update={"bonmini_guard": about, **end})
    return ExtendedModelResponse(model_response=call.response(message), command=command)


def _drop_updates(handler: Callable[..., Any]) -> None:
    """Forget the state updates of inner middleware: create_agent would apply those of rejected draws too."""
    # They gather in a list that the handler closes over (langchain 1.4.7); a plain handler has none.
    names = getattr(getattr(handler, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(handler, "__closure__", None) or (), strict=False):
        if name == "accumulated_commands":
            cell.cell_contents.clear()
