"""Seconds as the code under test has them: what a busy machine takes for itself is no delay of ours."""

from __future__ import annotations

import threading
import time

TICK = 0.01


class OwnTime:
    """A context that counts the seconds in it, less those in which the machine let no thread of this process run."""

    def __enter__(self) -> OwnTime:
        self._begun, self._lost, self._over = time.perf_counter(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        before = time.perf_counter()
        while not self._over.wait(TICK):
            now = time.perf_counter()
            self._lost += max(0.0, now - before - 2 * TICK)
            before = now

    def __exit__(self, *_: object) -> None:
        end = time.perf_counter()
        self._over.set()
        self._thread.join()
        self.seconds = end - self._begun - self._lost
