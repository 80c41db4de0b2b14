"""What the gateway tells Prometheus, in a registry of its own. No text is in it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from prometheus_client import Counter, Gauge

from bonmini_guard.engine.result import GuardResult, finite
from bonmini_guard.errors import BonMiniGuardError
from bonmini_guard.gateway.config import Configuration
from bonmini_guard.gateway.models import Guarded
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.logs.trace_files import trace_files
from bonmini_guard.policy.profile import GuardProfile
from bonmini_guard.runnables.conduct import Guard
from bonmini_guard.server.door import Admission
from bonmini_guard.server.metrics import Requests

logger = logging.getLogger(__name__)

#: What is counted of a guard's requests, and as what.
_COUNTED = {
    "draws": "Draws made",
    "draws_saved": "Draws that best-of-N would have made beyond these",
    "tokens": "Tokens billed for draws",
    "tokens_saved": "The draws saved, times the mean tokens of the request's draws",
}
#: What guards count themselves, and is read when it is asked for.
_READ = {
    "exploration": "Requests completed in the background, and what that cost",
    "shadow": "What guards on trial would have done",
    "trace_rows": "Rows of traces by what became of them",
    "reloads": "Changed profiles",
    "drift_p_value": "Whether the traffic is still that of the calibration, by question; right at every look",
}


class Metrics(Requests):
    """Counters of requests and of what the guards decided.

    Attributes:
        drift: p values by question, of each guard.
    """

    def __init__(self, admission: Admission) -> None:
        super().__init__("model", admission)
        registry, about = self._registry, "What guards decided"
        self.drift: dict[str, dict[str, float]] = {}
        self._decisions = Counter("bonmini_guard_decisions", about, ["guard", "decision", "reason"], registry=registry)
        self._counted = [Counter(f"bonmini_guard_{name}", about, ["guard"], registry=registry) for name, about in _COUNTED.items()]
        self._read = {
            name: Gauge(f"bonmini_guard_{name}", said, ["guard", "what"], registry=registry) for name, said in _READ.items()
        }
        self.thumbs = Counter("bonmini_guard_feedback", "Thumbs that users volunteered", ["thumbs"], registry=registry)
        about = "0 while an upstream is left alone because it fails"
        self._upstream = Gauge("bonmini_guard_upstream_up", about, ["upstream"], registry=registry)

    def decided(self, guard: str, result: GuardResult, budget: int) -> None:
        """Count what a guard has done for a request."""
        used, saved = result.usage.get("total_tokens", 0), max(0, budget - result.draws_started)
        numbers = (result.draws, saved, used, saved * used / max(1, result.draws_started))
        for counter, number in zip(self._counted, numbers, strict=True):
            counter.labels(guard).inc(number)
        self._decisions.labels(guard, result.decision, result.reason).inc()

    def text(self, configuration: Configuration) -> bytes:
        """All of it in Prometheus' text format."""
        for gauge in (self._upstream, *self._read.values()):
            gauge.clear()  # of what a changed file no longer names
        for name, breaker in configuration.breakers.items():
            self._upstream.labels(name).set(breaker.state == "closed")
        for name, guarded in configuration.guards.items():
            for kind, counts in (*_counts(guarded), ("drift_p_value", self.drift.get(name, {}))):
                for what, number in counts.items():
                    self._read[kind].labels(name, what).set(number)
        return self.told()


def _counts(model: Guarded) -> Iterable[tuple[str, Mapping[str, float]]]:
    guard = model.guard
    yield "exploration", asdict(guard.exploration)
    if model.shadow:
        yield "shadow", asdict(model.watcher.summary)
    if guard.writer is not None:
        yield "trace_rows", asdict(guard.writer.counts())
    if guard.reloader is not None:
        yield "reloads", {"taken": guard.reloader.taken, "refused": guard.reloader.refused}


def p_values(guard: Guard) -> dict[str, float]:
    """Whether a guard's traffic is still that of its calibration, by question; right for any number of looks.

    None without a profile and traces in files, and before there are any. The state lies beside the traces.
    """
    profile, traces = guard.options["profile"], guard.options["trace_to"]
    if not isinstance(profile, str) or not isinstance(traces, str) or not (files := trace_files(traces)):
        return {}
    try:
        from bonmini_guard.calibration.traces import traces_of_rows
        from bonmini_guard.calibration.watch import digest_of, watching

        loaded = GuardProfile.load(profile)
        state = Path(traces).with_suffix(f".{digest_of(loaded)[:8]}.drift")
        # Not what ran under another: a trial, or an earlier profile.
        own = [finite(threshold) for threshold in loaded.policy().thresholds]
        rows = (pair for file in files for pair in RowFile(file) if pair[1].get("thresholds", own) == own)
        with watching(state, loaded) as watch:
            found = watch.look(traces_of_rows(rows, loaded, memory=watch.memory))
    except (BonMiniGuardError, ImportError, OSError) as error:  # no reference, no rows yet, another worker's turn, no SciPy
        logger.info("no look at the drift of %s: %s", traces, error)
        return {}
    return {finding.test: finding.p_value for finding in found.findings if finding.p_value is not None}
