"""What ``/v1/chat/completions`` takes and gives: from a body to prompt and options, from a message to an answer. No effects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from time import time
from typing import Annotated, Any

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from bonmini_guard.adapters.openai import DIALECTS
from bonmini_guard.conversation import Turn, as_messages
from bonmini_guard.engine.fingerprints import sampling
from bonmini_guard.errors import InputError
from bonmini_guard.server.schemas import Message

#: The protocol's reasons for an end.
_ENDS = ("stop", "length", "tool_calls", "content_filter")
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


class ChatRequest(BaseModel):
    """A body; keys that are not named here go on to the upstream as they are."""

    model_config = ConfigDict(extra="allow")
    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    n: StrictInt | None = None
    seed: StrictInt | None = None
    metadata: dict[str, Any] | None = None

    @property
    def group(self) -> str | None:
        """The conversation, where the client's metadata names one."""
        group = (self.metadata or {}).get("conversation_id")
        return None if group in (None, "") else str(group)

    def prompt(self) -> list[BaseMessage]:
        """The messages as LangChain has them; InputError if one is malformed, or all are empty."""
        try:
            return as_messages([{"content": "", **message.model_dump(exclude_none=True)} for message in self.messages])
        except RecursionError:
            raise InputError("messages: the arguments of a tool call are nested too deeply") from None

    def options(self, free: bool) -> tuple[dict[str, Any], list[str]]:
        """Call options for the draws, and the names of those left out: they would make another generator of the upstream.

        ``free`` says whether the client may change how is drawn. InputError if more than one answer is asked for.
        """
        if self.n not in (None, 1):
            raise InputError("n: one answer is served; the guard decides how many are drawn")
        given = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        for name, value in given.items():
            try:
                json.dumps(value, allow_nan=False)
            except ValueError:
                raise InputError(f"{name}: holds a number that is none, which no server reads as JSON") from None
        ignored = [] if free else sorted(sampling(given))
        known = DIALECTS["chat"].known - {"extra_body"}
        options = {name: value for name, value in given.items() if name in known and name not in ignored}
        further = {name: value for name, value in given.items() if name not in known and name not in ignored}
        return options | ({"extra_body": further} if further else {}), ignored


def completion(model: str, name: str, message: AIMessage, used: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The body of an answer: one choice, the usage of all draws, and what the guard says of it."""
    turn, metadata = Turn.of(message), message.response_metadata
    end = "length" if metadata.get("truncated") else metadata.get("finish_reason")
    said = {key: value for key, value in turn.openai().items() if key in ("tool_calls", "refusal", "reasoning_content")}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": turn.text or (None if said else ""), "refusal": None, **said},
        "logprobs": metadata.get("logprobs"),
        "finish_reason": end if end in _ENDS else "tool_calls" if turn.calls else "stop",
    }
    answer = {"id": f"chatcmpl-{name}", "object": "chat.completion", "created": int(time()), "model": model, "choices": [choice]}
    return answer | {"usage": usage(used), "bonmini_guard": dict(about)}


def abstention(text: str, in_content: bool) -> AIMessage:
    """What is said in place of an answer, as a refusal or as a content."""
    refusal = {} if in_content else {"refusal": text}
    return AIMessage(text if in_content else "", additional_kwargs=refusal, response_metadata={"finish_reason": "content_filter"})


def chunks(answer: Mapping[str, Any], request: ChatRequest) -> Iterator[bytes]:
    """A whole answer as the events of a stream."""
    about = {key: answer[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    (choice,) = answer["choices"]
    delta = {key: value for key, value in choice["message"].items() if value is not None or key == "content"}
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(delta["tool_calls"])]
    first = {"index": 0, "delta": delta, "logprobs": choice["logprobs"], "finish_reason": None}
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": choice["finish_reason"]}
    yield event(about | {"choices": [first]})
    yield event(about | {"choices": [last], "bonmini_guard": answer["bonmini_guard"]})
    if (request.stream_options or {}).get("include_usage"):
        yield event(about | {"choices": [], "usage": answer["usage"]})
    yield DONE


def event(data: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def usage(used: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens as OpenAI's protocol tells them."""
    read, made = used.get("input_token_details", {}), used.get("output_token_details", {})
    return {
        "prompt_tokens": used.get("input_tokens", 0),
        "completion_tokens": used.get("output_tokens", 0),
        "total_tokens": used.get("total_tokens", 0),
        "prompt_tokens_details": {"cached_tokens": read.get("cache_read", 0)},
        "completion_tokens_details": {"reasoning_tokens": made.get("reasoning", 0)},
    }


def headers(about: Mapping[str, Any]) -> dict[str, str]:
    """What the guard says, for clients that do not see bodies."""
    told = {name: about.get(name) for name in ("decision", "reason", "draws", "score", "request_id")}
    return {f"x-bonmini-guard-{name.replace('_', '-')}": str(value) for name, value in told.items() if value is not None}
