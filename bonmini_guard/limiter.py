"""A concurrency limit that is native to the event loop and safe to share between loops.

One semaphore lives for each running loop: a blocking or loop-bound semaphore shared between loops deadlocks or raises.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary


class Limiter:
    """At most ``limit`` holders at a time on each event loop; waiters are served in order of arrival.

    Args:
        limit: holders allowed at a time, 1 or more.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._semaphores: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    def here(self) -> asyncio.Semaphore:
        """The semaphore of the running loop, to be used as ``async with limiter.here()``."""
        loop = asyncio.get_running_loop()
        semaphore = self._semaphores.get(loop)
        if semaphore is None:
            semaphore = self._semaphores[loop] = asyncio.Semaphore(self.limit)
        return semaphore
