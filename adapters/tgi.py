"""Draw candidates from a Text Generation Inference server: one request for each draw, each with a seed of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from langchain_core.messages import AIMessage
from pydantic import SecretStr

from bonmini_guard.errors import ConfigurationError, MissingExtraError
from bonmini_guard.protocols import DrawRequest

try:
    from huggingface_hub import AsyncInferenceClient
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
except ImportError as error:
    raise MissingExtraError("huggingface_hub", "tgi") from error
try:
    import tenacity  # noqa: F401 - what http_errors needs, asked for here to name this extra
except ImportError as error:
    raise MissingExtraError("tenacity", "tgi") from error

from bonmini_guard.adapters.http_errors import (
    EndpointError,
    EndpointTimeout,
    RequestRejected,
    TruncatedAnswer,
    from_response,
    with_retries,
)
from bonmini_guard.adapters.hub_errors import classify
from bonmini_guard.adapters.tgi_messages import Answer, chat_answer, chat_body, completion_answer, completion_body, to_message

# httpx or httpx2, whichever the hub speaks through.
_http: Any = import_module(HTTPError.__module__.partition(".")[0])

#: Requests at a time where the server does not say: TGI's own default. It answers 429 to any more.
DEFAULT_CONCURRENCY = 128
#: Seconds that the server's description is waited for.
INFO_TIMEOUT = 5.0
_prompt_tokens: ContextVar[int] = ContextVar("tgi_prompt_tokens", default=0)


@dataclass
class _Connection:
    """What belongs to one event loop."""

    session: Any
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    places: asyncio.Semaphore | None = None


class _Call(AsyncInferenceClient):
    """One request. The hub keeps every stream open until its client is closed, so each gets a client; they share a session."""

    def __init__(self, base_url: str, session: Any) -> None:
        # A token that says nothing: without one, the hub would send the user's saved token. The session sets the real one.
        super().__init__(base_url=base_url, token="set-by-the-session")
        self._session = session

    async def _get_async_client(self) -> Any:
        return self._session


class TGIGenerator:
    """Draws from a Text Generation Inference (TGI) server, or one that speaks its protocol.

    Each draw is one request with the draw's seed, and sampling is always on: ``n`` of the chat route has no effect in TGI,
    ``best_of`` returns the likeliest of its draws, and the default of the generate route is greedy. Cancelling a draw closes
    its connection, which ends the work on the server. Works from several event loops; each has its own connections.

    Args:
        base_url: where the server is, such as ``http://localhost:8080``; a trailing ``/v1`` is dropped.
        mode: ``"chat"`` has the server apply its chat template; ``"completion"`` continues the joined contents of the messages.
        token: sent as bearer token; None takes the environment's ``HF_TOKEN``, "" sends none. A token that the hub's command
            line saved is never sent.
        model: name of the model to ask for (chat only). TGI serves one model and needs none.
        max_new_tokens: tokens of an answer at most.
        temperature: above 0; 0 is greedy, and refused for more than one draw.
        top_p: sample among the likeliest tokens of this total probability; None or 1.0 for all.
        top_k: sample among the k likeliest tokens (completion only).
        stop: strings that end an answer; they are not part of it.
        timeout: seconds for a draw with its retries; None waits for ever.
        attempt_timeout: seconds for one attempt; None for what is left of ``timeout``.
        retries: attempts after the first, for what may pass: 429, 502, 503, timeouts, connection faults; one for 424 and 500.
        backoff: seconds, the range of the random wait before the first retry; doubles each time. Retry-After is honoured.
        accept_truncated: False makes an answer cut at ``max_new_tokens`` a failed draw. Otherwise such answers have
            ``response_metadata["truncated"]`` True.
        stream: receive answers as streams, which keeps proxies from closing a quiet connection.
        max_concurrency: requests at a time on each event loop; None takes what the server's ``/info`` says, else 128.

    Raises:
        ConfigurationError: a setting is out of range, or does not go with the mode.
    """

    def __init__(
        self,
        base_url: str,
        *,
        mode: Literal["chat", "completion"] = "chat",
        token: SecretStr | str | None = None,
        model: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 1.0,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: Sequence[str] = (),
        timeout: float | None = 120.0,
        attempt_timeout: float | None = None,
        retries: int = 3,
        backoff: float = 0.5,
        accept_truncated: bool = True,
        stream: bool = False,
        max_concurrency: int | None = None,
    ) -> None:
        if mode not in ("chat", "completion"):
            raise ConfigurationError(f"mode is {mode!r}: use 'chat' or 'completion'")
        _check_sampling(mode, max_new_tokens, temperature, top_p, top_k)
        _check_limits(timeout, attempt_timeout, retries, backoff, max_concurrency)
        self.base_url = _base(base_url)
        self.mode = mode
        self.model = model
        self.temperature = temperature
        self.timeout = timeout
        self.attempt_timeout = attempt_timeout
        self.retries = retries
        self.backoff = backoff
        self.accept_truncated = accept_truncated
        self.stream = stream
        self.max_concurrency = max_concurrency
        self._settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            # TGI answers 422 to a top_p of 1.
            "top_p": None if top_p == 1 else top_p,
            "top_k": top_k,
            "stop": [stop] if isinstance(stop, str) else list(stop),
        }
        self._token = _secret(token)
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connection] = WeakKeyDictionary()
        self._identity: str | None = None

    def __repr__(self) -> str:
        return f"TGIGenerator({self.base_url!r}, mode={self.mode!r})"

    @property
    def deterministic(self) -> bool:
        """Whether every draw would be the same."""
        return self.temperature == 0

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer.

        Raises:
            EndpointError: the endpoint gave no usable answer; the subclass says why.
            ConfigurationError: a call option is unknown, or would spoil the draw.
        """
        body = (chat_body if self.mode == "chat" else completion_body)(request, self._settings)
        try:
            async with asyncio.timeout(self.timeout):
                session, places = await self._connect()
                async with places:
                    answer = await with_retries(
                        lambda: self._attempt(session, body),
                        retries=self.retries,
                        backoff=self.backoff,
                        within=self.timeout,
                    )
        except TimeoutError as error:
            raise EndpointTimeout(f"no answer within timeout={self.timeout} s", retryable=True) from error
        return self._accept(answer, request, body.get("stop") or [])

    def fingerprint(self) -> str:
        """The model's id as the server gives it, and the sampling settings. Blocks up to 5 s when first asked."""
        if self._identity is not None:
            return self._identity
        served = self._ask()
        name = served.get("model_id") or self.model or "unknown"
        version = f"@{served['model_sha']}" if served.get("model_sha") else ""
        settings = self._settings | {"mode": self.mode, "accept_truncated": self.accept_truncated}
        identity = f"tgi:{name}{version}:{json.dumps(settings, sort_keys=True)}"
        if served:
            self._identity = identity
        return identity

    async def aclose(self) -> None:
        """Close the connections of every event loop that still runs. The generator can be used again."""
        here = asyncio.get_running_loop()
        for loop, connection in list(self._connections.items()):
            del self._connections[loop]
            if loop is here:
                await connection.session.aclose()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(connection.session.aclose(), loop))

    async def __aenter__(self) -> TGIGenerator:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # Connecting

    async def _connect(self) -> tuple[Any, asyncio.Semaphore]:
        loop = asyncio.get_running_loop()
        connection = self._connections.get(loop)
        if connection is None:
            connection = self._connections[loop] = _Connection(self._session())
        async with connection.reading:
            if connection.places is None:
                connection.places = asyncio.Semaphore(self.max_concurrency or await self._served_at_once(connection.session))
        return connection.session, connection.places

    def _session(self) -> Any:
        # Not the hub's session: that one refuses to work under HF_HUB_OFFLINE, which is about the hub and not about this
        # server. No redirects, since they would carry the token elsewhere. Places are counted above, and time too.
        limits = _http.Limits(max_connections=None, max_keepalive_connections=DEFAULT_CONCURRENCY)
        hooks = {"request": [self._authorise], "response": [self._look_at]}
        return _http.AsyncClient(limits=limits, timeout=None, follow_redirects=False, event_hooks=hooks, verify=_certificates())

    async def _authorise(self, request: Any) -> None:
        request.headers.pop("authorization", None)
        request.headers.update(self._authorisation())

    async def _look_at(self, response: Any) -> None:
        tokens = response.headers.get("x-prompt-tokens", "")
        if tokens.isdecimal():
            _prompt_tokens.set(int(tokens))
        if response.has_redirect_location:
            # The hub would take its body for the answer.
            raise RequestRejected("the endpoint redirects: give its final address as base_url", status=response.status_code)
        if response.status_code >= 400:
            # Errors are short; unread, the body of a failed stream could not be looked into.
            await response.aread()
        if response.status_code == 400:
            # The hub may answer it by sending the request again without seed and sampling, for all clients from then on.
            raise from_response(response, self._secret_value())

    def _secret_value(self) -> str | None:
        return None if self._token is None else self._token.get_secret_value()

    def _authorisation(self) -> dict[str, str]:
        return {} if self._token is None else {"authorization": f"Bearer {self._secret_value()}"}

    async def _served_at_once(self, session: Any) -> int:
        try:
            async with asyncio.timeout(INFO_TIMEOUT):
                limit = _description(await session.get(f"{self.base_url}/info")).get("max_concurrent_requests")
        except (HTTPError, TimeoutError, EndpointError):
            # Draws will say what is wrong.
            limit = None
        return limit if isinstance(limit, int) and limit > 0 else DEFAULT_CONCURRENCY

    def _ask(self) -> dict[str, Any]:
        try:
            return _description(_http.get(f"{self.base_url}/info", headers=self._authorisation(), timeout=INFO_TIMEOUT))
        except HTTPError:
            return {}

    # Drawing

    async def _attempt(self, session: Any, body: Mapping[str, Any]) -> Answer:
        # Its signatures are stricter than what it takes.
        call: Any = _Call(self.base_url, session)
        try:
            async with asyncio.timeout(self.attempt_timeout):
                return await (self._chat(call, body) if self.mode == "chat" else self._complete(call, body))
        except Exception as error:
            typed = classify(error, self._secret_value())
            if typed is None or typed is error:
                raise
            raise typed from error
        finally:
            # Ends the stream if one is open; the session stays.
            await call.close()

    async def _chat(self, call: Any, body: Mapping[str, Any]) -> Answer:
        if self.stream and "tools" not in body:
            chunks = await call.chat_completion(**body, stream=True, stream_options={"include_usage": True}, model=self.model)
            return await _collect(chunks, chat_answer)
        return chat_answer([await call.chat_completion(**body, model=self.model)])

    async def _complete(self, call: Any, body: Mapping[str, Any]) -> Answer:
        noted = _prompt_tokens.set(0)
        try:
            if self.stream:
                chunks = await call.text_generation(**body, details=True, stream=True)
                return await _collect(chunks, completion_answer)
            output = await call.text_generation(**body, details=True)
            if isinstance(output, str):
                # Another client of this process made the hub drop details, and perhaps seed and sampling too.
                raise RequestRejected("the endpoint does not speak TGI's generate protocol: use mode='chat'", status=400)
            return completion_answer([output], _prompt_tokens.get())
        finally:
            _prompt_tokens.reset(noted)

    def _accept(self, answer: Answer, request: DrawRequest, stop: Sequence[str]) -> AIMessage:
        if answer.truncated and not self.accept_truncated:
            raise TruncatedAnswer(f"the answer was cut at {answer.output_tokens} tokens: raise max_new_tokens", status=200)
        return to_message(answer, request.seed, stop)


async def _collect(chunks: Any, read: Callable[[list[Any]], Answer]) -> Answer:
    stream: AsyncIterator[Any] = chunks
    async with contextlib.aclosing(stream):  # type: ignore[type-var]
        return read([chunk async for chunk in stream])


@functools.cache
def _certificates() -> Any:
    # Reading them takes a tenth of a second.
    return _http.create_ssl_context()


def _description(response: Any) -> dict[str, Any]:
    try:
        described = response.json() if response.status_code == 200 else {}
    except ValueError:
        described = {}
    return described if isinstance(described, dict) else {}


def _base(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"base_url has scheme {parts.scheme!r}: give a URL such as http://localhost:8080")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError("base_url must hold no user, password, query or fragment: pass a secret as token=")
    return base_url.rstrip("/").removesuffix("/v1").rstrip("/")


def _secret(token: SecretStr | str | None) -> SecretStr | None:
    given = os.environ.get("HF_TOKEN", "") if token is None else token
    value = (given.get_secret_value() if isinstance(given, SecretStr) else given).strip()
    if not value.isascii() or not value.isprintable():
        raise ConfigurationError("the token has characters that no HTTP header may hold")
    return SecretStr(value) if value else None


def _check_sampling(mode: str, max_new_tokens: int, temperature: float, top_p: float | None, top_k: int | None) -> None:
    if temperature < 0 or (top_p is not None and not 0 < top_p <= 1) or (top_k is not None and top_k < 1) or max_new_tokens < 1:
        raise ConfigurationError("need temperature >= 0, 0 < top_p <= 1, top_k >= 1 and max_new_tokens >= 1")
    if mode == "chat" and top_k is not None:
        raise ConfigurationError("TGI's chat route takes no top_k: leave it out, or use mode='completion'")


def _check_limits(
    timeout: float | None, attempt_timeout: float | None, retries: int, backoff: float, max_concurrency: int | None
) -> None:
    if any(seconds is not None and seconds <= 0 for seconds in (timeout, attempt_timeout)):
        raise ConfigurationError("timeout and attempt_timeout are seconds above 0, or None to wait for ever")
    if retries < 0 or backoff < 0 or (max_concurrency is not None and max_concurrency < 1):
        raise ConfigurationError("need retries >= 0, backoff >= 0 and max_concurrency >= 1")
