"""What servers answer, whole and streamed, each with the public report or the server that it is modelled on.

A case says what a caller is to get: a text, calls of tools, an end, tokens; or an error, by its class and words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
#: Calls as (name, arguments).
NOW = [("now", {})]
ZONE = [("now", {"zone": "UTC"})]


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


def alike(name: str, source: str, message: Any = None, finish: Any = "stop", usage: Any = USAGE, **more: Any) -> Case:
    """A case that says the same whole and streamed."""
    deltas = () if message is None else (message,)
    settings = {"finish": finish, **more}
    return Case(name, source, whole(message, finish, usage), stream(*deltas, finish=finish, usage=usage), **settings)


def called(
    name: str, source: str, message: Any, deltas: Sequence[Any], calls: Any, finish: str = "tool_calls", **more: Any
) -> Case:
    """A case with calls and no text."""
    settings = {"text": "", "finish": finish, "calls": calls, **more}
    return Case(name, source, whole(message, finish), stream(*deltas, finish=finish), **settings)


def one_call(name: str, source: str, arguments: Any, calls: Any = NOW, id: Any = "c1", **more: Any) -> Case:
    """A case with one call, which comes in one piece."""
    said = call(arguments, id=id)
    return called(name, source, {"content": None, "tool_calls": [said]}, [{"tool_calls": [said | {"index": 0}]}], calls, **more)


def broken(name: str, source: str, body: Any, chunks: Any, error: str, words: str = "", stricter: str = "", **more: Any) -> Case:
    """A case of an answer that is none."""
    return Case(name, source, body, chunks, text=None, error=error, words=words, stricter=stricter, **more)


PARTS = [{"type": "text", "text": "It is "}, {"type": "text", "text": "42."}]
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "hmm"}]}
PIECES = [
    {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "now", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"zone": '}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"UTC"}'}}]},
]
TWO = [call("{}"), call('{"zone": "UTC"}', id="c2")]
#: What Azure sends first and last.
PROMPT_NOTE = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
END_NOTE = PROMPT_NOTE | {"choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 1}}]}
#: Beside a whole answer.
SAID = {"content": "It is 42."}

TEXTS = [
    alike("plain", "OpenAI's API reference"),
    alike("no usage", "llama.cpp, older vLLM", usage=None, tokens=None),
    Case("usage null", "text-generation-inference 2", whole() | {"usage": None}, stream(usage=None), tokens=None),
    alike("usage is empty", "koboldcpp", usage={}, tokens=None),
    alike("counts null", "LocalAI", usage=dict.fromkeys(USAGE), tokens=None),
    Case("counts are floats", "Gradient-like proxies", whole(usage={name: float(n) for name, n in USAGE.items()}), None),
    Case("counts are text", "proxies in shell scripts", whole(usage={name: str(n) for name, n in USAGE.items()}), None),
    alike("details null", "vLLM 0.8", usage=USAGE | {"prompt_tokens_details": None}),
    Case("index null", "litellm#1700", whole(index=None), stream(index=None)),
    Case("index one", "one-api", whole(index=1), stream(index=1)),
    Case(
        "no index",
        "FastChat",
        None,
        [{**each, "choices": [{k: v for k, v in c.items() if k != "index"} for c in each["choices"]]} for each in stream()],
    ),
    Case("extra keys", "vLLM 0.11", whole(None, stop_reason=None, token_ids=None) | {"kv_transfer_params": None}, stream()),
    Case("role in every chunk", "FastChat", None, stream(*({"role": "assistant", "content": text} for text in ("It is ", "42.")))),
    Case("null contents between", "OpenRouter", None, stream({"role": "assistant", "content": None}, SAID, {"content": None})),
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
    alike("emoji in halves", "aider#3693", {"content": "\U0001f600"}, text="\U0001f600"),
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
        whole(SAID | {"reasoning_content": "hmm"}),
        stream({"reasoning_content": "h"}, {"reasoning_content": "mm"}, SAID),
        reasoning="hmm",
    ),
    *[
        Case(name, source, whole(SAID | thought), stream(thought, SAID), reasoning="hmm")
        for name, source, thought in (
            ("reasoning", "OpenRouter, vLLM 0.12", {"reasoning": "hmm"}),
            ("reasoning under both names", "vLLM 0.11", {"reasoning": "hmm", "reasoning_content": "hmm"}),
        )
    ],
    alike("reasoning null", "SGLang", SAID | {"reasoning_content": None}),
    Case(
        "refusal",
        "OpenAI, structured outputs",
        whole({"content": None, "refusal": "I will not."}),
        stream({"content": None, "refusal": "I will "}, {"refusal": "not."}),
        text="",
        refusal="I will not.",
    ),
    alike("refusal empty beside a text", "LiteLLM", SAID | {"refusal": None}),
    alike("cut", "any server at its limit", finish="length"),
    alike("finish max_tokens", "Bedrock's gateway", finish="max_tokens"),
    alike("finish STOP", "Gemini's compatible route", finish="STOP"),
    alike("finish eos_token", "text-generation-inference 1", finish="eos_token"),
    Case("finish null, body whole", "MicrosoftDocs/azure-docs#109589", whole(finish=None), None, finish=None),
    Case("finish null, stream ended", "codecompanion, ollama", None, stream(finish=None), finish=None),
    alike("finish end_turn", "Anthropic's compatible route", finish="end_turn"),
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
    alike(
        "annotations, audio and function_call",
        "OpenAI, search models",
        SAID | {"annotations": [], "audio": None, "function_call": None},
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
    alike("finish tool_calls without calls", "ollama#8517", finish="tool_calls"),
]

CALLS = [
    called("arguments", "OpenAI's API reference", {"content": None, "tool_calls": [call('{"zone": "UTC"}')]}, PIECES, ZONE),
    called("no arguments", "vllm#19419", {"content": None, "tool_calls": [call("")]}, PIECES[:1], NOW),
    one_call("arguments null", "openai-agents-js#664", None),
    one_call("arguments {}", "langchain#34123", "{}"),
    one_call("raw newlines", "langchain#27602", '{"zone": "a\nb"}', [("now", {"zone": "a\nb"})]),
    one_call("arguments broken", "any small model", '{"zone": ', [], invalid=1),
    one_call("arguments a list", "any small model", "[1]", [], invalid=1),
    one_call("no id", "langgraph#4717", "{}", id=None),
    one_call("empty id", "QwenLM/Qwen3#1419", "{}", id=""),
    called(
        "two calls",
        "OpenAI, parallel_tool_calls",
        {"content": None, "tool_calls": TWO},
        [{"tool_calls": [each | {"index": at}]} for at, each in enumerate(TWO)],
        NOW + ZONE,
    ),
    called(
        "two calls in one chunk",
        "Gemini's compatible route",
        {"content": None, "tool_calls": TWO},
        [{"tool_calls": [each | {"index": at} for at, each in enumerate(TWO)]}],
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
    one_call("finish stop", "ollama", "{}", finish="stop"),
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
    alike("calls null", "SGLang", SAID | {"tool_calls": None}, "tool_calls"),
    alike("calls an empty list", "vLLM", SAID | {"tool_calls": []}, "tool_calls"),
]

BROKEN = {"code": 502, "message": "provider disconnected"}
OVERLOADED = {"error": {"message": "upstream provider is rate limited", "code": 429}, "user_id": "u"}
DIED = {"object": "error", "message": "engine died", "code": 500}
TRAFFIC = {"text": "NETWORK ERROR DUE TO HIGH TRAFFIC", "error_code": 50004}
#: What LangChain's client serves of some of them.
HALF, EMPTY, CENSORED = "half an answer", "an empty text", "half a sentence, cut by a filter"
FAILED = "GenerationFailedAtEndpoint"
ERRORS = [
    broken("error inside 200", "litellm#21755, mini-swe-agent#902", OVERLOADED, [OVERLOADED], "Overloaded", "rate limited"),
    broken(
        "error inside 200, a text",
        "OpenRouterTeam/python-sdk#44",
        {"error": "no capacity"},
        [{"error": "no capacity"}],
        FAILED,
        "no capacity",
    ),
    broken(
        "error after text",
        "vLLM, engine died",
        None,
        [*stream()[:2], {"error": {"message": "engine died", "code": 500}}],
        FAILED,
        "engine died",
    ),
    broken("an error as an object of its own", "vLLM of 2023, LMDeploy", DIED, [*stream()[:2], DIED], FAILED, "engine died", HALF),
    broken(
        "an error beside the choices",
        "Groq, x_groq.error",
        None,
        [*stream()[:2], chunk(x_groq={"id": "req_1", "error": "over_capacity"})],
        FAILED,
        "over_capacity",
        HALF,
    ),
    broken(
        "an error of the choice",
        "OpenRouter, an upstream that breaks off",
        whole({"content": "It is"}, None, error=BROKEN),
        [*stream()[:2], chunk() | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "error": BROKEN}]}],
        "EndpointUnreachable",
        "provider disconnected",
        HALF,
    ),
    broken("an error by its code alone", "FastChat", TRAFFIC, [*stream()[:2], TRAFFIC], FAILED, stricter=HALF),
    broken("no choices", "litellm", whole() | {"choices": []}, [bill()], "MalformedAnswer", stricter=EMPTY),
    broken("choices null", "OpenRouter", whole() | {"choices": None}, None, "MalformedAnswer"),
    broken("no message", "one-api", {**whole(), "choices": [{"index": 0, "finish_reason": "stop"}]}, None, "MalformedAnswer"),
    broken(
        "a part that calls nothing",
        "Anthropic's compatible route",
        whole({"content": [{"type": "tool_use"}]}),
        None,
        "MalformedAnswer",
        stricter=EMPTY,
    ),
    broken(
        "filtered and empty",
        "semantic-kernel#5240",
        whole({"content": None}, "content_filter"),
        stream({"role": "assistant"}, finish="content_filter"),
        "NoAnswer",
        "content filter",
        EMPTY,
    ),
    broken(
        "filtered in the middle",
        "langchain4j#2137",
        whole({"content": "The first step"}, "content_filter"),
        stream({"content": "The first step"}, finish="content_filter"),
        "NoAnswer",
        "content filter",
        CENSORED,
    ),
    broken(
        "nothing but reasoning",
        "vllm#52640, mindcraft#789",
        whole({"content": None, "reasoning_content": "hm"}, "length"),
        stream({"reasoning_content": "hm"}, finish="length"),
        "TruncatedAnswer",
        "nothing but reasoning",
        EMPTY,
    ),
    broken(
        "null content",
        "fess#3061",
        whole({"content": None}),
        stream({"role": "assistant", "content": None}),
        "NoAnswer",
        "without content",
        EMPTY,
    ),
    *[
        broken(f"given up, {word}", source, whole(finish=word), stream(finish=word), FAILED, "broke off", HALF)
        for word, source in (
            ("abort", "vLLM, abort"),
            ("insufficient_system_resource", "DeepSeek"),
            ("network_error", "Z.ai"),
            ("ERROR", "Cohere's compatible route"),
        )
    ],
    *[
        broken(f"filtered, {word}", source, whole(finish=word), stream(finish=word), "NoAnswer", "content filter", CENSORED)
        for word, source in (
            ("content_filter: RECITATION", "Gemini's compatible route"),
            ("sensitive", "Z.ai"),
            ("guardrail_intervened", "Bedrock's gateway"),
            ("refusal", "Anthropic's compatible route"),
        )
    ],
    *[
        broken(f"stream without an end{more}", source, None, chunks, FAILED, "broke off", HALF, done=False)
        for more, source, chunks in (
            ("", "any proxy that times out", stream()[:2]),
            (
                ", usage with every chunk",
                "Gemini's compatible route, Perplexity",
                [each | {"usage": USAGE} for each in stream()[:2]],
            ),
        )
    ],
    *[
        Case(name, source, body, [], int(name[:3]), text=None, error=error, words=words)
        for name, source, body, error, words in (
            (
                "400",
                "vLLM",
                {"object": "error", "message": "max_tokens is too large", "type": "BadRequestError", "code": 400},
                "RequestRejected",
                "max_tokens is too large",
            ),
            (
                "400 in a list",
                "Gemini's compatible route",
                [{"error": {"code": 400, "message": "Unknown name", "status": "INVALID_ARGUMENT"}}],
                "RequestRejected",
                "Unknown name",
            ),
            (
                "400, message nested",
                "Mistral",
                {"object": "error", "message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}},
                "RequestRejected",
                "Extra inputs",
            ),
            (
                "401",
                "OpenAI",
                {"error": {"message": "Incorrect API key", "type": "invalid_request_error", "code": "invalid_api_key"}},
                "RequestRejected",
                "Incorrect API key",
            ),
            ("403", "cloud gateways", {"message": "forbidden"}, "RequestRejected", "forbidden"),
            (
                "404",
                "vLLM",
                {"error": {"message": "The model does not exist", "type": "NotFoundError"}},
                "RequestRejected",
                "does not exist",
            ),
            ("413 as html", "nginx", "<html>too large</html>", "RequestRejected", ""),
            ("422", "FastAPI", {"detail": [{"loc": ["body"], "msg": "field required"}]}, "RequestRejected", "field required"),
            ("429", "OpenAI", {"error": {"message": "Rate limit reached", "type": "requests"}}, "Overloaded", "Rate limit"),
            (
                "429 without money",
                "OpenAI",
                {"error": {"message": "quota", "code": "insufficient_quota"}},
                "RequestRejected",
                "quota",
            ),
            ("500", "vLLM", {"error": {"message": "EngineDeadError"}}, FAILED, "EngineDead"),
            ("502 as html", "nginx", "<html>bad gateway</html>", "EndpointUnreachable", ""),
            ("503 as a text", "llama.cpp", {"error": "Loading model"}, "Overloaded", "Loading model"),
            ("504", "cloud gateways", "", "EndpointTimeout", ""),
            ("408", "cloud gateways", {"error": {"message": "request timed out"}}, "EndpointTimeout", "timed out"),
            (
                "529, overloaded",
                "Anthropic's compatible route",
                {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
                "Overloaded",
                "Overloaded",
            ),
            ("400, a bare text", "TabbyAPI", "context length exceeded", "RequestRejected", "context length"),
        )
    ],
]
CASES = [*TEXTS, *CALLS, *ERRORS]
