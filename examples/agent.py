"""An agent whose final answers are guarded, with LangChain's ``create_agent``.

Offline: a fake chat model that looks up an order and then words its answer more or less politely. The schedule ``[1, 3, 4]``
spends one draw on a turn that calls a tool, and up to eight on the final answer.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import tool

from bonmini_guard import reward_function
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.testing import FakeChatModel

DRAFTS = ("Wait for it.", "It is on its way.", "Your order is on its way, and it should arrive on Friday.")


@tool
def order_status(number: int) -> str:
    """The status of an order."""
    return f"order {number}: shipped, expected on Friday"


def speak(messages: list[BaseMessage], number: int) -> AIMessage:
    """Look the order up, then answer."""
    if isinstance(messages[-1], ToolMessage):
        return AIMessage(DRAFTS[number % len(DRAFTS)])
    return AIMessage("", tool_calls=[{"name": "order_status", "args": {"number": 7}, "id": "call-1"}])


@reward_function(has_zero=True)
def helpful(messages: list[BaseMessage], candidates: Sequence[AIMessage]) -> list[float]:
    """Positive if the answer tells the day."""
    return [1.0 if "Friday" in candidate.text else -1.0 for candidate in candidates]


def build() -> Any:
    """The agent."""
    guard = BestOfMiniNMiddleware(reward_model=helpful, schedule=[1, 3, 4], on_abstain="continue", progress=True)
    return create_agent(FakeChatModel(speak), tools=[order_status], middleware=[guard])


async def converse() -> None:
    """Stream what the agent does: its steps, and how far the guard is."""
    question = {"messages": [("human", "Where is order 7?")]}
    async for mode, part in build().astream(question, stream_mode=["updates", "custom"]):
        if mode == "custom":
            print(f"  loop {part['loop']} of {part['loops']}, {part['draws']} draws, best score {part['best_score']}")
            continue
        for step, update in part.items():
            message = update["messages"][-1]
            decided = update.get("bonmini_guard", {}).get("decision", "")
            print(f"{step}: {message.text or message.tool_calls[0]['name']} {decided}")


def main() -> None:
    """Ask the agent."""
    warnings.filterwarnings("ignore", message="uncalibrated")
    asyncio.run(converse())


if __name__ == "__main__":
    main()
