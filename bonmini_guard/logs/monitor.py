"""What telemetry is told, for any system that takes spans and metrics. Nothing here holds text of a candidate."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from bonmini_guard.engine.engine import Observer
from bonmini_guard.engine.result import GuardResult
from bonmini_guard.logs.trace_row import Explored
from bonmini_guard.logs.traces import TraceWriter
from bonmini_guard.policy.policy import Policy


class RequestMonitor(Observer, Protocol):
    """Told what happens in one request. It should raise nothing."""

    def decided(self, result: GuardResult) -> None:
        """The request is over."""


class Monitor(Protocol):
    """What ``telemetry=`` takes; :class:`bonmini_guard.adapters.telemetry.OpenTelemetry` is one. It should raise nothing."""

    def request(self, policy: Policy) -> AbstractContextManager[RequestMonitor]:
        """A request begins; it ends with the context, by an error if one passes through."""

    def explored(self, explored: Explored | None) -> None:
        """A request was completed in the background; None: it was chosen, and could not be."""

    def shadowed(self, decision: str | None) -> None:
        """What the guard would have decided; None where one draw does not tell."""

    def reloaded(self, succeeded: bool) -> None:
        """A changed profile was taken over, or refused."""

    def watch(self, writer: TraceWriter) -> None:
        """A guard writes its traces here."""
