"""OpenTelemetry: what is counted adds up, spans nest, and no text of anybody is in them."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys

import pytest
from langchain_core.messages import AIMessage
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, TraceWriter
from bonmini_guard.adapters.telemetry import OpenTelemetry
from bonmini_guard.engine.result import sigmoid
from bonmini_guard.errors import ConfigurationError, GenerationError
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


class Listening:
    """An OpenTelemetry set up in memory."""

    def __init__(self):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])
        self.telemetry = OpenTelemetry(self.traces, self.meters)

    def spans(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == f"bonmini_guard.{name}"]

    def points(self):
        data = self.reader.get_metrics_data()
        found = [metric for r in data.resource_metrics for scope in r.scope_metrics for metric in scope.metrics] if data else []
        return {metric.name.removeprefix("bonmini_guard."): list(metric.data.data_points) for metric in found}

    def count(self, name, **attributes):
        points = [p for p in self.points().get(name, []) if attributes.items() <= dict(p.attributes).items()]
        return sum(getattr(point, "value", getattr(point, "count", None)) for point in points)

    @property
    def text(self):
        return "".join(span.to_json() for span in self.exporter.get_finished_spans()) + str(self.points())


@pytest.fixture
def heard():
    return Listening()


def make(heard, answers=("-1", "1"), **settings):
    answers = [AIMessage(a, usage_metadata=USAGE) if isinstance(a, str) else a for a in answers]
    generator = FakeGenerator(answers, settings.pop("latency", 0.0))
    scorer = settings.pop("reward_model", None) or FakeRewardModel(float)
    return BestOfMiniN(generator=generator, reward_model=scorer, telemetry=heard.telemetry, **{"schedule": [2, 2], **settings})


async def test_a_request_is_a_span_with_its_loops_and_scorings_under_the_callers(heard):
    guard = make(heard, ["-3", "-2", "-1", "1"])
    with heard.traces.get_tracer("app").start_as_current_span("app") as app:
        result = await guard.arun("q")
    (request,) = heard.spans("request")
    assert request.parent.span_id == app.get_span_context().span_id
    about = dict(request.attributes)
    assert (about["bonmini_guard.decision"], about["bonmini_guard.score"], about["bonmini_guard.draws"]) == ("accepted", 1.0, 4)
    assert about["bonmini_guard.request_id"] == result.request_id
    loops = [dict(span.attributes) for span in heard.spans("loop")]
    assert [loop["bonmini_guard.best_score"] for loop in loops] == [-2.0, 1.0]
    assert [loop["bonmini_guard.decision"] for loop in loops] == ["draw", "serve"]
    assert len(heard.spans("score")) == 2
    for span in (*heard.spans("loop"), *heard.spans("score")):
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time


async def test_what_is_counted_adds_up(heard):
    for answers, requests in ((["1", "-1"], 3), (["-1"], 2), ([OSError("secret"), "-1", "1"], 1)):
        guard = make(heard, answers)
        for _ in range(requests):
            await guard.arun("q")
    assert heard.count("requests") == 6
    assert heard.count("requests", decision="accepted", reason="passed") == 4
    assert heard.count("abstentions", reason="budget_spent") == heard.count("requests", decision="abstained") == 2
    assert (heard.count("exits", loop=1), heard.count("exits", loop=2), heard.count("loops")) == (3, 3, 9)
    assert heard.count("draws") == 3 * 2 + 3 * 4
    assert heard.count("draws", outcome="failed") == 2
    assert heard.count("draws.saved") == 3 * 2
    assert heard.count("score") == heard.count("draws", outcome="scored") == 16
    assert heard.count("tokens") == 16 * 5
    assert sum(point.sum for point in heard.points()["score"]) == pytest.approx(4 * sigmoid(1) + 12 * sigmoid(-1))
    assert heard.count("scoring.duration") == len(heard.spans("score"))
    assert heard.count("request.duration") == 6


async def test_draws_that_were_started_and_not_needed(heard):
    slow = {"latency": lambda index: 30.0 * index, "schedule": None, "max_draws": 4, "in_flight": 3}
    assert (await make(heard, ["1", "1"], **slow).arun("q")).draws_started == 3
    assert heard.count("draws", outcome="scored") == 1
    assert heard.count("draws", outcome="not_needed") == 2
    assert heard.count("draws.saved") == 1


async def test_draws_that_were_cut_short_and_requests_that_failed(heard):
    slow = {"latency": lambda index: 30.0 * index, "exit": "eager"}
    assert (await make(heard, ["1", "1"], **slow).arun("q")).decision == "accepted"
    with pytest.raises(GenerationError):
        await make(heard, [OSError("secret")]).arun("q")
    assert heard.count("draws", outcome="unfinished") == 1
    assert len(heard.spans("loop")) == 3
    assert heard.count("requests", **{"error.type": "GenerationError"}) == 1
    failed = heard.spans("request")[-1]
    assert (failed.status.is_ok, failed.events) == (False, ())
    assert "secret" not in heard.text


async def test_exploring_and_trace_rows_have_their_cost(heard, tmp_path):
    writer = TraceWriter(tmp_path / "t.jsonl", redact=lambda row: row if row["seed"] else 1 / 0)
    guard = make(heard, ["1", "-1"], explore=1.0, trace_to=writer)
    for seed in (0, 1, 2):
        await guard.arun("q", seed=seed)
        await guard.afinish()
    assert heard.count("explored.requests", outcome="complete") == 3
    assert (heard.count("explored.draws"), heard.count("explored.tokens")) == (6, 30)
    assert heard.count("requests") == 3
    assert (heard.count("trace.rows", outcome="written"), heard.count("trace.rows", outcome="lost")) == (2, 1)


async def test_a_guard_that_is_sent_to_another_process_counts_there(heard, monkeypatch):
    meters = MeterProvider([reader := InMemoryMetricReader()])
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", meters)
    heard.reader, heard.telemetry = reader, pickle.loads(pickle.dumps(OpenTelemetry()))
    await make(heard).ainvoke("q")
    assert heard.count("requests") == 1


async def test_guards_that_each_have_one_are_all_counted(heard, tmp_path):
    for number in range(3):
        heard.telemetry = OpenTelemetry(heard.traces, heard.meters)
        guard = make(heard, trace_to=tmp_path / f"{number}.jsonl")
        await guard.ainvoke("q")
        await guard.afinish()
    assert (heard.count("requests"), heard.count("trace.rows", outcome="written")) == (3, 3)


@pytest.mark.parametrize("face", ["runnable", "chat", "sync"])
async def test_no_text_is_in_spans_or_metrics(heard, face):
    scores = {"secret one": -1.0, "secret two": -2.0, "winner text": 1.0}
    settings = {"schedule": [2, 2], "telemetry": heard.telemetry, "explore": 1.0}
    parts = {"generator": FakeGenerator(["secret one", "secret two", "winner text"]), "reward_model": FakeRewardModel(scores)}
    guard = (ChatBestOfMiniN if face == "chat" else BestOfMiniN)(**parts, **settings)
    if face == "sync":
        await asyncio.to_thread(guard.invoke, "prompt text")
    else:
        await guard.ainvoke("prompt text")
    await getattr(guard, "guard", guard).afinish()
    assert heard.spans("request")
    for text in ("secret", "winner text", "prompt text"):
        assert text not in heard.text


async def test_a_failing_reward_model_is_told_by_name_alone(heard):
    def fail(messages, candidates):
        raise ValueError("secret")

    assert (await make(heard, reward_model=fail).arun("q")).reason == "scorer_failed"
    assert heard.count("abstentions", reason="scorer_failed") == 1
    assert "secret" not in heard.text


class Parted:
    """A scorer, and its session, that tells what its scores are made of."""

    has_zero = True

    def session(self, messages):
        return self

    async def score(self, candidates):
        self.parts = [{"tone": 2.0, "facts": 1.0}] * len(candidates)
        return [1.0] * len(candidates)

    async def aclose(self):
        """Nothing to close."""


async def test_what_a_score_is_made_of_is_told_part_by_part(heard, caplog):
    await make(heard, reward_model=Parted()).arun("q")
    about = dict(heard.spans("request")[-1].attributes)
    assert (about["bonmini_guard.parts.tone"], about["bonmini_guard.parts.facts"]) == (2.0, 1.0)
    assert not caplog.text


@pytest.mark.parametrize("hook", ["on_start", "on_end"])
async def test_what_a_span_processor_raises_fails_no_request(heard, hook):
    def fail(*_, **__):
        raise ValueError("secret")

    processor = SpanProcessor()
    setattr(processor, hook, fail)
    heard.traces.add_span_processor(processor)
    assert (await make(heard).arun("q")).decision == "accepted"
    with pytest.raises(GenerationError):
        await make(heard, [OSError()]).arun("q")
    assert heard.count("requests") == 2


def test_without_the_extra_the_package_works_and_the_adapter_names_it():
    code = """
import sys
sys.modules["opentelemetry"] = None
import bonmini_guard.runnables.guard
try:
    import bonmini_guard.adapters.telemetry
except ImportError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "bonmini-guard[telemetry]" in told.stdout


def test_anything_else_is_refused():
    with pytest.raises(ConfigurationError, match="OpenTelemetry"):
        BestOfMiniN(generator=FakeGenerator(["1"]), reward_model=FakeRewardModel(float), telemetry=True)
