"""The ASGI application: our own route, those of TEI and vLLM, and what an operator needs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter, time
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel

from bonmini_guard.errors import CandidateTooLong, InputError, needing

with needing("serve"):
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

from bonmini_guard.engine.protocols import ScoringSession
from bonmini_guard.engine.result import sigmoid
from bonmini_guard.engine.scorers import inputs_digest, score_once
from bonmini_guard.reward.declared import Declared
from bonmini_guard.reward.model import RewardModel
from bonmini_guard.reward.questions import QUESTION, OneQuestion, of_the_whole
from bonmini_guard.server.decisions import DecisionsRequest, SystemOneRequest, decisions, systemone
from bonmini_guard.server.document import document
from bonmini_guard.server.door import GONE, Door, Limits, Refused, while_connected
from bonmini_guard.server.metrics import Metrics
from bonmini_guard.server.schemas import ClassifyRequest, PredictRequest, ScoreRequest, read

logger = logging.getLogger("bonmini_guard.server")
#: From a body to an answer, and how many texts it scores.
Scoring = Callable[[bytes], Awaitable[tuple[Any, int]]]
#: The memory of what was computed is bounded by the model itself; this bounds the rest: sessions, and bytes of their conversations.
_MOST, _MOST_BYTES = 1024, 2**26
#: Nothing is written, and what is read is not billed.
_NO_TOKENS = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
_NO_DETAILS = {
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}


class ScoringServer(Door):
    """One reward model behind routes.

    Args:
        token: that clients must show; None wants none.
        question: the one that the model was trained for, on the routes of decision models.
        any_question: answer any other as if it were that one.

    Raises:
        ConfigurationError: one of these is given, and the model has no zero, and so no answer.
    """

    def __init__(
        self,
        model: RewardModel | Declared,
        token: str | None = None,
        limits: Limits | None = None,
        *,
        question: str | None = None,
        any_question: bool = False,
    ) -> None:
        super().__init__([] if token is None else [token], limits or Limits())
        self._model: Any = model
        self._metrics = Metrics(model, self.admission)
        self._sessions = Sessions(model)
        self._fingerprint = model.fingerprint()
        decides = model.has_zero or question is not None or any_question
        self._asked: Any = OneQuestion(model, question or QUESTION, any_question) if decides else None
        self.app = self.serving(self.routes(), self._lifespan)

    def routes(self) -> list[Route]:
        """What is answered, and by what."""
        scored: dict[str, Scoring] = {"/score": self._score}
        told: dict[str, Callable[[], Response]] = {}
        if isinstance(self._model, RewardModel):  # what does not read templated texts has no route for them
            scored |= {"/predict": self._predict, "/classify": self._classify}
        if self._asked is not None:  # a model without a zero has no probabilities to tell
            scored["/v1/systemone"] = partial(self._decide, SystemOneRequest, systemone, _NO_TOKENS)
            scored["/v1/decisions"] = partial(self._decide, DecisionsRequest, decisions, _NO_TOKENS | _NO_DETAILS)
            told["/v1/models"] = self._models
        about = document(scored, bool(self._keys))
        told["/openapi.json"] = lambda: JSONResponse(about)
        return [
            *(Route(path, self._scoring(path, how), methods=["POST"]) for path, how in scored.items()),
            *(Route(path, self.secured(how)) for path, how in told.items()),
            *self.operations(self._metrics.told, lambda: {"model": self._model.model_id, "fingerprint": self._fingerprint}),
        ]

    def shape(self, refused: Refused, path: str) -> dict[str, Any]:
        """As vLLM and OpenAI put it, on their routes."""
        if path != "/classify" and not path.startswith("/v1/"):
            return {"error": refused.message, "error_type": refused.kind}
        refused.status = 400 if refused.status == 422 else refused.status
        return {"error": {"message": refused.message, "type": refused.kind, "param": None, "code": refused.status}}

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        # In a thread: connections of a remote one close on the loops that opened them, this one among them.
        await asyncio.to_thread(self._model.close)

    def _scoring(self, route: str, score: Scoring) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            begun, texts, waiting = perf_counter(), 0, self.admission.requests
            try:
                async with self.entered(request) as body:
                    answer, texts = await while_connected(request, score(body))
                response: Response = JSONResponse(answer)
            except ClientDisconnect:
                response = Response(status_code=GONE)
            except Exception as error:
                refused = _refused(error)
                response = JSONResponse(self.shape(refused, route), refused.status, refused.headers)
            seconds = perf_counter() - begun
            self._metrics.answered(route, response.status_code, seconds)
            self._metrics.texts.labels(route).inc(texts)
            logger.info("POST %s %d %d texts %.3f s, %d before it", route, response.status_code, texts, seconds, waiting)
            return response

        return endpoint

    async def _score(self, body: bytes) -> tuple[Any, int]:
        wanted = read(ScoreRequest, body)
        answers = wanted.answers()
        scores = of_the_whole(self._model, answers, await self._sessions.score(wanted.conversation(), answers))
        about = {"fingerprint": self._fingerprint, "has_zero": bool(self._model.has_zero), "inputs": inputs_digest(body)}
        return {"scores": scores, **about}, len(scores)

    async def _predict(self, body: bytes) -> tuple[Any, int]:
        wanted = read(PredictRequest, body)
        inputs = wanted.inputs
        if isinstance(inputs, list) and any(len(parts) > 1 for parts in ([inputs] if isinstance(inputs[0], str) else inputs)):
            raise InputError("inputs: pairs are not taken; write the chat template around prompt and answer, or use /score")
        texts = [inputs] if isinstance(inputs, str) else ["".join(parts) for parts in inputs]
        scores = await self._raw(await self._model.tokenize(texts))
        found = [[{"score": score if wanted.raw_scores else sigmoid(score), "label": "LABEL_0"}] for score in scores]
        whole = isinstance(inputs, list) and isinstance(inputs[0], list)
        return (found if whole else found[0]), len(texts)

    async def _classify(self, body: bytes) -> tuple[Any, int]:
        wanted = read(ClassifyRequest, body)
        given = [wanted.input] if isinstance(wanted.input, str) or isinstance(wanted.input[0], int) else wanted.input
        texts = await self._model.tokenize(given, wanted.add_special_tokens)
        scores = await self._raw(texts)
        if wanted.use_activation is not False:
            scores = [sigmoid(score) for score in scores]
        data = [{"index": index, "label": "LABEL_0", "probs": [score], "num_classes": 1} for index, score in enumerate(scores)]
        tokens = sum(map(len, texts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        about = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time()), "model": self._model.model_id}
        return about | {"data": data, "usage": usage}, len(texts)

    async def _decide(self, kind: type[BaseModel], answer: Any, usage: dict[str, Any], body: bytes) -> tuple[Any, int]:
        answers = await answer(self._asked, read(kind, body))
        return {"model": self._model.model_id, "answers": answers, "usage": usage}, len(answers)

    def _models(self) -> Response:
        about = {"id": self._model.model_id, "object": "model", "owned_by": "bonmini-guard", "question": self._asked.question}
        return JSONResponse({"object": "list", "data": [about]})

    async def _raw(self, texts: Sequence[tuple[int, ...]]) -> list[float]:
        scores: list[float] = await self._model.score_tokens(texts)
        if not all(map(math.isfinite, scores)):
            raise InputError("a text has no finite score")
        return scores


class Sessions:
    """Open sessions by conversation, the least recently used closed first: a guard's next loop comes as a request of its own."""

    def __init__(self, model: Any) -> None:
        self._model = model
        #: What others than a model here said to one client, such as the best answer of a choice, is nothing to the next one.
        self._keeps = isinstance(model, RewardModel) or model.spec.runs_here
        self._open: OrderedDict[str, tuple[ScoringSession, int]] = OrderedDict()
        self._bytes = 0

    async def score(self, messages: Sequence[BaseMessage], answers: Sequence[AIMessage]) -> Sequence[float | None]:
        """Scores of answers to a conversation."""
        return await ((await self.of(messages)).score(answers) if self._keeps else score_once(self._model, messages, answers))

    async def of(self, messages: Sequence[BaseMessage]) -> ScoringSession:
        """The session of a conversation."""
        whole = json.dumps([message.model_dump(mode="json") for message in messages], sort_keys=True).encode()
        key = hashlib.sha256(whole).hexdigest()
        if key not in self._open:
            self._open[key] = self._model.session(messages), len(whole)
            self._bytes += len(whole)
        self._open.move_to_end(key)
        while len(self._open) > 1 and (len(self._open) > _MOST or self._bytes > _MOST_BYTES):
            _, (oldest, size) = self._open.popitem(last=False)
            self._bytes -= size
            await oldest.aclose()
        return self._open[key][0]


def _refused(error: Exception) -> Refused:
    if isinstance(error, InputError | CandidateTooLong):
        return Refused(422, "validation", str(error))
    if isinstance(error, Refused):
        return error
    # Its message may quote a text, so neither the client nor the log gets it.
    logger.error("scoring failed: %s", type(error).__name__)
    return Refused(500, "backend", f"scoring failed: {type(error).__name__}")
