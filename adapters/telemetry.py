"""Spans and metrics of guarded requests through OpenTelemetry's API; no text of a prompt or a candidate is in them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from bonmini_guard.engine.protocols import NO_OPTIONS
from bonmini_guard.engine.result import Candidate, GuardResult, sigmoid
from bonmini_guard.errors import needing
from bonmini_guard.forks import Lock
from bonmini_guard.logs.trace_row import Explored
from bonmini_guard.logs.traces import TraceWriter
from bonmini_guard.policy.policy import Decision, Policy, State

with needing("telemetry"):
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.trace import Span, StatusCode

_NAME = "bonmini_guard"
_SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)


class OpenTelemetry:
    """For ``telemetry=``: a span for each request with its loops and scorings, and metrics, all named ``bonmini_guard.*``.

    Without an SDK set up by the application, the API does nothing. The request's span is current while drawing, so that
    instrumented HTTP clients nest in it; what such instrumentation records of prompts and answers is its own affair.

    Args:
        tracer_provider: None for the application's global one.
        meter_provider: likewise.
    """

    def __init__(
        self, tracer_provider: trace.TracerProvider | None = None, meter_provider: metrics.MeterProvider | None = None
    ) -> None:
        self._providers = tracer_provider, meter_provider
        self.tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_NAME, meter_provider=meter_provider)

        def count(name: str, unit: str, what: str) -> Any:
            return meter.create_counter(f"{_NAME}.{name}", f"{{{unit}}}", what)

        def spread(name: str, unit: str, what: str, edges: Sequence[float]) -> Any:
            return meter.create_histogram(f"{_NAME}.{name}", unit, what, explicit_bucket_boundaries_advisory=edges)

        self.requests = count("requests", "request", "requests by mode, decision and reason; failed ones by error")
        self.abstentions = count("abstentions", "request", "abstentions by reason")
        self.exits = count("exits", "request", "requests by the loop they ended in, counted from 1")
        self.loops = count("loops", "loop", "loops begun")
        self.draws = count("draws", "draw", "draws by outcome: scored, failed, unfinished, not_needed")
        self.saved = count("draws.saved", "draw", "draws of the budget that were not needed")
        self.tokens = count("tokens", "token", "tokens of all draws, where the back end says")
        self.explored_requests = count("explored.requests", "request", "explored requests by outcome: complete, skipped")
        self.explored_draws = count("explored.draws", "draw", "draws made in the background to complete requests")
        self.explored_tokens = count("explored.tokens", "token", "tokens of those draws")
        self.shadow = count("shadow.requests", "request", "requests in shadow by what the guard would have decided")
        self.reloads = count("profile.reloads", "reload", "changed profiles by outcome: taken, refused")
        self.seconds = spread("request.duration", "s", "from call to decision", _SECONDS)
        self.scoring = spread("scoring.duration", "s", "one batch in the reward model", _SECONDS)
        # A histogram takes no negative numbers.
        self.scores = spread("score", "1", "sigmoid(score) of each draw: 0.5 is score 0", _SHARES)
        self._gathered = _gathered.setdefault(meter_provider, _Gathered())
        meter.create_observable_counter(
            f"{_NAME}.trace.rows", [self._gathered.read], "{row}", "trace rows by outcome: written, dropped on purpose, lost"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._providers  # instruments, and the writers of traces, are a process's own

    @contextmanager
    def request(self, policy: Policy) -> Iterator[RequestSpan]:
        """A span around a request."""
        about = {f"{_NAME}.mode": policy.mode, f"{_NAME}.budget": policy.budget, f"{_NAME}.exit": policy.exit}
        span: Span = trace.INVALID_SPAN
        with suppress(Exception):  # of the application's span processors: watching fails no request
            span = self.tracer.start_span(f"{_NAME}.request", attributes=about)
        try:
            # Not the exception itself: its message, or that of its causes, may quote a candidate.
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield RequestSpan(self, span, policy)
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
            self.add(self.requests, 1, {"mode": policy.mode, "error.type": type(error).__name__})
            raise
        finally:
            with suppress(Exception):
                span.end()

    def explored(self, explored: Explored | None) -> None:
        """Count what exploring costs."""
        self.add(self.explored_requests, 1, {"outcome": "skipped" if explored is None else "complete"})
        if explored is not None:
            self.add(self.explored_draws, explored.draws)
            self.add(self.explored_tokens, explored.usage.get("total_tokens", 0))

    def shadowed(self, decision: str | None) -> None:
        """Count what the guard would have decided."""
        self.add(self.shadow, 1, {"decision": decision or "unknown"})

    def reloaded(self, succeeded: bool) -> None:
        """Count changed profiles."""
        self.add(self.reloads, 1, {"outcome": "taken" if succeeded else "refused"})

    def watch(self, writer: TraceWriter) -> None:
        """Report the rows of a writer."""
        if not any(known is writer for known in self._gathered.writers):
            self._gathered.writers.append(writer)

    def add(self, counter: Any, amount: int, about: Mapping[str, Any] = NO_OPTIONS) -> None:
        """Add to a counter; read with everything else."""
        with self._gathered.lock.held:
            self._gathered.sums[counter, tuple(about.items())] += amount


class _Gathered:
    """What waits to be read: sums, for to add through an SDK takes as long as a draw, and the writers of traces."""

    def __init__(self) -> None:
        self.writers: list[TraceWriter] = []
        self.sums: Counter[tuple[Any, tuple[tuple[str, Any], ...]]] = Counter()
        self.lock = Lock()

    def read(self, options: CallbackOptions) -> list[Observation]:
        """The rows of all writers; the sums are added to their counters."""
        with self.lock.held:
            sums, self.sums = self.sums, Counter()
        for (counter, about), amount in sums.items():
            counter.add(amount, dict(about))
        counts = [writer.counts() for writer in self.writers]
        outcomes = ("written", "dropped", "lost")
        return [Observation(sum(getattr(c, outcome) for c in counts), {"outcome": outcome}) for outcome in outcomes]


#: By meter provider: of several callbacks of one name an SDK calls the first alone.
_gathered: dict[Any, _Gathered] = {}


class RequestSpan:
    """The span of one request, with a child for each loop and each scoring."""

    def __init__(self, telemetry: OpenTelemetry, span: Span, policy: Policy) -> None:
        self._to = telemetry
        self._span = span
        self._policy = policy
        self._loops = 0
        self._loop_begun = time.time_ns()

    async def drawn(self, candidates: Sequence[Candidate]) -> None:
        """More scores."""
        for candidate in candidates:
            if candidate.score is not None:
                self._to.scores.record(sigmoid(candidate.score))

    async def scored(self, candidates: Sequence[Candidate], seconds: float) -> None:
        """A span for a batch of scores."""
        now = time.time_ns()
        self._to.scoring.record(seconds)
        self._child("score", now - int(seconds * 1e9), now, {"candidates": len(candidates)})

    async def looped(self, state: State, decision: Decision) -> None:
        """A span for a loop."""
        best = {} if math.isinf(state.best) else {"best_score": state.best}
        about = {"draws": state.drawn, "decision": decision.action.value, "reason": decision.reason, **best}
        self._loop(state.loops, decision.threshold, about)

    def decided(self, result: GuardResult) -> None:
        """The request's attributes, and the counters."""
        if result.loops > self._loops:  # an eager exit or a deadline ended it midway
            self._loop(result.loops, result.threshold, {"draws": result.draws, "reason": result.reason})
        about = {**result.metadata(), "request_id": result.request_id}
        about |= {f"parts.{name}": score for name, score in about.pop("parts", {}).items()}
        self._span.set_attributes({f"{_NAME}.{key}": value for key, value in about.items() if value is not None})
        to, kind = self._to, {"mode": result.mode}
        to.add(to.requests, 1, kind | {"decision": result.decision, "reason": result.reason})
        if result.decision == "abstained":
            to.add(to.abstentions, 1, {"reason": result.reason})
        to.add(to.exits, 1, kind | {"loop": result.loops})
        to.add(to.loops, result.loops, kind)
        ends = ("unfinished" if one.unfinished else "failed" if one.failed else "scored" for one in result.candidates)
        for outcome, draws in Counter(ends).items():
            to.add(to.draws, draws, kind | {"outcome": outcome})
        if result.ahead:
            to.add(to.draws, result.ahead, kind | {"outcome": "not_needed"})
        to.add(to.saved, max(0, self._policy.budget - result.draws_started), kind)
        to.add(to.tokens, result.usage.get("total_tokens", 0), kind)
        to.seconds.record(result.timings.total, kind | {"decision": result.decision})

    def _loop(self, number: int, threshold: float | None, about: dict[str, Any]) -> None:
        now = time.time_ns()
        bar = {} if threshold is None or math.isinf(threshold) else {"threshold": threshold}
        self._child("loop", self._loop_begun, now, {"loop": number, **bar, **about})
        self._loops, self._loop_begun = number, now

    def _child(self, name: str, begun: int, ended: int, about: dict[str, Any]) -> None:
        if not self._span.is_recording():
            return
        context = trace.set_span_in_context(self._span)
        attributes = {f"{_NAME}.{key}": value for key, value in about.items()}
        with suppress(Exception):
            self._to.tracer.start_span(f"{_NAME}.{name}", context, start_time=begun, attributes=attributes).end(ended)
