"""Fakes for your own tests: a generator, a chat model and a reward model backed by plain functions. They ship, and they are kept.

Example::

    guard = BestOfMiniN(
        generator=FakeGenerator(["bad", "good"]),
        reward_model=FakeRewardModel({"bad": -1.0, "good": 2.0}),
        mode="guardrail", mini_n=2, max_loops=2,
    )
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.engine.scorers import FunctionSession
from bonmini_guard.forks import Lock


class FakeGenerator:
    """Draws what a function says.

    Args:
        source: a sequence of answers (draw i gives answer i modulo its length), a function of the
            :class:`~bonmini_guard.engine.protocols.DrawRequest`, or a function of (messages, index). Answers are strings or
            AIMessages; an exception instance as an answer is raised. Functions may be async.
        latency: seconds each draw takes; a function of the index for uneven ones.

    Attributes:
        requests: every request asked for, in order.
        cancelled: indices of the draws that were cancelled.
        deterministic: set it to True to play a generator that cannot sample.
    """

    def __init__(
        self, source: Sequence[str | AIMessage | Exception] | Callable[..., Any], latency: float | Callable[[int], float] = 0.0
    ) -> None:
        self._source = source
        self._latency = latency
        self.requests: list[DrawRequest] = []
        self.cancelled: list[int] = []
        self.deterministic = False

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer, after its latency."""
        self.requests.append(request)
        try:
            seconds = self._latency(request.index) if callable(self._latency) else self._latency
            if seconds:
                await asyncio.sleep(seconds)
            answer = await _resolve(_said(self._source, request, list(request.messages), request.index))
        except asyncio.CancelledError:
            self.cancelled.append(request.index)
            raise
        if isinstance(answer, Exception):
            raise answer
        return AIMessage(answer) if isinstance(answer, str) else answer

    def fingerprint(self) -> str:
        """A constant name."""
        return "fake-generator"


class FakeChatModel(BaseChatModel):
    """A LangChain chat model with tools that says what it is told, for agents and graphs. It streams word by word.

    Args:
        source: as for :class:`FakeGenerator`; a function of one argument gets the messages. Sync functions alone.
        latency: seconds each call takes; a function of the call's number for uneven ones.

    Attributes:
        calls: the call options of every call, in order; ``tools`` in the OpenAI form.
        cancelled: numbers of the calls that were cancelled.
        model_name: the name under which usage counters count it.
    """

    # Not shown: tracers are handed the repr of a model.
    source: Any = Field(repr=False)
    latency: Any = Field(default=0.0, repr=False)
    model_name: str = "fake-chat-model"
    #: It has no connections that belong to an event loop.
    any_loop: ClassVar[bool] = True
    calls: list[dict[str, Any]] = Field(default_factory=list, repr=False)
    cancelled: list[int] = Field(default_factory=list, repr=False)
    _lock: Any = PrivateAttr(default_factory=Lock)

    def __init__(self, source: Sequence[str | AIMessage | Exception] | Callable[..., Any], **fields: Any) -> None:
        super().__init__(source=source, **fields)

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any) -> Any:
        """Offer tools; they are written down with the call."""
        chosen = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **chosen, **kwargs)

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        number = self._number(kwargs)
        time.sleep(self._seconds(number))
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, number))])

    async def _agenerate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        number = self._number(kwargs)
        try:
            await asyncio.sleep(self._seconds(number))
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, number))])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in _words(self._generate(messages, **kwargs)):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _words(await self._agenerate(messages, **kwargs)):
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    @property
    def _llm_type(self) -> str:
        return "bonmini-guard-fake"

    def _number(self, options: dict[str, Any]) -> int:
        with self._lock.held:
            self.calls.append(options)
            return len(self.calls) - 1

    def _seconds(self, number: int) -> float:
        return float(self.latency(number) if callable(self.latency) else self.latency)

    def _answer(self, messages: list[BaseMessage], number: int) -> AIMessage:
        answer = _said(self.source, messages, messages, number)
        if isinstance(answer, Exception):
            raise answer
        message = AIMessage(answer) if isinstance(answer, str) else answer
        return message.model_copy(update={"response_metadata": {"model_name": self.model_name, **message.response_metadata}})


class FakeRewardModel:
    """Scores what a function says.

    Args:
        source: a mapping from answer text to score, a function of the answer's text, or a function of
            (messages, candidates) that returns a list. Functions may be async; what they raise, scoring raises.
        latency: seconds each batch takes.
        has_zero: whether score 0 plays the outside option.

    Attributes:
        batches: the texts of every batch scored, in order.
        open_sessions: sessions opened and not yet closed.
    """

    def __init__(self, source: Mapping[str, float] | Callable[..., Any], latency: float = 0.0, has_zero: bool = True) -> None:
        self._source = source
        self._latency = latency
        self.has_zero = has_zero
        #: What it is given are texts alone, unless its function takes messages.
        self.reads_calls = not isinstance(source, Mapping) and _parameters(source) > 1
        self.batches: list[list[str]] = []
        self.open_sessions = 0

    def session(self, messages: Sequence[BaseMessage]) -> FunctionSession:
        """A session on one prompt."""
        self.open_sessions += 1
        return FunctionSession(partial(self.score, messages), close=self._closed)

    async def score(self, messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> list[float | None]:
        """One score for each candidate."""
        texts = [str(candidate.text) for candidate in candidates]
        self.batches.append(texts)
        if self._latency:
            await asyncio.sleep(self._latency)
        if isinstance(self._source, Mapping):
            return [self._source[text] for text in texts]
        if _parameters(self._source) == 1:
            return [await _resolve(self._source(text)) for text in texts]
        return list(await _resolve(self._source(list(messages), list(candidates))))

    def fingerprint(self) -> str:
        """A constant name."""
        return "fake-reward-model"

    def _closed(self) -> None:
        self.open_sessions -= 1


def _words(result: ChatResult) -> Iterator[ChatGenerationChunk]:
    message = result.generations[0].message
    *words, last = str(message.text).split(" ")
    for word in words:
        yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))
    fields = {name: value for name, value in message.__dict__.items() if name in AIMessageChunk.model_fields and name != "type"}
    yield ChatGenerationChunk(message=AIMessageChunk(**{**fields, "content": last, "chunk_position": "last"}))


def _said(source: Any, asked: Any, messages: list[BaseMessage], number: int) -> Any:
    """What a sequence of answers, or a function of one argument or two, says to a draw of this number."""
    if isinstance(source, Sequence):
        return source[number % len(source)]
    return source(asked) if _parameters(source) == 1 else source(messages, number)


def _parameters(function: Callable[..., Any]) -> int:
    return len(inspect.signature(function).parameters)


async def _resolve(value: Any | Awaitable[Any]) -> Any:
    return await value if inspect.isawaitable(value) else value
