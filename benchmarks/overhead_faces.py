"""Time that each face adds to eight calls: sync ``invoke``, the chat model and the agent middleware.

Each request is measured right after a bare gather of the same eight calls, all faces in turns in one process; each figure is a
median over requests, and what a face adds is the median of the differences. Nothing passes, so that no early exit hides
anything. No callbacks are attached. A sync caller's bare gather needs an event loop too: it runs on the background loop on which
the guard answers sync calls.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from langchain.agents import create_agent
from langchain.agents.middleware.types import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from benchmarks.overhead import InstantGenerator, InstantScorer, Request, Taken, in_turns
from benchmarks.tables import print_table
from bonmini_guard import BestOfMiniN, ChatBestOfMiniN
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.engine.protocols import DrawRequest

DRAWS = 8
WARM = 20
PROMPT: list[BaseMessage] = [HumanMessage("prompt")]
SHAPE: dict[str, Any] = {"mode": "accelerator", "schedule": [DRAWS], "threshold": 0.0}


class InstantChatModel(BaseChatModel):
    """Answers at once. Answers differ, so that every candidate is scored. It has no connection, so sync calls need no threads."""

    any_loop: ClassVar[bool] = True
    asked: int = 0

    def _generate(self, *arguments: Any, **named: Any) -> ChatResult:
        self.asked += 1
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"answer {self.asked}"))])

    async def _agenerate(self, *arguments: Any, **named: Any) -> ChatResult:
        return self._generate()

    @property
    def _llm_type(self) -> str:
        return "instant"


class Gather(AgentMiddleware):
    """Eight concurrent handler calls, of which the first is taken."""

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        """The first of eight responses."""
        return (await asyncio.gather(*(handler(request) for _ in range(DRAWS))))[0]

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        """The same in threads."""

        async def all_of_them() -> Any:
            return await asyncio.gather(*(asyncio.to_thread(handler, request) for _ in range(DRAWS)))

        return run_sync(all_of_them)[0]


def pairs() -> dict[str, tuple[Request, Request]]:
    """For each face: its bare gather, and itself."""
    model, draw = InstantChatModel(), InstantGenerator()
    parts: dict[str, Any] = {"reward_model": InstantScorer(), "timeout": 60.0, **SHAPE}
    guard = BestOfMiniN(generator=draw, **parts)
    chat = ChatBestOfMiniN(generator=model, **parts)
    bare_agent = create_agent(model, middleware=[Gather()])
    agent = create_agent(model, middleware=[BestOfMiniNMiddleware(**parts)])
    question: Any = {"messages": PROMPT}

    async def gathered(call: Callable[[int], Awaitable[Any]]) -> None:
        await asyncio.gather(*(call(index) for index in range(DRAWS)))

    async def blocking(call: Callable[[Any], Any], given: Any) -> None:
        call(given)

    async def draws() -> None:
        await gathered(lambda index: draw.draw(DrawRequest(PROMPT, index, index)))

    async def answers() -> None:
        await gathered(lambda _: model.ainvoke(PROMPT))

    return {
        "BestOfMiniN.ainvoke": (draws, lambda: guard.ainvoke(PROMPT)),
        "BestOfMiniN.invoke": (lambda: blocking(run_sync, draws), lambda: blocking(guard.invoke, PROMPT)),
        "ChatBestOfMiniN.ainvoke": (answers, lambda: chat.ainvoke(PROMPT)),
        "ChatBestOfMiniN.invoke": (lambda: blocking(run_sync, answers), lambda: blocking(chat.invoke, PROMPT)),
        "BestOfMiniNMiddleware, agent.ainvoke": (lambda: bare_agent.ainvoke(question), lambda: agent.ainvoke(question)),
        "BestOfMiniNMiddleware, agent.invoke": (
            lambda: blocking(bare_agent.invoke, question),
            lambda: blocking(agent.invoke, question),
        ),
    }


async def measure(requests: int) -> dict[str, dict[str, float]]:
    """Median microseconds of each face, of its gather, and of what the face adds, one request of each in turn."""
    faces = pairs()
    rows = {(name, part): request for name, pair in faces.items() for part, request in enumerate(pair)}
    times = await in_turns(rows, requests, WARM)
    return {name: summary(list(zip(times[name, 0], times[name, 1], strict=True))) for name in faces}


def summary(taken: list[tuple[Taken, Taken]]) -> dict[str, float]:
    """Medians, in microseconds."""
    values = {
        "gather": [bare.wall for bare, _ in taken],
        "face": [face.wall for _, face in taken],
        "added": [face.wall - bare.wall for bare, face in taken],
        "added_processor_time": [face.processor - bare.processor for bare, face in taken],
    }
    return {name: 1e6 * statistics.median(each) for name, each in values.items()}


def report(requests: int) -> dict[str, dict[str, float]]:
    """Measure, print the table, and give the figures."""
    results = asyncio.run(measure(requests))
    rows = [
        [name, *(f"{microseconds:.0f}" for microseconds in figures.values()), f"{figures['face'] / figures['gather']:.2f}"]
        for name, figures in results.items()
    ]
    print_table(
        ["face", "bare gather of 8 (us)", "face (us)", "added (us)", "added, processor (us)", "face / gather"],
        rows,
    )
    return results
