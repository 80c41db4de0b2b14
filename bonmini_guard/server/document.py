"""The OpenAPI document, made of the same classes that check the bodies."""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter

from bonmini_guard import __version__
from bonmini_guard.server.decisions import DecisionsRequest, SystemOneRequest
from bonmini_guard.server.schemas import ClassifyRequest, PredictRequest, ScoreAnswer, ScoreRequest

#: Answers of other servers' routes are described by their own documents.
_ANSWER = dict[str, Any]
_PREDICTED = list[dict[str, float | str]]
#: What is said where something fails, and the same as vLLM puts it.
_FAILURE, _AS_VLLM = dict[str, str], dict[str, dict[str, Any]]
#: Of each route that scores: its body, its answer, what it says when it fails, and the status of a body that is none of its own.
_SCORING: dict[str, tuple[Any, Any, Any, int]] = {
    "/score": (ScoreRequest, ScoreAnswer, _FAILURE, 422),
    "/predict": (PredictRequest, _PREDICTED | list[_PREDICTED], _FAILURE, 422),
    "/classify": (ClassifyRequest, _ANSWER, _AS_VLLM, 400),
    "/v1/systemone": (SystemOneRequest, _ANSWER, _AS_VLLM, 400),
    "/v1/decisions": (DecisionsRequest, _ANSWER, _AS_VLLM, 400),
}
#: Of each route that tells: the type of its answer, and how it fails.
_TELLING = {"/health": ("application/json", ()), "/ready": ("application/json", (503,)), "/metrics": ("text/plain", (401,))}


def document(routes: Collection[str], secured: bool) -> dict[str, Any]:
    """The document of a server with these routes that score; with a security scheme if a token is wanted."""
    kinds = {kind for *kinds, _ in _SCORING.values() for kind in kinds}
    adapters = [(kind, "validation", TypeAdapter(kind)) for kind in kinds]
    schemas, parts = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    of = {kind: {"application/json": {"schema": schema}} for (kind, _), schema in schemas.items()}
    paths: dict[str, Any] = {}
    for route in routes:
        body, answer, failure, wrong = _SCORING[route]
        answers = _answers(of[answer], of[failure], (401, 408, 413, 415, 421, wrong, 429, 500, 503))
        paths[route] = {"post": {"requestBody": {"required": True, "content": of[body]}, "responses": answers}}
    for route, (kind, failures) in _TELLING.items():
        paths[route] = {"get": {"responses": _answers({kind: {"schema": {}}}, of[_FAILURE], failures)}}
    components: dict[str, Any] = {"schemas": parts["$defs"]}
    whole: dict[str, Any] = {"openapi": "3.1.0", "info": {"title": "bonmini-guard scoring server", "version": __version__}}
    if secured:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        whole["security"] = [{"token": []}]
    return whole | {"paths": paths, "components": components}


def _answers(answer: dict[str, Any], failure: dict[str, Any], failures: tuple[int, ...]) -> dict[str, Any]:
    found = {"200": {"description": "OK", "content": answer}}
    return found | {str(status): {"description": HTTPStatus(status).phrase, "content": failure} for status in failures}
