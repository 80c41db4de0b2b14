"""OpenTelemetry: spans of generative AI, as OTLP's JSON or as the SDK's console exporter writes them.

Read are the conventions from 1.27 on (messages as attributes, as events, or as one attribute a message), and OpenInference's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError
from bonmini_guard.logs.rows import name_of
from bonmini_guard.logs.sources.draws import Draw, first, generator_of, of_call
from bonmini_guard.logs.sources.messages import answers_in, prompt_in, unpacked

_CALLS = ("chat", "text_completion", "generate_content", "completion", "LLM")
#: What an OTLP export is made of.
_EXPORTS = ("resourceSpans", "scopeSpans", "spans", "resourceLogs", "scopeLogs", "logRecords")
#: ``gen_ai.prompt.0.content`` and its likes: which side, number, and what of it.
_NUMBERED = (
    re.compile(r"gen_ai\.(?P<side>prompt|completion)\.(?P<at>\d+)\.(?P<what>.+)"),
    re.compile(r"llm\.(?P<side>input|output)_messages\.(?P<at>\d+)\.message\.(?P<what>.+)"),
)
_CALL = re.compile(r"tool_calls\.(\d+)\.(?:tool_call\.)?(?:function\.)?(name|arguments|id)")


def units(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The spans (or log records, which may hold messages in their place) of an OTLP export, or the one that the record is."""
    inner = next((record[key] for key in _EXPORTS if isinstance(record.get(key), list)), None)
    if inner is None:
        yield {**record, "attributes": _attributes(record.get("attributes"))}
    for each in inner or ():
        if isinstance(each, Mapping):
            yield from units(each)


def draws(span: Mapping[str, Any], left_out: Counter[str]) -> Iterator[Draw]:
    """The answers of one span; those of other work are left out."""
    about = _attributes(span.get("attributes"))
    operation = first(about, "gen_ai.operation.name", "llm.request.type", "openinference.span.kind")
    if operation not in (*_CALLS, None) or not any(key.startswith(("gen_ai.", "llm.")) for key in about):
        left_out["spans that are no call of a model"] += 1
        return
    if span.get("eventName") not in (None, "gen_ai.client.inference.operation.details"):
        left_out["log records of single messages: spans, or events of whole calls, are wanted"] += 1
        return
    events = [(str(event.get("name")), _event(event)) for event in span.get("events") or ()]
    for _, said in events:
        about |= {key: value for key, value in said.items() if key in ("gen_ai.input.messages", "gen_ai.output.messages")}
    status = span.get("status") or {}
    failed = status.get("status_code", status.get("code")) in ("ERROR", "STATUS_CODE_ERROR", 2)
    found = _answers(about, events)
    if not found and not failed:
        raise InputError("a span without an answer; let the instrumentation record message content")
    answers: list[Turn | None] = [answer for one in found for answer in answers_in(one)]
    asked = {key.removeprefix("gen_ai.request."): value for key, value in about.items() if key.startswith("gen_ai.request.")}
    usage = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
    model = span.get("model") or first(about, "gen_ai.request.model", "gen_ai.response.model", "llm.model_name")
    yield from of_call(
        answers or [None],
        _prompt(about, events),
        first(about, *usage) if answers else None,
        (first(span, "startTimeUnixNano", "start_time"), first(span, "endTimeUnixNano", "end_time")),
        id=name_of(first(span, "spanId", "context.span_id")),
        group=first(about, "gen_ai.conversation.id", "session.id"),
        generator=generator_of(model, unpacked(about.get("llm.invocation_parameters")), asked),
    )


def _prompt(about: Mapping[str, Any], events: list[tuple[str, dict[str, Any]]]) -> Any:
    system = unpacked(about.get("gen_ai.system_instructions"))
    turns = unpacked(about.get("gen_ai.input.messages")) or _numbered(about, ("prompt", "input"))
    turns = turns or [_message(name, said) for name, said in events if re.fullmatch(r"gen_ai\.\w+\.message", name)]
    if not turns:
        said = (first(said, "gen_ai.prompt") for name, said in events if name == "gen_ai.content.prompt")
        return prompt_in(next(said, None) or first(about, "gen_ai.prompt", "input.value"))
    before = [{"role": "system", "parts": system}] if isinstance(system, list) and system else []
    return prompt_in([*before, *turns])


def _answers(about: Mapping[str, Any], events: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    found = unpacked(about.get("gen_ai.output.messages")) or _numbered(about, ("completion", "output"))
    found = found or [_message(name, said) for name, said in events if name == "gen_ai.choice"]
    if isinstance(found, list) and found:
        return found
    said = (first(said, "gen_ai.completion") for name, said in events if name == "gen_ai.content.completion")
    value = next(said, None) or first(about, "gen_ai.completion", "output.value")
    return [] if value is None else [value]


def _message(name: str, said: Mapping[str, Any]) -> Any:
    """An event as a turn: ``gen_ai.user.message`` and the like, or ``gen_ai.choice`` with its message."""
    inner = unpacked(said.get("message"))
    turn = dict(inner) if isinstance(inner, Mapping) else {"content": inner} if inner is not None else dict(said)
    role = "assistant" if name == "gen_ai.choice" else name.split(".")[1]
    calls = unpacked(turn.get("tool_calls"))
    kept = {"content": turn.get("content", ""), "tool_calls": calls if isinstance(calls, list) else []}
    kept |= {"tool_call_id": turn["id"]} if role == "tool" and turn.get("id") else {}
    return {"role": turn.get("role") or role, **kept}


def _numbered(about: Mapping[str, Any], sides: tuple[str, str]) -> list[dict[str, Any]]:
    turns: dict[int, dict[str, Any]] = {}
    for key, value in about.items():
        found = next((match for match in (pattern.fullmatch(key) for pattern in _NUMBERED) if match), None)
        if found is None or found["side"] not in sides:
            continue
        turn = turns.setdefault(int(found["at"]), {"role": "user" if sides[0] == "prompt" else "assistant", "content": ""})
        if call := _CALL.fullmatch(found["what"]):
            calls = turn.setdefault("_calls", {})
            calls.setdefault(int(call[1]), {})[call[2]] = value
        elif found["what"] in ("role", "content"):
            turn[found["what"]] = unpacked(value) if isinstance(unpacked(value), list) else value
    for turn in turns.values():
        turn["tool_calls"] = [call for _, call in sorted(turn.pop("_calls", {}).items())]
    return [turn for _, turn in sorted(turns.items())]


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    body = event.get("body")
    return _attributes(event.get("attributes")) | (dict(body) if isinstance(body, Mapping) else {})


def _attributes(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    pairs = [one for one in value or () if isinstance(one, Mapping)]
    return {str(pair.get("key")): _value(pair.get("value")) for pair in pairs}


def _value(value: Any) -> Any:
    """OTLP's value: one key that names its type."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    [(kind, inner)] = value.items()
    if kind == "arrayValue":
        return [_value(each) for each in inner.get("values") or ()]
    if kind == "kvlistValue":
        return _attributes(inner.get("values"))
    return int(inner) if kind == "intValue" else inner
