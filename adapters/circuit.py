"""A circuit breaker: stops asking an endpoint that keeps failing, and tries it again now and then.

::

    closed --(failures in a row reach the limit)--> open --(cooldown over: one trial)--> half open
    half open --(the trial succeeds)--> closed          half open --(it fails)--> open
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal

from bonmini_guard.adapters.http_errors import EndpointError, NoAnswer, Overloaded, RequestRejected
from bonmini_guard.forks import Lock
from bonmini_guard.validation import Amount, Count, checked

#: When the attempt that runs here began as a trial.
_begun: ContextVar[float | None] = ContextVar("bonmini_trial", default=None)


class CircuitOpen(EndpointError):  # noqa: N818 - says it all
    """The endpoint failed again and again, so it was not asked this time. ``retry_after`` is when it will be."""

    final = True


class CircuitBreaker:
    """Guards calls to one endpoint, as ``with breaker:`` around each; may be shared by whatever calls it, on any thread.

    Args:
        failures: in a row, that open the circuit. Timeouts, broken connections, statuses of 500 and above and unreadable
            answers count; a refused request (4xx) and 429 do not, for whoever says so is alive. A trial that meets 429 fails.
        cooldown: seconds between opening and the next trial.
        clock: seconds that never go back; for tests.

    Raises:
        ConfigurationError: a number is out of range.
    """

    @checked
    def __init__(self, failures: Count = 5, cooldown: Amount = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = failures
        self.cooldown = cooldown
        self.clock = clock
        self.times_opened = 0
        self._in_a_row = 0
        self._cause = ""
        self._opened: float | None = None
        self._trial: float | None = None
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Closed: when it opened is told by this machine's clock."""
        return vars(self) | {"_in_a_row": 0, "_opened": None, "_trial": None}

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        """closed, open or half_open."""
        if self._opened is None:
            return "closed"
        return "open" if self._trial is None else "half_open"

    def check(self, begin: bool = False) -> None:
        """Raise CircuitOpen if the endpoint is not to be asked now; else perhaps begin the trial, which one caller does alone."""
        if self._opened is None:
            return
        with self._lock.held:
            # A trial that never reports back must not keep the circuit open for ever.
            since = self._opened if self._trial is None else self._trial
            wait = 0.0 if since is None else since + self.cooldown - self.clock()
            if wait <= 0 and begin and since is not None:
                self._trial = self.clock()
                _begun.set(self._trial)
        if wait > 0:
            raise CircuitOpen(f"{self._cause}; it keeps failing, and is left alone for up to {self.cooldown:g} s", retry_after=wait)

    def trip(self, cause: Exception) -> None:
        """Open it, whatever the count."""
        with self._lock.held:
            self._cause = str(cause)
            self.times_opened += self._opened is None
            self._opened, self._trial = self.clock(), None

    def __enter__(self) -> None:
        """Begin one attempt; raises as :meth:`check`."""
        if self._opened is not None:
            self.check(begin=True)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """End it, and learn from how it ended."""
        if isinstance(error, Overloaded) and self._opened is not None:
            self.trip(error)
            return
        if isinstance(error, Exception) and counts(error):
            with self._lock.held:
                self._in_a_row += 1
            if self._opened is not None or self._in_a_row >= self.failures:
                self.trip(error)
            return
        with self._lock.held:
            if error is None or isinstance(error, EndpointError):
                self._in_a_row, self._opened, self._trial = 0, None, None
            elif self._trial == _begun.get():
                # A trial that ends without telling anything, such as a cancelled one, leaves its turn to another.
                self._trial = None


def counts(error: Exception) -> bool:
    """Whether an error says that the endpoint is not well."""
    alive = (RequestRejected, NoAnswer, CircuitOpen)
    refused = isinstance(error, Overloaded) and error.status == 429
    return isinstance(error, EndpointError) and not isinstance(error, alive) and not refused
