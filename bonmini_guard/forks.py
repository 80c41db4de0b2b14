"""What a forked process has to have anew: threads are not in it, and locks may be held by threads that are not in it."""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet


def renewed_in_children(thing: Any) -> None:
    """Have ``thing.renew()`` called in every process that is forked from this one, as long as the thing lives."""
    _all.add(thing)


class Lock:
    """A lock that can be pickled and copied, and is open in a forked process whoever held it in its parent: ``with lock.held:``."""

    __slots__ = ("__weakref__", "held")

    def __init__(self) -> None:
        self.renew()
        renewed_in_children(self)

    def renew(self) -> None:
        """Open it."""
        self.held = threading.Lock()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return type(self), ()


_all: WeakSet[Any] = WeakSet()


def _after_fork() -> None:
    for thing in list(_all):
        thing.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
