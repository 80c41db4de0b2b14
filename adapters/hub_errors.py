"""What huggingface_hub raises, as this package's endpoint errors."""

from __future__ import annotations

from bonmini_guard.adapters import http_errors
from bonmini_guard.adapters.http_errors import EndpointError, GenerationFailedAtEndpoint, Overloaded, RequestRejected
from bonmini_guard.errors import MissingExtraError

try:
    from huggingface_hub import errors as hub
except ImportError as error:
    raise MissingExtraError("huggingface_hub", "tgi") from error

#: Errors inside a stream, which have no status of their own. TGI's OpenAI routes say 422 there whatever the cause.
_BY_CLASS: tuple[tuple[type[Exception], type[EndpointError]], ...] = (
    (hub.OverloadedError, Overloaded),
    (hub.ValidationError, RequestRejected),
    (hub.TextGenerationError, GenerationFailedAtEndpoint),
)
_TYPE_NAMES: dict[type[Exception], str] = {
    hub.OverloadedError: "overloaded",
    hub.ValidationError: "validation",
    hub.GenerationError: "generation",
    hub.IncompleteGenerationError: "incomplete_generation",
}


def classify(error: Exception, secret: str | None = None) -> EndpointError | None:
    """The typed error for what huggingface_hub or its HTTP library raised; see :func:`http_errors.classify`."""
    typed = http_errors.classify(error, secret)
    # One with a response was told apart by its status.
    if isinstance(error, hub.TextGenerationError) and (typed is None or typed.status is None):
        return _from_stream(error, secret)
    return typed


def _from_stream(error: Exception, secret: str | None) -> EndpointError:
    kind = next(kind for cause, kind in _BY_CLASS if isinstance(error, cause))
    said = error.args[0] if error.args else None
    detail = said.get("message") if isinstance(said, dict) else said
    return http_errors.from_stream(kind, detail, _TYPE_NAMES.get(type(error)), secret)
