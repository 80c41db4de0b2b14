"""One way to speak to any HTTP endpoint: settings, connections of each event loop, places, time, retries, the circuit."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Annotated, Any, Self, TypedDict, TypeVar, get_type_hints
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from pydantic import SecretStr

from bonmini_guard.adapters.bodies import bounding, read
from bonmini_guard.adapters.circuit import CircuitBreaker
from bonmini_guard.adapters.http_errors import (
    EndpointMisconfigured,
    EndpointTimeout,
    Overloaded,
    classify,
    from_response,
)
from bonmini_guard.adapters.recovery import Recovery
from bonmini_guard.engine.limiter import Limiter, Places, build_limiter
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.forks import Lock, renewed_in_children
from bonmini_guard.validation import Amount, Count, Must, Natural, Seconds, check, check_names

T = TypeVar("T")
_Circuit = Annotated[CircuitBreaker, Must("a CircuitBreaker", lambda value: isinstance(value, CircuitBreaker))]
#: Requests at a time where neither the user nor the server says.
DEFAULT_CONCURRENCY = 128
#: Seconds that what a server says of itself is waited for.
LOOK = 5.0
_JSON = {"content-type": "application/json"}


class HttpOptions(TypedDict, total=False):
    """What every adapter that speaks HTTP takes, as keyword arguments; each names its own defaults where they differ.

    Attributes:
        timeout: seconds for a draw or a batch of scores with its retries (120); None waits for ever.
        attempt_timeout: seconds for one attempt; None for what is left of ``timeout``.
        retries: attempts after the first (3), for what may pass; one for failed generations and answers that cannot be read.
        backoff: seconds (0.5), the range of the random wait before the first retry; doubles each time. Retry-After is honoured.
        max_concurrency: requests at a time on each event loop, or a ``Limiter`` that several share; None for what the server
            says, else 128.
        circuit: stops asking an endpoint that keeps failing; may be shared.
    """

    timeout: float | None
    attempt_timeout: float | None
    retries: int
    backoff: float
    max_concurrency: int | Limiter | None
    circuit: CircuitBreaker | None


#: What scorers ask for where a user says nothing.
SCORING = HttpOptions(timeout=60.0, backoff=0.2, max_concurrency=16)


@dataclass(frozen=True)
class Http:
    """:class:`HttpOptions`, checked; ConfigurationError if one of them is unknown or out of range."""

    timeout: Seconds | None = 120.0
    attempt_timeout: Seconds | None = None
    retries: Natural = 3
    backoff: Amount = 0.5
    max_concurrency: Count | Limiter | None = None
    circuit: _Circuit | None = field(default=None, repr=False)

    @classmethod
    def of(cls, options: HttpOptions) -> Self:
        """From keyword arguments."""
        check_names(options, HttpOptions.__annotations__)
        check(options, get_type_hints(cls, include_extras=True))
        return cls(**options)


class Clients:
    """What belongs to one event loop: HTTP clients, and the places of all requests."""

    def __init__(self) -> None:
        self._all: list[Any] = []
        #: Each serves one request at a time, the one that was free last the next: few connections are open while few are needed.
        #: httpx and httpx2 look at every idle connection of a client, with a system call each, whenever a request begins or ends:
        #: with sixteen that costs more than the request.
        self.free: list[Any] = []
        self._end = _open(self._all)
        self.looking = asyncio.Lock()
        self.recovery = Recovery()
        #: Known once the server was looked at.
        self.places: Places | None = None

    def another(self, client: Any) -> Any:
        """One more client, to be closed with the others; whoever takes one puts it back among the free ones."""
        self._all.append(client)
        return client

    @contextmanager
    def lent(self, make: Callable[[], Any]) -> Iterator[Any]:
        """A client that nobody else has meanwhile."""
        client = self.free.pop() if self.free else self.another(make())
        try:
            yield client
        finally:
            self.free.append(client)

    async def begin(self) -> None:
        """From now on all connections are closed when the event loop ends, at the latest."""
        await anext(self._end)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._end.aclose()


async def _open(clients: Sequence[Any]) -> AsyncGenerator[None, None]:
    """Closes clients in the end: an event loop that ends closes the async generators that are left."""
    try:
        yield
    finally:
        for client in clients:
            await client.aclose()


class Endpoint:
    """Base of the adapters that speak HTTP."""

    #: The HTTP library: httpx, or httpx2 where a client above it wants that.
    client_library: Any
    #: Told of each response before its body is read.
    hooks: tuple[Callable[[Any], Awaitable[None]], ...] = ()

    def __init__(self, base_url: str, secret: SecretStr | None, http: Http) -> None:
        self.base_url = base_url
        self.http = http
        self.circuit = http.circuit or CircuitBreaker()
        self._limiter = build_limiter(http.max_concurrency)
        self._token = secret
        #: Event loops in several threads share an endpoint.
        self._lock = Lock()
        self.renew()

    def renew(self) -> None:
        """What belongs to this process and its event loops alone."""
        renewed_in_children(self)
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, Clients] = WeakKeyDictionary()
        weakref.finalize(self, _close, self._clients).atexit = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not isinstance(value, WeakKeyDictionary)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.renew()

    async def aclose(self) -> None:
        """Close the connections of every event loop that still runs. The adapter can be used again."""
        here = asyncio.get_running_loop()
        with self._lock.held:
            everywhere = list(self._clients.items())
            self._clients.clear()
        for loop, clients in everywhere:
            if loop is here:
                await clients.aclose()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(clients.aclose(), loop))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # For subclasses

    async def _look(self, client: Any) -> int:
        """Look at the server once for each event loop; the requests that it takes at a time."""
        return DEFAULT_CONCURRENCY

    # Asking

    async def _ask(self, attempt: Callable[[Any], Awaitable[T]]) -> T:
        """Await ``attempt(client)``, in a place of its own, again while that may help, within the time."""
        http = self.http
        try:
            async with asyncio.timeout(http.timeout) as whole:
                known = self._clients.get(asyncio.get_running_loop())
                clients, places = (known, known.places) if known and known.places else await self._connect()
                await places.acquire()
                try:
                    once = partial(self._once, attempt, clients, whole)
                    return await clients.recovery.persist(once, retries=http.retries, backoff=http.backoff, within=http.timeout)
                finally:
                    places.release()
        except Overloaded as error:
            # Not again by whoever comes next, if this was no chance.
            if clients.recovery.failed > (http.retries or self.circuit.failures):
                self.circuit.trip(error)
            raise
        except TimeoutError as error:
            raise self._late() from error

    def _late(self) -> EndpointTimeout:
        return EndpointTimeout(f"no answer within timeout={self.http.timeout} s", retryable=True)

    async def _once(self, attempt: Callable[[Any], Awaitable[T]], clients: Clients, whole: asyncio.Timeout) -> T:
        # Each attempt counts, and retries end as soon as the circuit opens.
        with self.circuit:
            # Not lent(): this runs once a draw.
            client = clients.free.pop() if clients.free else clients.another(self._client())
            try:
                async with asyncio.timeout(self.http.attempt_timeout):
                    return await attempt(client)
            except asyncio.CancelledError:
                # It may take what is left of the time; the circuit sees a cancelled attempt alone, which says nothing.
                if whole.expired():
                    self.circuit.__exit__(None, self._late(), None)
                raise
            except Exception as error:
                typed = classify(error, self._secret())
                if typed is None or typed is error:
                    raise
                raise typed from error
            finally:
                clients.free.append(client)

    async def _connect(self) -> tuple[Clients, Places]:
        loop = asyncio.get_running_loop()
        clients = self._clients.get(loop)
        if clients is None:
            # Only this loop sets its own: the lock is for others that set theirs.
            with self._lock.held:
                for other in [other for other in self._clients if other.is_closed()]:
                    del self._clients[other]
                clients = self._clients[loop] = Clients()
            await clients.begin()
        async with clients.looking:
            if clients.places is None:
                with clients.lent(self._client) as client:
                    offered = await self._look(client)
                with self._lock.held:
                    self._limiter = self._limiter or Limiter(offered)
                clients.places = self._limiter.here()
        return clients, clients.places

    async def _apart(self, look: Callable[[Any], Awaitable[T]]) -> T:
        """``look(client)`` with a client that nobody else uses: on a loop that is there for this alone, perhaps."""
        async with self._client() as client:
            return await look(client)

    async def _get(self, client: Any, route: str) -> Any:
        """The HTTP library's response to a look at the server; TimeoutError if it takes longer than :data:`LOOK`."""
        async with asyncio.timeout(LOOK):
            return await client.get(self.base_url + route)

    async def _post(self, client: Any, route: str, body: bytes, *, quiet: bool = False, **extensions: Any) -> tuple[bytes, bool]:
        """The bytes of an answer, and whether it is a stream of events; a stream that said that it ends is read no further."""
        async with client.stream("POST", self.base_url + route, content=body, headers=_JSON, extensions=extensions) as response:
            if not response.is_success:
                await response.aread()
                raise from_response(response, self._secret(), quiet)
            return await read(response)

    @asynccontextmanager
    async def passing(self, route: str, body: bytes) -> AsyncIterator[Any]:
        """The HTTP library's response to a request that is passed on as it is: not retried, whatever its status, read as it comes.

        ``timeout`` bounds each wait for the endpoint, not the whole. EndpointError if there is none.
        """
        clients, places = await self._connect()
        url, timeout = self.base_url + route, self.http.timeout
        async with places:
            with clients.lent(self._client) as client:
                asked = client.build_request("POST", url, content=body, headers=_JSON, timeout=timeout)
                try:
                    response = await client.send(asked, stream=True)
                except Exception as error:
                    if (typed := classify(error, self._secret())) is None or typed is error:
                        raise
                    raise typed from error
                async with aclosing(response):
                    yield response

    def _client(self) -> Any:
        """An HTTP client that sends the token and nobody else's. Places are counted above it, and time too."""
        token = {} if self._token is None else {"authorization": f"Bearer {self._secret()}"}
        trusted = certificates(self.client_library)
        try:
            return self.client_library.AsyncClient(
                limits=self.client_library.Limits(max_connections=None, max_keepalive_connections=1),
                timeout=None,
                # They would carry the token elsewhere.
                follow_redirects=False,
                event_hooks={"response": [bounding(self.client_library), *self.hooks]},
                verify=trusted,
                headers={"accept-encoding": "identity", **token},
            )
        except (ImportError, ValueError, self.client_library.InvalidURL) as error:
            problem = f"the proxy settings of the environment cannot be used ({type(error).__name__})"
            cure = "mend or unset HTTP_PROXY, HTTPS_PROXY and ALL_PROXY; a SOCKS proxy needs the package socksio"
            raise EndpointMisconfigured(f"{problem}: {cure}") from error

    def _secret(self) -> str | None:
        return None if self._token is None else self._token.get_secret_value()


def _close(everywhere: Mapping[asyncio.AbstractEventLoop, Clients]) -> None:
    """Close what belongs to an adapter that nobody holds any more, each on its loop."""
    for loop, clients in list(everywhere.items()):
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(clients.aclose(), loop)


def checked_url(base_url: str, secret: str, *routes: str) -> str:
    """A base URL without a slash or a route at its end; ConfigurationError if it is no server's, or holds a secret."""
    bare = str(base_url).strip().rstrip("/")
    try:
        parts = urlsplit(bare)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and " " not in parts.netloc
    except ValueError:  # of a port or an address that is none
        usable = False
    if not usable or not bare.isprintable():
        raise ConfigurationError("base_url is no address of a server: give a URL such as http://localhost:8080")
    if parts.username or parts.password or {"?", "#"} & set(bare):
        raise ConfigurationError(f"base_url must hold no user, password, query or fragment: pass a secret as {secret}=")
    for route in routes:
        bare = bare.removesuffix(route).rstrip("/")
    return bare


def checked_secret(token: SecretStr | str | None, variable: str) -> SecretStr | None:
    """A secret as given, or the environment's, where "" is none; ConfigurationError if it cannot be sent."""
    given = os.environ.get(variable, "") if token is None else token
    value = given.get_secret_value() if isinstance(given, SecretStr) else given
    if not isinstance(value, str) or not (value := value.strip()).isascii() or not value.isprintable():
        raise ConfigurationError("the token is no text, or has characters that no HTTP header may hold")
    return SecretStr(value) if value else None


@cache
def certificates(library: Any) -> Any:
    """The trusted certificates, which take a tenth of a second to read; ConfigurationError if they cannot be read."""
    try:
        return library.create_ssl_context()
    except OSError as error:
        problem = f"the certificates that the environment names cannot be read ({type(error).__name__})"
        raise EndpointMisconfigured(f"{problem}: mend or unset SSL_CERT_FILE and SSL_CERT_DIR") from error
