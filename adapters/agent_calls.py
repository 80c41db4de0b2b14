"""One guarded model call of an agent: what its draws are, what they gave, and what a draw may end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from bonmini_guard.adapters.describing import NOT_SAID
from bonmini_guard.adapters.langchain import LangChainGenerator, of_one, with_settings
from bonmini_guard.engine.detach import langsmith_set, say_nothing
from bonmini_guard.engine.protocols import NO_OPTIONS, DrawRequest
from bonmini_guard.engine.result import GuardResult
from bonmini_guard.engine.snapshot import identity
from bonmini_guard.errors import needing
from bonmini_guard.runnables.conduct import Guard

with needing("agents"):
    from langchain.agents.middleware.types import ModelRequest, ModelResponse
    from langchain.agents.structured_output import StructuredOutputError
    from langgraph.runtime import Runtime


class AgentCall:
    """The draws of one model call, and their responses.

    Args:
        request: what the agent asks; each draw asks the same of a copy of its model without callbacks.
        promised: False where the profile speaks of another model: what is served is then a fallback's.

    Attributes:
        messages: the conversation that the reward model sees.
        asked: what makes two calls on one conversation different requests: a fallback model is asked the same, and decided anew.
    """

    def __init__(
        self,
        request: ModelRequest[Any],
        ask: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
        seed_argument: str | None,
        promised: bool = True,
    ) -> None:
        self.model = LangChainGenerator(request.model, seed_argument=seed_argument, options=request.model_settings)
        self.chat_model = self.model.here()
        self.messages: list[BaseMessage] = [*filter(None, [request.system_message]), *request.messages]
        detached: dict[str, Any] = {"model": self.chat_model, "model_settings": of_one(request.model_settings)}
        if isinstance(request.runtime, Runtime):
            detached["runtime"] = request.runtime.override(stream_writer=say_nothing)
        self._request = request.override(**detached)
        self.asked = {"model": settings_of(request.model), "settings": request.model_settings, "tools": [*map(str, request.tools)]}
        self.asked |= {"choice": request.tool_choice, "format": request.response_format}
        self._ask = ask
        self._seed_argument = seed_argument
        self._live, self.promised = True, promised
        self._winner: int | None = None
        self._responses: dict[int, ModelResponse[Any] | StructuredOutputError] = {}
        self._calling: set[Hashable] = set()
        self._unjudged: set[Hashable] = set()

    async def conduct(self, guard: Guard, messages: Sequence[BaseMessage], options: Mapping[str, Any], **how: Any) -> GuardResult:
        """Conduct the call; draws made later (exploring) are only scored."""
        try:
            result = await guard.conduct(messages, options, generator=self, valid=self.judged, promised=self.promised, **how)
        finally:
            self._live = False
        self._winner = result.selected.index if result.served and result.selected is not None else None
        return result

    def describe(self, options: Mapping[str, Any] = NO_OPTIONS) -> dict[str, Any]:
        """The request's model, with its settings."""
        return self.model.describe(options)

    def earlier_fingerprint(self) -> str:
        """As profiles of schema 1 have it."""
        return self.model.earlier_fingerprint()

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer; TypeError if the rest of the stack gave no AIMessage, or several."""
        message, response = await self._respond(request)
        kind = _kind(message, response, self._request.response_format is not None)
        if kind != "answer":
            (self._calling if kind == "tools" else self._unjudged).add(identity(message))
        if self._live:
            self._responses[request.index] = response
        return message

    async def _respond(self, request: DrawRequest) -> tuple[AIMessage, ModelResponse[Any] | StructuredOutputError]:
        asked = self._request
        if self._seed_argument is not None:
            settings = {**asked.model_settings, self._seed_argument: request.seed}
            model, settings = with_settings(asked.model, settings)
            asked = asked.override(model=model, model_settings=settings)
        with langsmith_set(False):
            try:
                response = await self._ask(asked)
            except StructuredOutputError as error:
                # A drawn and billed answer; the error's own text quotes it.
                return error.ai_message, error
        return _answer_of(response), response

    async def judged(self, message: AIMessage) -> bool:
        """Whether a draw can be scored."""
        return identity(message) not in self._unjudged

    def calls_tools(self, message: AIMessage) -> bool:
        """Whether a draw calls tools; calls that hold the structured output are an answer."""
        return identity(message) in self._calling

    @property
    def unanswered(self) -> bool:
        """Whether there is none of the structured output that was asked for: create_agent would ask again and again."""
        return self._winner is None and self._request.response_format is not None

    def response(self, message: AIMessage) -> ModelResponse[Any]:
        """The winner's response with the message that is served for it; an abstention's message alone.

        StructuredOutputError, as without a guard, where an accelerator had nothing but answers that cannot be parsed.
        """
        if self._winner is None:
            return ModelResponse(result=[message])
        response = self._responses[self._winner]
        if isinstance(response, StructuredOutputError):
            raise response
        drawn = _answer_of(response)
        result = [message if part is drawn else part for part in response.result]
        return ModelResponse(result=result, structured_response=response.structured_response)


def settings_of(model: Any) -> Any:
    """What tells a model from another one: built anew for each call it is the same."""
    given = getattr(model, "model_fields_set", None)
    return model if given is None else (type(model), {name: getattr(model, name) for name in sorted(given - NOT_SAID)})


def _answer_of(response: ModelResponse[Any]) -> AIMessage:
    answers = [message for message in response.result if isinstance(message, AIMessage)]
    if len(answers) != 1:  # of several the reward model would see one, and all would be served
        raise TypeError(f"the model call gave {len(answers)} AIMessages: a draw is one")
    return answers[0]


def _kind(message: AIMessage, response: ModelResponse[Any] | StructuredOutputError, formatted: bool) -> str:
    """What a draw is: an answer, tool calls, or invalid (tool calls or structured output that cannot be parsed)."""
    if isinstance(response, StructuredOutputError) or message.invalid_tool_calls:
        return "invalid"
    if response.structured_response is not None or not (formatted or message.tool_calls):
        return "answer"
    repaired = formatted and any(isinstance(part, ToolMessage) for part in response.result)
    return "tools" if message.tool_calls and not repaired else "invalid"
