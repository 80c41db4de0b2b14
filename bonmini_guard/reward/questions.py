"""A reward model as a decision model: its one question, answered with probabilities, alone or as a choice with "none"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage

from bonmini_guard.conversation import NOT_SHOWN, Turn
from bonmini_guard.engine.result import finite, sigmoid
from bonmini_guard.engine.scorers import score_once
from bonmini_guard.errors import ConfigurationError, InputError

#: What a reward model with an outside option was trained to answer.
QUESTION = "Is the last answer acceptable?"
#: Labels of a choice that stand for the outside option.
NONE_LABELS = frozenset({"none", "neither", "none of these", "none_of_these", "none of the above", "none_of_the_above"})


def is_decision_model(value: Any) -> bool:
    """Whether it is one of LangChain's, by name: older versions have no such classes."""
    return any(kind.__name__ in ("BaseDecisionModel", "OpenAIDecisions") for kind in type(value).__mro__)


class OneQuestion:
    """Answers the question that a reward model was trained for; with ``any_question`` any other as if it were that one.

    ConfigurationError: the scorer has no zero, so its scores are no log-odds.
    """

    def __init__(self, scorer: Any, question: str = QUESTION, any_question: bool = False) -> None:
        if not scorer.has_zero:
            raise ConfigurationError("the reward model has no zero, so its scores are no log-odds of 'acceptable'")
        self.question, self._scorer, self._any = question, scorer, any_question

    async def answers(
        self, state: Sequence[Turn], questions: Mapping[str, tuple[str, Mapping[str, Any] | None]]
    ) -> dict[str, dict[str, Any]]:
        """The answers by name, for protocols that have no place for one without a score: InputError."""
        found = {}
        for name, (instructions, labels) in questions.items():
            if (said := await self.answer(state, instructions, labels)) is None:
                raise InputError(f"{name}: the answer has no score: it may be too long, or hold what the model does not read")
            found[name] = said
        return found

    async def answer(
        self, state: Sequence[Turn], instructions: str, labels: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """The answer to a question of yes or no, or to a choice among labels; None without a score. Other questions: InputError."""
        if not self._any and " ".join(instructions.split()).casefold() != " ".join(self.question.split()).casefold():
            raise InputError(f"this model answers one question, which it was trained for: {self.question!r}")
        if labels is not None:
            return await self.choose(state, labels)
        if len(state) < 2 or state[-1].role != "assistant":
            raise InputError("the conversation must end in an assistant's turn, of which the question is")
        [score] = await self._scores(state[:-1], [state[-1]])
        return None if score is None else {"type": "noul", "noul": sigmoid(score)}

    async def choose(self, state: Sequence[Turn], labels: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a choice: a probability for each label, the softmax of the answers' scores, that of "none" being 0.

        A label without a text is its own answer; one of :data:`NONE_LABELS` stands for the outside option.
        """
        none = [label for label in labels if label.casefold() in NONE_LABELS]
        if len(none) != 1:
            raise InputError("a choice among answers needs one label 'none', which means that no answer is acceptable")
        answers = [label for label in labels if label != none[0]]
        texts = [label if labels[label] in (None, "") else str(labels[label]) for label in answers]
        scores = await self._scores(state, [Turn("assistant", text) for text in texts])
        if None in scores:
            raise InputError(f"answer {scores.index(None) + 1} of the choice has no score: it may be too long, or blank")
        given = {none[0]: 0.0} | {label: score for label, score in zip(answers, scores, strict=True) if score is not None}
        most = max(given.values())
        powers = {label: math.exp(score - most) for label, score in given.items()}
        shares = {label: powers[label] / sum(powers.values()) for label in labels}
        best = max(shares, key=lambda label: shares[label])
        return {"type": "choice", "choice": best, "confidence": shares[best], "probabilities": shares}

    async def _scores(self, prompt: Sequence[Turn], answers: Sequence[Turn]) -> list[float | None]:
        said = [message for message in (turn.message() for turn in answers) if isinstance(message, AIMessage)]
        return of_the_whole(self._scorer, said, await score_once(self._scorer, [turn.message() for turn in prompt], said))


def of_the_whole(scorer: Any, answers: Sequence[AIMessage], scores: Sequence[float | None]) -> list[float | None]:
    """Scores for guards elsewhere, which keep back reasoning alone of what a model is not shown: None where there is more."""
    unread, turns = frozenset(getattr(scorer, "not_shown", ())).difference(NOT_SHOWN), map(Turn.of, answers)
    return [finite(score) if turn.without(unread) == turn else None for turn, score in zip(turns, scores, strict=True)]
