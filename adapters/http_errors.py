"""What can go wrong at an HTTP endpoint: typed errors, how they are told apart, and which of them are tried again.

::

    BonMiniGuardError
    └── EndpointError                      .status, .error_type, .retryable, .retry_after; the cause is chained
        ├── Overloaded                     429, 503: it takes no more requests at present
        ├── RequestRejected                400, 401, 403, 404, 422, redirects: the same request will fail again
        ├── EndpointTimeout                408, 504, or no answer in time
        ├── EndpointUnreachable            502, refused, reset, or broken off
        ├── GenerationFailedAtEndpoint     424, 500, or an error inside a stream that began with 200
        ├── MalformedAnswer                200 with something that is no answer
        └── TruncatedAnswer                an answer cut at the token limit, where such answers are not accepted

Messages hold what the server said about the error, never a candidate's text and never a token.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from langchain_core.messages.ai import UsageMetadata

from bonmini_guard.errors import BonMiniGuardError, MissingExtraError

try:
    from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_before_delay, stop_never
    from tenacity import wait_random_exponential as jittered
except ImportError as error:
    raise MissingExtraError("tenacity", "remote") from error

T = TypeVar("T")

#: Failures that are seldom cured by trying again get one more attempt.
BOUNDED_RETRIES = 1
#: Seconds between two attempts at most, where the server names no time of its own.
LONGEST_BACKOFF = 8.0
#: Seconds that a server's Retry-After is obeyed for at most.
LONGEST_RETRY_AFTER = 60.0
LONGEST_DETAIL = 200
#: 429 for an account without money: no waiting helps.
_FINAL = frozenset({"insufficient_quota"})


class EndpointError(BonMiniGuardError):
    """An endpoint gave no usable answer.

    Args:
        message: what happened.
        status: HTTP status; None where there was none, 200 for an error inside a stream.
        error_type: the server's own name of the error, if it gave one.
        retryable: whether the same request may succeed later.
        retry_after: seconds that the server asked to wait.
    """

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


class EndpointTimeout(EndpointError):  # noqa: N818
    """No answer in time."""


class EndpointUnreachable(EndpointError):  # noqa: N818
    """The connection was refused, reset or broken off, or a gateway says so."""


class GenerationFailedAtEndpoint(EndpointError):  # noqa: N818
    """The endpoint began to generate and failed."""


class MalformedAnswer(EndpointError):  # noqa: N818
    """The endpoint answered with something that is no answer."""


class TruncatedAnswer(EndpointError):  # noqa: N818
    """The answer was cut at the token limit, and such answers are not accepted.

    Attributes:
        usage_metadata: the tokens it was billed with all the same, where the server told them.
    """

    usage_metadata: UsageMetadata | None = None


_BOUNDED = (GenerationFailedAtEndpoint, MalformedAnswer)
#: Errors of one kind, whatever the server: class by status.
_BY_STATUS: dict[int, type[EndpointError]] = {
    408: EndpointTimeout,
    424: GenerationFailedAtEndpoint,
    429: Overloaded,
    502: EndpointUnreachable,
    503: Overloaded,
    504: EndpointTimeout,
}


def classify(error: Exception, secret: str | None = None) -> EndpointError | None:
    """The typed error for what an HTTP library raised, or a client above one; None for what is no fault of an endpoint.

    Args:
        error: what was raised; its message is cleared of the secret too, since it is going to be chained.
        secret: a token that must not show, even if the server echoes it.
    """
    if isinstance(error, BonMiniGuardError):
        return error if isinstance(error, EndpointError) else None
    response = _response(error)
    redact(error, secret)
    return _from_connection(error) if response is None else from_response(response, secret)


def redact(error: BaseException | None, secret: str | None) -> None:
    """Take a secret out of the messages of an error and its causes."""
    while error is not None and secret:
        error.args = tuple(arg.replace(secret, "***") if isinstance(arg, str) else arg for arg in error.args)
        if isinstance(getattr(error, "server_message", None), str):
            error.server_message = error.server_message.replace(secret, "***")  # type: ignore[attr-defined]
        if isinstance(getattr(error, "message", None), str):
            error.message = error.message.replace(secret, "***")  # type: ignore[attr-defined]
        error = error.__cause__ or error.__context__


async def with_retries(
    attempt: Callable[[], Awaitable[T]], *, retries: int = 3, backoff: float = 0.5, within: float | None = None
) -> T:
    """Await ``attempt()`` again while its :class:`EndpointError` is retryable.

    Between attempts lie a random time that doubles its range from ``backoff`` seconds up, or the server's Retry-After and a
    random part of ``backoff``; of a Retry-After 60 seconds count at most. A wait that would outlast ``within`` is not begun:
    the error is raised at once.

    Args:
        attempt: makes one request.
        retries: attempts after the first at most; failed generations and malformed answers get one.
        backoff: seconds, the range of the first wait.
        within: seconds for everything together; None for no limit. A running attempt is not interrupted.
    """
    retrying = AsyncRetrying(
        retry=retry_if_exception(_retryable),
        stop=_stop(retries, stop_never if within is None else stop_before_delay(within)),
        wait=_wait(backoff),
        reraise=True,
    )

    async def once() -> T:
        # tenacity awaits coroutine functions only: attempt may be any callable that gives an awaitable.
        return await attempt()

    return await retrying(once)


def _retryable(error: BaseException) -> bool:
    return isinstance(error, EndpointError) and error.retryable


def _stop(retries: int, out_of_time: Callable[[RetryCallState], bool]) -> Callable[[RetryCallState], bool]:
    def stop(state: RetryCallState) -> bool:
        allowed = min(retries, BOUNDED_RETRIES) if isinstance(_error(state), _BOUNDED) else retries
        return state.attempt_number > allowed or out_of_time(state)

    return stop


def _wait(backoff: float) -> Callable[[RetryCallState], float]:
    growing, small = jittered(multiplier=backoff, max=LONGEST_BACKOFF), jittered(multiplier=backoff, max=backoff)

    def wait(state: RetryCallState) -> float:
        asked = getattr(_error(state), "retry_after", None)
        # Not all at the very moment that the server named.
        return growing(state) if asked is None else min(asked, LONGEST_RETRY_AFTER) + small(state)

    return wait


def _error(state: RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()


def _response(error: Exception) -> Any:
    """The HTTP response behind an error: some clients have it on the cause."""
    for place in (error, error.__cause__):
        response = getattr(place, "response", None)
        if response is not None:
            return response
    return None


def from_response(response: Any, secret: str | None = None) -> EndpointError:
    """The typed error for an HTTP response that is read and no success."""
    status = int(response.status_code)
    detail, error_type = _body(response, secret)
    kind = _BY_STATUS.get(status, GenerationFailedAtEndpoint if status >= 500 else RequestRejected)
    if error_type in _FINAL:
        kind = RequestRejected
    return kind(
        f"the endpoint answered {status}: {detail}" if detail else f"the endpoint answered {status}",
        status=status,
        error_type=error_type,
        retryable=kind is not RequestRejected,
        retry_after=_retry_after(response.headers.get("retry-after")),
    )


def refusal(response: Any, secret: str | None = None, quiet: bool = False) -> EndpointError:
    """:func:`from_response`; quietly, without the server's words, which may quote what was sent to it."""
    error = from_response(response, secret)
    if quiet:
        error.args, error.error_type = (f"the endpoint answered {error.status}",), None
    return error


def from_stream(
    kind: type[EndpointError], detail: object, error_type: str | None = None, secret: str | None = None
) -> EndpointError:
    """The typed error for one that a server told within an answer that began with 200."""
    return kind(
        f"the endpoint failed within its answer: {_short(detail, secret)}",
        status=200,
        error_type=error_type,
        retryable=kind is not RequestRejected,
    )


def _from_connection(error: Exception) -> EndpointError | None:
    name = type(error).__name__
    # The HTTP library is httpx or httpx2, depending on the version of the client above it: known by name only.
    kinds = {base.__name__ for base in type(error).__mro__}
    if isinstance(error, TimeoutError) or "TimeoutException" in kinds:
        return EndpointTimeout(f"the endpoint gave no answer in time ({name})", retryable=True)
    if kinds & {"TransportError", "HTTPError"} or isinstance(error, ConnectionError):
        return EndpointUnreachable(f"the connection to the endpoint failed ({name})", retryable=True)
    if isinstance(error, ValueError | TypeError | LookupError | AttributeError):
        return MalformedAnswer(f"the endpoint's answer could not be read ({name})", status=200, retryable=True)
    return None


def _body(response: Any, secret: str | None) -> tuple[str, str | None]:
    """What the server said, and its name of the error: TGI's shape, OpenAI's, or FastAPI's."""
    try:
        body = response.json()
        said = body.get("error") or body
        inner = said if isinstance(said, dict) else {"message": said}
        detail = inner.get("message") or inner.get("detail")
        names = (body.get("error_type"), inner.get("code"), inner.get("type"))
    except Exception:
        # A stream that was not read, no JSON, or no object: the status says enough.
        return "", None
    return _short(detail, secret), next((name for name in names if isinstance(name, str)), None)


def _short(detail: object, secret: str | None) -> str:
    if not isinstance(detail, str):
        return ""
    # Cleared before it is cut: half a token is a leak too.
    return " ".join((detail.replace(secret, "***") if secret else detail).split())[:LONGEST_DETAIL]


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait from a Retry-After header, which gives seconds or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
