"""What a forked process has to have anew: threads are not in it, and locks may be held by threads that are not in it."""

from __future__ import annotations

import os
import threading
from typing import Any, Protocol
from weakref import WeakSet


class Renewable(Protocol):
    """Something that can begin again in a child after a fork."""

    def renew(self) -> None:
        """Forget threads, locks and work under way."""


def renewed_in_children(thing: Renewable) -> None:
    """Have something renewed in every process that is forked from this one, as long as it lives."""
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
