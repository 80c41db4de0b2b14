"""Draw candidates from a Text Generation Inference server: one request for each draw, each with a seed of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Literal

from langchain_core.messages import AIMessage
from pydantic import SecretStr

from bonmini_guard.errors import ConfigurationError, MissingExtraError
from bonmini_guard.limiter import Limiter
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

from bonmini_guard.adapters.answers import Answer, streamed_answers, whole_answers
from bonmini_guard.adapters.endpoints import DEFAULT_CONCURRENCY, Endpoint, checked_secret, checked_url
from bonmini_guard.adapters.http_errors import EndpointError, RequestRejected, from_response
from bonmini_guard.adapters.hub_errors import classify
from bonmini_guard.adapters.requests import stop_strings
from bonmini_guard.adapters.tgi_messages import chat_body, completion_answer, completion_body

# httpx or httpx2, whichever the hub speaks through.
_http: Any = import_module(HTTPError.__module__.partition(".")[0])

#: Seconds that the server's description is waited for.
INFO_TIMEOUT = 5.0
_prompt_tokens: ContextVar[int] = ContextVar("tgi_prompt_tokens", default=0)


class _Call(AsyncInferenceClient):
    """One request. The hub keeps every stream open until its client is closed, so each gets a client; they share a session."""

    def __init__(self, base_url: str, session: Any) -> None:
        # A token that says nothing: without one, the hub would send the user's saved token. The session sets the real one.
        super().__init__(base_url=base_url, token="set-by-the-session")
        self._session = session

    async def _get_async_client(self) -> Any:
        return self._session


class TGIGenerator(Endpoint):
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
        max_concurrency: requests at a time on each event loop, or a ``Limiter`` that several share; None takes what the
            server's ``/info`` says, else 128.

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
        max_concurrency: int | Limiter | None = None,
    ) -> None:
        if mode not in ("chat", "completion"):
            raise ConfigurationError(f"mode is {mode!r}: use 'chat' or 'completion'")
        _check_sampling(mode, max_new_tokens, temperature, top_p, top_k)
        super().__init__(
            checked_url(base_url, "token").removesuffix("/v1").rstrip("/"),
            checked_secret(token, "HF_TOKEN"),
            timeout=timeout,
            attempt_timeout=attempt_timeout,
            retries=retries,
            backoff=backoff,
            max_concurrency=max_concurrency,
            accept_truncated=accept_truncated,
        )
        self.mode = mode
        self.model = model
        self.temperature = temperature
        self.stream = stream
        self._settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            # TGI answers 422 to a top_p of 1.
            "top_p": None if top_p == 1 else top_p,
            "top_k": top_k,
            "stop": stop_strings(stop),
        }
        self._served: dict[str, Any] = {}
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
            ConfigurationError: a call option is unknown, would spoil the draw, or asks for more than the server's limits.
        """
        body = (chat_body if self.mode == "chat" else completion_body)(request, self._settings)
        answer = await self._ask(lambda session: self._attempt(session, body))
        return self._accept(answer, request, body.get("stop") or [])

    def fingerprint(self) -> str:
        """The model's id as the server gives it, and the sampling settings. Blocks up to 5 s when first asked."""
        if self._identity is not None:
            return self._identity
        served = self._describe()
        name = served.get("model_id") or self.model or "unknown"
        version = f"@{served['model_sha']}" if served.get("model_sha") else ""
        settings = self._settings | {"mode": self.mode, "accept_truncated": self.accept_truncated}
        identity = f"tgi:{name}{version}:{json.dumps(settings, sort_keys=True)}"
        if served:
            self._identity = identity
        return identity

    # Connecting

    http = _http

    def _open(self) -> Any:
        # Not the hub's session: that one refuses to work under HF_HUB_OFFLINE, which is about the hub and not about this server.
        return self._session(response=[self._look_at])

    async def _close(self, client: Any) -> None:
        await client.aclose()

    async def _begin(self, client: Any) -> int:
        try:
            async with asyncio.timeout(INFO_TIMEOUT):
                self._served = _description(await client.get(f"{self.base_url}/info"))
        except (HTTPError, TimeoutError, EndpointError):
            # Draws will say what is wrong.
            pass
        return _limit(self._served, "max_concurrent_requests") or DEFAULT_CONCURRENCY

    def _check_fits(self, body: Mapping[str, Any]) -> None:
        """Say in this package's words what the server would refuse each time."""
        total = _limit(self._served, "max_total_tokens")
        asked = body.get("max_tokens") or body.get("max_new_tokens") or 0
        if total is not None and asked >= total:
            raise ConfigurationError(
                f"max_new_tokens={asked} leaves no room for a prompt: the server's max_total_tokens is {total}"
            )
        strings, stop = _limit(self._served, "max_stop_sequences"), body.get("stop") or []
        if strings is not None and len(stop) > strings:
            raise ConfigurationError(f"{len(stop)} stop strings are given: the server's max_stop_sequences is {strings}")

    def _classify(self, error: Exception) -> EndpointError | None:
        return classify(error, self._secret_value())

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

    def _describe(self) -> dict[str, Any]:
        try:
            return _description(_http.get(f"{self.base_url}/info", headers=self._authorisation(), timeout=INFO_TIMEOUT))
        except HTTPError:
            return {}

    # Drawing

    async def _attempt(self, session: Any, body: Mapping[str, Any]) -> Answer:
        self._check_fits(body)
        # Its signatures are stricter than what it takes.
        call: Any = _Call(self.base_url, session)
        try:
            return await (self._chat(call, body) if self.mode == "chat" else self._complete(call, body))
        finally:
            # Ends the stream if one is open; the session stays.
            await call.close()

    async def _chat(self, call: Any, body: Mapping[str, Any]) -> Answer:
        if self.stream and "tools" not in body:
            chunks = await call.chat_completion(**body, stream=True, stream_options={"include_usage": True}, model=self.model)
            return await _collect(chunks, lambda several: streamed_answers(several)[0])
        return whole_answers(await call.chat_completion(**body, model=self.model))[0]

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


async def _collect(chunks: Any, read: Callable[[list[Any]], Answer]) -> Answer:
    stream: AsyncIterator[Any] = chunks
    async with contextlib.aclosing(stream):  # type: ignore[type-var]
        return read([chunk async for chunk in stream])


def _description(response: Any) -> dict[str, Any]:
    try:
        described = response.json() if response.status_code == 200 else {}
    except ValueError:
        described = {}
    return described if isinstance(described, dict) else {}


def _limit(served: Mapping[str, Any], name: str) -> int | None:
    value = served.get(name)
    return value if isinstance(value, int) and value > 0 else None


def _check_sampling(mode: str, max_new_tokens: int, temperature: float, top_p: float | None, top_k: int | None) -> None:
    if temperature < 0 or (top_p is not None and not 0 < top_p <= 1) or (top_k is not None and top_k < 1) or max_new_tokens < 1:
        raise ConfigurationError("need temperature >= 0, 0 < top_p <= 1, top_k >= 1 and max_new_tokens >= 1")
    if mode == "chat" and top_k is not None:
        raise ConfigurationError("TGI's chat route takes no top_k: leave it out, or use mode='completion'")
