"""How wide a rolling request may be: from the load that the guard itself sees, never from texts or scores."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from bonmini_guard.forks import Lock, renewed_in_children

#: The draws that a rolling request may keep in flight; one certificate holds for all of them.
LADDER = (1, 2, 4, 8, 16, 32)
#: Draws that an endpoint is taken to carry at a time, unless it says or shows something else.
AT_FIRST = 32.0
#: Where draws wait for their turn at no cost, a request has so many: with fewer a machine idles while they are scored.
NARROWEST = 8
#: Below so many times the pace of a request that has it to itself it carries more than is asked of it, above the other one less.
UNHURRIED, SLOW = 1.25, 2.0
#: The part that one request's pace has in the usual one.
_NEWS = 0.2


class Load:
    """What all requests of an endpoint know of it together.

    Args:
        carries: draws that it is taken to carry at first, and never fewer unless it refuses some. An endpoint that says so has
            further ones wait.

    Attributes:
        carried: draws that it is taken to carry at a time.
        requests: under way.
    """

    def __init__(self, carries: float | None = None) -> None:
        self._least = self.carried = carries or AT_FIRST
        self._narrowest = NARROWEST if carries else 0
        self._alone = self._crowded = 0.0
        self._lock = Lock()
        self.renew()
        renewed_in_children(self)

    def __reduce__(self) -> tuple[type[Load], tuple[float | None]]:
        return type(self), (self._least if self._narrowest else None,)

    def renew(self) -> None:
        """Forget requests: those of a parent process."""
        self.requests = 0

    def begin(self, ladder: Sequence[int], places: int | None = None) -> int:
        """The width, of an ascending ladder, of a request that begins now; ``places`` are those of the limiter around its draws.

        It is the widest rung with which all requests ask no more of the endpoint than it carries.
        """
        with self._lock.held:
            self.requests += 1
            carried, least = (self.carried, self._narrowest) if places is None else (min(self.carried, places), 0)
            return max((rung for rung in ladder if rung * self.requests <= carried or rung <= least), default=ladder[0])

    def end(self, pace: float | None, refused: int) -> None:
        """A request is over, of whose draws so many met 429: it carries a quarter less then, else one more or less.

        Its pace are the seconds a token of the draw that arrived first (a draw, where no tokens are reported); None if none has.
        """
        with self._lock.held:
            self.requests -= 1
            if pace and self.requests:
                self._crowded += (pace - self._crowded) * (_NEWS if self._crowded else 1.0)
            elif pace:
                self._alone += (pace - self._alone) * (_NEWS if self._alone else 1.0)
            slowdown = self._crowded / self._alone if self._crowded and self._alone else SLOW
            if refused:
                self.carried = max(1.0, self.carried * 0.75)
            elif pace and (self.carried < self._least or slowdown < UNHURRIED):
                if self.carried < LADDER[-1] * (self.requests + 1):  # more is never asked of it
                    self.carried += 1.0
            elif pace and slowdown > SLOW:
                self.carried = max(self._least, self.carried - 1.0)


_loads: WeakKeyDictionary[Hashable, Load] = WeakKeyDictionary()
_lock = Lock()


def load_of(endpoint: Any, carries: float | None = None) -> Load:
    """The load of whatever stands for an endpoint: the one that all guards on it share, where it can be a key.

    What it says that it ``carries`` counts when it is first met.
    """
    try:
        with _lock.held:
            return _loads.setdefault(endpoint, Load(carries))
    except TypeError:
        return Load(carries)
