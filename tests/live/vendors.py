"""Other makers' LangChain clients, the servers that they speak to, and what those answer, in each one's own words."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.adapters.loopback import LoopbackServer
from tests.adapters.openai_server import OpenAIServer
from tests.conformance.corpus import CASES


@dataclass(frozen=True)
class Form:
    """One answer, whole and as a stream.

    Attributes:
        name: of the form.
        source: what it is modelled on.
        whole: body of an answer that is no stream.
        chunks: of a stream.
        status: HTTP status.
        text: that the client serves, where it is the client's own protocol; None where it is to raise, or the corpus knows.
        stricter: why a guard may refuse what the client serves.
    """

    name: str
    source: str
    whole: Any
    chunks: Sequence[Any]
    status: int = 200
    text: str | None = None
    stricter: str = ""


class OwnWords(LoopbackServer):
    """Gives one answer, whole or as a stream.

    Attributes:
        form: that answer.
    """

    form: Form

    def reply(self, path: str, body: Any) -> Any:
        return self.form.status, self.form.whole

    def chunks(self, path: str, body: Any) -> Sequence[Any]:
        return self.form.chunks


class OpenAIWords(OpenAIServer, OwnWords):
    """OpenAI's chat protocol at any path."""

    reply = OwnWords.reply
    chunks = OwnWords.chunks


class AnthropicWords(OwnWords):
    """Events have names, and nothing follows the last."""

    def event(self, chunk: Any) -> bytes:
        return f"event: {chunk['type']}\ndata: {json.dumps(chunk)}\n\n".encode()

    def ends_with_done(self, path: str) -> bool:
        return False


class OllamaWords(OwnWords):
    """A line of JSON for each chunk."""

    opening = b""

    def event(self, chunk: Any) -> bytes:
        return json.dumps(chunk).encode() + b"\n"

    def ends_with_done(self, path: str) -> bool:
        return False


def claude(name: str, source: str, content: Sequence[Mapping[str, Any]], stop: str = "end_turn", **more: Any) -> Form:
    """A message of Anthropic's."""
    usage = {"input_tokens": 5, "output_tokens": 7, **more.pop("usage", {})}
    about = {"id": "msg_1", "type": "message", "role": "assistant", "model": "tiny", "stop_sequence": None}
    opening = about | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    events: list[Any] = [{"type": "message_start", "message": opening}, {"type": "ping"}]
    for index, block in enumerate(content):
        events += [{"index": index, **each} for each in _block(block)]
    events += [{"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": {"output_tokens": 7}}]
    whole = about | {"content": list(content), "stop_reason": stop, "usage": usage}
    return Form(name, source, whole, [*events, {"type": "message_stop"}], **more)


def _block(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    kind = block["type"]
    if kind == "text":
        empty, deltas = {"text": ""}, [{"type": "text_delta", "text": block["text"]}]
    elif kind == "thinking":
        empty = {"thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": block["thinking"]}, {"type": "signature_delta", "signature": "s"}]
    else:
        empty, deltas = {"input": {}}, [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
    begun = {"type": "content_block_start", "content_block": {**block, **empty}}
    return [begun, *({"type": "content_block_delta", "delta": delta} for delta in deltas), {"type": "content_block_stop"}]


def fails(kind: str, status: int) -> Form:
    """An error of Anthropic's."""
    return Form(kind, f"Anthropic, {status}", {"type": "error", "error": {"type": kind, "message": "no"}}, [], status)


SAYS = {"type": "text", "text": "It is 42."}
CALLS = {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {"zone": "UTC"}}
THINKS = {"type": "thinking", "thinking": "hm", "signature": "s"}
CLAUDE = [
    claude("plain", "Anthropic's API reference", [SAYS], text="It is 42."),
    claude("two texts", "Anthropic, citations", [SAYS | {"text": "It is "}, SAYS | {"text": "42."}], text="It is 42."),
    claude("thoughts", "Anthropic, extended thinking", [THINKS, SAYS], text="It is 42."),
    claude("a call", "Anthropic, tool use", [CALLS], "tool_use", text=""),
    claude("a call without arguments", "Anthropic, tool use", [CALLS | {"input": {}}], "tool_use", text=""),
    claude("text beside a call", "Anthropic, tool use", [SAYS | {"text": "Wait."}, CALLS], "tool_use", text="Wait."),
    claude("two calls", "Anthropic, parallel tool use", [CALLS, CALLS | {"id": "toolu_2"}], "tool_use", text=""),
    claude("cut", "Anthropic, max_tokens", [SAYS], "max_tokens", text="It is 42."),
    claude("stopped", "Anthropic, stop_sequences", [SAYS], "stop_sequence", text="It is 42."),
    claude("refused", "Anthropic, refusals since Claude 4", [SAYS], "refusal", text="It is 42.", stricter="withheld"),
    claude("nothing", "Anthropic, empty end_turn", [], text="", stricter="no content"),
    claude("cached prompt", "Anthropic, prompt caching", [SAYS], usage={"cache_read_input_tokens": 3}, text="It is 42."),
    fails("overloaded_error", 529),
    fails("invalid_request_error", 400),
    fails("authentication_error", 401),
]


def llama(name: str, source: str, message: Mapping[str, Any], reason: str | None = "stop", **more: Any) -> Form:
    """An answer of ollama's chat route, whose client asks for a stream of it."""
    about = {"model": "tiny", "created_at": "2026-01-01T00:00:00Z"}
    counts = {"prompt_eval_count": 5, "eval_count": 7, "total_duration": 1, **more.pop("counts", {})}
    end = {"done": True, **({} if reason is None else {"done_reason": reason}), **counts}
    words = message.get("content", "").replace(" ", " \0").split("\0")
    deltas = [{**about, "message": {"role": "assistant", "content": word}, "done": False} for word in words[:-1]]
    last = {**about, "message": {"role": "assistant", **message, "content": words[-1]}, "done": False}
    closing = {**about, "message": {"role": "assistant", "content": ""}, **end}
    return Form(name, source, {**about, "message": {"role": "assistant", **message}, **end}, [*deltas, last, closing], **more)


NOW = {"function": {"name": "now", "arguments": {"zone": "UTC"}}}
NOTHING = {"function": {"name": "now", "arguments": {}}}
LLAMA = [
    llama("plain", "ollama's API reference", {"content": "It is 42."}, text="It is 42."),
    llama("thoughts", "ollama, think", {"content": "It is 42.", "thinking": "hm"}, text="It is 42."),
    llama("a call", "ollama, tools", {"content": "", "tool_calls": [NOW]}, text=""),
    llama("no arguments", "ollama, tools", {"content": "", "tool_calls": [NOTHING]}, text=""),
    llama("text beside a call", "ollama, tools", {"content": "Wait.", "tool_calls": [NOW]}, text="Wait."),
    llama("two calls", "ollama, tools", {"content": "", "tool_calls": [NOW, NOW]}, text=""),
    llama("cut", "ollama, num_predict", {"content": "It is 42."}, "length", text="It is 42."),
    llama("no reason", "ollama before 0.1.38", {"content": "It is 42."}, None, text="It is 42."),
    llama("no counts", "ollama, a cached prompt", {"content": "It is 42."}, counts={"prompt_eval_count": None}, text="It is 42."),
    llama("nothing", "any model that ends at once", {"content": ""}, text="", stricter="no content"),
    Form("no model", "ollama, 404", {"error": "model 'tiny' not found"}, [], 404),
    Form("error in a stream", "ollama, a runner that died", {"error": "llama runner died"}, [{"error": "llama runner died"}]),
    Form("500", "ollama", {"error": "out of memory"}, [], 500),
]
#: What OpenAI's protocol says, to clients of other servers that speak it.
SPOKEN = [
    Form(each.name, each.source, each.whole, each.chunks, each.status, stricter=each.stricter)
    for each in CASES
    if each.whole is not None and each.chunks is not None and each.name not in ("408", "504")
]
OPTIONS = {"temperature": (0.5, "temperature"), "top_p": (0.9, "top_p"), "max_tokens": (9, "max_tokens")}


@dataclass(frozen=True)
class Vendor:
    """An integration.

    Attributes:
        name: of its class.
        package: that has it.
        address: of the server, from its URL, as arguments.
        settings: what every model is made with.
        server: that it speaks to.
        forms: of its answers.
        streaming: whether it has a field of this name.
        seed: name of the option that takes a seed; None where there is none.
        said: an option as the server gets it, from the body of a request.
        options: options of a call, and where they are in the body.
    """

    name: str
    package: str
    address: Callable[[str], dict[str, Any]]
    server: type[OwnWords] = OpenAIWords
    forms: Sequence[Form] = field(default_factory=lambda: SPOKEN)
    settings: Mapping[str, Any] = field(default_factory=lambda: {"api_key": "none", "max_retries": 0})
    streaming: bool = True
    seed: str | None = "seed"
    said: Callable[[Any], Any] = lambda body: body
    options: Mapping[str, tuple[Any, str]] = field(default_factory=lambda: OPTIONS)

    def build(self, url: str, **more: Any) -> Any:
        """A model."""
        kind = getattr(importlib.import_module(self.package), self.name)
        return kind(**{"model": "tiny", **self.settings, **self.address(url), **more})


VENDORS = [
    Vendor(
        "ChatOpenAI",
        "langchain_openai",
        lambda url: {"base_url": f"{url}/v1"},
        options=OPTIONS | {"max_tokens": (9, "max_completion_tokens")},
    ),
    Vendor("ChatAnthropic", "langchain_anthropic", lambda url: {"base_url": url}, AnthropicWords, CLAUDE, seed=None),
    Vendor("ChatMistralAI", "langchain_mistralai", lambda url: {"base_url": f"{url}/v1"}, seed="random_seed"),
    Vendor("ChatGroq", "langchain_groq", lambda url: {"base_url": url}),
    Vendor("ChatDeepSeek", "langchain_deepseek", lambda url: {"api_base": f"{url}/v1"}),
    Vendor(
        "ChatOllama",
        "langchain_ollama",
        lambda url: {"base_url": url},
        OllamaWords,
        LLAMA,
        {},
        streaming=False,
        said=lambda body: body["options"],
        options={"temperature": (0.5, "temperature"), "top_k": (3, "top_k"), "max_tokens": (9, "num_predict")},
    ),
]
