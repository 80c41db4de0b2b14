"""What watching costs: a request with OpenTelemetry, with one LangChain handler, with traces, over the same request without.

``python -m benchmarks.overhead --watched`` prints the three ratios alone. Blocks of bare and watched requests take turns.
OpenTelemetry has its SDK with spans exported in batches and metrics read at the end. "Its SDK alone" is the bare request, and
then spans with as many attributes, and as many numbers, given to the SDK by hand: what no caller of it can do without. The handler
listens to everything and does nothing; traces go to a file, whose thread writes them after the requests: the processor's time has
that, too.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time, time_ns
from typing import Any

from langchain_core.callbacks import AsyncCallbackHandler
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks.overhead import InstantGenerator, InstantScorer, Request, several, timed
from benchmarks.overhead_faces import SHAPE
from benchmarks.tables import print_table
from bonmini_guard import BestOfMiniN, TraceWriter
from bonmini_guard.adapters.telemetry import OpenTelemetry

BLOCK = 20


class Nowhere(SpanExporter):
    """Takes spans and sends them nowhere."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Taken."""
        return SpanExportResult.SUCCESS


class Listener(AsyncCallbackHandler):
    """Listens to everything, and does nothing."""


def pairs(writer: TraceWriter) -> dict[str, tuple[Request, Request]]:
    """For each way of watching: the bare request, and the watched one."""

    def guard(**watched: Any) -> BestOfMiniN:
        return BestOfMiniN(generator=InstantGenerator(), reward_model=InstantScorer(), timeout=60.0, **SHAPE, **watched)

    spans = TracerProvider()
    spans.add_span_processor(BatchSpanProcessor(Nowhere()))
    seen = guard(telemetry=OpenTelemetry(spans, MeterProvider([InMemoryMetricReader()])))
    bare, traced = guard(), guard(trace_to=writer)
    by_hand = recorded_by_hand(spans, MeterProvider([InMemoryMetricReader()]))

    async def sdk_alone() -> None:
        await bare.arun("prompt")
        by_hand()

    heard: Any = {"callbacks": [Listener()]}
    return {
        "OpenTelemetry": (lambda: bare.arun("prompt"), lambda: seen.arun("prompt")),
        "its SDK alone": (lambda: bare.arun("prompt"), sdk_alone),
        "one handler": (lambda: bare.ainvoke("prompt"), lambda: bare.ainvoke("prompt", heard)),
        "traces": (lambda: bare.arun("prompt"), lambda: traced.arun("prompt")),
    }


def recorded_by_hand(spans: TracerProvider, metrics: MeterProvider) -> Callable[[], None]:
    """What a request of one loop of eight has in spans and histograms: a span with two children, ten numbers."""
    tracer, meter = spans.get_tracer("bare"), metrics.get_meter("bare")
    seconds, scores = meter.create_histogram("seconds"), meter.create_histogram("scores")
    about = {f"bare.{number}": number for number in range(13)}
    child = {f"bare.{number}": number for number in range(4)}

    def record() -> None:
        with tracer.start_as_current_span("request") as span:
            for name in ("score", "loop"):
                tracer.start_span(name, start_time=time_ns(), attributes=child).end(time_ns())
            span.set_attributes(about)
            for _ in range(8):
                scores.record(0.3)
            seconds.record(0.1)
            seconds.record(0.1, {"mode": "accelerator", "decision": "best_effort"})

    return record


async def measure(requests: int, folder: Path) -> dict[str, dict[str, float]]:
    """Median microseconds of the bare and of the watched request, and the ratio of their processor times."""
    writer = TraceWriter(folder / "traces.jsonl")
    rows = pairs(writer)
    results = {}
    for name, (bare, watched) in rows.items():
        taken = []
        for _ in range(requests // BLOCK + 1):
            first, second = [await timed(partial(several, each, BLOCK)) for each in (bare, watched)]
            begun = process_time()
            writer.flush()
            late = process_time() - begun
            taken.append([1e6 * each / BLOCK for each in (first.wall, second.wall, first.processor, second.processor + late)])
        one, other, bare_processor, other_processor = map(statistics.median, zip(*taken[1:], strict=True))
        ratios = {"ratio": other / one, "processor_ratio": other_processor / bare_processor}
        results[name] = {"bare": one, "watched": other} | ratios
    return results


def report(requests: int) -> dict[str, dict[str, float]]:
    """Measure, print the table, and give the figures."""
    with tempfile.TemporaryDirectory() as folder:
        results = asyncio.run(measure(requests, Path(folder)))
    head = ["with", "bare (us)", "watched (us)", "ratio", "ratio, processor"]
    print_table(
        head,
        [
            [name, *(f"{row[key]:.{digits}f}" for key, digits in zip(row, (0, 0, 2, 2), strict=True))]
            for name, row in results.items()
        ],
    )
    return results
