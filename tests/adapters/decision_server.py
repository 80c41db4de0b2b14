"""A loopback decision server that speaks both protocols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .loopback import LoopbackServer


class DecisionServer(LoopbackServer):
    """Says a probability of what it is shown: the last answer for a question, the text behind a label for a choice.

    Attributes:
        believes: that function; None is a refusal.
        spoil: what becomes of an answer before it is sent.
    """

    def __init__(self, believes: Callable[[str], float | None]) -> None:
        super().__init__()
        self.believes = believes
        self.spoil: Callable[[Any], Any] = lambda answer: answer

    def reply(self, path: str, body: Any) -> Any:
        said = self._systemone(body) if path == "/v1/systemone" else self._decisions(body)
        return self.spoil(said | {"model": body["model"], "usage": {"input_tokens": 7, "output_tokens": 1, "total_tokens": 8}})

    def _systemone(self, body: Any) -> dict[str, Any]:
        last = body["state"][-1]["content"]
        answers = {}
        for name, question in body["questions"].items():
            if question["type"] == "choice":
                told = {label: self.believes(text) or 0.0 for label, text in question["criteria"].items()}
                best = max(told, key=lambda label: told[label])
                answers[name] = {"type": "choice", "choice": best, "confidence": told[best], "probabilities": told}
            elif (belief := self.believes(last)) is not None:
                answers[name] = {"type": "noul", "noul": belief}
        return {"answers": answers}

    def _decisions(self, body: Any) -> dict[str, Any]:
        last = str([item for item in body["input"] if item.get("type", "message") == "message"][-1]["content"])
        answers: list[dict[str, Any]] = []
        for question in body["questions"]:
            about = {"name": question["name"]}
            if question["type"] == "choice":
                told = [{"value": one["value"], "probability": self.believes(one["description"])} for one in question["choices"]]
                best = max(told, key=lambda one: one["probability"])
                answers.append(about | {"type": "choice", "choice": best["value"], "confidence": 1.0, "probabilities": told})
            elif (belief := self.believes(last)) is None:
                answers.append(about | {"type": "refusal"})
            else:
                answers.append(about | {"type": "predicate", "probability": belief})
        return {"answers": answers}


def langchains(classify: Callable[[Any, Any], Any], **fields: Any) -> Any:
    """A decision model of langchain-core that answers as a function of (state, questions) says; skips where there are none."""
    decisions = pytest.importorskip("langchain_core.decisions")

    class Model(decisions.BaseDecisionModel):  # type: ignore[misc]
        model: str = "m"

        @property
        def _provider(self) -> str:
            return "test"

        def _classify(self, state: Any, questions: Any) -> Any:
            return decisions.ClassifierResponse.model_validate({"model": "m", **classify(state, questions)})

    return Model()
