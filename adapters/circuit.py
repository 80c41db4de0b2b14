"""A circuit breaker: stops asking an endpoint that keeps failing, and tries it again now and then.

The state machine is pure: it is told what happened and at what time, and reads no clock of its own::

    closed --(failures in a row reach the limit)--> open --(cooldown over: one trial)--> half open
    half open --(the trial succeeds)--> closed          half open --(it fails)--> open
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

from bonmini_guard.adapters.http_errors import EndpointError, Overloaded, RequestRejected, TruncatedAnswer
from bonmini_guard.errors import ConfigurationError


class CircuitOpen(EndpointError):  # noqa: N818 - says it all
    """The endpoint failed again and again, so it was not asked this time. ``retry_after`` is when it will be."""


@dataclass(frozen=True, slots=True)
class Circuit:
    """The state: how many failures in a row, since when it is open, and until when a trial has the only turn.

    Attributes:
        failures: in a row, while closed.
        opened: time it opened at; None while closed.
        trial: time the trial under way began at; None while there is none.
    """

    failures: int = 0
    opened: float | None = None
    trial: float | None = None

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        """Its name."""
        if self.opened is None:
            return "closed"
        return "open" if self.trial is None else "half_open"

    def wait(self, now: float, cooldown: float) -> float:
        """Seconds until the next trial may begin; 0 if a request may go out now."""
        if self.opened is None:
            return 0.0
        # A trial that never reports back must not keep the circuit open for ever.
        since = self.opened if self.trial is None else self.trial
        return max(0.0, since + cooldown - now)

    def begun(self, now: float) -> Circuit:
        """After a request that may go out went out."""
        return self if self.opened is None else replace(self, trial=now)

    def succeeded(self) -> Circuit:
        """After an answer: closed."""
        return Circuit()

    def failed(self, now: float, limit: int) -> Circuit:
        """After a failure: open if it was one too many, or the trial's."""
        if self.opened is not None:
            return Circuit(opened=now)
        failures = self.failures + 1
        return Circuit(opened=now) if failures >= limit else Circuit(failures)

    def withdrawn(self) -> Circuit:
        """After a request that ended without telling anything about the endpoint, such as a cancelled one."""
        return replace(self, trial=None)


class CircuitBreaker:
    """Guards calls to one endpoint; may be shared by whatever calls it, on any thread.

    Args:
        failures: in a row, that open the circuit. Timeouts, broken connections, statuses of 500 and above and unreadable
            answers count; a refused request (4xx) and 429 do not, for whoever says so is alive.
        cooldown: seconds between opening and the next trial.
        clock: seconds that never go back; for tests.

    Raises:
        ConfigurationError: a number is out of range.
    """

    def __init__(self, failures: int = 5, cooldown: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        if failures < 1 or cooldown < 0:
            raise ConfigurationError(f"need failures >= 1 and cooldown >= 0, not {failures} and {cooldown}")
        self.failures = failures
        self.cooldown = cooldown
        self.clock = clock
        self.times_opened = 0
        self._circuit = Circuit()
        self._lock = threading.Lock()

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        """closed, open or half_open."""
        return self._circuit.state

    def check(self) -> None:
        """Raise CircuitOpen if the endpoint is not to be asked now."""
        with self._lock:
            wait = self._circuit.wait(self.clock(), self.cooldown)
        if wait > 0:
            raise CircuitOpen(
                f"the endpoint failed {self.failures} times in a row and is left alone for {wait:.1f} s more", retry_after=wait
            )

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Around one attempt.

        Raises:
            CircuitOpen: the endpoint is not to be asked now.
        """
        self.check()
        with self._lock:
            self._circuit = self._circuit.begun(self.clock())
        try:
            yield
        except Exception as error:
            self._after(error)
            raise
        except BaseException:
            with self._lock:
                self._circuit = self._circuit.withdrawn()
            raise
        with self._lock:
            self._circuit = self._circuit.succeeded()

    def _after(self, error: Exception) -> None:
        with self._lock:
            if not counts(error):
                self._circuit = self._circuit.withdrawn() if not isinstance(error, EndpointError) else self._circuit.succeeded()
                return
            before = self._circuit.state
            self._circuit = self._circuit.failed(self.clock(), self.failures)
            self.times_opened += before == "closed" and self._circuit.state == "open"


def counts(error: Exception) -> bool:
    """Whether an error says that the endpoint is not well."""
    alive = (RequestRejected, TruncatedAnswer, CircuitOpen)
    refused = isinstance(error, Overloaded) and error.status == 429
    return isinstance(error, EndpointError) and not isinstance(error, alive) and not refused
