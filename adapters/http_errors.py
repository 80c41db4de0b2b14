"""What can go wrong at an HTTP endpoint: typed errors, and how they are told apart.

::

    BonMiniGuardError
    └── EndpointError                      .status, .error_type, .retryable, .retry_after; the cause is chained
        ├── Overloaded                     429, 503, 529: it takes no more requests at present
        ├── RequestRejected                400, 401, 403, 404, 422, redirects: the same request will fail again
        ├── EndpointTimeout                408, 504, or no answer in time
        ├── EndpointUnreachable            502, refused, reset, or broken off
        ├── GenerationFailedAtEndpoint     409, 424, 500, or an error inside an answer that began with 200
        ├── MalformedAnswer                200 with something that is no answer
        └── NoAnswer (Unanswered)          an answer without what was asked for: withheld by a filter, or nothing but reasoning
            └── TruncatedAnswer            an answer cut at the token limit, where such answers are not accepted
    ConfigurationError
    └── EndpointMisconfigured              no request can be sent: no model is named, certificates that cannot be read

Messages hold what the server said about the error, never a candidate's text and never a token.
"""

from __future__ import annotations

import contextlib
import email.utils
import math
import time
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Any

from bonmini_guard.errors import BonMiniGuardError, ConfigurationError, Unanswered

LONGEST_DETAIL = 200
#: 429 for an account without money: no waiting helps.
_FINAL = frozenset({"insufficient_quota"})


class EndpointMisconfigured(ConfigurationError):  # noqa: N818
    """What is said of an endpoint, or the environment that it is asked from, cannot be used, whatever the request."""


class EndpointError(BonMiniGuardError):
    """An endpoint gave no usable answer.

    Args:
        status: HTTP status; None where there was none, 200 for an error inside an answer.
        error_type: the server's own name of the error, if it gave one.
        retryable: whether the same request may succeed later.
        retry_after: seconds that the server asked to wait.

    Attributes:
        final: whether another draw would fail the same way.
    """

    final = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        error_type: str | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.retryable = retryable
        self.retry_after = retry_after


class Overloaded(EndpointError):  # noqa: N818 - says it all
    """The endpoint takes no more requests at present."""


class RequestRejected(EndpointError):  # noqa: N818
    """The endpoint refuses this request, and will refuse it again."""

    final = True


class EndpointTimeout(EndpointError):  # noqa: N818
    """No answer in time."""


class EndpointUnreachable(EndpointError):  # noqa: N818
    """The connection was refused, reset or broken off, or a gateway says so."""


class GenerationFailedAtEndpoint(EndpointError):  # noqa: N818
    """The endpoint began to generate and failed."""


class MalformedAnswer(EndpointError):  # noqa: N818
    """The endpoint answered with something that is no answer."""


class NoAnswer(EndpointError, Unanswered):  # noqa: N818
    """The endpoint answered without what was asked for; ``error_type`` is "content_filter" or "empty"."""


class TruncatedAnswer(NoAnswer):
    """The answer was cut at the token limit, and such answers are not accepted."""


#: Errors of one kind, whatever the server: class by status.
_BY_STATUS: dict[int, type[EndpointError]] = {
    408: EndpointTimeout,
    409: GenerationFailedAtEndpoint,
    424: GenerationFailedAtEndpoint,
    429: Overloaded,
    502: EndpointUnreachable,
    503: Overloaded,
    529: Overloaded,
    504: EndpointTimeout,
}
_CURES = {
    401: "check the key",
    403: "check the key, and what it may ask for",
    404: "check base_url and the model's name",
    429: "draw less at a time, or ask for a higher limit",
    502: "check that the server runs",
    503: "check that the server runs and is not full",
}
#: Where servers put what they say of an error; other places may quote what was sent.
_WORDS = ("message", "error", "errors", "detail", "msg", "loc")
_NAMES = ("error_type", "code", "type")


def classify(error: Exception, secret: str | None = None) -> EndpointError | None:
    """The typed error for what an HTTP library raised, or a client above one; None for what is no fault of an endpoint.

    The messages that are going to be chained are cleared of the secret, too.
    """
    if isinstance(error, BonMiniGuardError):
        return error if isinstance(error, EndpointError) else None
    # Some clients have the response on the cause.
    several = (getattr(place, "response", None) for place in (error, error.__cause__))
    response = next((each for each in several if each is not None), None)
    redact(error, secret)
    return _from_connection(error) if response is None else from_response(response, secret)


def redact(error: BaseException | None, secret: str | None) -> None:
    """Take a secret out of the messages of an error and its causes."""
    while error is not None and secret:
        error.args = tuple(arg.replace(secret, "***") if isinstance(arg, str) else arg for arg in error.args)
        for name in ("message", "server_message"):
            if isinstance(said := getattr(error, name, None), str):
                setattr(error, name, said.replace(secret, "***"))
        error = error.__cause__ or error.__context__


def from_response(response: Any, secret: str | None = None, quiet: bool = False) -> EndpointError:
    """The typed error for an HTTP response that is read and no success; ``quiet`` leaves out words that may quote what was sent."""
    body = _body(response)
    status = int(response.status_code)
    moved = " (it redirects: give its final address as base_url)" if 300 <= status < 400 else ""
    error = _typed(status, body, f"the endpoint answered {status}{moved}", secret, quiet)
    error.retry_after = _retry_after(response.headers, error.retry_after)
    return error


def _body(response: Any) -> Any:
    """What it holds: JSON, else a plain text; of pages for people, and of streams that were not read, the status says enough."""
    try:
        return response.json()
    except Exception:
        with contextlib.suppress(Exception):
            text = str(response.text).strip()
            return None if text.startswith("<") or "\ufffd" in text else text
    return None


def from_answer(body: Mapping[str, Any], secret: str | None) -> EndpointError:
    """The typed error that a server told within an answer that began with 200."""
    said = body.get("error")
    codes = [said.get("code"), said.get("status")] if isinstance(said, Mapping) else [body.get("code")]
    status = next((int(str(code)) for code in codes if str(code).isdecimal() and 400 <= int(str(code)) < 600), 500)
    error = _typed(status, body, "the endpoint failed within its answer", secret)
    error.status = 200
    return error


def _typed(status: int, body: Any, problem: str, secret: str | None, quiet: bool = False) -> EndpointError:
    detail = "" if quiet else shorten("; ".join(dict.fromkeys(_said(body))), secret)
    # TGI's shape, OpenAI's, or FastAPI's.
    inner = body.get("error") if isinstance(body, Mapping) else None
    places = [place for place in (body, inner) if isinstance(place, Mapping)]
    names = (place.get(name) for place in places for name in _NAMES)
    name = next((name for name in names if isinstance(name, str) and not name.isdecimal() and name != "error"), None)
    kind = _BY_STATUS.get(status, GenerationFailedAtEndpoint if status >= 500 else RequestRejected)
    if name in _FINAL:
        kind = RequestRejected
    wait = places[0].get("estimated_time") if places else None
    cure = f" ({_CURES[status]})" if status in _CURES else ""
    return kind(
        (f"{problem}: {detail}" if detail else problem) + cure,
        status=status,
        error_type=None if quiet else name,
        retryable=kind is not RequestRejected,
        # Of a model that is loading.
        retry_after=_seconds(wait),
    )


def _said(body: Any) -> Iterator[str]:
    if isinstance(body, str):
        yield body
    elif isinstance(body, list):
        for each in body[:5]:
            yield from _said(each)
    elif isinstance(body, Mapping):
        for name in _WORDS:
            yield from _said(body.get(name))


def _from_connection(error: Exception) -> EndpointError | None:
    name = type(error).__name__
    # The HTTP library is httpx or httpx2, depending on the version of the client above it: known by name only.
    kinds = {base.__name__ for base in type(error).__mro__}
    if isinstance(error, TimeoutError) or "TimeoutException" in kinds:
        return EndpointTimeout(f"the endpoint gave no answer in time ({name})", retryable=True)
    if kinds & {"TransportError", "HTTPError"} or isinstance(error, ConnectionError):
        return EndpointUnreachable(f"the connection to the endpoint failed ({name}): check base_url and the server", retryable=True)
    if isinstance(error, ValueError | TypeError | LookupError | AttributeError | RecursionError):
        return MalformedAnswer(f"the endpoint's answer could not be read ({name})", status=200, retryable=True)
    return None


def shorten(detail: str, secret: str | None) -> str:
    """What a server said, on one line of bounded length and without the secret."""
    # Cleared before it is cut: half a token is a leak too.
    return " ".join((detail.replace(secret, "***") if secret else detail).split())[:LONGEST_DETAIL]


def _retry_after(headers: Mapping[str, str], otherwise: float | None) -> float | None:
    """Seconds to wait, from headers that give milliseconds, seconds or a date."""
    soon, value = _seconds(headers.get("retry-after-ms")), headers.get("retry-after")
    if soon is not None:
        return soon / 1000
    if value is None:
        return otherwise
    if (seconds := _seconds(value)) is not None:
        return seconds
    try:
        date = email.utils.parsedate_to_datetime(value)
        # Servers in Python write "-0000", which names no zone, and mean Greenwich.
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())
    except ValueError:
        return otherwise


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(seconds) or seconds < 0 else seconds
