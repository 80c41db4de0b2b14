"""Answers that are too long, packed, or nested too deeply cost their own draw, and little memory."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("huggingface_hub")

from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import OpenAICompatibleGenerator, TGIGenerator, bodies
from bonmini_guard.adapters.http_errors import MalformedAnswer
from bonmini_guard.conversation import deeper_than
from bonmini_guard.errors import GenerationError

from .drawing import guard_of
from .loopback import LoopbackServer

pytestmark = pytest.mark.filterwarnings("ignore:.*uncalibrated.*")

CAP = 2**20


def completion(text="good", **message):
    said = {"role": "assistant", "content": text, **message}
    choice = {"index": 0, "message": said, "finish_reason": "stop"}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}).encode()


def bomb(megabytes):
    """So many megabytes in a thousandth of them."""
    packing = zlib.compressobj(9, wbits=31)
    parts = [packing.compress(b'{"choices": "'), *(packing.compress(b"a" * 2**20) for _ in range(megabytes)), packing.flush()]
    return b"".join(parts)


class Serving(LoopbackServer):
    """Answers each request with the next of some (headers, chunks)."""

    def __init__(self, *answers):
        super().__init__()
        self.todo = list(answers)

    def aside(self, path):
        return (404, {}) if path == "/info" else None

    async def _work(self, path, body, writer):
        headers, chunks = self.todo.pop(0) if len(self.todo) > 1 else self.todo[0]
        fields = {"content-type": "application/json", **headers, "transfer-encoding": "chunked"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode())
        for chunk in [*chunks, b""]:
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await writer.drain()


FAMILIES = {
    "openai": lambda url, **settings: OpenAICompatibleGenerator(url, model="m", api_key="", retries=0, **settings),
    "tgi": lambda url, **settings: TGIGenerator(url, token="", retries=0, **settings),
}
LONG = {
    "packed": ({"content-encoding": "gzip"}, [bomb(200)]),
    "wire": ({}, [b" " * 2**16] * 3200),
    "unknown packing": ({"content-encoding": "br"}, [b"\x0b\x02\x80"]),
}


@asynccontextmanager
async def guarded(family, *answers, draws=1, **settings):
    """A guard that accepts what a server answers: the next of some (headers, chunks) to each request."""
    async with Serving(*answers) as server, FAMILIES[family](server.url, **settings) as generator:
        yield guard_of(generator, lambda text: 1.0, mini_n=draws)


async def served(family, *answers, **settings):
    async with guarded(family, *answers, **settings) as guard:
        return (await guard.arun("q")).message.text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", LONG)
async def test_an_answer_without_end_costs_its_draw_and_little_memory(family, kind, monkeypatch):
    monkeypatch.setattr(bodies, "LONGEST_ANSWER", CAP)
    async with guarded(family, LONG[kind]) as guard:
        tracemalloc.start()
        try:
            with pytest.raises(GenerationError) as caught:
                await guard.arun("q")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert isinstance(caught.value.__cause__.exceptions[0], MalformedAnswer)
    # The server's side of it is measured, too, and imports are.
    assert peak < 24 * CAP


@pytest.mark.parametrize("family", FAMILIES)
async def test_the_draw_beside_it_is_served(family, monkeypatch):
    monkeypatch.setattr(bodies, "LONGEST_ANSWER", CAP)
    async with guarded(family, ({}, [b" " * 2**21]), ({}, [completion()]), draws=2) as guard:
        result = await guard.arun("q")
    assert (result.message.text, result.metadata()["failed_draws"]) == ("good", 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("encoding", ["none", "UTF-8", "identity", ""])
async def test_an_encoding_that_packs_nothing_is_none(family, encoding):
    assert await served(family, ({"content-encoding": encoding}, [completion()])) == "good"


@pytest.mark.parametrize("family", FAMILIES)
async def test_an_answer_of_just_so_many_bytes_is_read(family, monkeypatch):
    whole = completion()
    monkeypatch.setattr(bodies, "LONGEST_ANSWER", len(whole))
    assert await served(family, ({}, [whole])) == "good"


@pytest.mark.parametrize(
    ("kind", "form"), [("text/plain", "data: %s\n\n"), ("Text/Event-Stream", "data: %s\n\n"), ("text/event-stream", "%s")]
)
async def test_a_stream_is_known_by_how_it_begins(kind, form):
    said = form.replace("%s", completion().decode()).encode()
    assert await served("openai", ({"content-type": kind}, [said]), stream=True) == "good"


@pytest.mark.parametrize("family", FAMILIES)
async def test_words_of_an_answer_that_breaks_there_do_not_end_its_stream(family):
    text = "It ends with: data: [DONE]"
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    said = json.dumps({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}).encode()
    begun, rest = said.split(b'"}, "finish')
    stream = [b"data: " + begun, b'"}, "finish' + rest + b"\n\n", b"data: [DONE]\n\n"]
    assert await served(family, ({"content-type": "text/event-stream"}, stream), stream=True) == text


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_stream_of_too_many_events_ends(family, monkeypatch):
    monkeypatch.setattr(bodies, "LONGEST_STREAM", 50)
    delta = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "f"}
    event = {**delta, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": None}]}
    stream = [b"data: " + json.dumps(event).encode() + b"\n\n"] * 60
    with pytest.raises(GenerationError, match="a stream of more than 50 events"):
        await served(family, ({"content-type": "text/event-stream"}, stream), stream=True)


def _good(messages, candidates):
    return [1.0 if candidate.text == "good" else -1.0 for candidate in candidates]


@pytest.mark.parametrize("depth", [60, 900, 100_000])
@pytest.mark.parametrize("family", FAMILIES)
async def test_tool_calls_nested_without_end_cost_their_draw_alone(family, depth):
    arguments = '{"a":' * depth + "1" + "}" * depth
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    several = Serving(({}, [completion("deep", tool_calls=[call])]), ({}, [completion()]))
    async with several as server, FAMILIES[family](server.url) as generator:
        guard = BestOfMiniN(generator=generator, reward_model=_good, schedule=[2], threshold=0.0, tool_turns="judge")
        result = await guard.arun("q")
    assert (result.message.text, result.decision) == ("good", "accepted")
    failed = [candidate.error for candidate in result.candidates if candidate.message is None]
    assert [type(error) for error in failed] == ([] if depth < bodies.DEEPEST else [MalformedAnswer])


@pytest.mark.parametrize(
    ("written", "deep"),
    [("[" * 101 + "]" * 101, True), ("[" * 100 + "]" * 100, False), ("[[]," * 300, True), ("[" + "{}," * 300 + "{}]", False)],
)
def test_depth_is_of_brackets_inside_one_another(written, deep):
    assert deeper_than(100, written) == deep


def test_brackets_in_strings_are_text():
    assert not deeper_than(100, json.dumps({"code": 'if (a[0]) { "' + "{[" * 300}))
