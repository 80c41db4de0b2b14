"""A reward model behind langchain-core's interface of decision models, which versions from 1.8 on have."""

from __future__ import annotations

from typing import Any

from langchain_core.decisions import BaseDecisionModel, ClassifierResponse
from pydantic import ConfigDict, PrivateAttr

from bonmini_guard.conversation import as_turns
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.errors import InputError
from bonmini_guard.reward.questions import QUESTION, OneQuestion


class RewardDecisionModel(BaseDecisionModel):
    """Answers one question about the last answer of a conversation: ``sigmoid(score)``; and choices among answers and "none".

    See :class:`~bonmini_guard.reward.questions.OneQuestion`. Another question, and a conversation that does not end in an answer,
    are refused with an InputError.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    _asked: OneQuestion = PrivateAttr()

    def __init__(self, scorer: Any, question: str = QUESTION, any_question: bool = False) -> None:
        super().__init__(model=str(getattr(scorer, "model_id", type(scorer).__name__)))
        self._asked = OneQuestion(scorer, question, any_question)

    @property
    def _provider(self) -> str:
        return "bonmini-guard"

    def _classify(self, state: Any, questions: dict[str, Any]) -> ClassifierResponse:
        return run_sync(lambda: self._aclassify(state, questions))

    async def _aclassify(self, state: Any, questions: dict[str, Any]) -> ClassifierResponse:
        asked: dict[str, Any] = {}
        for name, question in questions.items():
            if question.type not in ("noul", "choice"):
                raise InputError(f"{name}: a question of type {question.type!r}, and this model answers 'noul' and 'choice'")
            asked[name] = str(question.instructions), question.criteria if question.type == "choice" else None
        answers = await self._asked.answers(as_turns(state), asked)
        return ClassifierResponse.model_validate({"model": self.model, "answers": answers})
