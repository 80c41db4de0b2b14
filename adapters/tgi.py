"""Draw candidates from a Text Generation Inference server, through huggingface_hub's client."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from typing import Any, Literal, Unpack

from langchain_core.messages import BaseMessage
from pydantic import SecretStr

from bonmini_guard.adapters.answers import Answer, counts, finish_reason, read_answers, used
from bonmini_guard.adapters.bodies import events
from bonmini_guard.adapters.generation import ServedGenerator, check_sampling
from bonmini_guard.adapters.http import HttpOptions, checked_secret, checked_url
from bonmini_guard.adapters.http_errors import EndpointError, MalformedAnswer, RequestRejected, from_answer, from_response
from bonmini_guard.adapters.reasoning import Tags
from bonmini_guard.adapters.requests import CHAT, COMMON, Dialect, chat, completion_prompt, schema_of
from bonmini_guard.conversation import Turn
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.errors import ConfigurationError, needing
from bonmini_guard.validation import Flag, checked

with needing("tgi"):
    from huggingface_hub import AsyncInferenceClient
    from huggingface_hub import errors as hub

_prompt_tokens: ContextVar[int] = ContextVar("tgi_prompt_tokens", default=0)
_COMMON = COMMON | {"max_new_tokens"}
_CHAT = CHAT | {"tool_prompt", "logit_bias"}
_COMPLETION = frozenset(["top_k", "typical_p", "repetition_penalty", "truncate", "grammar", "adapter_id", "watermark"])
_RENAMED = dict.fromkeys(("max_tokens", "max_completion_tokens"), "max_new_tokens")
_REFUSED = {"presence_penalty": "TGI adds 2 to it and takes it for a repetition penalty"}
#: What an error inside a stream, which has no status of its own, would have; all others are failures of the generation.
_IN_STREAM = {"overloaded": 429, "validation": 422}


def _chat_body(messages: Sequence[BaseMessage], parameters: dict[str, Any]) -> dict[str, Any]:
    if (shape := schema_of(parameters.get("response_format", {}))) is not None:
        parameters["response_format"] = {"type": "json", "value": shape[1]}
    body = chat(messages, {"max_tokens": parameters.pop("max_new_tokens", None), **_sampling(parameters)})
    for turn in body["messages"]:
        if "tool_calls" in turn:
            # TGI reads a message with both as one without tool calls.
            turn.pop("content", None)
    return body


def _completion_body(messages: Sequence[BaseMessage], parameters: dict[str, Any]) -> dict[str, Any]:
    # The route is greedy unless told otherwise, and takes no temperature of 0.
    temperature = parameters.pop("temperature", None)
    sampling = {} if temperature == 0 else {"do_sample": True, "temperature": temperature}
    return {"prompt": completion_prompt(messages), "return_full_text": False, **sampling, **_sampling(parameters)}


def _sampling(parameters: dict[str, Any]) -> dict[str, Any]:
    if parameters.get("top_p") == 1:
        # TGI answers 422 to it.
        del parameters["top_p"]
    return parameters


DIALECTS = {
    "chat": Dialect("TGIGenerator", _COMMON | _CHAT, _chat_body, _RENAMED, _REFUSED),
    "completion": Dialect("TGIGenerator", _COMMON | _COMPLETION, _completion_body, _RENAMED, _REFUSED),
}


class _Call(AsyncInferenceClient):
    """One request in the hub's words, and its answer read by the hub; it is sent as every adapter sends its own."""

    def __init__(self, base_url: str, post: Callable[[str, bytes], Awaitable[tuple[bytes, bool]]], secret: str | None) -> None:
        # A token that says nothing, and is not sent: without one, the hub would look for the user's saved token.
        super().__init__(base_url=base_url, token="not-sent")
        self._base_url, self._post, self._secret = base_url, post, secret

    async def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        # What it raises is no error of the hub's, which tries some requests again without seed and sampling.
        route = request_parameters.url.removeprefix(self._base_url)
        said, _ = await self._post(route, json.dumps(request_parameters.json, ensure_ascii=False).encode())
        return _lines(said, self._secret) if stream else said


async def _note_prompt_tokens(response: Any) -> None:
    tokens = response.headers.get("x-prompt-tokens", "")
    _prompt_tokens.set(int(tokens) if tokens.isdecimal() else 0)


class TGIGenerator(ServedGenerator):
    """Draws from a Text Generation Inference (TGI) server, or one that speaks its protocol.

    Each draw is one request with its seed; cancelling it ends the work on the server. Each event loop has its own connections.

    Args:
        base_url: where the server is, such as ``http://localhost:8080``; a route at its end is dropped.
        mode: ``"chat"`` has the server apply its chat template; ``"completion"`` continues the joined contents of the messages.
        token: sent as bearer token; None takes the environment's ``HF_TOKEN``, "" sends none, not even one that the hub saved.
        model: name of the model to ask for (chat only). TGI serves one model and needs none.
        max_new_tokens: tokens of an answer at most; None leaves it to the server.
        temperature: above 0, and the likes of it as :class:`~bonmini_guard.adapters.openai.OpenAICompatibleGenerator` has them:
            ``top_p``, ``stop``, ``accept_truncated``, ``stream``, ``split_reasoning``.
        top_k: sample among the k likeliest tokens (completion only).
        http: timeout, retries and the like; see :class:`~bonmini_guard.adapters.http.HttpOptions`. ``max_concurrency`` None takes
            what the server's ``/info`` says.

    Raises:
        ConfigurationError: a setting is unknown, out of range, or does not go with the mode.
    """

    # httpx or httpx2, whichever the hub speaks through. Not the hub's session: that one refuses to work under HF_HUB_OFFLINE, which
    # is about the hub and not about this server.
    client_library = import_module(hub.HTTPError.__module__.partition(".")[0])  # type: ignore[attr-defined]
    hooks = (_note_prompt_tokens,)
    family = "tgi"
    hands_over = True

    @checked
    def __init__(
        self,
        base_url: str,
        *,
        mode: Literal["chat", "completion"] = "chat",
        token: SecretStr | str | None = None,
        model: str | None = None,
        max_new_tokens: int | None = 512,
        temperature: float | None = 1.0,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: str | Sequence[str] = (),
        accept_truncated: Flag = True,
        stream: Flag = False,
        split_reasoning: Tags = False,
        **http: Unpack[HttpOptions],
    ) -> None:
        check_sampling(max_new_tokens, temperature, top_p, top_k)
        if mode == "chat" and top_k is not None:
            raise ConfigurationError("TGI's chat route takes no top_k: leave it out, or use mode='completion'")
        settings = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": None if top_p == 1 else top_p,
            "top_k": top_k,
            "stop": stop,
        }
        url = checked_url(base_url, "token", "/chat/completions", "/generate_stream", "/generate", "/v1")
        super().__init__(
            url, checked_secret(token, "HF_TOKEN"), DIALECTS, mode, settings, accept_truncated, stream, split_reasoning, http
        )
        self.model = model
        self._served: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"TGIGenerator({self.base_url!r}, mode={self.mode!r})"

    def served_model(self) -> str | None:
        """The model's id and revision as the server gives them. Blocks up to 5 s when first asked."""
        if not self._served:
            self._served = run_sync(partial(self._apart, self._info))
        name, version = self._served.get("model_id") or self.model, self._served.get("model_sha")
        return f"{name}@{version}" if name and version else name

    async def _info(self, client: Any) -> dict[str, Any]:
        known: dict[str, Any] = {}
        # Draws will say what is wrong.
        with contextlib.suppress(self.client_library.HTTPError, TimeoutError, EndpointError, ValueError):
            response = await self._get(client, "/info")
            if not from_response(response).retryable:
                known["model_id"] = None  # where there is no more to know, it is not asked again
                if response.status_code == 200 and isinstance(described := response.json(), dict):
                    known |= described
        return known

    async def _look(self, client: Any) -> int:
        self._served = await self._info(client)
        return _limit(self._served, "max_concurrent_requests") or await super()._look(client)

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

    async def _attempt(self, client: Any, body: Mapping[str, Any], count: int) -> list[Answer]:
        self._check_fits(body)
        # Its signatures are stricter than what it takes.
        call: Any = _Call(self.base_url, partial(self._post, client), self._secret())
        if self.mode == "chat":
            options = {"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}
            said = await _plain(await call.chat_completion(**body, **options, model=self.model))
            return read_answers(said, secret=self._secret())
        payloads = await _plain(await call.text_generation(**body, details=True, stream=self.stream))
        return [_generation(payloads, self.stream, _prompt_tokens.get())]


async def _lines(said: bytes, secret: str | None) -> AsyncIterator[str]:
    """The events of a stream, a line each: the hub ends lines wherever Unicode does. EndpointError for one that is an error."""
    for event in events(said)[0]:
        if event.get("error"):
            raise from_answer(event | {"code": _IN_STREAM.get(event.get("error_type"))}, secret)
        yield f"data: {json.dumps(event)}"


async def _plain(output: Any) -> list[Any]:
    """What the hub gives, as plain JSON: one answer, or the events of a stream."""
    return [_unpacked(event) async for event in output] if hasattr(output, "__aiter__") else [_unpacked(output)]


def _unpacked(value: Any) -> Any:
    # The hub's dictionaries hold its own fields alone; their attributes hold what else the server said.
    if hasattr(value, "__dict__"):
        value = vars(value)
    if isinstance(value, dict):
        return {name: _unpacked(each) for name, each in value.items()}
    return [_unpacked(each) for each in value] if isinstance(value, list) else value


def _generation(payloads: Sequence[Any], streamed: bool, prompt_tokens: int) -> Answer:
    """The answer of the generate route; the last event of a stream has the whole text."""
    last = payloads[-1] if payloads else {}
    if isinstance(last, str):
        # Another client of this process made the hub drop details, and perhaps seed and sampling too.
        raise RequestRejected("the endpoint does not speak TGI's generate protocol: use mode='chat'", status=400)
    text, details = last.get("generated_text"), last.get("details") or {}
    if text is None and streamed and payloads:
        finish_reason(None)
    if not isinstance(text, str):
        raise MalformedAnswer("the endpoint answered without a text", status=200, retryable=True)
    tokens = counts(details)
    read = tokens.get("input_length") or len(details.get("prefill") or []) or prompt_tokens
    usage = used(read, tokens.get("generated_tokens", 0))
    return Answer(Turn("assistant", text), finish_reason(details.get("finish_reason")), usage, seed=details.get("seed"))


def _limit(served: Mapping[str, Any], name: str) -> int | None:
    value = served.get(name)
    return value if type(value) is int and value > 0 else None
