"""LangChain's standard tests over ChatOllama and ChatHuggingFace, guarded and not. ``make live-integrations``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests

from bonmini_guard import ChatBestOfMiniN
from bonmini_guard.testing import FakeRewardModel
from tests.adapters.loopback import InThread
from tests.live.vendors import OllamaWords
from tests.obliging import ObligingServer, said

huggingface = pytest.importorskip("langchain_huggingface")
ollama = pytest.importorskip("langchain_ollama")

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
]

#: It takes no Pydantic class as the schema of an answer, and no choice among several tools.
NOT_HUGGINGFACES = {
    *("test_tool_choice", "test_structured_output[pydantic]", "test_structured_output_async[pydantic]"),
    *("test_structured_output_pydantic_2_v1", "test_structured_output_optional_param"),
}


class ObligingOllama(OllamaWords):
    """Ollama's chat route, which says what the other server says."""

    def reply(self, path: str, body: Any) -> Any:
        shape = body.get("format")
        asked = {"type": "json_schema", "json_schema": {"schema": shape}} if isinstance(shape, dict) else None
        message, _ = said(body | {"response_format": asked})
        functions = [call["function"] for call in message.get("tool_calls", [])]
        calls = [{"function": {**each, "arguments": json.loads(each["arguments"])}} for each in functions]
        answer = {"role": "assistant", "content": message["content"] or "", **({"tool_calls": calls} if calls else {})}
        about = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z", "message": answer}
        return about | {"done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 2}

    def chunks(self, path: str, body: Any) -> list[Any]:
        whole = self.reply(path, body)
        first = {name: whole[name] for name in ("model", "created_at", "message")} | {"done": False}
        return [first, whole | {"message": {"role": "assistant", "content": ""}}]


class Standard(ChatModelIntegrationTests):
    """The integration tests of a guard around a model, or of the model itself."""

    guarded = True
    supports_model_override = False

    @property
    def chat_model_class(self):
        return ChatBestOfMiniN if self.guarded else self.kind

    @property
    def standard_chat_model_params(self):
        return {}

    @property
    def chat_model_params(self):
        accepts = FakeRewardModel(lambda messages, candidates: [1.0] * len(candidates))
        return {"generator": self.inner(), "reward_model": accepts, "max_loops": 1} if self.guarded else self.settings()


class Ollama(Standard):
    """ChatOllama: a guard's is one for all tests, each of which has an event loop of its own."""

    kind = ollama.ChatOllama

    @pytest.fixture(autouse=True, scope="class")
    def parts(self, request):
        with InThread(ObligingOllama()) as server:
            request.cls.url = server.url
            request.cls.one = request.cls.kind(base_url=server.url, model="tiny")
            yield

    def settings(self):
        return {"base_url": self.url, "model": "tiny"}

    def inner(self):
        return self.one


class HuggingFace(Standard):
    """ChatHuggingFace."""

    kind = huggingface.ChatHuggingFace

    @pytest.fixture(autouse=True, scope="class")
    def parts(self, request):
        with InThread(ObligingServer()) as server:
            request.cls.url = f"{server.url}/v1"
            yield

    @pytest.fixture(autouse=True)
    def baseline(self, request):
        if request.node.name in NOT_HUGGINGFACES:
            request.applymarker(pytest.mark.xfail(reason="so does ChatHuggingFace itself", strict=True))

    def settings(self):
        llm = huggingface.HuggingFaceEndpoint(endpoint_url=self.url, huggingfacehub_api_token="none", task="conversational")
        return {"llm": llm, "model_id": "tiny"}

    def inner(self):
        return self.kind(**self.settings())


class TestOllama(Ollama):
    """A guard around it."""


class TestBareOllama(Ollama):
    """Itself."""

    guarded = False


class TestHuggingFace(HuggingFace):
    """A guard around it."""


class TestBareHuggingFace(HuggingFace):
    """Itself."""

    guarded = False
