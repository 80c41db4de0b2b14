"""How each reward server is spoken to: route, body, the switch that gives raw scores, and where the scores lie in its answer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bonmini_guard.adapters.http_errors import MalformedAnswer

logger = logging.getLogger(__name__)
Inputs = Literal["ids", "text", "pair", "messages"]
#: What a server says about itself: name of its model, inputs that a request may hold, tokens of an input; None where it is silent.
Limits = tuple[str | None, int | None, int | None]
Body = Callable[[Sequence[Any]], dict[str, Any]]
ServerKind = Literal[
    "vllm", "vllm-pooling", "vllm-score", "vllm-rerank", "sglang", "tei", "tei-rerank", "infinity", "jina", "cohere", "bonmini"
]


@dataclass(frozen=True, slots=True)
class Scores:
    """What an answer holds: a number for each input, None where the server says that one does not fit.

    And, where it says them: the model's fingerprint and zero, the digest of the request that was answered.
    """

    values: list[float | None]
    fingerprint: str | None = None
    has_zero: bool | None = None
    inputs: str | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of server.

    Attributes:
        inputs: the forms of input it takes, its usual one first.
        body: of a request for some inputs.
        read: the scores in an answer; any error that it raises means that there are none.
        about: route of the server's description, and how to read it; None where there is none.
        shared: whether all inputs of a request have one conversation.
        named: whether a request says the model's name.
        switch: what to do where scores are not raw, for messages.
    """

    route: str
    inputs: tuple[Inputs, ...]
    body: Body
    read: Callable[[Any], Scores]
    about: tuple[str, Callable[[Any], Limits]] | None = None
    shared: bool = False
    named: bool = True
    switch: str = "ask for raw scores"

    def scores(self, answer: Any, expected: int) -> Scores:
        """The scores in an answer; MalformedAnswer if it does not hold one for each input. One that is not finite is none."""
        try:
            scores = self.read(answer)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            # Not chained: such an error may quote the answer, and an answer may quote the candidate.
            cause = str(error) if isinstance(error, _ScoreError) else type(error).__name__
            problem = f"the reward server's answer holds no scores ({cause})"
            raise MalformedAnswer(problem, status=200, retryable=True) from None
        if len(scores.values) != expected:
            problem = f"the reward server gave {len(scores.values)} scores for {expected} inputs"
            raise MalformedAnswer(problem, status=200, retryable=True)
        finite = [value if value is None or math.isfinite(value) else None for value in scores.values]
        if finite != scores.values:
            logger.warning("the reward server gave %d of %d candidates no finite score", finite.count(None), expected)
        return replace(scores, values=finite)


class _ScoreError(ValueError):
    """What is wrong with a score; quotes nothing."""


def _number(value: Any) -> float:
    """The one number in a value. A null here is no score, and several numbers are no reward model's."""
    if isinstance(value, list):
        if len(value) > 1:
            cure = "it embeds, or has several labels; vLLM classifies with --convert classify"
            raise _ScoreError(f"vectors of {len(value)} numbers: {cure}")
        (value,) = value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _ScoreError("one is no number")
    return float(str(value))  # of an integer that no float holds it is infinite, and so that input's alone


def _in_order(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_index = {entry["index"]: entry for entry in data}
    return [by_index[index] for index in range(len(data))]


def _by_index(score: str, entries: str | None = None) -> Callable[[Any], Scores]:
    """Reads what each entry has under a name; the entries are the answer, or lie in it under a name."""
    return lambda answer: Scores([_number(entry[score]) for entry in _in_order(answer[entries] if entries else answer)])


def _read_sglang(answer: Any) -> Scores:
    return Scores([_number(entry["embedding"]) for entry in (answer if isinstance(answer, list) else [answer])])


def _read_tei(answer: Any) -> Scores:
    return Scores([_number([label["score"] for label in entry]) for entry in answer])


def _read_bonmini(answer: Any) -> Scores:
    fingerprint, has_zero = answer["fingerprint"], answer["has_zero"]
    if not isinstance(fingerprint, str) or not isinstance(has_zero, bool):
        raise TypeError("no fingerprint, or no word about the zero")
    values = [None if value is None else _number(value) for value in answer["scores"]]
    return Scores(values, fingerprint, has_zero, answer.get("inputs"))


def _vllm_body(**more: Any) -> Body:
    return lambda inputs: {"input": list(inputs), **more, **_RAW, "add_special_tokens": False}


def _pairs_body(prompt: str, answers: str, **more: Any) -> Body:
    """A body with one conversation and its answers, under these names."""
    return lambda inputs: {prompt: inputs[0][0], answers: [answer for _, answer in inputs], **more}


def _about_vllm(answer: Any) -> Limits:
    served = answer["data"][0]
    return served["id"], None, _limit(served.get("max_model_len"))


def _about_tei(answer: Any) -> Limits:
    return None, _limit(answer.get("max_client_batch_size")), _limit(answer.get("max_input_length"))


def _limit(told: Any) -> int | None:
    """0 and less are no limit."""
    return None if told is None or int(told) < 1 else int(told)


def _sglang_body(inputs: Sequence[Any]) -> dict[str, Any]:
    return {"text" if inputs and isinstance(inputs[0], str) else "input_ids": list(inputs)}


def _tei_body(inputs: Sequence[Any]) -> dict[str, Any]:
    # A plain list of two strings would be one pair: each input is a list of its own. Never truncated: that cuts the answer.
    batch = [[part] if isinstance(part, str) else list(part) for part in inputs]
    return {"inputs": batch, "raw_scores": True, "truncate": False}


_RAW = {"use_activation": False}
_VLLM_MODELS = ("/v1/models", _about_vllm)
_TEI_INFO = ("/info", _about_tei)
_VLLM_SWITCH, _TEI_SWITCH = "start vLLM with --runner pooling", "this TEI may be too old for raw_scores"
_TEI_PAIRS = _pairs_body("query", "texts", raw_scores=True, truncate=False)
_RERANKED = _by_index("relevance_score", "results")
_TOKENS: tuple[Inputs, ...] = ("ids", "text")
_PAIR: tuple[Inputs, ...] = ("pair",)

#: Of each server its usual kind first.
KINDS: dict[ServerKind, Kind] = {
    "vllm": Kind("/classify", _TOKENS, _vllm_body(), _by_index("probs", "data"), _VLLM_MODELS, switch=_VLLM_SWITCH),
    "vllm-pooling": Kind("/pooling", _TOKENS, _vllm_body(task="classify"), _by_index("data", "data"), _VLLM_MODELS),
    "vllm-score": Kind(
        "/score", _PAIR, _pairs_body("text_1", "text_2", **_RAW), _by_index("score", "data"), _VLLM_MODELS, shared=True
    ),
    "vllm-rerank": Kind("/rerank", _PAIR, _pairs_body("query", "documents", **_RAW), _RERANKED, _VLLM_MODELS, shared=True),
    "sglang": Kind("/classify", _TOKENS, _sglang_body, _read_sglang),
    "tei": Kind("/predict", ("text", "pair"), _tei_body, _read_tei, _TEI_INFO, named=False, switch=_TEI_SWITCH),
    "tei-rerank": Kind("/rerank", _PAIR, _TEI_PAIRS, _by_index("score"), _TEI_INFO, shared=True, named=False),
    "infinity": Kind("/rerank", _PAIR, _pairs_body("query", "documents", raw_scores=True), _RERANKED, shared=True),
    "jina": Kind("/v1/rerank", _PAIR, _pairs_body("query", "documents"), _RERANKED, shared=True),
    "cohere": Kind("/v2/rerank", _PAIR, _pairs_body("query", "documents"), _RERANKED, shared=True),
    "bonmini": Kind("/score", ("messages",), _pairs_body("messages", "candidates"), _read_bonmini, shared=True, named=False),
}


def kinds_of(server: str) -> dict[str, ServerKind]:
    """The kinds of a server by the names that specs give their routes, the usual one first."""
    routes = {kind: wire.route.rpartition("/")[2] for kind, wire in KINDS.items() if kind.partition("-")[0] == server}
    return {"classify" if name == "predict" else name: kind for kind, name in routes.items()}
