"""``LangChainGenerator``: any model as it is, quietly."""

from __future__ import annotations

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.runnables import RunnableLambda

from bonmini_guard.adapters import LangChainGenerator
from bonmini_guard.adapters.langchain import as_message
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.protocols import DrawRequest


def request(seed=7, **options):
    return DrawRequest([HumanMessage("q")], seed, 0, options)


CALLS = []


class Recording(FakeListChatModel):
    temperature: float = 0.5

    def _call(self, messages, stop=None, run_manager=None, **kwargs):
        CALLS.append({"stop": stop, **kwargs})
        return super()._call(messages, stop, run_manager, **kwargs)


@pytest.mark.parametrize("model", [FakeListChatModel(responses=["a", "b"]), FakeListLLM(responses=["a", "b"])])
async def test_a_cache_does_not_repeat_the_first_candidate(model):
    model = model.model_copy(update={"cache": InMemoryCache()})
    generator = LangChainGenerator(model)
    assert [(await generator.draw(request())).content for _ in range(2)] == ["a", "b"]


async def test_options_and_seed_reach_the_model():
    CALLS.clear()
    model = Recording(responses=["a"])
    generator = LangChainGenerator(model, seed_argument="seed", options={"top_p": 0.9})
    await generator.draw(request(seed=11, stop=["."]))
    assert CALLS[-1] == {"stop": ["."], "seed": 11, "top_p": 0.9}
    await LangChainGenerator(model).draw(request(seed=11))
    assert "seed" not in CALLS[-1]


async def test_the_users_model_is_left_as_it_was():
    model = FakeListChatModel(responses=["a"], callbacks=[], cache=True)
    LangChainGenerator(model)
    assert (model.cache, model.disable_streaming) == (True, False)


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (Recording(responses=["a"]), {}, False),
        (Recording(responses=["a"], temperature=0), {}, True),
        (Recording(responses=["a"]).bind(temperature=0), {}, True),
        (Recording(responses=["a"], temperature=0), {"temperature": 0.7}, False),
        (RunnableLambda(lambda _: "a"), {}, False),
    ],
)
def test_temperature_zero_is_seen(model, options, expected):
    assert LangChainGenerator(model, options=options).deterministic is expected


def test_answers_become_messages():
    assert as_message("a") == AIMessage("a")
    assert type(as_message(AIMessageChunk("a"))) is AIMessage
    with pytest.raises(TypeError, match="HumanMessage"):
        as_message(HumanMessage("a"))


def test_what_is_no_runnable_is_refused():
    with pytest.raises(ConfigurationError, match="runnable"):
        LangChainGenerator(lambda messages: "a")
