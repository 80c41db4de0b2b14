"""Draw candidates from any server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, TGI's own route, OpenAI, ..."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal
from urllib.parse import urlsplit

from langchain_core.messages import AIMessage
from pydantic import SecretStr

from bonmini_guard.errors import ConfigurationError, MissingExtraError
from bonmini_guard.limiter import Limiter
from bonmini_guard.protocols import DrawRequest

try:
    import openai
except ImportError as error:
    raise MissingExtraError("openai", "openai") from error
try:
    import tenacity  # noqa: F401 - what http_errors needs, asked for here to name this extra
except ImportError as error:
    raise MissingExtraError("tenacity", "openai") from error

from bonmini_guard.adapters.answers import Answer, keep, streamed_answers, whole_answers
from bonmini_guard.adapters.endpoints import Endpoint, checked_secret, checked_url
from bonmini_guard.adapters.groups import one_by_one
from bonmini_guard.adapters.http_errors import EndpointError, GenerationFailedAtEndpoint, classify, from_stream
from bonmini_guard.adapters.openai_messages import chat_body, check_extra, completion_body
from bonmini_guard.adapters.requests import stop_strings

logger = logging.getLogger(__name__)

# httpx or httpx2, whichever the SDK speaks through.
_http: Any = import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])

#: Seconds that the list of the server's models is waited for.
MODELS_TIMEOUT = 5.0
Choices = Literal["separate", "server"]


class OpenAICompatibleGenerator(Endpoint):
    """Draws from a server that speaks OpenAI's chat or completions protocol.

    Cancelling a draw closes its connection, which ends the work on the server. Works from several event loops; each has its
    own connections. The SDK's own retries are off: this package's policy is the same for every endpoint.

    Args:
        base_url: where the server is, such as ``http://localhost:8000/v1``; ``/v1`` is added to a URL without a path.
        model: the model to ask for; None takes the only one that ``/models`` lists.
        api_key: sent as bearer token; None takes the environment's ``OPENAI_API_KEY``, "" sends none.
        mode: ``"chat"`` has the server apply its chat template; ``"completion"`` continues the joined contents of the messages.
        choices: how a loop of k draws is asked for. ``"separate"``: k requests, each with a seed of its own; an early exit
            closes those that are still running, and a server with prefix caching computes the prompt once all the same.
            ``"server"``: one request with ``n=k``, for a server that honours it; the prompt is computed once, but the loop ends
            only when its longest answer does. Choices that are missing are drawn separately.
        max_tokens: tokens of an answer at most; None leaves it to the server.
        temperature: above 0; 0 is greedy, and refused for more than one draw; None leaves it to the server.
        top_p: sample among the likeliest tokens of this total probability; None leaves it to the server.
        stop: strings that end an answer; they are not part of it.
        logprobs: ask for the tokens' log-probabilities; they are kept in ``response_metadata["logprobs"]``.
        send_seed: False for servers that refuse seeds; draws are then not repeatable.
        response_format: passed on (chat only).
        extra_body: more keys of every request's body, such as ``{"top_k": 40}`` or ``{"chat_template_kwargs": {...}}``.
        timeout: seconds for a draw with its retries; None waits for ever.
        attempt_timeout: seconds for one attempt; None for what is left of ``timeout``.
        retries: attempts after the first, for what may pass: 429, 502, 503, timeouts, connection faults; one for 424 and 500.
        backoff: seconds, the range of the random wait before the first retry; doubles each time. Retry-After is honoured.
        accept_truncated: False makes an answer cut at ``max_tokens`` a failed draw. Otherwise such answers have
            ``response_metadata["truncated"]`` True.
        stream: receive answers as streams, which keeps proxies from closing a quiet connection. Draws with tools or
            log-probabilities are not streamed.
        max_concurrency: requests at a time on each event loop, or a ``Limiter`` that several share; None for 128.

    Raises:
        ConfigurationError: a setting is out of range, does not go with the mode, or would spoil the draws.
    """

    http = _http

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: SecretStr | str | None = None,
        mode: Literal["chat", "completion"] = "chat",
        choices: Choices = "separate",
        max_tokens: int | None = 512,
        temperature: float | None = 1.0,
        top_p: float | None = None,
        stop: str | Sequence[str] = (),
        logprobs: bool = False,
        send_seed: bool = True,
        response_format: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
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
        if choices not in ("separate", "server"):
            raise ConfigurationError(f"choices is {choices!r}: use 'separate' or 'server'")
        if response_format is not None and mode == "completion":
            raise ConfigurationError("the completions route takes no response_format: use mode='chat'")
        _check_sampling(max_tokens, temperature, top_p)
        super().__init__(
            _with_version(checked_url(base_url, "api_key")),
            checked_secret(api_key, "OPENAI_API_KEY"),
            timeout=timeout,
            attempt_timeout=attempt_timeout,
            retries=retries,
            backoff=backoff,
            max_concurrency=max_concurrency,
            accept_truncated=accept_truncated,
        )
        self.model = model
        self.mode = mode
        self.choices = choices
        self.temperature = temperature
        self.send_seed = send_seed
        self.stream = stream
        self._settings: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": stop_strings(stop),
            # The two routes take it in two ways; 0 asks for the drawn tokens alone.
            "logprobs": (True if mode == "chat" else 0) if logprobs else None,
            "response_format": None if response_format is None else dict(response_format),
            "extra_body": check_extra(extra_body or {}, "extra_body"),
        }
        #: Whether it was said that the server answers fewer choices than asked for.
        self._told = False

    def __repr__(self) -> str:
        return f"OpenAICompatibleGenerator({self.base_url!r}, model={self.model!r}, mode={self.mode!r}, choices={self.choices!r})"

    @property
    def deterministic(self) -> bool:
        """Whether every draw would be the same."""
        return self.temperature == 0

    @property
    def draw_group(self) -> Callable[[Sequence[DrawRequest]], AsyncIterator[tuple[int, AIMessage | BaseException]]] | None:
        """Draws a whole loop in one request; None with ``choices="separate"``, where each draw is a request."""
        return None if self.choices == "separate" else self._draw_group

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer, from one request.

        Raises:
            EndpointError: the endpoint gave no usable answer; the subclass says why.
            ConfigurationError: a call option is unknown, or would spoil the draw.
        """
        body = self._body(request)
        return self._accept((await self._answers(body, 1))[0], request, body.get("stop", ()))

    def fingerprint(self) -> str:
        """The model's name and the sampling settings. Blocks up to 5 s if the server has to be asked for the name."""
        model = self.model or self._describe() or "unknown"
        settings = self._settings | {"mode": self.mode, "accept_truncated": self.accept_truncated}
        return f"openai:{model}:{json.dumps(settings, sort_keys=True, default=str)}"

    # A loop at once

    async def _draw_group(self, requests: Sequence[DrawRequest]) -> AsyncIterator[tuple[int, AIMessage | BaseException]]:
        body = self._body(requests[0])
        together = [] if len(requests) == 1 else await self._several(body, len(requests))
        for position, answer in enumerate(together):
            yield position, self._outcome(answer, requests[position], body.get("stop", ()))
        async with contextlib.aclosing(one_by_one(self.draw, requests, len(together))) as rest:
            async for position, outcome in rest:
                yield position, outcome

    async def _several(self, body: Mapping[str, Any], count: int) -> list[Answer]:
        """As many answers as the server has given to one request, at most ``count``: each of them a draw of its own."""
        answers = await self._answers(body, count)
        if len(answers) < count and not self._told:
            self._told = True
            logger.warning("the endpoint answered %d choices instead of %d; the others are drawn separately", len(answers), count)
        return answers

    def _outcome(self, answer: Answer, request: DrawRequest, stop: Sequence[str]) -> AIMessage | BaseException:
        try:
            return self._accept(answer, request, stop)
        except EndpointError as error:
            return error

    # Asking

    def _body(self, request: DrawRequest) -> dict[str, Any]:
        body = (chat_body if self.mode == "chat" else completion_body)(request, self._settings)
        if not self.send_seed:
            del body["seed"]
        return body

    async def _answers(self, body: Mapping[str, Any], count: int) -> list[Answer]:
        answers = await self._ask(lambda client: self._attempt(client, dict(body), count))
        # A server that gives more than it was asked for must not give more draws than there are.
        return keep(answers, count)

    async def _attempt(self, client: Any, body: dict[str, Any], count: int) -> list[Answer]:
        if count > 1:
            body["n"] = count
        body["model"] = self.model or await self._only_model(client)
        create = (client.chat.completions if self.mode == "chat" else client.completions).create
        if self.stream and not {"tools", "logprobs"} & set(body):
            stream = await create(**body, stream=True, stream_options={"include_usage": True})
            async with stream:
                return streamed_answers([chunk async for chunk in stream])
        return whole_answers(await create(**body))

    def _classify(self, error: Exception) -> EndpointError | None:
        if isinstance(error, openai.APIConnectionError):
            # Its cause says whether it was time or the connection.
            return classify(error.__cause__ if isinstance(error.__cause__, Exception) else ConnectionError(), self._secret_value())
        typed = classify(error, self._secret_value())
        if typed is None and isinstance(error, openai.APIError):
            # TGI's route says 422 whatever the cause: such a code tells nothing.
            return from_stream(GenerationFailedAtEndpoint, error.message, error.type, self._secret_value())
        return typed

    # Connecting

    def _open(self) -> Any:
        # The session sets the real key: one that is in the client would be logged with its options.
        return openai.AsyncOpenAI(
            base_url=self.base_url, api_key="set-by-the-session", max_retries=0, timeout=None, http_client=self._session()
        )

    async def _close(self, client: Any) -> None:
        await client.close()

    async def _only_model(self, client: Any) -> str:
        try:
            async with asyncio.timeout(MODELS_TIMEOUT):
                self.model = _only([model.id for model in (await client.models.list()).data])
        except openai.APIStatusError as error:
            if error.status_code in (429, 502, 503, 504):
                raise
            raise ConfigurationError(f"the server does not list its models ({error.status_code}): name one with model=") from error
        return self.model

    def _describe(self) -> str | None:
        try:
            said = _http.get(f"{self.base_url}/models", headers=self._authorisation(), timeout=MODELS_TIMEOUT)
            self.model = _only([model["id"] for model in said.json()["data"]])
        except (_http.HTTPError, ValueError, LookupError, TypeError):
            return None
        return self.model


def _only(models: Sequence[str]) -> str:
    if len(models) != 1:
        raise ConfigurationError(f"the server has {len(models)} models: name one with model=")
    return models[0]


def _with_version(base_url: str) -> str:
    return base_url if urlsplit(base_url).path else f"{base_url}/v1"


def _check_sampling(max_tokens: int | None, temperature: float | None, top_p: float | None) -> None:
    if (temperature is not None and temperature < 0) or (top_p is not None and not 0 < top_p <= 1):
        raise ConfigurationError("need temperature >= 0 and 0 < top_p <= 1, or None to leave them to the server")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigurationError("need max_tokens >= 1, or None to leave it to the server")
