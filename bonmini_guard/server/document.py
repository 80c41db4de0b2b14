"""The OpenAPI document, made of the same classes that check the bodies."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from bonmini_guard.server import schemas

_REFERENCE = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (
    schemas.ScoreRequest,
    schemas.ScoreAnswer,
    schemas.PredictRequest,
    schemas.Prediction,
    schemas.ClassifyRequest,
    schemas.ClassifyAnswer,
    schemas.Failure,
    schemas.ClassifyFailure,
)
_WHY = {
    400: "not a body of this route",
    401: "no or another token",
    408: "the body took too long",
    413: "the body is too large",
    422: "not a body of this route, or a text that does not fit",
    429: "the queue is full; Retry-After says when to come back",
    500: "scoring failed",
    503: "the server is ending",
}


def document(secured: bool) -> dict[str, Any]:
    """The document; with a security scheme if a token is wanted."""
    _, parts = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_REFERENCE)
    prediction = {"$ref": _REFERENCE.format(model="Prediction")}
    predictions = {"anyOf": [_list(prediction), _list(_list(prediction))]}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "bonmini-guard scoring server", "version": _version()},
        "paths": {
            "/score": _post("Score the candidates of a conversation", "ScoreRequest", _named("ScoreAnswer"), "Failure", 422),
            "/predict": _post("TEI: score texts", "PredictRequest", predictions, "Failure", 422),
            "/classify": _post("vLLM: score texts", "ClassifyRequest", _named("ClassifyAnswer"), "ClassifyFailure", 400),
            "/health": _get("Whether the process is alive", "application/json"),
            "/ready": _get("Whether requests are taken", "application/json", 503),
            "/metrics": _get("Figures for Prometheus", "text/plain", 401),
        },
        "components": {"schemas": parts["$defs"]},
    }
    if secured:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _post(summary: str, body: str, answer: dict[str, Any], failure: str, wrong: int) -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": "scores", "content": {"application/json": {"schema": answer}}}}
    for status in (401, 408, 413, wrong, 429, 500, 503):
        answers[str(status)] = _failure(status, failure)
    answers["429"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    content = {"application/json": {"schema": _named(body)}}
    return {"post": {"summary": summary, "requestBody": {"required": True, "content": content}, "responses": answers}}


def _get(summary: str, kind: str, *failures: int) -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": "the state", "content": {kind: {"schema": {}}}}}
    return {"get": {"summary": summary, "responses": answers | {str(status): _failure(status, "Failure") for status in failures}}}


def _failure(status: int, kind: str) -> dict[str, Any]:
    return {"description": _WHY[status], "content": {"application/json": {"schema": _named(kind)}}}


def _named(model: str) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(model=model)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _version() -> str:
    try:
        return version("bonmini-guard")
    except PackageNotFoundError:
        return "0"
