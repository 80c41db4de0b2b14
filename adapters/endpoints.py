"""What drawing from any HTTP endpoint has in common: settings checked, connections of each event loop, places, time, retries."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from langchain_core.messages import AIMessage
from pydantic import SecretStr

from bonmini_guard.adapters.answers import Answer, to_message, usage_of
from bonmini_guard.adapters.http_errors import EndpointError, EndpointTimeout, TruncatedAnswer, classify, with_retries
from bonmini_guard.adapters.pools import mounts
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.limiter import Limiter, build_limiter
from bonmini_guard.protocols import DrawRequest

T = TypeVar("T")

#: Requests at a time where neither the user nor the server says.
DEFAULT_CONCURRENCY = 128


@dataclass
class Connection:
    """What belongs to one event loop: a client, and the limit of its requests, once the server was looked at."""

    client: Any
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    limiter: Limiter | None = None


class Endpoint:
    """Base of the generators that speak HTTP. A subclass opens and closes clients, and makes one attempt.

    Args:
        base_url: where the server is.
        secret: sent as bearer token; None sends none.
        timeout: seconds for a request with its retries; None waits for ever.
        attempt_timeout: seconds for one attempt; None for what is left of ``timeout``.
        retries: attempts after the first.
        backoff: seconds, the range of the random wait before the first retry.
        max_concurrency: requests at a time on each event loop, or a limiter shared with others; None leaves it to the server.
        accept_truncated: whether an answer cut at the token limit is an answer.
    """

    #: The HTTP library that the client above it speaks through: httpx or httpx2.
    http: Any

    def __init__(
        self,
        base_url: str,
        secret: SecretStr | None,
        *,
        timeout: float | None,
        attempt_timeout: float | None,
        retries: int,
        backoff: float,
        max_concurrency: int | Limiter | None,
        accept_truncated: bool,
    ) -> None:
        if any(seconds is not None and seconds <= 0 for seconds in (timeout, attempt_timeout)):
            raise ConfigurationError("timeout and attempt_timeout are seconds above 0, or None to wait for ever")
        if retries < 0 or backoff < 0 or (isinstance(max_concurrency, int) and max_concurrency < 1):
            raise ConfigurationError("need retries >= 0, backoff >= 0 and max_concurrency >= 1")
        self.base_url = base_url
        self.timeout = timeout
        self.attempt_timeout = attempt_timeout
        self.retries = retries
        self.backoff = backoff
        self.max_concurrency = max_concurrency
        self.accept_truncated = accept_truncated
        self._limiter = build_limiter(max_concurrency)
        self._token = secret
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, Connection] = WeakKeyDictionary()

    async def aclose(self) -> None:
        """Close the connections of every event loop that still runs. The generator can be used again."""
        here = asyncio.get_running_loop()
        for loop, connection in list(self._connections.items()):
            del self._connections[loop]
            if loop is here:
                await self._close(connection.client)
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._close(connection.client), loop))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # For subclasses

    def _open(self) -> Any:
        """A client for the running loop."""
        raise NotImplementedError

    async def _close(self, client: Any) -> None:
        """Close a client of :meth:`_open`."""
        raise NotImplementedError

    async def _begin(self, client: Any) -> int:
        """Look at the server once for each event loop; the requests that it takes at a time."""
        return DEFAULT_CONCURRENCY

    def _classify(self, error: Exception) -> EndpointError | None:
        return classify(error, self._secret_value())

    # Asking

    async def _ask(self, attempt: Callable[[Any], Awaitable[T]]) -> T:
        """Await ``attempt(client)``, in a place of its own, again while that may help, within the time.

        Raises:
            EndpointError: the endpoint gave no usable answer; the subclass says why.
        """
        try:
            async with asyncio.timeout(self.timeout):
                client, limiter = await self._connect()
                async with limiter.here():
                    return await with_retries(
                        lambda: self._once(attempt, client), retries=self.retries, backoff=self.backoff, within=self.timeout
                    )
        except TimeoutError as error:
            raise EndpointTimeout(f"no answer within timeout={self.timeout} s", retryable=True) from error

    async def _once(self, attempt: Callable[[Any], Awaitable[T]], client: Any) -> T:
        try:
            async with asyncio.timeout(self.attempt_timeout):
                return await attempt(client)
        except Exception as error:
            typed = self._classify(error)
            if typed is None or typed is error:
                raise
            raise typed from error

    async def _connect(self) -> tuple[Any, Limiter]:
        loop = asyncio.get_running_loop()
        connection = self._connections.get(loop)
        if connection is None:
            connection = self._connections[loop] = Connection(self._open())
        async with connection.reading:
            if connection.limiter is None:
                offered = await self._begin(connection.client)
                connection.limiter = self._limiter = self._limiter or Limiter(offered)
        return connection.client, connection.limiter

    def _session(self, **hooks: Sequence[Any]) -> Any:
        """An HTTP session that sends the token and nobody else's. Places are counted above it, and time too."""
        limits = self.http.Limits(max_connections=None, max_keepalive_connections=DEFAULT_CONCURRENCY)
        verify = certificates(self.http)
        return self.http.AsyncClient(
            limits=limits,
            timeout=None,
            # They would carry the token elsewhere.
            follow_redirects=False,
            event_hooks={"request": [self._authorise], **hooks},
            verify=verify,
            mounts=mounts(self.http, verify, DEFAULT_CONCURRENCY),
        )

    async def _authorise(self, request: Any) -> None:
        request.headers.pop("authorization", None)
        request.headers.update(self._authorisation())

    def _authorisation(self) -> dict[str, str]:
        return {} if self._token is None else {"authorization": f"Bearer {self._secret_value()}"}

    def _secret_value(self) -> str | None:
        return None if self._token is None else self._token.get_secret_value()

    def _accept(self, answer: Answer, request: DrawRequest, stop: Sequence[str]) -> AIMessage:
        if answer.truncated and not self.accept_truncated:
            at = "its token limit" if answer.output_tokens is None else f"{answer.output_tokens} tokens"
            error = TruncatedAnswer(f"the answer was cut at {at}: raise the limit", status=200)
            error.usage_metadata = usage_of(answer)
            raise error
        return to_message(answer, request.seed, stop)


def checked_url(base_url: str, secret: str) -> str:
    """A base URL without a slash at its end.

    Args:
        base_url: as the user gave it.
        secret: name of the argument that takes secrets, for the message.

    Raises:
        ConfigurationError: it is no URL of a server, or holds a secret.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"base_url has scheme {parts.scheme!r}: give a URL such as http://localhost:8080")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(f"base_url must hold no user, password, query or fragment: pass a secret as {secret}=")
    return base_url.rstrip("/")


def checked_secret(token: SecretStr | str | None, variable: str) -> SecretStr | None:
    """A secret as given, or the environment's; "" is none.

    Raises:
        ConfigurationError: it cannot be sent.
    """
    given = os.environ.get(variable, "") if token is None else token
    value = (given.get_secret_value() if isinstance(given, SecretStr) else given).strip()
    if not value.isascii() or not value.isprintable():
        raise ConfigurationError("the token has characters that no HTTP header may hold")
    return SecretStr(value) if value else None


@functools.cache
def certificates(http: Any) -> Any:
    """The trusted certificates. Reading them takes a tenth of a second."""
    return http.create_ssl_context()
