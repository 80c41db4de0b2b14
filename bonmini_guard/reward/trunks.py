"""Computed beginnings of the open sessions, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from itertools import count

from bonmini_guard.forks import Lock, renewed_in_children
from bonmini_guard.reward.packed import Trunk

#: A session's number, and one of the conversations it has (some texts need a shorter one).
Key = tuple[int, int]


class TrunkStore:
    """Trunks of open sessions; when they hold more than ``limit`` bytes together, the least recently used go. 0 keeps none."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = Lock()
        self._numbers = count()
        self.renew()
        renewed_in_children(self)

    def renew(self) -> None:
        """Hold nothing: at first, and in a child after a fork, where nobody is left to close the sessions of its parent."""
        self.bytes = 0
        self._open: set[int] = set()
        self._trunks: OrderedDict[Key, Trunk] = OrderedDict()

    def open(self) -> int:
        """The number of a new session."""
        with self._lock.held:
            session = next(self._numbers)
            self._open.add(session)
            return session

    def close(self, session: int) -> None:
        """Forget a session; what a running batch still computes for it is not kept."""
        with self._lock.held:
            self._open.discard(session)
            for key in [key for key in self._trunks if key[0] == session]:
                self._remove(key)

    def get(self, key: Key) -> Trunk | None:
        """The trunk, now the most recently used."""
        with self._lock.held:
            if key in self._trunks:
                self._trunks.move_to_end(key)
            return self._trunks.get(key)

    def put(self, key: Key, trunk: Trunk) -> None:
        """Keep a trunk of an open session, in place of the key's old one."""
        with self._lock.held:
            self._remove(key)
            # One that is too large by itself must not take all others with it.
            if key[0] not in self._open or (size := trunk.bytes) > self.limit:
                return
            self._trunks[key] = trunk
            self.bytes += size
            while self.bytes > self.limit:
                self._remove(next(iter(self._trunks)))

    def _remove(self, key: Key) -> None:
        old = self._trunks.pop(key, None)
        self.bytes -= 0 if old is None else old.bytes
