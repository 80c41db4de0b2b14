"""Other clients of the gateway, each as its users write it, in an environment of their own (``make live-clients``)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.gateway.conftest import KEY, REJECTED, always, house  # noqa: F401

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore:uncalibrated")]

PYTHON = os.environ.get("LIVE_PYTHON", ".venv-live-clients/bin/python")
ROOM = Path(PYTHON).absolute().parent.parent
#: By what is installed, in a folder of that name.
CLIENTS = {
    "openai-agents": """
from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
set_tracing_disabled(True)
@function_tool
def weather(city: str) -> str:
    return "rain in " + city
model = OpenAIChatCompletionsModel("guarded", AsyncOpenAI(base_url=URL, api_key=KEY))
print(Runner.run_sync(Agent(name="a", model=model, tools=[weather]), "q").final_output)
""",
    "pydantic-ai-slim[openai]": """
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
class Place(BaseModel):
    city: str
model = OpenAIChatModel("guarded", provider=OpenAIProvider(base_url=URL, api_key=KEY))
print(Agent(model, output_type=Place).run_sync("q").output.city)
""",
    "llama-index-llms-openai-like": """
from llama_index.llms.openai_like import OpenAILike
model = OpenAILike(model="guarded", api_base=URL, api_key=KEY, is_chat_model=True, max_retries=0)
print(model.complete("q").text)
print("".join(part.delta or "" for part in model.stream_complete("q")))
""",
    "haystack-ai": """
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
model = OpenAIChatGenerator(model="guarded", api_base_url=URL, api_key=Secret.from_token(KEY))
print(model.run([ChatMessage.from_user("q")])["replies"][0].text)
""",
    "litellm": """
import litellm
asked = dict(model="openai/guarded", api_base=URL, api_key=KEY, messages=[{"role": "user", "content": "q"}])
print(litellm.completion(**asked).choices[0].message.content)
print("".join(part.choices[0].delta.content or "" for part in litellm.completion(**asked, stream=True)))
""",
}
SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.URL_, apiKey: process.env.KEY_, maxRetries: 2 });
const asked = { model: "guarded", messages: [{ role: "user", content: "q" }] };
const answer = await client.chat.completions.create(asked);
console.log(answer.choices[0].message.content, answer.bonmini_guard.decision);
let text = "";
const stream = await client.chat.completions.create({ ...asked, stream: true });
for await (const part of stream) text += part.choices[0]?.delta?.content ?? "";
console.log(text);
const refused = await client.chat.completions.create({ ...asked, model: "strict" });
console.log(refused.choices[0].finish_reason, refused.choices[0].message.refusal);
"""


def reply(body):
    """Calls the first tool, if there is one and it was not called yet; else says so."""
    tools = body.get("tools") or []
    called = any(message["role"] == "tool" for message in body["messages"])
    message = {"role": "assistant", "content": "winner"}
    if tools and not called:
        function = {"name": tools[0]["function"]["name"], "arguments": '{"city": "Leeds"}'}
        message = {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if message.get("tool_calls") else "stop"}
    about = {"id": "x", "object": "chat.completion", "created": 1, "model": "tiny"}
    return about | {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}


def run(command, **more):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more.pop("env", {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client(house, name):  # noqa: F811
    house.upstream.answer = reply
    with house.open({"guarded": "schedule = [2]"}, more="stream = false"):
        code = f"URL, KEY = {house.url + '/v1'!r}, {KEY!r}\n{CLIENTS[name]}"
        said = run([PYTHON, "-c", code], env={"PYTHONPATH": str(ROOM / name)})
    assert ("Leeds" if "output_type" in CLIENTS[name] else "winner") in said.splitlines()[-1]


def test_javascript(house, tmp_path):  # noqa: F811
    (tmp_path / "node_modules").symlink_to(ROOM / "node_modules")
    (tmp_path / "ask.mjs").write_text(SCRIPT)
    with house.open({"guarded": "schedule = [1]", "strict": 'schedule = [1]\nthreshold = 9.0\nabstain_message = "Sorry."'}):
        environment = {"URL_": f"{house.url}/v1", "KEY_": KEY}
        answer, stream, refused = run(["node", "ask.mjs"], cwd=tmp_path, env=environment).splitlines()
    assert answer.startswith("answer ")
    assert answer.endswith("accepted")
    assert stream.startswith("answer ")
    assert refused == "content_filter Sorry."


def test_curl(house):  # noqa: F811
    house.upstream.text = always(REJECTED)
    with house.open({"guarded": "schedule = [1]"}):
        body = '{"model": "guarded", "stream": true, "messages": [{"role": "user", "content": "q"}]}'
        said = run(["curl", "-sN", f"{house.url}/v1/chat/completions", "-H", f"authorization: Bearer {KEY}", "-d", body])
    assert REJECTED not in said
    assert said.endswith("data: [DONE]\n\n")
