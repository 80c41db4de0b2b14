"""A profile that follows its file: taken over when the file changes, without a restart."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from bonmini_guard.errors import BonMiniGuardError
from bonmini_guard.forks import Lock

logger = logging.getLogger(__name__)

#: A file that was just written may be written again within the resolution of its time: seconds until it is believed.
_SETTLED = 0.1

Seen = tuple[int, int, int, int]


class Reloader:
    """Looks at a file now and then, and builds anew what depends on it, in a thread of its own.

    Args:
        path: the file.
        interval: seconds between two looks; a look is one ``stat``.
        take: takes over what the file says now; whether that is anything new. Its errors refuse the change.
        tell: told of each change, whether it was taken over.

    Attributes:
        taken: changes taken over.
        refused: changes refused; each is told once.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        interval: float,
        take: Callable[[], bool],
        tell: Callable[[bool], Any] = bool,
    ) -> None:
        # Absolute, for a program may change its folder.
        self.path = os.path.abspath(path)
        self.interval = interval
        self.taken = self.refused = 0
        self._take = take
        self._tell = tell
        self._lock = Lock()
        self._seen = self._look()
        self._next = time.monotonic() + interval
        self._thread: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_thread": None, "_next": 0.0}  # clocks of other machines began at other times

    def look(self) -> None:
        """Called before each request: nothing within the interval, then a ``stat``, and a thread only if the file has changed."""
        now = time.monotonic()
        with self._lock.held:
            if now < self._next or (self._thread is not None and self._thread.is_alive()):
                return
            self._next = now + self.interval
        if self._look() != self._seen:
            self._thread = threading.Thread(target=self._reload, name="bonmini-reload", daemon=True)
            with contextlib.suppress(RuntimeError):  # no threads left: the next look tries again
                self._thread.start()

    def _look(self) -> Seen | None:
        try:
            about = os.stat(self.path)
        except OSError:
            return None
        return about.st_mtime_ns, about.st_ino, about.st_dev, about.st_size

    def _reload(self) -> None:
        seen = self._look()
        # If it changes again while it is read, it is read again at the next look.
        if seen is not None and time.time() - seen[0] / 1e9 < _SETTLED:
            time.sleep(_SETTLED)
        try:
            changed = self._take()
        except Exception as error:  # or a part that cannot be asked for its fingerprint
            self.refused += 1
            why = str(error) if isinstance(error, BonMiniGuardError) else type(error).__name__
            logger.warning("%s: the changed profile is refused, the old one stays in force: %s", self.path, why)
            self._tell(False)
        else:
            if changed:
                self.taken += 1
                logger.info("%s: the changed profile is in force", self.path)
                self._tell(True)
        self._seen = seen
