"""What LangChain's client serves, the native adapters serve, or explain why not: one corpus through each of them."""

from __future__ import annotations

import pytest
from langchain_core.messages import HumanMessage

pytest.importorskip("huggingface_hub")

from bonmini_guard.adapters import LangChainGenerator, OpenAICompatibleGenerator, TGIGenerator
from bonmini_guard.adapters.http_errors import EndpointError
from bonmini_guard.engine.protocols import DrawRequest
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.tgi_server import TGIServer
from tests.conformance.corpus import CASES

FORMS = [
    pytest.param(case, streamed, id=f"{case.name}, {'streamed' if streamed else 'whole'}")
    for case in CASES
    for streamed in (False, True)
    if (case.whole if not streamed else case.chunks) is not None
]
QUESTION = DrawRequest([HumanMessage("What time is it?")], 7)


def answering(serve, case):
    """A server that gives one answer."""
    server = serve()
    server.ends_with_done = lambda path: case.done
    if case.status != 200:
        server.faults = lambda path, body: (case.status, case.whole)
    server.answer, server.said = case.whole, case.chunks
    return server


async def drawn(name, case, streamed):
    """What a native adapter makes of a case: a message or an error."""
    settings = {"stream": streamed, "retries": 0, "timeout": 20.0}
    async with answering(TGIServer if name == "tgi" else OpenAIServer, case) as server:
        kind = TGIGenerator(server.url, token="", **settings) if name == "tgi" else openai(server.url, **settings)
        async with kind as generator:
            try:
                return await generator.draw(QUESTION)
            except EndpointError as error:
                return error


def openai(url, **settings):
    return OpenAICompatibleGenerator(url, model="tiny", api_key="", **settings)


@pytest.mark.parametrize("name", ["openai", "tgi"])
@pytest.mark.parametrize(("case", "streamed"), FORMS)
async def test_native_adapters_serve_it_or_explain(name, case, streamed):
    said = await drawn(name, case, streamed)
    if case.error is not None:
        assert isinstance(said, EndpointError), said
        assert (type(said).__name__, case.words in str(said)) == (case.error, True), said
        return
    assert not isinstance(said, EndpointError), said
    about, more = said.response_metadata, said.additional_kwargs
    assert (said.text, about.get("finish_reason")) == (case.text, case.finish)
    assert (said.usage_metadata or {}).get("total_tokens") == case.tokens
    assert (more.get("reasoning_content"), more.get("refusal")) == (case.reasoning, case.refusal)
    if case.calls is not None:
        assert [(call["name"], call["args"]) for call in said.tool_calls] == list(case.calls)
        assert len(said.invalid_tool_calls) == case.invalid
    ids = [call["id"] for call in said.tool_calls]
    assert all(ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("case", "streamed"), FORMS)
async def test_what_langchains_client_serves_is_served_or_explained(case, streamed):
    client = pytest.importorskip("langchain_openai").ChatOpenAI
    async with answering(OpenAIServer, case) as server:
        about = {"base_url": f"{server.url}/v1", "model": "tiny", "api_key": "none", "max_retries": 0}
        model = client(streaming=streamed, **about)
        served = await outcome(model.ainvoke(QUESTION.messages))
        # A guard asks it for whole answers, whatever it is set to.
        whole = await outcome(client(**about).ainvoke(QUESTION.messages))
        through = await outcome(LangChainGenerator(model).draw(QUESTION))
    assert (through and through.text) == (whole and whole.text)
    ours = await drawn("openai", case, streamed)
    if served is None:
        return
    if isinstance(ours, EndpointError):
        assert case.stricter, f"LangChain's client serves {served.text!r}, and we raise {ours!r}"
        return
    assert ours.text == served.text
    theirs = [(call["name"], call["args"]) for call in served.tool_calls]
    # Of broken arguments a stream's client makes what it can; here they are an invalid call that says why.
    if theirs and not ours.invalid_tool_calls:
        assert [(call["name"], call["args"]) for call in ours.tool_calls] == theirs


async def outcome(asked):
    """A message, or None for an error."""
    try:
        return await asked
    except Exception:
        return None


def test_there_are_enough_cases_and_each_names_its_source():
    assert len(FORMS) >= 150
    assert all(case.source for case in CASES)
    assert len({case.name for case in CASES}) == len(CASES)
