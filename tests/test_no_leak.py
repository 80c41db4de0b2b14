"""No text of a rejected candidate reaches callbacks, streams, tracers, records or errors (peers.md 7.3)."""

from __future__ import annotations

import asyncio
import traceback

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, get_usage_metadata_callback
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.tracers import context as tracing
from langchain_core.tracers.base import BaseTracer

from bonmini_guard import BestOfMiniN, NoAcceptableResponse, ScorerError
from bonmini_guard.errors import GenerationError
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

WINNER, SECRETS = "winner text", ["secret one", "secret two", "secret three"]
ANSWERS = [SECRETS[0], SECRETS[1], WINNER, SECRETS[2]]


def score(messages, candidates):
    return [1.0 if candidate.content == WINNER else -1.0 for candidate in candidates]


def chat():
    return FakeListChatModel(responses=ANSWERS)


def make(generator=None, scorer=score, **settings):
    generator = FakeListChatModel(responses=ANSWERS) if generator is None else generator
    return BestOfMiniN(generator=generator, reward_model=scorer, **{"schedule": [2, 2], **settings})


def leaks(text) -> bool:
    return any(secret in text for secret in SECRETS)


class Recorder(AsyncCallbackHandler):
    """Writes down every call with everything it is given."""

    def __init__(self):
        self.heard = []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        async def note(*arguments, **named):
            self.heard.append((name, repr(arguments) + repr(named)))

        return note

    @property
    def text(self):
        return "\n".join(text for _, text in self.heard)

    def __deepcopy__(self, memo):
        return self


class Tracer(BaseTracer):
    """Keeps the finished root runs."""

    def __init__(self):
        super().__init__()
        self.roots = []

    def _persist_run(self, run):
        self.roots.append(run)

    @property
    def text(self):
        runs = list(self.roots)
        for run in runs:
            runs += run.child_runs
        return "\n".join(repr((run.name, run.inputs, run.outputs, run.error, run.events, run.extra)) for run in runs)


def generators():
    return {
        "chat": chat(),
        "llm": FakeListLLM(responses=ANSWERS),
        "bound": chat().bind(stop=["x"]),
        "sequence": chat() | StrOutputParser(),
        "fake": FakeGenerator(ANSWERS),
    }


@pytest.mark.parametrize("kind", generators())
@pytest.mark.parametrize("listener", [Recorder, Tracer])
@pytest.mark.parametrize("sync", [False, True])
async def test_listeners_hear_of_draws_and_scores_but_of_the_winners_text_alone(kind, listener, sync):
    heard = listener()
    guard, config = make(generators()[kind]), {"callbacks": [heard]}
    message = await asyncio.to_thread(guard.invoke, "question", config) if sync else await guard.ainvoke("question", config)
    assert message.content == WINNER
    assert WINNER in heard.text
    assert "bonmini_guard.draw" in heard.text
    assert "bonmini_guard.score" in heard.text
    assert not leaks(heard.text)


async def test_there_is_one_child_run_a_draw_with_score_time_and_tokens():
    tracer = Tracer()
    await make().ainvoke("question", {"callbacks": [tracer]})
    (root,) = tracer.roots
    draws = [child for child in root.child_runs if child.name == "bonmini_guard.draw"]
    assert sorted(child.inputs["index"] for child in draws) == [0, 1, 2, 3]
    assert {"score", "raw_score", "failed", "error", "seconds", "usage"} == set(draws[0].outputs)
    assert sorted(child.outputs["score"] for child in draws) == [-1.0, -1.0, -1.0, 1.0]


async def test_texts_of_candidates_are_traced_only_when_asked_for():
    heard = Recorder()
    await make(trace_candidates=True).ainvoke("question", {"callbacks": [heard]})
    assert all(secret in heard.text for secret in SECRETS)


async def test_arun_reports_one_run_without_any_text():
    heard = Recorder()
    await make().arun("question", {"callbacks": [heard]})
    assert "accepted" in heard.text
    assert not leaks(heard.text)
    assert WINNER not in heard.text


@pytest.mark.parametrize("place", ["constructor", "with_config"])
async def test_callbacks_attached_to_the_model_itself_are_dropped(place):
    heard = Recorder()
    model = (
        FakeListChatModel(responses=ANSWERS, callbacks=[heard]) if place == "constructor" else chat().with_config(callbacks=[heard])
    )
    await make(model).ainvoke("question")
    assert heard.heard == []


async def test_the_ambient_tracer_is_not_handed_to_draws_and_comes_back():
    tracer = Tracer()
    token = tracing.tracing_v2_callback_var.set(tracer)
    try:
        await make().arun("question")
        assert tracing.tracing_v2_callback_var.get() is tracer
    finally:
        tracing.tracing_v2_callback_var.reset(token)
    assert not leaks(tracer.text)


async def test_usage_counters_do_not_hear_the_draws_and_hear_the_fallback_once():
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}

    class Counted(FakeListChatModel):
        def _call(self, *arguments, **named):
            return super()._call(*arguments, **named)

        def _generate(self, *arguments, **named):
            result = super()._generate(*arguments, **named)
            result.generations[0].message = AIMessage("x", usage_metadata=usage, response_metadata={"model_name": "counted"})
            return result

    with get_usage_metadata_callback() as counter:
        guard = make(Counted(responses=["x"]), lambda m, c: [-1.0] * len(c), on_abstain=Counted(responses=["x"]))
        message = await guard.ainvoke("question")
    assert counter.usage_metadata["counted"]["total_tokens"] == 2
    assert message.usage_metadata["total_tokens"] == 10


# Records and errors


async def test_records_print_without_text():
    result = await make().arun("question")
    refused = await make(threshold=9.0).arun("question")
    for thing in (result, refused, *result.candidates, NoAcceptableResponse(refused), ScorerError(refused)):
        for text in (repr(thing), str(thing), f"{thing}"):
            assert not leaks(text)
            assert WINNER not in text


async def test_errors_of_draws_print_without_the_answers_of_others():
    with pytest.raises(GenerationError) as caught:
        await make(FakeGenerator([ConnectionError("down")])).ainvoke("question")
    assert not leaks("".join(traceback.format_exception(caught.value)))


async def test_a_session_that_fails_to_close_quotes_nothing(caplog):
    class Leaky(FakeRewardModel):
        def session(self, messages):
            session = super().session(messages)

            async def aclose():
                raise OSError(SECRETS[0])

            session.aclose = aclose
            return session

    await make(scorer=Leaky(score)).ainvoke("question")
    assert "OSError" in caplog.text
    assert not leaks(caplog.text)
