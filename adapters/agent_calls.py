"""One guarded model call of an agent: what its draws are, what they gave, and what a draw may end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config

from bonmini_guard.adapters.langchain import LangChainGenerator
from bonmini_guard.detach import langsmith_set
from bonmini_guard.errors import MissingExtraError
from bonmini_guard.policy import Mode
from bonmini_guard.protocols import DrawRequest, Scorer
from bonmini_guard.result import Candidate, GuardResult, Timings
from bonmini_guard.structured import ValidatingScorer
from bonmini_guard.usage import total_usage

try:
    from langchain.agents.middleware.types import ModelRequest, ModelResponse
    from langchain.agents.structured_output import StructuredOutputError
    from langgraph.errors import GraphBubbleUp
    from langgraph.runtime import Runtime
except ImportError as error:
    raise MissingExtraError("langchain", "agents") from error

#: LangGraph hands these down to graphs that run inside a node: through them a draw's graph would stream, and save its state.
_HANDED_DOWN = ("__pregel_stream", "__pregel_checkpointer")


class AgentCall:
    """The draws of one model call, and their responses.

    Args:
        request: what the agent asks; each draw asks the same of a copy of its model without callbacks.
        ask: calls the rest of the stack.
        judge_tool_calls: whether tool calls are guarded too.
        seed_argument: name of the model setting that takes a draw's seed.

    Attributes:
        model: draws through the request's model, quietly.
        messages: the conversation that the reward model sees.
        signal: an interrupt or parent command that a draw raised.
    """

    def __init__(
        self,
        request: ModelRequest[Any],
        ask: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
        judge_tool_calls: bool,
        seed_argument: str | None,
    ) -> None:
        self.model = LangChainGenerator(request.model, options=request.model_settings)
        self.messages: list[BaseMessage] = [*filter(None, [request.system_message]), *request.messages]
        self.signal: GraphBubbleUp | None = None
        self._request = _detached_request(request, self.model.chat_model)
        self._ask = ask
        self._judge_tool_calls = judge_tool_calls
        self._seed_argument = seed_argument
        self._config = _detached_config(var_child_runnable_config.get())
        self._task: asyncio.Task[Any] | None = None
        self._begun = perf_counter()
        self._asked = 0
        self._ended = False
        self._winner: int | None = None
        self._responses: dict[int, ModelResponse[Any] | StructuredOutputError] = {}
        self._kinds: dict[int, str] = {}
        # By identity, and kept, so that no other message takes the identity of one that is gone.
        self._unjudged: dict[int, AIMessage] = {}

    # The request

    def begin(self) -> int:
        """The current task conducts the request; its count of cancellations so far."""
        self._task = asyncio.current_task()
        return 0 if self._task is None else self._task.cancelling()

    def decided(self, result: GuardResult) -> None:
        """The engine has decided: draws can end nothing any more."""
        self._task = None
        self._winner = result.selected.index if result.served and result.selected is not None else None

    def close(self) -> None:
        """The request is over; draws made later (exploring) are only scored."""
        self._task = None

    def ended_by_draw(self, cancellations: int) -> bool:
        """Whether a cancellation of the request came from one of its draws, and from nobody else."""
        task = asyncio.current_task()
        return self._ended and task is not None and task.uncancel() <= cancellations

    # Draws

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer.

        Raises:
            GraphBubbleUp: the draw interrupts the graph; the whole request ends with it.
            TypeError: the rest of the stack gave no AIMessage.
        """
        self._asked += 1
        try:
            with self.inside():
                message, response = await self._respond(request)
        except GraphBubbleUp as signal:
            self._end(signal=signal)
            raise
        except Exception:
            self._finalize(request.index, "failed")
            raise
        kind = _kind(message, response, self._request.response_format is not None)
        if kind == "invalid" or (kind == "tools" and not self._judge_tool_calls):
            self._unjudged[id(message)] = message
        if self._task is not None:
            self._responses[request.index] = response
            self._finalize(request.index, kind)
        return message

    async def _respond(self, request: DrawRequest) -> tuple[AIMessage, ModelResponse[Any] | StructuredOutputError]:
        asked = self._request
        if self._seed_argument is not None:
            asked = asked.override(model_settings={**asked.model_settings, self._seed_argument: request.seed})
        with langsmith_set(False):
            try:
                response = await self._ask(asked)
            except StructuredOutputError as error:
                # A drawn and billed answer; the error's own text quotes it.
                return error.ai_message, error
        return _answer_of(response), response

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Inside the agent's node, so that interrupts work, but heard by nobody."""
        token = var_child_runnable_config.set(self._config)
        try:
            yield
        finally:
            var_child_runnable_config.reset(token)

    def judged(self, message: AIMessage) -> bool:
        """Whether a draw is to be scored."""
        return id(message) not in self._unjudged

    def _finalize(self, index: int, kind: str) -> None:
        """Where only final answers are guarded, the first intact draw decides what the turn is."""
        self._kinds[index] = kind
        if self._judge_tool_calls:
            return
        first = next((i for i in range(len(self._kinds) + 1) if self._kinds.get(i) != "failed"), 0)
        if self._kinds.get(first) == "tools":
            self._end(winner=first)

    def _end(self, *, signal: GraphBubbleUp | None = None, winner: int | None = None) -> None:
        """End the request at once; its task turns the cancellation into the answer."""
        if self._task is not None and not self._ended:
            self._ended, self.signal, self._winner = True, signal, winner
            self._task.cancel()

    # Outcomes

    def tool_turn(self, mode: Mode, profile: str | None) -> tuple[AIMessage, GuardResult]:
        """A turn that calls tools and is not guarded: the served message, and its record with the tokens of all draws."""
        draws = max(self._asked, *(index + 1 for index in self._responses))
        candidates = tuple(Candidate(index, 0, 0, self._message(index)) for index in range(draws))
        selected, message = next((c, c.message) for c in candidates if c.index == self._winner and c.message is not None)
        record = GuardResult(
            mode=mode,
            decision="unscored",
            reason="tool_call",
            selected=selected,
            candidates=candidates,
            loops=1,
            usage=total_usage(candidates),
            timings=Timings(perf_counter() - self._begun, 0.0),
            threshold=None,
            seed=0,
            profile=profile,
        )
        return message, record

    def response(self, message: AIMessage) -> ModelResponse[Any]:
        """The winner's response with the message that is served for it; an abstention's message alone.

        Raises:
            StructuredOutputError: an accelerator had nothing but answers that cannot be parsed; as without a guard.
        """
        if self._winner is None:
            return ModelResponse(result=[message])
        response = self._responses[self._winner]
        if isinstance(response, StructuredOutputError):
            raise response
        drawn = _answer_of(response)
        result = [message if part is drawn else part for part in response.result]
        return ModelResponse(result=result, structured_response=response.structured_response)

    def _message(self, index: int) -> AIMessage | None:
        response = self._responses.get(index)
        if isinstance(response, StructuredOutputError):
            return response.ai_message
        return None if response is None else _answer_of(response)


class CallScorer(ValidatingScorer):
    """Scores the draws of the current call that are to be judged; the others get no score.

    Args:
        scorer: scores them.
        current: the current call.
    """

    def __init__(self, scorer: Scorer, current: Callable[[], AgentCall]) -> None:
        self.inner = scorer
        self._current = current

    async def valid(self, candidate: AIMessage) -> bool:
        """Whether the candidate is to be judged."""
        return self._current().judged(candidate)


def _answer_of(response: ModelResponse[Any]) -> AIMessage:
    for message in response.result:
        if isinstance(message, AIMessage):
            return message
    raise TypeError("the model call gave no AIMessage")


def _kind(message: AIMessage, response: ModelResponse[Any] | StructuredOutputError, formatted: bool) -> str:
    """What a draw is: an answer, tool calls, or invalid (tool calls or structured output that cannot be parsed)."""
    if isinstance(response, StructuredOutputError) or message.invalid_tool_calls:
        return "invalid"
    if response.structured_response is not None or not message.tool_calls:
        return "answer"
    repaired = formatted and any(isinstance(part, ToolMessage) for part in response.result)
    return "invalid" if repaired else "tools"


def _detached_request(request: ModelRequest[Any], model: Any) -> ModelRequest[Any]:
    changes: dict[str, Any] = {"model": model}
    if isinstance(request.runtime, Runtime):
        changes["runtime"] = request.runtime.override(stream_writer=_say_nothing)
    return request.override(**changes)


def _detached_config(config: RunnableConfig | None) -> RunnableConfig | None:
    """The node's config for draws: without callbacks, and without ways to stream or to save."""
    if config is None:
        return None
    configurable = {key: value for key, value in config.get("configurable", {}).items() if key not in _HANDED_DOWN}
    for key, value in configurable.items():
        if isinstance(value, Runtime):
            configurable[key] = value.override(stream_writer=_say_nothing)
    return {**config, "callbacks": None, "tags": ["nostream"], "configurable": configurable}


def _say_nothing(_: Any) -> None:
    """A stream writer of nobody."""
