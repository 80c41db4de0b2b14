"""One agent, one task and one grader, by deepagents' RubricMiddleware and by ours. ``make live-integrations``."""

from __future__ import annotations

import re
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from bonmini_guard.adapters.agents import BestOfMiniNMiddleware
from bonmini_guard.adapters.rewards.rubric import criteria_of
from bonmini_guard.errors import NoAcceptableResponse, ScorerError
from bonmini_guard.testing import FakeChatModel

rubrics = pytest.importorskip("deepagents.middleware.rubric")
pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore:uncalibrated"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
]

RUBRIC = "- states the delivery date, which is 9 July\n- names no other date"
TASK = "When does my order come? The notice says: 9 July."


class Grader(BaseChatModel):
    """Reads an answer's dates, and gives its verdicts as either middleware asks for them."""

    broken: bool = False

    @property
    def _llm_type(self) -> str:
        return "grader"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=tools)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        if self.broken:
            raise ConnectionError("the grader is down")
        asked = messages[-1].text
        if "<answer" in asked:
            [answer] = re.findall(r"<answer \w+>\n(.*?)\n</answer", asked, re.DOTALL)
            lines = [f"{number}: {'MET' if met else 'UNMET'}" for number, met in enumerate(self._met(answer), 1)]
            return _says(AIMessage("\n".join(lines)))
        met = self._met(asked.rsplit("It comes", 1)[1].split("\n")[0])
        verdict = {
            "result": "satisfied" if all(met) else "needs_revision",
            "explanation": "by its dates",
            "criteria": [
                {"name": name, "passed": ok} | ({} if ok else {"gap": "another date"})
                for name, ok in zip(criteria_of(RUBRIC), met, strict=True)
            ],
        }
        return _says(AIMessage("", tool_calls=[{"name": "GraderResponse", "args": verdict, "id": "g"}]))

    @staticmethod
    def _met(answer: str) -> list[bool]:
        dates = re.findall(r"\d+ July", answer)
        return ["9 July" in dates, set(dates) <= {"9 July"}]


def _says(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def by_theirs(answers: list[str], grader: Grader, rounds: int) -> Any:
    middleware = rubrics.RubricMiddleware(model=grader, max_iterations=rounds)
    agent = create_agent(FakeChatModel(answers), middleware=[middleware])
    return agent.invoke({"messages": [HumanMessage(TASK)], "rubric": RUBRIC})["messages"][-1]


def by_ours(answers: list[str], grader: Grader, rounds: int, **options: Any) -> Any:
    middleware = BestOfMiniNMiddleware(reward_model=grader, rubric=RUBRIC, schedule=[rounds], **options)
    agent = create_agent(FakeChatModel(answers), middleware=[middleware])
    return agent.invoke({"messages": [HumanMessage(TASK)]})["messages"][-1]


def test_both_serve_the_draft_that_meets_the_rubric():
    answers = ["It comes soon.", "It comes on 8 July.", "It comes on 9 July."]
    assert by_theirs(answers, Grader(), 3).text == "It comes on 9 July."
    served = by_ours(answers, Grader(), 3)
    assert served.text == "It comes on 9 July."
    told = served.response_metadata["bonmini_guard"]
    assert (told["decision"], told["draws"]) == ("accepted", 3)
    assert min(told["parts"].values()) > 0


def test_where_no_draft_does_theirs_serves_the_last_and_ours_raises_or_says_so():
    answers = ["It comes on 9 July or 10 July.", "It comes on 8 July."]
    served = by_theirs(answers, Grader(), 2)
    assert served.text == "It comes on 8 July."
    assert "bonmini_guard" not in served.response_metadata
    with pytest.raises(NoAcceptableResponse, match="budget_spent"):
        by_ours(answers, Grader(), 2)
    best = by_ours(answers, Grader(), 2, mode="accelerator")
    assert best.response_metadata["bonmini_guard"]["decision"] == "best_effort"


def test_a_grader_that_fails_lets_theirs_through_and_not_ours():
    answers = ["It comes on 8 July."]
    assert by_theirs(answers, Grader(broken=True), 1).text == "It comes on 8 July."
    with pytest.raises(ScorerError, match="scorer_failed"):
        by_ours(answers, Grader(broken=True), 1)
