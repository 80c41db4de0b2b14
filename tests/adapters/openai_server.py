"""As much of OpenAI's protocol as the tests need, on the loopback, with the ways in which servers depart from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.adapters.loopback import LoopbackServer

MODEL = "tiny"
#: What vLLM says to a request that cannot fit.
TOO_LONG = {"error": {"message": "max_tokens is too large", "type": "BadRequestError", "param": "max_tokens", "code": 400}}


def message_of(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


class OpenAIServer(LoopbackServer):
    """A chat and completions server.

    Answers are ``answer SEED.INDEX`` with one token for each word, and the prompt has five.

    Attributes:
        honours_n: whether ``n`` draws n choices; False answers one, and says nothing.
        most: the most choices of one answer, whatever ``n``; None for no limit.
        order: the order in which choices come, from their indices; None for ascending.
        answer: body of an answer that is no stream; None for one made of ``text``. Or a function of the body.
        said: chunks of a stream; None for those of ``text``.
        text: the text of a choice, a function of (body, index).
        message: more keys of each choice's message, such as tool calls.
        reason: each choice's finish reason.
        usage: whether usage is told.
        models: what ``/v1/models`` says; None for 500, as a server that is offline may.
    """

    def __init__(self) -> None:
        super().__init__()
        self.honours_n = True
        self.most: int | None = None
        self.order: Callable[[list[int]], list[int]] | None = None
        self.answer: Any = None
        self.said: list[dict[str, Any]] | None = None
        self.text: Callable[[Any, int], str] = lambda body, index: f"answer {body.get('seed')}.{index}"
        self.message: dict[str, Any] = {}
        self.reason: str | None = "stop"
        self.usage = True
        self.models: Any = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "us"}]}

    def aside(self, path: str) -> tuple[int, Any] | None:
        if path != "/v1/models":
            return None
        return (500, "Internal Server Error") if self.models is None else (200, self.models)

    def reply(self, path: str, body: Any) -> Any:
        if self.answer is not None:
            return self.answer(body) if callable(self.answer) else self.answer
        if path == "/v1/chat/completions":
            kind, choices = "chat.completion", [self._choice(body, index) for index in self._indices(body)]
        elif path == "/v1/completions":
            kind, choices = "text_completion", [self._text_choice(body, index) for index in self._indices(body)]
        else:
            return 404, {"error": {"message": "no such route", "type": "NotFoundError", "code": 404}}
        about = {"id": "cmpl-1", "object": kind, "created": 1, "model": body.get("model", MODEL)}
        return about | {"choices": choices} | ({"usage": self._usage(body)} if self.usage else {})

    def chunks(self, path: str, body: Any) -> Sequence[Any]:
        if self.said is not None:
            return self.said
        about = {"id": "cmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body.get("model", MODEL)}
        words = self.text(body, 0).replace(" ", " \0").split("\0")
        parts = [{"index": 0, "delta": message_of(word), "finish_reason": None} for word in words]
        parts.append({"index": 0, "delta": self.message, "finish_reason": self.reason})
        if path == "/v1/completions":
            parts = [each | {"text": each["delta"].get("content", "")} for each in parts]
        told = self.usage and (body.get("stream_options") or {}).get("include_usage")
        last = [about | {"choices": [], "usage": self._usage(body)}] if told else []
        return [about | {"choices": [choice]} for choice in parts] + last

    def _indices(self, body: Any) -> list[int]:
        wanted = body.get("n") or 1 if self.honours_n else 1
        indices = list(range(min(wanted, self.most or wanted)))
        return self.order(indices) if self.order else indices

    def _choice(self, body: Any, index: int) -> dict[str, Any]:
        said = message_of(self.text(body, index), **self.message)
        return {"index": index, "message": said, "logprobs": None, "finish_reason": self.reason}

    def _text_choice(self, body: Any, index: int) -> dict[str, Any]:
        return {"index": index, "text": self.text(body, index), "logprobs": None, "finish_reason": self.reason}

    def _usage(self, body: Any) -> dict[str, int]:
        drawn = sum(len(self.text(body, index).split()) for index in self._indices(body))
        return {"prompt_tokens": 5, "completion_tokens": drawn, "total_tokens": 5 + drawn}
