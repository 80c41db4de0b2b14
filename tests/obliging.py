"""A chat server that calls the first tool that it is offered, writes the JSON that it is asked for, and says hello otherwise."""

from __future__ import annotations

import json
from typing import Any

from tests.adapters.openai_server import OpenAIServer

VALUES = {"integer": 3, "number": 3.0, "boolean": True, "array": [], "object": {}}


def arguments(schema: Any, text: str) -> dict[str, Any]:
    """Arguments of the right types for a JSON schema of a tool; the text for strings."""
    return {name: VALUES.get(field.get("type"), text) for name, field in schema.get("properties", {}).items()}


class ObligingServer(OpenAIServer):
    """OpenAI's chat protocol."""

    def reply(self, path: str, body: Any) -> Any:
        message, reason = said(body)
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        about = {"id": "cmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
        return about | {"choices": [choice], "usage": usage}

    def chunks(self, path: str, body: Any) -> list[Any]:
        whole = self.reply(path, body)
        (choice,) = whole["choices"]
        calls = [each | {"index": number} for number, each in enumerate(choice["message"].get("tool_calls", []))]
        delta = choice["message"] | ({"tool_calls": calls} if calls else {})
        about = whole | {"object": "chat.completion.chunk", "usage": None}
        first = {"index": 0, "delta": delta, "finish_reason": None}
        end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
        return [about | {"choices": [first]}, about | {"choices": [end]}, about | {"choices": [], "usage": whole["usage"]}]


def said(body: Any) -> tuple[dict[str, Any], str]:
    """The message for a request, and why it ends."""
    last, tools = body["messages"][-1], body.get("tools")
    text = last["content"] if isinstance(last["content"], str) else "".join(part.get("text", "") for part in last["content"])
    if tools and last["role"] != "tool" and body.get("tool_choice") != "none":
        function = tools[0]["function"]
        call = {"name": function["name"], "arguments": json.dumps(arguments(function["parameters"], text))}
        return {"content": None, "tool_calls": [{"id": "call-1", "type": "function", "function": call}]}, "tool_calls"
    shape = body.get("response_format") or {}
    if shape.get("type") == "json_schema":
        return {"content": json.dumps(arguments(shape["json_schema"]["schema"], text))}, "stop"
    if shape.get("type") == "json_object":
        return {"content": json.dumps({"setup": "a", "punchline": "b"})}, "stop"
    return {"content": "hello there"}, "stop"
