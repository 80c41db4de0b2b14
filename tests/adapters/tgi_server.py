"""As much of TGI's protocol as the tests need, on the loopback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.adapters.loopback import LoopbackServer

INFO = {
    "model_id": "tiny/model",
    "model_sha": "abc123",
    "max_concurrent_requests": 64,
    "max_best_of": 2,
    "max_stop_sequences": 4,
    "max_input_tokens": 1024,
    "max_total_tokens": 2048,
    "max_client_batch_size": 4,
    "router": "text-generation-router",
    "validation_workers": 2,
    "version": "3.3.6",
}


def chat(text: str, reason: str | None = "stop") -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": reason, "logprobs": None, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    return {"choices": [choice], "created": 1, "id": "", "model": "tiny/model", "object": "chat.completion", "usage": usage}


def chat_chunks(text: str, reason: str = "stop") -> list[dict[str, Any]]:
    def chunk(delta: str, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": finish, "delta": {"role": "assistant", "content": delta}}
        return {"choices": [choice], "created": 1, "id": "", "model": "tiny/model", "usage": None}

    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    return [*(chunk(letter, None) for letter in text), chunk("", reason), {"choices": [], "model": "tiny/model", "usage": usage}]


def generated(text: str, reason: str = "eos_token", seed: int | None = 1) -> list[dict[str, Any]]:
    details = {"finish_reason": reason, "generated_tokens": 3, "prefill": [], "tokens": [], "seed": seed, "best_of_sequences": None}
    return [{"generated_text": text, "details": details}]


def events(text: str, reason: str = "eos_token") -> list[dict[str, Any]]:
    def event(index: int, letter: str) -> dict[str, Any]:
        token = {"id": index, "text": letter, "logprob": -0.1, "special": False}
        return {"index": index, "token": token, "generated_text": None, "details": None}

    several = [event(index, letter) for index, letter in enumerate(text)]
    details = {"finish_reason": reason, "generated_tokens": len(text), "input_length": 7, "seed": 1}
    return [*several[:-1], several[-1] | {"generated_text": text, "details": details}]


class TGIServer(LoopbackServer):
    """Text Generation Inference.

    Attributes:
        answer: body of an answer that is no stream; None for one that names the seed.
        said: events of a stream; None for a short one.
        info: what ``/info`` says; None for ``no_info``, a status. ``info_requests`` counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answer: Any = None
        self.said: list[dict[str, Any]] | None = None
        self.info: Any = INFO
        self.no_info = 404
        self.info_requests = 0

    def aside(self, path: str) -> tuple[int, Any] | None:
        if path != "/info":
            return None
        self.info_requests += 1
        return 200 if self.info else self.no_info, self.info or {}

    def reply(self, path: str, body: Any) -> Any:
        if self.answer is not None:
            return self.answer
        seed = body.get("seed") or body.get("parameters", {}).get("seed")
        return chat(f"answer {seed}") if path.startswith("/v1") else generated(f"answer {seed}", seed=seed)

    def chunks(self, path: str, body: Any) -> Sequence[Any]:
        return self.said or (chat_chunks("answer") if path.startswith("/v1") else events("answer"))

    def error_event(self, path: str) -> Any:
        said = "Incomplete generation stream"
        # The OpenAI routes say 422 whatever the cause.
        openai = {"error": {"message": said, "http_status_code": 422}}
        return openai if path.startswith("/v1") else {"error": said, "error_type": "incomplete_generation_stream"}

    def ends_with_done(self, path: str) -> bool:
        return path.startswith("/v1")
