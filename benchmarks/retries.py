"""What retries around a guard do to its promise: served and bad, behind the retries of LangChain and LangGraph.

``python -m benchmarks.retries`` calibrates a guardrail on a simulated log whose labels are known, asks it for new prompts of the
same world (alone, and behind each retry) and prints the shares. The columns "all the same" say what a retry that takes an
abstention for a failure would do: ``retry_memory=0`` and every exception retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.messages import AIMessage
from langgraph.graph import MessagesState, StateGraph
from langgraph.types import RetryPolicy

from benchmarks.tables import arguments, print_table, write_json
from bonmini_guard import BestOfMiniN, NoAcceptableResponse
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.calibration import Certificate, calibrate_guardrail, log_of_rows
from bonmini_guard.testing import FakeChatModel, FakeGenerator, FakeRewardModel

SCHEDULE, ALPHA, ATTEMPTS = (4, 4), 0.05, 3
#: Of the prompts this share has no acceptable answer at all; of the draws for others :data:`GOOD`.
HOPELESS, GOOD, NOISE = 0.4, 0.35, 0.9

Ask = Callable[[str], Awaitable[Any]]


class World:
    """Answers "good 1.3" and "bad -0.4" whose number is their score: right on average, and noisy."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._hopeless: dict[str, bool] = {}

    def answer(self, prompt: str) -> str:
        """One draw."""
        hopeless = self._hopeless.setdefault(prompt, bool(self._random.random() < HOPELESS))
        good = not hopeless and self._random.random() < GOOD
        return f"{'good' if good else 'bad'} {self._random.normal(1.0 if good else -1.0, NOISE):.6f}"

    def row(self, number: int) -> dict[str, Any]:
        """A complete, labelled row of the log."""
        drawn = [self.answer(f"log {number}") for _ in range(sum(SCHEDULE))]
        candidates = [{"text": text, "score": score(text), "acceptable": text.startswith("good")} for text in drawn]
        return {"id": str(number), "prompt": f"log {number}", "candidates": candidates}


def score(text: str) -> float:
    """The number that an answer ends with."""
    return float(text.split()[1])


def settings(profile: Any, memory: float) -> dict[str, Any]:
    """What all guards have in common."""
    return {"reward_model": FakeRewardModel(score), "profile": profile, "retry_memory": memory}


def alone(world: World, profile: Any, memory: float) -> Ask:
    """No retry."""
    generator = FakeGenerator(lambda request: world.answer(request.messages[-1].text))
    return BestOfMiniN(generator=generator, **settings(profile, memory)).ainvoke


def with_retry(world: World, profile: Any, memory: float) -> Ask:
    """``.with_retry()`` as it is by default, which retries every exception."""
    generator = FakeGenerator(lambda request: world.answer(request.messages[-1].text))
    made = BestOfMiniN(generator=generator, **settings(profile, memory))
    return made.with_retry(
        stop_after_attempt=ATTEMPTS, exponential_jitter_params={"initial": 0.0, "max": 0.0, "jitter": 0.0}
    ).ainvoke


def middleware(world: World, profile: Any, memory: float) -> Ask:
    """LangChain's ``ModelRetryMiddleware`` around the guard of an agent."""
    model = FakeChatModel(lambda messages: world.answer(messages[-1].text))
    more: Any = {} if memory else {"retry_on": (Exception,)}
    retry = ModelRetryMiddleware(max_retries=ATTEMPTS - 1, initial_delay=0.0, jitter=False, on_failure="error", **more)
    agent = create_agent(model, middleware=[retry, BestOfMiniNMiddleware(**settings(profile, memory))])
    return lambda prompt: _last(agent, prompt)


def graph(world: World, profile: Any, memory: float) -> Ask:
    """LangGraph's ``RetryPolicy`` of a node that asks the guard."""
    asked = alone(world, profile, memory)

    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await asked(state["messages"][-1].text)]}

    more: Any = {} if memory else {"retry_on": Exception}
    policy = RetryPolicy(initial_interval=0.0, max_attempts=ATTEMPTS, jitter=False, **more)
    made = StateGraph(MessagesState).add_node("answer", node, retry_policy=policy).set_entry_point("answer").compile()
    return lambda prompt: _last(made, prompt)


async def _last(graph: Any, prompt: str) -> AIMessage:
    answer: AIMessage = (await graph.ainvoke({"messages": [("human", prompt)]}))["messages"][-1]
    return answer


BEHIND = {"nothing": alone, ".with_retry()": with_retry, "ModelRetryMiddleware": middleware, "RetryPolicy": graph}


async def shares(ask: Ask, requests: int) -> dict[str, float]:
    """Shares of the requests that were served, and served a bad answer."""
    served: list[str] = []
    for number in range(requests):
        with contextlib.suppress(NoAcceptableResponse):
            served.append((await ask(f"prompt {number}")).text)
    return {"served": len(served) / requests, "served_and_bad": sum(text.startswith("bad") for text in served) / requests}


def measure(seed: int, requests: int, rows: int) -> dict[str, dict[str, float]]:
    """Calibrate once; then the same world behind each retry."""
    world = World(seed)
    log = log_of_rows(world.row(number) for number in range(rows))
    certificate = calibrate_guardrail(log, schedule=SCHEDULE, alpha=ALPHA)
    if not isinstance(certificate, Certificate):
        raise SystemExit(f"no certificate: {certificate.why}")
    found = {}
    for name, make in BEHIND.items():
        for memory, column in ((60.0, "as it is"), (0.0, "all the same")):
            ask = make(World(1000 + seed), certificate.profile, memory)
            found[f"{name}: {column}"] = asyncio.run(shares(ask, requests))
    return found


def main() -> None:
    """Print the table of all calibrations' means."""
    parser = arguments(__doc__, json=Path)
    parser.add_argument("--calibrations", type=int, default=10, help="logs, each with a profile of its own")
    parser.add_argument("--requests", type=int, default=300, help="new prompts of each for each line")
    parser.add_argument("--rows", type=int, default=1000, help="rows of a log")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    found = [measure(seed, given.requests, given.rows) for seed in range(given.calibrations)]
    mean = {name: {key: float(np.mean([each[name][key] for each in found])) for key in found[0][name]} for name in found[0]}
    head = ["retries behind", "served", "served and bad", "all the same: served", "all the same: served and bad"]
    columns = ("as it is", "all the same")
    print_table(head, [[name, *(f"{value:.3f}" for c in columns for value in mean[f"{name}: {c}"].values())] for name in BEHIND])
    write_json(
        given.json,
        {"alpha": ALPHA, "attempts": ATTEMPTS, "requests": given.requests, "rows": given.rows, "mean": mean, "calibrated": found},
    )


if __name__ == "__main__":
    main()
