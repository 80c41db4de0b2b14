"""What OpenAI's own SDK, and LangChain's client above it, see of the gateway."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI

from tests.adapters.loopback import storm
from tests.gateway.conftest import KEY, REJECTED, alternating, always

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

GUARD = {"guarded": "schedule = [2, 4]"}
ASKED = [{"role": "user", "content": "q"}]
#: Of its first two draws one is rejected and one is served. Without it every draw of one request in 64 would be rejected.
SEED = 4
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Leeds"}'}}


def test_an_answer_with_the_guards_word_and_the_usage_of_all_draws(house):
    with house.open(GUARD):
        raw = house.client.chat.completions.with_raw_response.create(model="guarded", messages=ASKED, seed=1)
        answer = raw.parse()
    assert answer.choices[0].message.content.startswith("answer ")
    assert (answer.model, answer.object, answer.choices[0].finish_reason) == ("guarded", "chat.completion", "stop")
    about = answer.bonmini_guard
    assert (about["decision"], about["draws"], about["score"]) == ("accepted", 2, pytest.approx(2.0, abs=0.1))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (10, 4, 14)
    assert raw.headers["x-bonmini-guard-decision"] == "accepted"
    assert raw.headers["x-bonmini-guard-draws"] == "2"
    assert answer.id == f"chatcmpl-{about['request_id']}"
    assert all(body["stream"] for _, _, body in house.upstream.requests)  # a proxy in between passes a cancellation on


def test_a_stream_is_the_served_answer_in_chunks(house):
    house.upstream.text = alternating
    with house.open(GUARD):
        options = {"model": "guarded", "messages": ASKED, "stream": True, "stream_options": {"include_usage": True}, "seed": SEED}
        chunks = list(house.client.chat.completions.create(**options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith("served answer")
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens >= 14
    assert next(chunk.bonmini_guard for chunk in chunks if hasattr(chunk, "bonmini_guard"))["decision"] == "accepted"


@pytest.mark.parametrize("word", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_an_answer_that_the_limit_cut_says_so_by_the_protocols_word(house, word):
    house.upstream.reason = word
    with house.open(GUARD):
        answer = house.client.chat.completions.create(model="guarded", messages=ASKED)
    assert answer.choices[0].finish_reason == "length"


def test_a_stream_that_waits_shows_signs_of_life(house):
    house.upstream.slow = 0.5
    with house.open(GUARD, keep_alive=0.05):
        said = house.post(model="guarded", messages=ASKED, stream=True)
        chunks = list(house.client.chat.completions.create(model="guarded", messages=ASKED, stream=True))
    assert said.text.startswith(": keep-alive\n\n: keep-alive")
    assert said.text.endswith("data: [DONE]\n\n")
    assert said.headers["content-type"].startswith("text/event-stream")
    assert chunks[0].choices[0].delta.content.startswith("answer")


def test_a_refusal_is_an_outcome_that_no_sdk_repeats(house):
    house.upstream.text = always(REJECTED)
    guards = {
        name: f'schedule = [2]\non_abstain = "{name}"\nabstain_message = "Sorry."' for name in ("refusal", "message", "error")
    }
    with house.open(guards):
        client = house.client.with_options(max_retries=3)
        refusal = client.chat.completions.create(model="refusal", messages=ASKED)
        message = client.chat.completions.create(model="message", messages=ASKED)
        chunks = list(client.chat.completions.create(model="refusal", messages=ASKED, stream=True))
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            client.chat.completions.create(model="error", messages=ASKED)
    assert (refusal.choices[0].message.refusal, refusal.choices[0].message.content) == ("Sorry.", None)
    assert (message.choices[0].message.refusal, message.choices[0].message.content) == (None, "Sorry.")
    assert {choice.finish_reason for answer in (refusal, message) for choice in answer.choices} == {"content_filter"}
    assert (refusal.bonmini_guard["decision"], refusal.bonmini_guard["reason"]) == ("abstained", "budget_spent")
    assert (refusal.usage.total_tokens, chunks[-1].choices[0].finish_reason) == (12, "content_filter")
    assert caught.value.type == "abstained"
    assert caught.value.body["bonmini_guard"]["draws"] == 2
    assert len(house.upstream.requests) == 8  # two a request: nothing was repeated


def test_tools_formats_and_probabilities_go_both_ways(house):
    house.upstream.text, house.upstream.message, house.upstream.reason = always(""), {"tool_calls": [CALL]}, "tool_calls"
    with house.open(GUARD):
        asked = {"model": "guarded", "messages": ASKED, "tools": [TOOL], "tool_choice": "required", "seed": 3}
        answer = house.client.chat.completions.create(**asked, logprobs=True)
        call = answer.choices[0].message.tool_calls[0]
        history = [*ASKED, answer.choices[0].message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
        chunks = list(house.client.chat.completions.create(model="guarded", messages=history, tools=[TOOL], stream=True))
        house.client.chat.completions.create(model="guarded", messages=ASKED, response_format={"type": "json_object"})
    assert (call.function.name, call.function.arguments, call.id) == ("weather", '{"city": "Leeds"}', "call_1")
    assert answer.choices[0].finish_reason == "tool_calls"
    assert chunks[0].choices[0].delta.tool_calls[0].function.name == "weather"
    bodies = [body for _, _, body in house.upstream.requests]
    assert (bodies[0]["tools"], bodies[0]["tool_choice"], bodies[0]["logprobs"]) == ([TOOL], "required", True)
    assert [message["role"] for message in bodies[2]["messages"]] == ["user", "assistant", "tool"]
    assert bodies[-1]["response_format"] == {"type": "json_object"}


def test_what_a_client_may_change(house):
    with house.open({"fixed": "schedule = [1]", "free": "schedule = [1]\nclient_sampling = true"}):
        asked = {"messages": ASKED, "temperature": 0.2, "max_tokens": 9, "extra_body": {"top_k": 7}}
        first, second = (house.client.chat.completions.create(model=name, **asked) for name in ("fixed", "free"))
        one, other = (body for _, _, body in house.upstream.requests)
    assert (one["temperature"], one["max_tokens"], "top_k" in one) == (1.0, 512, False)
    assert (other["temperature"], other["max_tokens"], other["top_k"]) == (0.2, 9, 7)
    assert first.bonmini_guard["ignored"] == ["max_tokens", "temperature", "top_k"]
    assert "ignored" not in second.bonmini_guard


def test_what_belongs_to_the_question_leaves_a_profile_in_force(house):
    drawing = {"model": "tiny", "settings": {"max_tokens": 512, "temperature": 1, "mode": "chat", "accept_truncated": True}}
    drawn = {"class": "OpenAICompatibleGenerator", "server": house.upstream.url + "/v1", **drawing}
    profile = {"mode": "guardrail", "schedule": [1], "thresholds": [0.0], "fingerprints": {"generator": drawn}}
    (house.folder / "guardrail.json").write_text(json.dumps(profile))
    question = {"functions": [TOOL["function"]], "function_call": "none", "user": "me", "strict": True}
    question |= {"prompt_cache_key": "desk", "safety_identifier": "me"}
    with house.open({"guarded": 'profile = "guardrail.json"'}):
        answer = house.post(model="guarded", messages=ASKED, top_k=3, **question).json()
    assert answer["bonmini_guard"]["ignored"] == ["top_k"]
    assert house.upstream.requests[0][2].items() >= question.items()


def test_models_and_what_is_not_guarded(house):
    with house.open(GUARD):
        assert [model.id for model in house.client.models.list()] == ["guarded", "plain"]
        plain = house.client.chat.completions.create(model="plain", messages=ASKED, n=2)
        chunks = list(house.client.chat.completions.create(model="plain", messages=ASKED, stream=True))
        house.upstream.faults = storm(1, "7")
        with pytest.raises(openai.RateLimitError) as caught:
            house.client.with_options(max_retries=0).chat.completions.create(model="plain", messages=ASKED)
    assert caught.value.response.headers["retry-after"] == "7"
    assert len(plain.choices) == 2
    assert not hasattr(plain, "bonmini_guard")
    assert len(chunks) > 2
    with house.open(GUARD):
        # An upstream that breaks off within an answer is down, and its clients have not left; no status of HTTP is none.
        house.upstream.faults = ["half", (999, {})]
        with pytest.raises(httpx.RemoteProtocolError):
            house.post(model="plain", messages=ASKED)
        assert house.post(model="plain", messages=ASKED).status_code == 503
        assert 'requests_total{model="plain",status="503"} 2.0' in house.metrics()
    with house.open(GUARD, more=""):
        assert [model.id for model in house.client.models.list()] == ["guarded"]
        with pytest.raises(openai.NotFoundError):
            house.client.chat.completions.create(model="plain", messages=ASKED)


@pytest.mark.parametrize("stream", [False, True])
def test_half_a_character_is_no_failure(house, stream):
    house.upstream.text = always("half \ud83d of it")
    with house.open(GUARD):
        said = house.post(model="guarded", messages=ASKED, stream=stream)
    assert (said.status_code, "\\ud83d" in said.text or "\\ufffd" in said.text) == (200, True)
    assert (said.headers.get("x-accel-buffering") == "no") is stream


async def test_langchains_client(house):
    house.upstream.text = alternating
    with house.open(GUARD):
        model = ChatOpenAI(model="guarded", base_url=f"{house.url}/v1", api_key=KEY, max_retries=0, seed=SEED)
        answer = await model.ainvoke("q")
        said = [chunk async for chunk in model.astream("q")]
        house.upstream.text, house.upstream.message = always(""), {"tool_calls": [CALL]}
        called = await model.bind_tools([TOOL]).ainvoke("q")
    assert answer.content.startswith("served")
    assert answer.usage_metadata["input_tokens"] >= 10  # the usage of all draws
    assert "".join(chunk.content for chunk in said).startswith("served")
    assert called.tool_calls[0]["args"] == {"city": "Leeds"}
