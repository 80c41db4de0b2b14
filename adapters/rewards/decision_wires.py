"""How decision models are asked: System One's and OpenAI's protocols, and LangChain's two interfaces."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Unpack

from langchain_core.messages.ai import UsageMetadata
from pydantic import SecretStr

from bonmini_guard.adapters.answers import used
from bonmini_guard.adapters.bodies import parsed
from bonmini_guard.adapters.elsewhere import closed_with, wire_of
from bonmini_guard.adapters.http import SCORING, Endpoint, Http, HttpOptions, checked_secret, checked_url
from bonmini_guard.adapters.http_errors import MalformedAnswer, classify
from bonmini_guard.conversation import Turn
from bonmini_guard.engine.bridge import ByLoop
from bonmini_guard.errors import ConfigurationError, needing
from bonmini_guard.reward.questions import is_decision_model
from bonmini_guard.validation import checked, is_integer

with needing("remote"):
    import httpx

Wire = Literal["systemone", "decisions"]
ROUTES: dict[str, str] = {"systemone": "/v1/systemone", "decisions": "/v1/decisions"}
#: The name of a question that is a choice.
_CHOICE = "choice"


@dataclass(frozen=True)
class Question:
    """A question of yes or no about the last answer of a conversation, and what counts as either, where that is open."""

    name: str
    instructions: str
    yes: str | None = None
    no: str | None = None


@dataclass(frozen=True)
class Answers:
    """What a decision model said: the probability of yes by question, or by label of a choice.

    None is a refusal; what is missing was not answered.
    """

    probabilities: Mapping[str, float | None]
    usage: UsageMetadata | None = None


class DecisionModel:
    """What is asked, an endpoint or a model of LangChain's: by System One's types of questions, or by OpenAI's."""

    model_id: str
    #: Whether its questions are OpenAI's.
    _openai: bool

    async def yes(self, state: Sequence[Turn], questions: Sequence[Question]) -> Answers:
        """The probability of yes for each question about a conversation; EndpointError without a usable answer."""
        form = _predicate if self._openai else _noul
        return await self._answers(state, {question.name: form(question) for question in questions})

    async def choose(self, state: Sequence[Turn], instructions: str, labels: Mapping[str, str]) -> Answers:
        """A probability for each label, none at all if the model refused; EndpointError without a usable answer."""
        listed = "choices" if self._openai else "criteria"
        return await self._answers(state, {_CHOICE: {"type": "choice", "instructions": instructions, listed: dict(labels)}})

    async def aclose(self) -> None:
        """Close what it opened."""

    async def _answers(self, state: Sequence[Turn], questions: Mapping[str, dict[str, Any]]) -> Answers:
        raise NotImplementedError


class DecisionEndpoint(Endpoint, DecisionModel):
    """A decision model behind HTTP.

    Args:
        base_url: where the server is; with or without ``/v1``.
        wire: "systemone" (``POST /v1/systemone``) or "decisions" (``POST /v1/decisions``, OpenAI's).
        model: the server's name for it.
        api_key: sent as bearer token; None takes the environment's ``OPENAI_API_KEY``, "" sends none.
        http: timeout (60), backoff (0.2), max_concurrency (16) and the like; see :class:`~bonmini_guard.adapters.http.HttpOptions`.

    Raises:
        ConfigurationError: a setting is wrong.
    """

    client_library = httpx

    @checked
    def __init__(
        self,
        base_url: str,
        *,
        wire: Wire = "systemone",
        model: str | None = None,
        api_key: SecretStr | str | None = None,
        **http: Unpack[HttpOptions],
    ) -> None:
        route = ROUTES[wire]
        url = checked_url(base_url, "api_key", route, route.removeprefix("/v1"), "/v1")
        settings = Http.of({**SCORING, **http})
        super().__init__(url, checked_secret(api_key, "OPENAI_API_KEY"), settings)
        self.wire, self.model, self._route, self._openai = wire, model, route, wire == "decisions"
        self.model_id = f"{wire}:{model or url}"

    async def _answers(self, state: Sequence[Turn], questions: Mapping[str, dict[str, Any]]) -> Answers:
        if not self._openai:
            said = await self._said({"state": [turn.openai() for turn in state], "questions": questions})
            if not isinstance(answers := said.get("answers"), Mapping):
                raise _unreadable("no answers")
            return Answers(_probabilities(answers, "noul"), _usage(said.get("usage")))
        asked = [{"name": name, **question} for name, question in questions.items()]
        for question in asked:
            if "choices" in question:
                question["choices"] = [{"value": label, "description": text} for label, text in question["choices"].items()]
        said = await self._said({"input": [item for turn in state for item in _items(turn)], "questions": asked})
        return Answers(_probabilities(_by_name(said.get("answers"), questions), "probability"), _usage(said.get("usage")))

    async def _said(self, body: dict[str, Any]) -> Mapping[str, Any]:
        sent = json.dumps(body if self.model is None else {"model": self.model, **body}).encode()

        async def attempt(client: httpx.AsyncClient) -> Mapping[str, Any]:
            said, _ = await self._post(client, self._route, sent, quiet=True)
            answer = parsed(said)
            if not isinstance(answer, Mapping) or answer.get("error"):
                raise _unreadable("an error in place of answers")
            return answer

        return await self._ask(attempt)


class LangChainDecisions(DecisionModel):
    """A ``BaseDecisionModel`` of langchain-core, or langchain-openai's ``OpenAIDecisions``, as what is asked."""

    def __init__(self, model: Any, openai: bool) -> None:
        self._model, self._openai, self._by_loop = model, openai, ByLoop()
        self.model_id = f"{type(model).__name__}:{getattr(model, 'model', '')}"

    async def _answers(self, state: Sequence[Turn], questions: Mapping[str, dict[str, Any]]) -> Answers:
        # Loaded with the model that is asked; older versions have no such module.
        types = import_module("langchain_openai.decisions" if self._openai else "langchain_core.decisions")
        typed = {name: getattr(types, each["type"].capitalize())(**each) for name, each in questions.items()}
        messages = [turn.message() for turn in state]
        model = self._by_loop.of(asyncio.get_running_loop(), self._apart)
        try:
            said = await model.ainvoke({"input" if self._openai else "state": messages, "questions": typed})
        except Exception as error:
            # OpenAI's client, and LangChain's above it, have what broke a connection as the cause of their own error.
            place: BaseException | None = error if self._openai else None
            while isinstance(place, Exception):
                if (failure := classify(place)) is not None:
                    raise failure from error
                place = place.__cause__
            raise
        answers = {name: answer.model_dump() for name, answer in said.answers.items() if name in questions}
        return Answers(_probabilities(answers, "probability" if self._openai else "noul"), _usage(said.usage))

    def _apart(self) -> Any:
        """The model for a loop: a connection belongs to the loop that opened it."""
        if not self._openai:
            return self._model
        twin = copy.copy(self._model)
        vars(twin).pop("_async_client", None)
        if self._model.http_async_client is None:
            # Its own finalizer closes it in the thread that collects it, and there breaks connections of the loop.
            closed_with(self, wire_of(twin), asyncio.get_running_loop())
        return twin


def as_decision_model(model: Any) -> DecisionModel:
    """What can be asked, as it is or by LangChain's interface.

    Raises:
        ConfigurationError: it is no decision model.
    """
    if callable(getattr(model, "yes", None)) and callable(getattr(model, "choose", None)):
        return model  # type: ignore[no-any-return]
    if is_decision_model(model):
        return LangChainDecisions(model, any(kind.__name__ == "OpenAIDecisions" for kind in type(model).__mro__))
    raise ConfigurationError(
        f"question= goes with a decision model, and reward_model is a {type(model).__name__}: pass a BaseDecisionModel of "
        "langchain-core (1.8 or later), an OpenAIDecisions, or a DecisionEndpoint"
    )


def _noul(question: Question) -> dict[str, Any]:
    says = {key: text for key, text in (("true", question.yes), ("false", question.no)) if text is not None}
    return {"type": "noul", "instructions": question.instructions} | ({"criteria": says} if says else {})


def _predicate(question: Question) -> dict[str, Any]:
    """For a protocol without criteria, which stand in the question."""
    says = (("Yes means", question.yes), ("No means", question.no))
    whole = [question.instructions, *(f"{means}: {text}" for means, text in says if text is not None)]
    return {"type": "predicate", "instructions": "\n".join(whole)}


def _items(turn: Turn) -> Iterable[dict[str, Any]]:
    """A turn as items of OpenAI's input: calls and their results stand apart from messages."""
    if turn.role == "tool":
        yield {"type": "function_call_output", "call_id": turn.answers or "", "output": turn.shown}
        return
    if turn.shown or not turn.calls:
        yield {"type": "message", "role": turn.role, "content": turn.shown}
    for call in turn.calls:
        yield {"type": "function_call", "call_id": call.id or "", "name": call.name, "arguments": call.arguments}


def _by_name(answers: Any, questions: Mapping[str, Any]) -> dict[str, Any]:
    """Answers in the order of their questions; a name, where there is one, must be that of its question."""
    if not isinstance(answers, list) or len(answers) != len(questions):
        raise _unreadable(f"{len(answers) if isinstance(answers, list) else 'no'} answers to {len(questions)} questions")
    for name, answer in zip(questions, answers, strict=True):
        if not isinstance(answer, Mapping) or answer.get("name") not in (None, name):
            raise _unreadable("an answer to another question")
    return dict(zip(questions, answers, strict=True))


def _probabilities(answers: Mapping[str, Any], key: str) -> dict[str, float | None]:
    """Of yes by question; of a choice by label. A refusal is None."""
    found: dict[str, float | None] = {}
    for name, answer in answers.items():
        if not isinstance(answer, Mapping):
            raise _unreadable("an answer that is none")
        if answer.get("type") == "refusal":
            found[name] = None
        elif answer.get("type") == "choice":
            found |= {label: _probability(value) for label, value in _labels(answer.get("probabilities"))}
        else:
            found[name] = _probability(answer.get(key))
    return found


def _labels(told: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(told, Mapping):
        return [(str(label), value) for label, value in told.items()]
    if isinstance(told, list) and all(isinstance(one, Mapping) for one in told):
        return [(str(one.get("value")), one.get("probability")) for one in told]
    raise _unreadable("a choice without probabilities")


def _probability(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _unreadable("a probability that is none")
    return float(value)


def _usage(told: Any) -> UsageMetadata | None:
    said = told.model_dump() if callable(getattr(told, "model_dump", None)) else told
    numbers: list[Any] = [said.get(name) if isinstance(said, Mapping) else 0 for name in ("input_tokens", "output_tokens")]
    taken, written = (number if is_integer(number) and number > 0 else 0 for number in numbers)
    return used(taken, written) if taken or written else None


def _unreadable(what: str) -> MalformedAnswer:
    return MalformedAnswer(f"the decision model gave {what}", status=200, retryable=True)
