"""What the server tells Prometheus, in a registry of its own."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from bonmini_guard.server.door import Admission

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 100.0)


class Requests:
    """What every server counts."""

    def __init__(self, label: str, admission: Admission) -> None:
        self._registry = registry = CollectorRegistry()
        self._answered = Counter("bonmini_guard_requests", "Requests answered", [label, "status"], registry=registry)
        about = "Seconds from the headers to the answer"
        self._seconds = Histogram("bonmini_guard_request_seconds", about, [label], buckets=_SECONDS, registry=registry)
        inside = Gauge("bonmini_guard_requests_in_flight", "Requests that wait or run", registry=registry)
        inside.set_function(lambda: admission.requests)

    def answered(self, name: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._answered.labels(name, str(status)).inc()
        self._seconds.labels(name).observe(seconds)

    def told(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class Metrics(Requests):
    """Counters of requests and candidates, and the state of queue and model."""

    def __init__(self, model: Any, admission: Admission) -> None:
        super().__init__("route", admission)
        self.texts = Counter("bonmini_guard_texts", "Texts scored", ["route"], registry=self._registry)
        local = getattr(model, "inner", model)  # of a spec that declares a zero
        own = getattr(local, "activity", None) is not None
        for name, about, read in (
            ("body_bytes_in_flight", "Bytes of their bodies", lambda: admission.bytes),
            ("batches", "Batches computed", own and (lambda: local.activity.batches)),
            ("tokens", "Tokens computed, shared beginnings once", own and (lambda: local.activity.tokens)),
            ("calls_waiting", "Scoring calls that are not wholly computed", own and (lambda: local.activity.waiting)),
            ("prefix_bytes", "Memory of kept prompts", own and (lambda: local.activity.cache_bytes)),
        ):
            if read:
                Gauge(f"bonmini_guard_{name}", about, registry=self._registry).set_function(read)
