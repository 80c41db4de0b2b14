"""LangChain's own standard tests of chat models, over a fake with tools, over ChatOpenAI and over the bundled model."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage

from benchmarks.imdb.models import model_path
from bonmini_guard import ChatBestOfMiniN
from bonmini_guard.testing import FakeGenerator, FakeRewardModel
from tests.adapters.loopback import InThread
from tests.obliging import ObligingServer, arguments

pytest.importorskip("langchain_tests")
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

pytestmark = [
    pytest.mark.filterwarnings("ignore:uncalibrated"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1:UserWarning"),
]


def obliging(request):
    """Calls the first tool that it is offered, unless it has just been answered; otherwise says hello."""
    fields = {
        "usage_metadata": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
        "response_metadata": {"model_name": request.options.get("model", "obliging")},
    }
    tools = request.options.get("tools")
    if not tools or request.messages[-1].type == "tool":
        return AIMessage(f"hello {request.index}", **fields)
    function = tools[0]["function"]
    given = arguments(function["parameters"], request.messages[-1].text)
    call = {"name": function["name"], "args": given, "id": f"call-{request.index}"}
    return AIMessage("", tool_calls=[call], **fields)


OTHER_INPUTS = ("anthropic_inputs", "audio_inputs", "image_inputs", "image_tool_message", "pdf_inputs", "pdf_tool_message")
NOT_OURS = {
    "test_init_from_env": "no secret of its own to read from the environment",
    "test_serdes": "not serialisable, on purpose: its parts are live objects",
    "test_stream_time": "compares with a recorded network session; there is no network",
    "test_json_mode": "neither the fake nor the bundled model has a JSON mode",
    **{f"test_{name}": "neither the fake nor the bundled model reads anything but text" for name in OTHER_INPUTS},
}
TOOLS = (
    *("agent_loop", "bind_runnables_as_tools", "unicode_tool_call_integration", "tool_choice", "tool_message_error_status"),
    "structured_few_shot_examples",
    *(f"structured_output{each}" for each in ("", "_async", "_optional_param", "_pydantic_2_v1")),
    *(f"tool_calling{each}" for each in ("", "_async", "_with_no_arguments")),
    *(f"tool_message_histories_{each}_content" for each in ("list", "string")),
)
OVERRIDES = tuple(f"{way}_with_model_override" for way in ("invoke", "ainvoke", "stream", "astream"))
NOT_THE_LOCAL_MODELS = {
    **NOT_OURS,
    **{f"test_{name}": "the bundled model was trained on reviews alone: it calls no tools" for name in TOOLS},
    **{f"test_{name}": "a local model is one checkpoint; there is no other to switch to" for name in OVERRIDES},
}
NOT_OPENAIS = {name: reason for name, reason in NOT_OURS.items() if name != "test_json_mode"}


class WithFake:
    """A guard over a fake with tools."""

    may_skip = NOT_OURS

    chat_model_class = ChatBestOfMiniN
    supports_model_override = True
    model_override_value = "another"

    @property
    def chat_model_params(self):
        return {"generator": FakeGenerator(obliging), "reward_model": FakeRewardModel(lambda m, c: [1.0] * len(c)), "max_loops": 1}

    @property
    def standard_chat_model_params(self):
        # Without api_key and max_retries, which are the wrapped model's own; not at temperature 0, where draws would all be one.
        return {"temperature": 0.7, "max_tokens": 100, "timeout": 60, "stop": []}


class TestFakeUnit(WithFake, ChatModelUnitTests):
    """The unit tests."""


class TestFakeIntegration(WithFake, ChatModelIntegrationTests):
    """The integration tests, tools and structured output among them."""


class WithOpenAI(WithFake):
    """A guard over ChatOpenAI, which speaks to a server on the loopback."""

    may_skip = NOT_OPENAIS

    @pytest.fixture(autouse=True, scope="class")
    def parts(self, request):
        openai = pytest.importorskip("langchain_openai")
        with InThread(ObligingServer()) as server:
            request.cls.generator = openai.ChatOpenAI(base_url=f"{server.url}/v1", model="tiny", api_key="none", max_retries=0)
            yield

    @property
    def chat_model_params(self):
        return {"generator": self.generator, "reward_model": FakeRewardModel(lambda m, c: [1.0] * len(c)), "max_loops": 1}

    @property
    def supports_json_mode(self):
        return True


class TestOpenAIUnit(WithOpenAI, ChatModelUnitTests):
    """The unit tests."""


class TestOpenAIIntegration(WithOpenAI, ChatModelIntegrationTests):
    """The integration tests, tools, structured output and JSON mode among them."""


class WithLocal(WithFake):
    """A guard over the bundled model."""

    may_skip = NOT_THE_LOCAL_MODELS
    supports_model_override = False
    model_override_value = None
    has_tool_calling = False
    has_structured_output = False

    @pytest.fixture(autouse=True, scope="class")
    def parts(self, request):
        local = pytest.importorskip("bonmini_guard.adapters.local", reason="the extra 'local' is not installed")
        from bonmini_guard import RewardModel

        request.cls.generator = local.TransformersGenerator.load(model_path("lm"), max_new_tokens=16)
        request.cls.reward_model = RewardModel.load(model_path("reward"))

    @property
    def chat_model_params(self):
        shape = {"mode": "accelerator", "mini_n": 2, "max_loops": 1}
        return {"generator": self.generator, "reward_model": self.reward_model, **shape}


class TestLocalUnit(WithLocal, ChatModelUnitTests):
    """The unit tests."""


class TestLocalIntegration(WithLocal, ChatModelIntegrationTests):
    """The integration tests without tools."""
