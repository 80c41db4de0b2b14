"""What servers answer, whole and streamed, each with the public report or the server that it is modelled on.

A case says what a caller is to get: a text, calls of tools, an end, tokens; or an error, by its class and words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
DONE = "[DONE]"


@dataclass(frozen=True)
class Case:
    """One answer of a server.

    Attributes:
        name: of the case.
        source: what it is modelled on.
        whole: body of an answer that is no stream; None where there is none of this kind.
        chunks: of a stream; None where there is none of this kind.
        status: HTTP status.
        text: that is served; None where an error is.
        calls: (name, arguments) of tool calls that are served.
        invalid: calls that cannot be read.
        finish: the finish reason.
        tokens: all that were billed.
        reasoning: what was thought.
        refusal: what was said in place of an answer.
        error: name of the error's class; ``words`` it has in common with the server's.
        stricter: why LangChain's client serves what is an error here.
    """

    name: str
    source: str
    whole: Any = None
    chunks: Sequence[Any] | None = None
    status: int = 200
    text: str | None = "It is 42."
    calls: Sequence[tuple[str, dict[str, Any]]] = ()
    invalid: int = 0
    finish: str | None = "stop"
    tokens: int | None = 12
    reasoning: str | None = None
    refusal: str | None = None
    error: str | None = None
    words: str = ""
    stricter: str = ""
    done: bool = field(default=True)


def whole(message: Any = None, finish: Any = "stop", usage: Any = USAGE, index: Any = 0, **more: Any) -> dict[str, Any]:
    """A chat completion."""
    said = {"role": "assistant", **({"content": "It is 42."} if message is None else message)}
    choice = {"index": index, "message": said, "finish_reason": finish, "logprobs": None, **more}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice]}
    return body | ({} if usage is None else {"usage": usage})


def chunk(delta: Any = None, finish: Any = None, index: Any = 0, **more: Any) -> dict[str, Any]:
    """A chunk with one choice."""
    choice = {"index": index, "delta": {} if delta is None else delta, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice], **more}


def bill(usage: Any = USAGE) -> dict[str, Any]:
    """The last chunk, which tells the usage."""
    return chunk() | {"choices": [], "usage": usage}


def stream(*deltas: Any, finish: Any = "stop", usage: Any = USAGE, index: Any = 0) -> list[Any]:
    """A stream of deltas."""
    said = [
        chunk(delta, index=index)
        for delta in deltas or ({"role": "assistant", "content": ""}, {"content": "It is "}, {"content": "42."})
    ]
    return [*said, chunk(finish=finish, index=index), *([] if usage is None else [bill(usage)])]


def call(arguments: Any, name: str = "now", id: Any = "c1", **more: Any) -> dict[str, Any]:
    """A call of a tool, whole."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def called(name: str, source: str, message: Any, deltas: Sequence[Any], calls: Any, **more: Any) -> Case:
    """A case with calls and no text."""
    settings = {"text": "", "finish": "tool_calls", "calls": calls, **more}
    return Case(name, source, whole(message, "tool_calls"), stream(*deltas, finish="tool_calls"), **settings)


def failed(name: str, source: str, status: int, body: Any, error: str, words: str = "") -> Case:
    """A case of a refused request."""
    return Case(name, source, body, [], status, text=None, error=error, words=words)


PARTS = [{"type": "text", "text": "It is "}, {"type": "text", "text": "42."}]
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "hmm"}]}
NOW = [("now", {})]
ZONE = [("now", {"zone": "UTC"})]
PIECES = [
    {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "now", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"zone": '}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"UTC"}'}}]},
]
#: What Azure sends first and last.
PROMPT_NOTE = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
END_NOTE = PROMPT_NOTE | {"choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 1}}]}

TEXTS = [
    Case("plain", "OpenAI's API reference", whole(), stream()),
    Case("no usage", "llama.cpp, older vLLM", whole(usage=None), stream(usage=None), tokens=None),
    Case("usage null", "text-generation-inference 2", whole() | {"usage": None}, stream(usage=None), tokens=None),
    Case("usage is empty", "koboldcpp", whole(usage={}), stream(usage={}), tokens=None),
    Case("counts null", "LocalAI", whole(usage=dict.fromkeys(USAGE)), stream(usage=dict.fromkeys(USAGE)), tokens=None),
    Case("counts are floats", "Gradient-like proxies", whole(usage={name: float(n) for name, n in USAGE.items()}), None),
    Case("counts are text", "proxies in shell scripts", whole(usage={name: str(n) for name, n in USAGE.items()}), None),
    Case(
        "details null",
        "vLLM 0.8",
        whole(usage=USAGE | {"prompt_tokens_details": None}),
        stream(usage=USAGE | {"prompt_tokens_details": None}),
    ),
    Case("index null", "litellm#1700", whole(index=None), stream(index=None)),
    Case("index one", "one-api", whole(index=1), stream(index=1)),
    Case(
        "no index",
        "FastChat",
        None,
        [{**each, "choices": [{k: v for k, v in c.items() if k != "index"} for c in each["choices"]]} for each in stream()],
    ),
    Case("extra keys", "vLLM 0.11", whole(None, stop_reason=None, token_ids=None) | {"kv_transfer_params": None}, stream()),
    Case(
        "role in every chunk",
        "FastChat",
        None,
        stream({"role": "assistant", "content": "It is "}, {"role": "assistant", "content": "42."}),
    ),
    Case(
        "null contents between",
        "OpenRouter",
        None,
        stream({"role": "assistant", "content": None}, {"content": "It is 42."}, {"content": None}),
    ),
    Case(
        "delta null at the end",
        "openai-python#1677",
        None,
        [
            *stream(usage=None)[:-1],
            chunk(finish="stop") | {"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]},
            bill(),
        ],
    ),
    Case("notes of a filter", "openai-python#2313, langchain#18977", None, [PROMPT_NOTE, *stream(usage=None), END_NOTE, bill()]),
    Case("usage with every chunk", "vLLM, continuous_usage_stats", None, [each | {"usage": USAGE} for each in stream(usage=None)]),
    Case("usage with the last choice", "Mistral, Groq", None, [*stream(usage=None)[:-1], chunk(finish="stop", usage=USAGE)]),
    Case("usage beside the choices", "Groq", None, [*stream(usage=None)[:-1], chunk(finish="stop", x_groq={"usage": USAGE})]),
    Case("the whole message last", "MiniMax", None, [*stream(usage=None)[:-1], whole()]),
    Case(
        "line separators",
        "openai-python, sse decoding",
        whole({"content": "a\u2028b\x85c"}),
        stream({"content": "a\u2028b"}, {"content": "\x85c"}),
        text="a\u2028b\x85c",
    ),
    Case(
        "an empty answer",
        "any model that ends at once",
        whole({"content": ""}),
        stream({"role": "assistant", "content": ""}),
        text="",
    ),
    Case("emoji in halves", "aider#3693", whole({"content": "\U0001f600"}), stream({"content": "\U0001f600"}), text="\U0001f600"),
    Case(
        "parts", "microsoft/agent-framework#6978", whole({"content": PARTS}), stream({"content": PARTS[:1]}, {"content": PARTS[1:]})
    ),
    Case("one part", "vercel/ai#8072", whole({"content": [{"type": "text", "text": "It is 42."}]}), None),
    Case(
        "thinking and text",
        "Mistral's magistral",
        whole({"content": [THINKING, *PARTS]}),
        stream({"content": [THINKING]}, {"content": PARTS}),
        reasoning="hmm",
    ),
    Case(
        "reasoning_content",
        "DeepSeek, vLLM",
        whole({"content": "It is 42.", "reasoning_content": "hmm"}),
        stream({"reasoning_content": "h"}, {"reasoning_content": "mm"}, {"content": "It is 42."}),
        reasoning="hmm",
    ),
    Case(
        "reasoning",
        "OpenRouter, vLLM 0.12",
        whole({"content": "It is 42.", "reasoning": "hmm"}),
        stream({"reasoning": "hmm"}, {"content": "It is 42."}),
        reasoning="hmm",
    ),
    Case(
        "reasoning under both names",
        "vLLM 0.11",
        whole({"content": "It is 42.", "reasoning": "hmm", "reasoning_content": "hmm"}),
        stream({"reasoning": "hmm", "reasoning_content": "hmm"}, {"content": "It is 42."}),
        reasoning="hmm",
    ),
    Case(
        "reasoning null",
        "SGLang",
        whole({"content": "It is 42.", "reasoning_content": None}),
        stream({"reasoning_content": None, "content": "It is 42."}),
    ),
    Case(
        "refusal",
        "OpenAI, structured outputs",
        whole({"content": None, "refusal": "I will not."}),
        stream({"content": None, "refusal": "I will "}, {"refusal": "not."}),
        text="",
        refusal="I will not.",
    ),
    Case(
        "refusal empty beside a text",
        "LiteLLM",
        whole({"content": "It is 42.", "refusal": None}),
        stream({"content": "It is 42.", "refusal": None}),
    ),
    Case("cut", "any server at its limit", whole(finish="length"), stream(finish="length"), finish="length"),
    Case("finish max_tokens", "Bedrock's gateway", whole(finish="max_tokens"), stream(finish="max_tokens"), finish="max_tokens"),
    Case("finish STOP", "Gemini's compatible route", whole(finish="STOP"), stream(finish="STOP"), finish="STOP"),
    Case(
        "finish eos_token", "text-generation-inference 1", whole(finish="eos_token"), stream(finish="eos_token"), finish="eos_token"
    ),
    Case("finish null, body whole", "MicrosoftDocs/azure-docs#109589", whole(finish=None), None, finish=None),
    Case("finish null, stream ended", "codecompanion, ollama", None, stream(finish=None), finish=None),
    Case("finish end_turn", "Anthropic's compatible route", whole(finish="end_turn"), stream(finish="end_turn"), finish="end_turn"),
    Case(
        "usage with costs",
        "OpenRouter, usage accounting",
        whole(usage=USAGE | {"cost": 0.0001, "is_byok": False, "completion_tokens_details": {"reasoning_tokens": 0}}),
        stream(usage=USAGE | {"cost": 0.0001, "completion_tokens_details": {"reasoning_tokens": None}}),
    ),
    Case(
        "log-probabilities",
        "OpenAI's API reference",
        whole(logprobs={"content": [{"token": "It", "logprob": -0.1, "bytes": [73], "top_logprobs": []}], "refusal": None}),
        [each | {"choices": [{**one, "logprobs": {"content": None}} for one in each["choices"]]} for each in stream()],
    ),
    Case(
        "annotations, audio and function_call",
        "OpenAI, search models",
        whole({"content": "It is 42.", "annotations": [], "audio": None, "function_call": None}),
        stream({"content": "It is 42.", "annotations": [], "audio": None, "function_call": None}),
    ),
    Case(
        "chunks without choices between",
        "LiteLLM's proxy, Databricks",
        None,
        [stream()[0], chunk() | {"choices": []}, *stream()[1:]],
    ),
    Case(
        "tier and fingerprint null",
        "Groq, xAI",
        whole() | {"service_tier": None, "system_fingerprint": None, "x_groq": {"id": "r"}},
        [each | {"service_tier": None, "system_fingerprint": None, "x_groq": {"id": "r"}} for each in stream()],
    ),
    Case(
        "finish tool_calls without calls",
        "ollama#8517",
        whole(finish="tool_calls"),
        stream(finish="tool_calls"),
        finish="tool_calls",
    ),
]

CALLS = [
    called("arguments", "OpenAI's API reference", {"content": None, "tool_calls": [call('{"zone": "UTC"}')]}, PIECES, ZONE),
    called("no arguments", "vllm#19419", {"content": None, "tool_calls": [call("")]}, PIECES[:1], NOW),
    called(
        "arguments null",
        "openai-agents-js#664",
        {"content": None, "tool_calls": [call(None)]},
        [{"tool_calls": [call(None, index=0)]}],
        NOW,
    ),
    called(
        "arguments {}",
        "langchain#34123",
        {"content": None, "tool_calls": [call("{}")]},
        [{"tool_calls": [call("{}", index=0)]}],
        NOW,
    ),
    called(
        "raw newlines",
        "langchain#27602",
        {"content": None, "tool_calls": [call('{"zone": "a\nb"}')]},
        [{"tool_calls": [call('{"zone": "a\nb"}', index=0)]}],
        [("now", {"zone": "a\nb"})],
    ),
    called(
        "arguments broken",
        "any small model",
        {"content": None, "tool_calls": [call('{"zone": ')]},
        [{"tool_calls": [call('{"zone": ', index=0)]}],
        [],
        invalid=1,
    ),
    called(
        "arguments a list",
        "any small model",
        {"content": None, "tool_calls": [call("[1]")]},
        [{"tool_calls": [call("[1]", index=0)]}],
        [],
        invalid=1,
    ),
    called(
        "no id",
        "langgraph#4717",
        {"content": None, "tool_calls": [call("{}", id=None)]},
        [{"tool_calls": [call("{}", id=None, index=0)]}],
        NOW,
    ),
    called(
        "empty id",
        "QwenLM/Qwen3#1419",
        {"content": None, "tool_calls": [call("{}", id="")]},
        [{"tool_calls": [call("{}", id="", index=0)]}],
        NOW,
    ),
    called(
        "two calls",
        "OpenAI, parallel_tool_calls",
        {"content": None, "tool_calls": [call("{}"), call('{"zone": "UTC"}', id="c2")]},
        [{"tool_calls": [call("{}", index=0)]}, {"tool_calls": [call('{"zone": "UTC"}', id="c2", index=1)]}],
        NOW + ZONE,
    ),
    called(
        "two calls in one chunk",
        "Gemini's compatible route",
        {"content": None, "tool_calls": [call("{}"), call('{"zone": "UTC"}', id="c2")]},
        [{"tool_calls": [call("{}", index=0), call('{"zone": "UTC"}', id="c2", index=1)]}],
        NOW + ZONE,
    ),
    called(
        "id repeated in every piece",
        "LM Studio",
        {"content": None, "tool_calls": [call("{}")]},
        [{"tool_calls": [{**piece["tool_calls"][0], "id": "c1"}]} for piece in PIECES],
        None,
    ),
    called(
        "content empty beside calls",
        "vLLM",
        {"content": "", "tool_calls": [call("{}")]},
        [{"content": "", "tool_calls": [call("{}", index=0)]}],
        NOW,
    ),
    called("finish stop", "ollama", {"content": None, "tool_calls": [call("{}")]}, [{"tool_calls": [call("{}", index=0)]}], NOW),
    called(
        "text beside calls",
        "any model that explains",
        {"content": "Wait.", "tool_calls": [call("{}")]},
        [{"content": "Wait."}, {"tool_calls": [call("{}", index=0)]}],
        NOW,
        text="Wait.",
    ),
    called(
        "no type",
        "llama-cpp-python",
        {"content": None, "tool_calls": [{k: v for k, v in call("{}").items() if k != "type"}]},
        [{"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "now", "arguments": "{}"}}]}],
        NOW,
    ),
    called(
        "calls null",
        "SGLang",
        {"content": "It is 42.", "tool_calls": None},
        [{"content": "It is 42.", "tool_calls": None}],
        [],
        text="It is 42.",
    ),
    called(
        "calls an empty list",
        "vLLM",
        {"content": "It is 42.", "tool_calls": []},
        [{"content": "It is 42.", "tool_calls": []}],
        [],
        text="It is 42.",
    ),
]

BROKEN = {"code": 502, "message": "provider disconnected"}
OVERLOADED = {"error": {"message": "upstream provider is rate limited", "code": 429}, "user_id": "u"}
ERRORS = [
    Case(
        "error inside 200",
        "litellm#21755, mini-swe-agent#902",
        OVERLOADED,
        [OVERLOADED],
        text=None,
        error="Overloaded",
        words="rate limited",
    ),
    Case(
        "error inside 200, a text",
        "OpenRouterTeam/python-sdk#44",
        {"error": "no capacity"},
        [{"error": "no capacity"}],
        text=None,
        error="GenerationFailedAtEndpoint",
        words="no capacity",
    ),
    Case(
        "error after text",
        "vLLM, engine died",
        None,
        [*stream()[:2], {"error": {"message": "engine died", "code": 500}}],
        text=None,
        error="GenerationFailedAtEndpoint",
        words="engine died",
    ),
    Case(
        "an error as an object of its own",
        "vLLM of 2023, LMDeploy",
        {"object": "error", "message": "engine died", "code": 500},
        [*stream()[:2], {"object": "error", "message": "engine died", "code": 500}],
        text=None,
        error="GenerationFailedAtEndpoint",
        words="engine died",
        stricter="half an answer",
    ),
    Case(
        "an error beside the choices",
        "Groq, x_groq.error",
        None,
        [*stream()[:2], chunk(x_groq={"id": "req_1", "error": "over_capacity"})],
        text=None,
        error="GenerationFailedAtEndpoint",
        words="over_capacity",
        stricter="half an answer",
    ),
    Case(
        "an error of the choice",
        "OpenRouter, an upstream that breaks off",
        whole({"content": "It is"}, None, error=BROKEN),
        [*stream()[:2], chunk() | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "error": BROKEN}]}],
        text=None,
        error="EndpointUnreachable",
        words="provider disconnected",
        stricter="half an answer",
    ),
    Case(
        "an error by its code alone",
        "FastChat",
        {"text": "NETWORK ERROR DUE TO HIGH TRAFFIC", "error_code": 50004},
        [*stream()[:2], {"text": "NETWORK ERROR DUE TO HIGH TRAFFIC", "error_code": 50004}],
        text=None,
        error="GenerationFailedAtEndpoint",
        stricter="half an answer",
    ),
    Case(
        "no choices", "litellm", whole() | {"choices": []}, [bill()], text=None, error="MalformedAnswer", stricter="an empty text"
    ),
    Case("choices null", "OpenRouter", whole() | {"choices": None}, None, text=None, error="MalformedAnswer"),
    Case(
        "no message",
        "one-api",
        {**whole(), "choices": [{"index": 0, "finish_reason": "stop"}]},
        None,
        text=None,
        error="MalformedAnswer",
    ),
    Case(
        "a part that calls nothing",
        "Anthropic's compatible route",
        whole({"content": [{"type": "tool_use"}]}),
        None,
        text=None,
        error="MalformedAnswer",
        stricter="an empty text",
    ),
    Case(
        "filtered and empty",
        "semantic-kernel#5240",
        whole({"content": None}, "content_filter"),
        stream({"role": "assistant"}, finish="content_filter"),
        text=None,
        error="NoAnswer",
        words="content filter",
        stricter="an empty text",
    ),
    Case(
        "filtered in the middle",
        "langchain4j#2137",
        whole({"content": "The first step"}, "content_filter"),
        stream({"content": "The first step"}, finish="content_filter"),
        text=None,
        error="NoAnswer",
        words="content filter",
        stricter="half a sentence, cut by a filter",
    ),
    Case(
        "nothing but reasoning",
        "vllm#52640, mindcraft#789",
        whole({"content": None, "reasoning_content": "hm"}, "length"),
        stream({"reasoning_content": "hm"}, finish="length"),
        text=None,
        error="TruncatedAnswer",
        words="nothing but reasoning",
        stricter="an empty text",
    ),
    Case(
        "null content",
        "fess#3061",
        whole({"content": None}),
        stream({"role": "assistant", "content": None}),
        text=None,
        error="NoAnswer",
        words="without content",
        stricter="an empty text",
    ),
    *[
        Case(
            f"given up, {word}",
            source,
            whole(finish=word),
            stream(finish=word),
            text=None,
            error="GenerationFailedAtEndpoint",
            words="broke off",
            stricter="half an answer",
        )
        for word, source in (
            ("abort", "vLLM, abort"),
            ("insufficient_system_resource", "DeepSeek"),
            ("network_error", "Z.ai"),
            ("ERROR", "Cohere's compatible route"),
        )
    ],
    *[
        Case(
            f"filtered, {word}",
            source,
            whole(finish=word),
            stream(finish=word),
            text=None,
            error="NoAnswer",
            words="content filter",
            stricter="half a sentence, cut by a filter",
        )
        for word, source in (
            ("content_filter: RECITATION", "Gemini's compatible route"),
            ("sensitive", "Z.ai"),
            ("guardrail_intervened", "Bedrock's gateway"),
            ("refusal", "Anthropic's compatible route"),
        )
    ],
    Case(
        "stream without an end",
        "any proxy that times out",
        None,
        stream(finish=None, usage=None)[:2],
        text=None,
        error="GenerationFailedAtEndpoint",
        words="broke off",
        done=False,
        stricter="half an answer",
    ),
    Case(
        "stream without an end, usage with every chunk",
        "Gemini's compatible route, Perplexity",
        None,
        [each | {"usage": USAGE} for each in stream(finish=None, usage=None)[:2]],
        text=None,
        error="GenerationFailedAtEndpoint",
        words="broke off",
        done=False,
        stricter="half an answer",
    ),
    failed(
        "400",
        "vLLM",
        400,
        {"object": "error", "message": "max_tokens is too large", "type": "BadRequestError", "code": 400},
        "RequestRejected",
        "max_tokens is too large",
    ),
    failed(
        "400 in a list",
        "Gemini's compatible route",
        400,
        [{"error": {"code": 400, "message": "Unknown name", "status": "INVALID_ARGUMENT"}}],
        "RequestRejected",
        "Unknown name",
    ),
    failed(
        "400, message nested",
        "Mistral",
        400,
        {"object": "error", "message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}},
        "RequestRejected",
        "Extra inputs",
    ),
    failed(
        "401",
        "OpenAI",
        401,
        {"error": {"message": "Incorrect API key", "type": "invalid_request_error", "code": "invalid_api_key"}},
        "RequestRejected",
        "Incorrect API key",
    ),
    failed("403", "cloud gateways", 403, {"message": "forbidden"}, "RequestRejected", "forbidden"),
    failed(
        "404",
        "vLLM",
        404,
        {"error": {"message": "The model does not exist", "type": "NotFoundError"}},
        "RequestRejected",
        "does not exist",
    ),
    failed("413 as html", "nginx", 413, "<html>too large</html>", "RequestRejected"),
    failed("422", "FastAPI", 422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, "RequestRejected", "field required"),
    failed("429", "OpenAI", 429, {"error": {"message": "Rate limit reached", "type": "requests"}}, "Overloaded", "Rate limit"),
    failed(
        "429 without money",
        "OpenAI",
        429,
        {"error": {"message": "quota", "code": "insufficient_quota"}},
        "RequestRejected",
        "quota",
    ),
    failed("500", "vLLM", 500, {"error": {"message": "EngineDeadError"}}, "GenerationFailedAtEndpoint", "EngineDead"),
    failed("502 as html", "nginx", 502, "<html>bad gateway</html>", "EndpointUnreachable"),
    failed("503 as a text", "llama.cpp", 503, {"error": "Loading model"}, "Overloaded", "Loading model"),
    failed("504", "cloud gateways", 504, "", "EndpointTimeout"),
    failed("408", "cloud gateways", 408, {"error": {"message": "request timed out"}}, "EndpointTimeout", "timed out"),
    failed(
        "529, overloaded",
        "Anthropic's compatible route",
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        "Overloaded",
        "Overloaded",
    ),
    failed("400, a bare text", "TabbyAPI", 400, "context length exceeded", "RequestRejected", "context length"),
]
CASES = [*TEXTS, *CALLS, *ERRORS]
