"""``OpenAICompatibleGenerator``: choices, usage, what is sent, faults, cancellation, secrets. The server is on the loopback."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from langchain_core.messages import AIMessage, FunctionMessage, HumanMessage, SystemMessage, ToolMessage

pytest.importorskip("openai")

from bonmini_guard.adapters import OpenAICompatibleGenerator, requests
from bonmini_guard.adapters import http_errors as errors
from bonmini_guard.adapters.answers import read_answers
from bonmini_guard.adapters.http import certificates
from bonmini_guard.errors import ConfigurationError, GenerationError
from bonmini_guard.unseen import tell_of
from tests.adapters.drawing import building, guard_of, request
from tests.adapters.loopback import STREAM_HEAD
from tests.adapters.openai_server import TOO_LONG, OpenAIServer

DATA = Path(__file__).parent.parent / "data"
KEY = "sk-secretsecretsecret"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def recorded(name, folder="tgi"):
    return json.loads((DATA / folder / f"{name}.json").read_text())


@pytest.fixture(autouse=True)
def no_key_of_mine(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
async def server():
    async with OpenAIServer() as running:
        yield running


@pytest.fixture
async def make(server):
    async for build in building(OpenAICompatibleGenerator, server.url, model="tiny"):
        yield build


async def group(generator, count=4, **options):
    """A loop's outcomes by position, each position once."""
    came = [each async for each in generator.draw_group([request(10 + i, index=i, **options) for i in range(count)])]
    assert sorted(position for position, _ in came) == list(range(count))
    return [outcome for _, outcome in sorted(came, key=lambda each: each[0])]


def texts(outcomes):
    return [outcome.text for outcome in outcomes]


def bill(outcomes):
    return [outcome.usage_metadata["input_tokens"] for outcome in outcomes], sum(
        outcome.usage_metadata["output_tokens"] for outcome in outcomes
    )


# What is said


def test_only_a_turn_of_calls_alone_goes_without_content():
    call = {"name": "weather", "args": {}, "id": "c1"}
    prompt = [HumanMessage(""), AIMessage("I look.", tool_calls=[call]), AIMessage("", tool_calls=[call]), AIMessage("")]
    assert [turn.get("content", "none") for turn in requests.turns(prompt)] == ["", "I look.", "none", ""]


def test_calls_of_the_old_form_have_ids_that_their_results_name():
    called = AIMessage("", additional_kwargs={"function_call": {"name": "weather", "arguments": "{}"}})
    told = requests.turns(
        [HumanMessage("q"), called, FunctionMessage("rain", name="weather"), called, ToolMessage("sun", tool_call_id="")]
    )
    ids = [told[at]["tool_calls"][0]["id"] for at in (1, 3)]
    assert [told[at]["tool_call_id"] for at in (2, 4)] == ids
    assert len({*ids} - {""}) == 2


# Choices


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["chat", "completion"])
async def test_a_server_that_honours_n_is_asked_once(server, make, mode, stream):
    generator = make(choices="server", mode=mode, stream=stream)
    outcomes = await group(generator)
    assert texts(outcomes) == ["answer 10.0", "answer 10.1", "answer 10.2", "answer 10.3"]
    assert [body["n"] for _, _, body in server.requests] == [4]
    assert bill(outcomes) == ([5, 0, 0, 0], 8)
    assert not server.requests[0][2].get("stream")


async def test_choices_out_of_order_go_where_their_index_says(server, make):
    server.order = lambda indices: [indices[i] for i in (1, 0, 3, 2)]
    assert texts(await group(make(choices="server"))) == [f"answer 10.{index}" for index in range(4)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_ignores_n_is_no_source_of_copies(server, make, stream):
    server.honours_n = False
    generator = make(choices="server", stream=stream)
    outcomes = await group(generator)
    assert texts(outcomes) == [f"answer {seed}.0" for seed in (10, 11, 12, 13)]
    assert bill(outcomes) == ([5] * 4, 8)
    assert ["n" in body for _, _, body in server.requests] == [True, False, False, False]


async def test_missing_choices_are_drawn_separately(server, make):
    server.most = 3
    outcomes = await group(make(choices="server"), 5)
    assert texts(outcomes) == ["answer 10.0", "answer 10.1", "answer 10.2", "answer 13.0", "answer 14.0"]


async def test_more_choices_than_asked_for_are_no_more_draws(server, make):
    server.answer = {"model": "m", "choices": [choice(index, f"t{index}") for index in range(6)]}
    server.answer |= {"usage": {"prompt_tokens": 5, "completion_tokens": 60, "total_tokens": 65}}
    outcomes = await group(make(choices="server"), 3)
    assert (texts(outcomes), bill(outcomes)) == (["t0", "t1", "t2"], ([5, 0, 0], 60))


async def test_choices_that_share_an_index_are_not_joined(server, make):
    server.answer = {"model": "m", "choices": [choice(0, "one"), choice(0, "two")]}
    assert texts(await group(make(choices="server"), 2)) == ["one", "two"]


async def test_several_answers_that_are_streamed_although_nobody_asked_for_it_are_kept_apart(server, make):
    told = [(0, "a", None), (1, "c", None), (0, "b", None), (1, "", "stop"), (0, "", "stop")]
    events = [{"choices": [{"index": at, "delta": {"content": text}, "finish_reason": end}]} for at, text, end in told]
    server.faults = [(200, "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "data: [DONE]\n\n")]
    assert texts(await group(make(choices="server"), 2)) == ["ab", "c"]


async def test_a_refused_request_for_several_is_told_as_it_is(server, make):
    server.faults = lambda path, body: (400, TOO_LONG) if "n" in body else None
    with pytest.raises(errors.RequestRejected):
        await group(make(choices="server"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "wait", "code": 429}, errors.Overloaded),
        ({"message": "wait", "code": "slow_down", "status": "503"}, errors.Overloaded),
        ({"message": "wait", "code": 1013, "status": 429}, errors.Overloaded),
        ({"message": "died", "code": 200}, errors.GenerationFailedAtEndpoint),
        ({"message": "died", "code": 600}, errors.GenerationFailedAtEndpoint),
        ("died", errors.GenerationFailedAtEndpoint),
    ],
)
async def test_an_error_within_an_answer_that_began_with_200_has_the_kind_of_its_own_code(server, make, error, kind):
    server.faults = [(200, {"error": error})]
    with pytest.raises(kind) as caught:
        await make(retries=0).draw(request())
    assert (type(caught.value), caught.value.status) == (kind, 200)


def test_without_a_finish_reason_an_answer_has_ended_where_the_stream_or_the_bill_says_so():
    text = {"choices": [{"index": 0, "delta": {"content": "yes"}}]}
    bill = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    for payloads, ended in (([text], True), ([text, bill], False), ([text, bill], True)):
        (answer,) = read_answers(payloads, ended=ended)
        assert (answer.turn.text, answer.finish_reason) == ("yes", None)
    with pytest.raises(errors.GenerationFailedAtEndpoint, match="broke off"):
        read_answers([text])


def test_neighbouring_texts_of_a_stream_become_one_and_what_is_between_them_stays():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    told = ["a", "b", [picture], "c", [{"type": "output_text", "text": "d"}]]
    (answer,) = read_answers([{"choices": [{"index": 0, "delta": {"content": each}}]} for each in told], ended=True)
    assert answer.message(1, ()).content == [{"type": "text", "text": "ab"}, picture, {"type": "text", "text": "cd"}]


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        ([[("f", "{}")], [("g", '{"a": 1}')]], [("f", {}), ("g", {"a": 1})]),
        ([[("f", '{"a": 1}'), ("f", '{"a": 2}')]], [("f", {"a": 1}), ("f", {"a": 2})]),
        # Others repeat the name with each piece.
        ([[("f", "")], [("f", '{"a"')], [("f", ": 1}")], [("f", "")]], [("f", {"a": 1})]),
    ],
)
def test_calls_of_a_stream_without_ids_that_share_an_index_are_several_where_each_is_whole(pieces, calls):
    told = [
        [{"index": 0, "id": "", "function": {"name": name, "arguments": arguments}} for name, arguments in each] for each in pieces
    ]
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": each}}]} for each in [*told, []]]
    (answer,) = read_answers(chunks, ended=True)
    assert [(call.name, call.args) for call in answer.turn.calls] == calls


async def test_broken_choices_are_drawn_again(server, make):
    several = [choice(0, "whole"), choice(1, "given up", "abort"), choice(2, 3), choice(3, "also", None)]
    server.answer = lambda body: {"model": "m", "choices": several if "n" in body else [choice(0, f"redrawn {body['seed']}")]}
    assert texts(await group(make(choices="server"))) == ["whole", "redrawn 11", "redrawn 12", "redrawn 13"]


async def test_truncated_choices_fail_one_by_one_where_they_are_not_accepted(server, make):
    server.answer = {"model": "m", "choices": [choice(0, "whole"), choice(1, "cut", "length")]}
    first, second = await group(make(choices="server", accept_truncated=False), 2)
    assert (first.text, type(second)) == ("whole", errors.TruncatedAnswer)
    first, second = await group(make(choices="server"), 2)
    assert second.response_metadata["truncated"] is True
    assert "truncated" not in first.response_metadata


@pytest.mark.filterwarnings("ignore:.*uncalibrated.*")
@pytest.mark.parametrize("choices", ["separate", "server"])
async def test_truncated_answers_that_are_not_accepted_are_billed(server, make, choices):
    server.reason = "length"
    guard = guard_of(make(choices=choices, accept_truncated=False), len)
    with pytest.raises(GenerationError) as caught:
        await guard.arun("q")
    assert caught.value.usage["total_tokens"] == (4 * 7 if choices == "separate" else 5 + 8)


def test_separate_requests_are_no_group():
    assert OpenAICompatibleGenerator("http://localhost:1").draw_group is None


@pytest.mark.filterwarnings("ignore:.*uncalibrated.*")
@pytest.mark.parametrize("choices", ["separate", "server"])
@pytest.mark.parametrize("honours_n", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_the_guards_usage_is_the_bill(server, make, choices, honours_n, stream):
    server.honours_n = honours_n
    billed = []
    reply, chunks = server.reply, server.chunks
    server.reply = lambda path, body: billed.append(body) or reply(path, body)
    server.chunks = lambda path, body: billed.append(body) or chunks(path, body)
    guard = guard_of(make(choices=choices, stream=stream), lambda text: -1.0, schedule=[4, 3], mini_n=None, max_loops=None)
    result = await guard.arun("q")
    usage = [server._usage(body)["total_tokens"] for body in billed]
    assert (result.draws, result.usage["total_tokens"]) == (7, sum(usage))
    assert len({candidate.message.text for candidate in result.candidates}) == 7


# Shapes


def choice(index, content, reason="stop", **message):
    return {"index": index, "message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}


async def test_the_recorded_completions_come_in_the_order_of_their_indices(server, make):
    server.answer = recorded("completions_many_prompts")
    outcomes = await group(make(choices="server", mode="completion"))
    assert [text[:6] for text in texts(outcomes)] == [" A Beg", " This ", " Paris", "uscula"]
    assert bill(outcomes) == ([22, 0, 0, 0], 40)
    assert all(outcome.response_metadata["truncated"] for outcome in outcomes)


async def test_reasoning_refusals_and_details_of_usage_are_kept(server, make):
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": 30,
        "total_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 16},
        "completion_tokens_details": {"reasoning_tokens": 25},
    }
    server.answer = {"model": "m", "choices": [choice(0, "four", reasoning_content="2 + 2")], "usage": usage}
    message = await make().draw(request())
    assert message.additional_kwargs == {"reasoning_content": "2 + 2"}
    assert message.usage_metadata["input_token_details"] == {"cache_read": 16}
    assert message.usage_metadata["output_token_details"] == {"reasoning": 25}
    # xAI and Gemini count thoughts in the total alone.
    server.answer["usage"] = usage | {"completion_tokens": 5}
    assert (await make().draw(request())).usage_metadata["output_tokens"] == 30
    for odd in (math.inf, 10**400):
        server.answer = {"model": "m", "choices": [choice(0, "four")], "usage": {"prompt_tokens": odd, "completion_tokens": "7"}}
        assert (await make().draw(request())).usage_metadata["total_tokens"] == 7
    server.answer["choices"] = [choice(0, "four"), choice(1, "five")]
    server.answer["usage"] = {"prompt_tokens": 3, "completion_tokens": 10**400}
    assert (await make().draw(request())).content == "four"
    server.answer = {"model": "m", "choices": [choice(0, None, refusal="no", reasoning="because")]}
    message = await make().draw(request())
    assert (message.content, message.usage_metadata) == ("", None)
    assert message.additional_kwargs == {"reasoning_content": "because", "refusal": "no"}


async def test_logprobs_are_kept_and_tell_each_choices_tokens_exactly(server, make):
    def tokens(count):
        return {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}] * count}

    choices = [choice(0, "a" * 50) | {"logprobs": tokens(2)}, choice(1, "a") | {"logprobs": tokens(6)}]
    usage = {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    server.answer = {"model": "m", "choices": choices, "usage": usage}
    outcomes = await group(make(choices="server", logprobs=True, stream=True), 2)
    assert [outcome.usage_metadata["output_tokens"] for outcome in outcomes] == [2, 6]
    assert len(outcomes[1].response_metadata["logprobs"]["content"]) == 6
    assert server.requests[0][2]["logprobs"] is True
    assert not server.requests[0][2].get("stream")
    server.answer = recorded("completions_single_prompt")
    await make(mode="completion", logprobs=True).draw(request())
    assert server.requests[1][2]["logprobs"] == 0


async def test_a_stop_string_that_a_server_leaves_in_is_cut_off(server, make):
    server.text = lambda body, index: "four END"
    assert (await make(stop="END").draw(request())).text == "four "
    assert (await make().draw(request(stop=["END"]))).text == "four "
    assert (await make(stop=["END", "four END"]).draw(request())).text == ""
    assert (await make(extra_body={"stop": "END"}).draw(request())).text == "four "
    server.text = lambda body, index: "GOOD"
    assert (await make(extra_body={"stop": "END"}).draw(request())).text == "GOOD"
    server.text, server.answer = None, {"model": "m", "choices": [choice(0, "four END", "length")]}
    assert (await make(stop="END").draw(request())).text == "four END"  # cut at its length, wherever that was


async def test_an_answer_that_is_all_reasoning_is_of_the_type_empty(server, make):
    server.answer = {"model": "m", "choices": [choice(0, None, reasoning_content="hm")]}
    with pytest.raises(errors.NoAnswer) as caught:
        await make().draw(request())
    assert caught.value.error_type == "empty"


# What is sent


def schema_of(name):
    described = recorded("openapi")
    return {"$ref": f"#/components/schemas/{name}", "components": described["components"]}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_request_fits_tgis_schema(server, make, stream):
    generator = make(stream=stream, stop=["END"], temperature=0.7, top_p=0.9, max_tokens=9)
    call = {"name": "weather", "args": {"city": "Rome"}, "id": "0"}
    turns = [SystemMessage("s"), HumanMessage("q"), AIMessage("", tool_calls=[call]), ToolMessage("r", tool_call_id="0")]
    await generator.draw(request(0, turns, frequency_penalty=0.5, tools=[TOOL], tool_choice="any"))
    path, _, body = server.requests[0]
    assert path == "/v1/chat/completions"
    # TGI's schema calls a tool's parameters "arguments"; the server takes both names.
    function = body["tools"][0]["function"]
    tool = {"type": "function", "function": {"name": function["name"], "arguments": function["parameters"]}}
    jsonschema.validate(body | {"tools": [tool]}, schema_of("ChatRequest"))
    assert set(body) <= set(recorded("openapi")["components"]["schemas"]["ChatRequest"]["properties"])
    assert (body["seed"], body["max_tokens"], body["stop"], body["tool_choice"]) == (2**31, 9, ["END"], "required")


async def test_a_completion_request_fits_tgis_schema(server, make):
    await make(mode="completion", stop=["a"], top_p=0.9).draw(request(1, [HumanMessage("one "), HumanMessage("two")]))
    path, _, body = server.requests[0]
    # TGI's schema names lists alone; it takes a string too, which is all that some other servers take.
    jsonschema.validate(body | {"prompt": [body["prompt"]]}, schema_of("CompletionRequest"))
    assert (path, body["prompt"], body["temperature"]) == ("/v1/completions", "one two", 1.0)


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("any", "required"),
        (True, "required"),
        ("auto", "auto"),
        ("weather", {"type": "function", "function": {"name": "weather"}}),
        ({"type": "function", "function": {"name": "weather"}}, {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_a_choice_of_tools_as_langchain_writes_it_is_sent_as_servers_take_it(choice, sent):
    assert requests.chat([HumanMessage("q")], {"tools": [TOOL], "tool_choice": choice})["tool_choice"] == sent


async def test_options_pass_through(server, make):
    shape = {"type": "json_object"}
    generator = make(extra_body={"top_k": 40}, response_format=shape, temperature=None, max_tokens=None, send_seed=False)
    await generator.draw(request(extra_body={"min_p": 0.1}, presence_penalty=0.2, max_completion_tokens=5, stop=None))
    body = server.requests[0][2]
    expected = {"top_k": 40, "min_p": 0.1, "presence_penalty": 0.2, "max_completion_tokens": 5, "response_format": shape}
    assert body == {"model": "tiny", "messages": [{"role": "user", "content": "q"}], **expected}


async def test_one_limit_is_sent_under_one_name(server, make):
    await make().draw(request(max_completion_tokens=5))
    await make().draw(request(max_new_tokens=6))
    assert [body.get("max_tokens") for _, _, body in server.requests] == [None, 6]


@pytest.mark.parametrize(
    "settings",
    [
        {"choices": "some"},
        {"max_tokens": 0},
        {"extra_body": {"n": 4}},
        {"extra_body": {"use_beam_search": True}},
        {"extra_body": {"temperature": 0}},
        {"mode": "completion", "response_format": {"type": "json_object"}},
    ],
)
async def test_wrong_settings_are_refused(make, settings):
    with pytest.raises(ConfigurationError):
        make(**settings)


async def test_the_only_model_is_found(server, make):
    generator = make(model=None)
    await generator.draw(request())
    assert server.requests[0][2]["model"] == "tiny"
    assert (await asyncio.to_thread(make(model=None).describe))["model"] == "tiny"
    server.models = {"data": [{"id": "a"}, {"id": "b"}]}
    with pytest.raises(ConfigurationError, match="2 models"):
        await make(model=None).draw(request())
    server.models = None
    with pytest.raises(ConfigurationError, match="model="):
        await make(model=None).draw(request())
    for listed, said in (
        ({"data": None}, "0 models"),
        ([{"id": "a"}], "no models"),
        ({"models": []}, "no models"),
        ("<html>", "no models"),
    ):
        server.models = listed
        with pytest.raises(ConfigurationError, match=said):
            await make(model=None).draw(request())


def test_it_needs_no_huggingface_hub():
    code = "import sys; sys.modules['huggingface_hub'] = None; from bonmini_guard.adapters import OpenAICompatibleGenerator"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_an_image_for_the_completions_route_is_told_of(server, make, caplog):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    question = HumanMessage([{"type": "text", "text": "What is it?"}, image])
    tell_of.cache_clear()  # told once a process
    await make(mode="completion").draw(request(messages=[question]))
    assert "holds a part of type 'image_url': the completions route takes text alone" in caplog.text
    assert server.requests[0][2]["prompt"].startswith("What is it?\n[image")


@pytest.mark.parametrize("proxy", ["http://[::1", "socks5://127.0.0.1:1", "gopher://x"])
async def test_proxy_settings_that_cannot_be_used_are_named(make, monkeypatch, proxy):
    if proxy.startswith("socks"):
        monkeypatch.setitem(sys.modules, "socksio", None)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(ConfigurationError, match="mend or unset HTTP_PROXY"):
        await make().draw(request())


@pytest.mark.parametrize("said", [None, "no certificate"])
async def test_certificates_that_cannot_be_read_are_named(make, monkeypatch, tmp_path, said):
    if said:
        (tmp_path / "ca.pem").write_text(said)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    certificates.cache_clear()
    with pytest.raises(ConfigurationError, match="mend or unset SSL_CERT_FILE"):
        await make().draw(request())


# Connections


async def test_who_wants_no_logprobs_has_a_stream_as_well(server, make):
    for wanted in (False, True):
        await make(stream=True).draw(request(logprobs=wanted))
    assert ["stream" in body for _, _, body in server.requests] == [True, False]


async def test_an_option_that_is_not_known_is_refused_with_the_place_for_it(server, make):
    with pytest.raises(ConfigurationError, match=r"'verbosity': not known here; .* extra_body"):
        await make().draw(request(verbosity="low"))
    for said in ({"verbosity": "low"}, None):
        await make(extra_body={"top_k": 5}).draw(request(extra_body=said))
        body = server.requests[-1][2]
        assert (body["top_k"], body.get("verbosity")) == (5, said and "low")


async def test_stream_options_of_the_users_own_that_a_server_refuses_are_told_as_refused(server, make):
    server.faults = lambda path, body: (400, {"error": "stream_options is not permitted"}) if "stream_options" in body else None
    with pytest.raises(errors.RequestRejected, match="stream_options"):
        await make(stream=True, extra_body={"stream_options": {"include_usage": True}}).draw(request())
    assert len(server.requests) == 1


async def test_a_stream_that_ended_leaves_its_connection_to_the_next_draw(server, make):
    generator = make(stream=True)
    for seed in range(1, 5):
        await generator.draw(request(seed))
    assert server.connections == 1


async def test_a_stream_that_only_says_that_it_ends_is_not_waited_for(make):
    said = {"choices": [{"index": 0, "delta": {"content": "answer"}, "finish_reason": "stop"}]}
    piece = f"data: {json.dumps(said)}\n\ndata: [DONE]\n\n".encode()

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STREAM_HEAD + b"%x\r\n%s\r\n" % (len(piece), piece))
        await reader.read()  # until the client hangs up
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server, asyncio.timeout(20):
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert (await make(base_url=url, stream=True).draw(request())).text == "answer"


@pytest.mark.parametrize("opening", [b"\xef\xbb\xbf", b" \n "])
async def test_what_stands_before_a_stream_costs_nothing_of_it(server, make, opening):
    server.opening = opening
    assert (await make(stream=True).draw(request(11))).content == "answer 11.0"


@pytest.mark.parametrize("begun", [b"error: ", b"event: error\ndata: "])
async def test_an_event_that_is_an_error_is_told_as_one(server, make, begun):
    server.opening, server.said, server.event = b"", [{"code": 400, "message": "too long"}], lambda said: begun + event(said)
    with pytest.raises(errors.RequestRejected, match="too long"):
        await make(stream=True).draw(request())
    assert len(server.requests) == 1


def event(said):
    return json.dumps(said).encode() + b"\n\n"
