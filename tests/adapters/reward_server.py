"""A loopback reward server that speaks every protocol ``RemoteRewardModel`` knows, and fails on demand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

from .loopback import LoopbackServer


class RewardServer(LoopbackServer):
    """Scores each input with a function of what it was sent: token ids, a text, a pair, or (messages, candidate).

    Attributes:
        score: that function.
        about: body of the description (``/v1/models`` or ``/info``); None for 404.
        fingerprint, has_zero: what the route ``/score`` says.
        inputs: the digest of the request that ``/score`` says it answers.
        obeys: whether the switch for raw scores is obeyed; otherwise probabilities are given.
    """

    def __init__(self, score: Callable[[Any], float | None]) -> None:
        super().__init__()
        self.score = score
        self.about: dict[str, Any] = {}
        self.fingerprint = "sha256:abc"
        self.has_zero = True
        self.obeys = True
        self.inputs: str | None = None

    def aside(self, path: str) -> tuple[int, Any] | None:
        if path in ("/v1/models", "/info"):
            return (200, self.about[path]) if path in self.about else (404, {})
        return None

    def reply(self, path: str, body: Any) -> Any:
        if path.endswith("/rerank") or "text_1" in body:
            return self._pairs(path, body)
        if path == "/score":
            scores = [self.score((body["messages"], candidate)) for candidate in body["candidates"]]
            said = {} if self.inputs is None else {"inputs": self.inputs}
            return {"scores": scores, "fingerprint": self.fingerprint, "has_zero": self.has_zero, **said}
        if path == "/predict":
            raw = body["raw_scores"] and self.obeys
            scores = [self._given(one[0] if len(one) == 1 else tuple(one), raw) for one in body["inputs"]]
            return [[{"score": score, "label": "LABEL_0"}] for score in scores]
        if path == "/classify" and "input" not in body:
            inputs = body.get("input_ids") or body["text"]
            return [{"embedding": [self._given(one, self.obeys)], "meta_info": {"id": "x"}} for one in inputs]
        raw = body["use_activation"] is False and self.obeys
        name = {"/classify": "probs", "/pooling": "data"}[path]
        data = [{"index": at, name: [self._given(one, raw)]} for at, one in enumerate(body["input"])]
        # vLLM answers in order and says the index; who trusts the order alone is found out here.
        return {"object": "list", "data": data[::-1], "model": body.get("model")}

    def _pairs(self, path: str, body: Any) -> Any:
        """As rerankers answer: the best first, by index."""
        answers = next(body[name] for name in ("documents", "texts", "text_2") if name in body)
        prompt = body.get("query") or body["text_1"]
        raw = body.get("use_activation") is False or body.get("raw_scores") is True
        given = [self._given((prompt, answer), raw and self.obeys) for answer in answers]
        best = sorted(range(len(given)), key=given.__getitem__, reverse=True)
        if "text_1" in body:
            return {"object": "list", "data": [{"index": at, "object": "score", "score": given[at]} for at in best]}
        if "texts" in body:
            return [{"index": at, "score": given[at]} for at in best]
        return {"id": "x", "results": [{"index": at, "relevance_score": given[at]} for at in best]}

    def _given(self, one: Any, raw: bool) -> float:
        score = self.score(one)
        return score if raw else 1 / (1 + math.exp(-score))


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> Self:
        self.now += seconds
        return self
