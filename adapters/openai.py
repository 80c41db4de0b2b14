"""Draw candidates from any server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, TGI's own route, OpenAI, ..."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Unpack
from urllib.parse import urlsplit

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import SecretStr

from bonmini_guard.adapters.answers import Answer, keep, read_answers
from bonmini_guard.adapters.bodies import events, parsed
from bonmini_guard.adapters.generation import ServedGenerator, check_sampling
from bonmini_guard.adapters.groups import Outcomes, in_one_call
from bonmini_guard.adapters.http import HttpOptions, checked_secret, checked_url
from bonmini_guard.adapters.http_errors import EndpointError, EndpointMisconfigured, RequestRejected, from_response
from bonmini_guard.adapters.reasoning import Tags
from bonmini_guard.adapters.requests import CHAT, COMMON, Dialect, chat, completion_prompt, refuse_spoiling, schema_of, stop_strings
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.errors import BonMiniGuardError, ConfigurationError, needing
from bonmini_guard.validation import Flag, checked

with needing("openai"):
    import httpx

logger = logging.getLogger(__name__)

_ROUTES = {"chat": "/chat/completions", "completion": "/completions"}
_COMMON = COMMON | {"max_tokens", "presence_penalty", "logit_bias", "logprobs", "user", "extra_body"}
_CHAT = CHAT | {"max_completion_tokens", "top_logprobs", "parallel_tool_calls", "reasoning_effort"}


def _chat_body(messages: Sequence[BaseMessage], parameters: dict[str, Any]) -> dict[str, Any]:
    if "max_completion_tokens" in parameters:
        # Two names of one limit, and servers refuse both together.
        parameters.pop("max_tokens", None)
    if (shape := schema_of(parameters.get("response_format", {}))) is not None:
        name, schema = shape
        parameters["response_format"] = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
    return chat(messages, _extended(parameters))


def _completion_body(messages: Sequence[BaseMessage], parameters: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": completion_prompt(messages), **_extended(parameters)}


def _extended(parameters: dict[str, Any]) -> dict[str, Any]:
    if (extra := parameters.pop("extra_body", None)) is not None:
        refuse_spoiling(extra, "extra_body")
        parameters |= extra
        if "stop" in extra:
            parameters["stop"] = stop_strings(extra["stop"]) or extra["stop"]
    return parameters


_RENAMED = {"max_new_tokens": "max_tokens"}
DIALECTS = {
    "chat": Dialect("OpenAICompatibleGenerator", _COMMON | _CHAT, _chat_body, _RENAMED),
    "completion": Dialect("OpenAICompatibleGenerator", _COMMON, _completion_body, _RENAMED),
}


class OpenAICompatibleGenerator(ServedGenerator):
    """Draws from a server that speaks OpenAI's chat or completions protocol.

    Cancelling a draw ends the work on the server. Each event loop has its own connections.

    Args:
        base_url: where the server is, such as ``http://localhost:8000/v1``; ``/v1`` is added to a URL without a path.
        model: the model to ask for; None takes the only one that ``/models`` lists.
        api_key: sent as bearer token; None takes the environment's ``OPENAI_API_KEY``, "" sends none.
        mode: ``"chat"`` has the server apply its chat template; ``"completion"`` continues the joined contents of the messages.
        choices: for k draws ``"separate"`` makes k requests, each with its seed, ``"server"`` one with ``n=k``; see docs/servers.
        max_tokens: tokens of an answer at most; None leaves it to the server.
        temperature: above 0; 0 is greedy, and refused for more than one draw; None leaves it to the server.
        top_p: sample among the likeliest tokens of this total probability; None leaves it to the server.
        stop: strings that end an answer; they are not part of it.
        logprobs: ask for the tokens' log-probabilities; they are kept in ``response_metadata["logprobs"]``.
        send_seed: False for servers that refuse seeds; draws are then not repeatable.
        response_format: passed on (chat only); a class becomes its JSON schema.
        extra_body: more keys of every request's body, such as ``{"top_k": 40}`` or ``{"chat_template_kwargs": {...}}``.
        accept_truncated: False makes an answer cut at ``max_tokens`` a failed draw.
        stream: receive answers as streams, but those with log-probabilities and several of one request.
        split_reasoning: move thoughts in the text (``<think>...</think>``, or the two tags given) to where other reasoning is.
        http: timeout, retries and the like; see :class:`~bonmini_guard.adapters.http.HttpOptions`.

    Raises:
        ConfigurationError: a setting is unknown, out of range, does not go with the mode, or would spoil the draws.
    """

    client_library = httpx
    family = "openai"
    hands_over = True

    @checked
    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: SecretStr | str | None = None,
        mode: Literal["chat", "completion"] = "chat",
        choices: Literal["separate", "server"] = "separate",
        max_tokens: int | None = 512,
        temperature: float | None = 1.0,
        top_p: float | None = None,
        stop: str | Sequence[str] = (),
        logprobs: Flag = False,
        send_seed: Flag = True,
        response_format: Any = None,
        extra_body: Mapping[str, Any] | None = None,
        accept_truncated: Flag = True,
        stream: Flag = False,
        split_reasoning: Tags = False,
        **http: Unpack[HttpOptions],
    ) -> None:
        if response_format is not None and mode == "completion":
            raise ConfigurationError("the completions route takes no response_format: use mode='chat'")
        check_sampling(max_tokens, temperature, top_p)
        refuse_spoiling(extra_body or {}, "extra_body")
        settings = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": stop,
            # The two routes take it in two ways; 0 asks for the drawn tokens alone.
            "logprobs": (True if mode == "chat" else 0) if logprobs else None,
            "response_format": response_format,
            "extra_body": dict(extra_body or {}),
        }
        url, secret = checked_url(base_url, "api_key", *_ROUTES.values()), checked_secret(api_key, "OPENAI_API_KEY")
        url = url if urlsplit(url).path else f"{url}/v1"
        super().__init__(url, secret, DIALECTS, mode, settings, accept_truncated, stream, split_reasoning, http)
        self.model = model
        self.choices = choices
        self.send_seed = send_seed
        # Whether the server takes the wish to be told the usage of a stream; whether it was said that it ignores n.
        self._stream_options = True
        self._told = False

    def __repr__(self) -> str:
        return f"OpenAICompatibleGenerator({self.base_url!r}, model={self.model!r}, mode={self.mode!r}, choices={self.choices!r})"

    @property
    def draw_group(self) -> Callable[[Sequence[DrawRequest]], Outcomes] | None:
        """Draws a whole loop in one request; None with ``choices="separate"``, where each draw is a request."""
        return None if self.choices == "separate" else partial(in_one_call, self.draw, self._together)

    def served_model(self) -> str | None:
        """The model's name. Blocks up to 5 s if the server has to be asked for it."""
        if self.model is None:
            with contextlib.suppress(BonMiniGuardError, httpx.HTTPError, TimeoutError, ValueError, LookupError, TypeError):
                run_sync(partial(self._apart, self._only_model))
        return self.model

    async def _together(self, requests: Sequence[DrawRequest]) -> list[AIMessage | BaseException]:
        body = self._body(requests[0])
        known: list[AIMessage | BaseException] = []
        if (count := len(requests)) > 1:
            answers = await self._ask(partial(self._attempt, body=body, count=count))
            # A server that gives more than it was asked for must not give more draws than there are.
            for request, answer in zip(requests, keep(answers, count), strict=False):
                try:
                    known.append(self._accept(answer, request, body))
                except EndpointError as error:
                    known.append(error)
            if len(known) < count and not self._told:
                self._told = True
                logger.warning("the endpoint answered %d choices instead of %d; the others are drawn separately", len(known), count)
        return known

    async def _attempt(self, client: Any, body: Mapping[str, Any], count: int) -> list[Answer]:
        asked = {"model": self.model or await self._only_model(client), **body, **({"n": count} if count > 1 else {})}
        if self.stream and asked.get("logprobs", False) is False and count == 1:
            asked |= {"stream": True} | ({"stream_options": {"include_usage": True}} if self._stream_options else {})
        try:
            said, streams = await self._post(client, _ROUTES[self.mode], json.dumps(asked, ensure_ascii=False).encode())
        except RequestRejected as error:
            if "stream_options" not in asked.keys() - body.keys() or not any(
                name in str(error) for name in ("stream_options", "include_usage")
            ):
                raise
            self._stream_options = False
            return await self._attempt(client, body, count)
        payloads, ended = events(said) if streams else ([parsed(said)], False)
        return read_answers(payloads, ended=ended, secret=self._secret())

    async def _only_model(self, client: Any) -> str:
        response = await self._get(client, "/models")
        if not response.is_success:
            failure = from_response(response, self._secret())
            if failure.status in (429, 502, 503, 504):
                raise failure
            raise EndpointMisconfigured(f"the server lists no models ({failure.status}): name one with model=") from failure
        try:
            models = [str(model["id"]) for model in response.json()["data"] or ()]
        except (ValueError, LookupError, TypeError) as error:
            raise EndpointMisconfigured("what the server lists are no models: check base_url, or name one with model=") from error
        if len(models) != 1:
            raise EndpointMisconfigured(f"the server has {len(models)} models: name one with model=")
        self.model = models[0]
        return self.model
