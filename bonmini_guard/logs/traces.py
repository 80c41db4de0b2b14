"""``TraceWriter``: writes traces in a thread of its own, so that no request ever waits for a disk."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import logging
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.forks import Lock, renewed_in_children
from bonmini_guard.logs.appending import encoded
from bonmini_guard.logs.trace_files import TraceFile, forget
from bonmini_guard.logs.trace_row import Explored, Redact, RequestRecord, Row, redacted, trace_row
from bonmini_guard.validation import Count, Flag, Positive, Share, checked

logger = logging.getLogger(__name__)

#: Rows handled between two looks at the queue.
_BATCH = 256
#: Seconds of idleness after which the thread ends; the next row starts another.
_IDLE = 5.0
#: Seconds that rows are gathered for.
_GATHER = 0.05
#: Seconds between two looks for files that are too old.
_EXPIRE_EVERY = 60.0
#: Seconds that the end of the process waits for rows still in the queue.
_AT_EXIT = 5.0

Sink = Callable[[Row], Any]


@dataclass(frozen=True, slots=True)
class TraceCounts:
    """What became of the rows handed over so far, in this process.

    Attributes:
        written: in the file with a newline, or taken by the sink.
        dropped: left out on purpose, by ``sample`` or ``redact``.
        lost: not written: the queue was full, the disk or the sink refused, or ``redact`` raised.
        waiting: still in the queue.
    """

    written: int
    dropped: int
    lost: int
    waiting: int


class TraceWriter:
    """Writes one row for each request, for ``trace_to=``.

    Rows wait in a queue for a thread of their own; docs/traces.md says what may be lost when.

    Args:
        to: a path of a JSON lines file, or a function that takes each row (a dictionary); it runs in the writer's thread.
        sample: share of requests to write, chosen by chance alone; explored ones are always written.
        redact: ``"rejected"``, ``"all"``, or a function of the row, which gives what to write, and None to drop it.
        max_bytes: the file is put aside before it grows beyond this.
        keep_days: files whose last row is older are deleted while a guard runs (each minute it looks); None keeps all.
        queue: rows that may wait.
        fsync: wait for the disk before a row counts as written.

    Raises:
        ConfigurationError: an argument is out of range, or the path cannot be written.
    """

    @checked
    def __init__(
        self,
        to: str | os.PathLike[str] | Sink,
        *,
        sample: Share = 1.0,
        redact: Redact | None = None,
        max_bytes: Count = 64 * 2**20,
        keep_days: Positive | None = None,
        queue: Count = 1000,
        fsync: Flag = False,
    ) -> None:
        if redact not in (None, "rejected", "all") and (not callable(redact) or inspect.iscoroutinefunction(redact)):
            raise ConfigurationError(f"redact is 'rejected', 'all' or a function of the row, not async, and not {redact!r}")
        if not isinstance(to, str | os.PathLike) and (not callable(to) or inspect.iscoroutinefunction(to)):
            raise ConfigurationError("traces go to a path or to a function of the row; the function must not be async")
        make: Any = type(self)
        about: dict[str, Any] = {"max_bytes": max_bytes, "keep_days": keep_days, "queue": queue, "fsync": fsync}
        self._again: Callable[[], TraceWriter] = partial(make, to, sample=sample, redact=redact, **about)
        self._file: TraceFile | None = None
        self.renew()
        if isinstance(to, str | os.PathLike):
            file = self._file = TraceFile(to, max_bytes, None if keep_days is None else keep_days * 86400, fsync)
            self._sink: Sink = lambda row: file.append(encoded(row))
        else:
            self._sink = to
        self._expires = keep_days is not None
        self._sample = sample
        self._redact = redact
        self._room = queue
        _writers.add(self)
        renewed_in_children(self)

    def __reduce__(self) -> tuple[Callable[[], TraceWriter], tuple[()]]:
        return self._again, ()

    def renew(self) -> None:
        """An empty queue and no thread: at first, and in a child after a fork, whose parent writes what was waiting."""
        self._queue: deque[Callable[[], Row]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._taken = self._done = self._awaited = 0
        self._tally: Counter[str] = Counter()
        self._expired_at = 0.0
        if self._file is not None:
            self._file.close()

    def add(self, row: Callable[[], Row], always: bool = False) -> None:
        """Hand over what builds a row, in the writer's thread; never blocks, never raises."""
        if not always and self._sample < 1 and random.random() >= self._sample:
            self._count("dropped")
            return
        with self._changed:
            if len(self._queue) >= self._room:
                self._count("lost", "the queue is full")
                return
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="bonmini-traces", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # the process is ending, or has no threads left
                    self._count("lost", str(error))
                    return
                self._thread = thread
            self._queue.append(row)
            self._taken += 1
            # In between its thread looks by itself.
            if len(self._queue) in (1, self._room // 2):
                self._changed.notify_all()

    def record(
        self,
        request: RequestRecord,
        explored: Explored | None = None,
        row: Callable[[RequestRecord, Explored | None], Row] = trace_row,
    ) -> None:
        """Hand over the trace of a request; see :func:`bonmini_guard.logs.trace_row.trace_row`."""
        # Fingerprints may read files or ask servers, and some depend on the context of the call.
        self.add(partial(copy_context().run, row, request, explored), always=explored is not None)

    def counts(self) -> TraceCounts:
        """What became of the rows so far."""
        with self._changed:
            written, dropped, lost = (self._tally[what] for what in ("written", "dropped", "lost"))
            return TraceCounts(written, dropped, lost, self._taken - self._done)

    def flush(self, timeout: float | None = None) -> TraceCounts:
        """Return once every row handed over before is written, or counted as dropped or lost.

        After ``timeout`` seconds it waits no longer; ``waiting`` tells what is left.
        """
        with self._changed:
            target = self._taken
            self._awaited += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._done >= target, timeout)
            self._awaited -= 1
        return self.counts()

    async def aflush(self) -> TraceCounts:
        """``flush`` for async code."""
        return await asyncio.to_thread(self.flush)

    def forget(self, *, ids: Collection[str] = (), groups: Collection[str] = ()) -> int:
        """Delete rows for good, those still in the queue included; see :func:`bonmini_guard.logs.trace_files.forget`.

        Raises:
            ConfigurationError: traces go to a function, which must delete them itself.
        """
        if self._file is None:
            raise ConfigurationError("these traces go to a function: delete them where it puts them")
        self.flush()
        return forget(self._file.path, ids=ids, groups=groups)

    def _serve(self) -> None:
        while True:
            with self._changed:
                if not self._queue and not self._changed.wait(_IDLE) and not self._queue and not self._expires:
                    self._thread = None
                    return
                # Rows that come together are written together, when the requests that they come from have gone on.
                self._changed.wait_for(lambda: self._awaited or len(self._queue) >= self._room // 2, _GATHER)
                batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            self._write(batch)
            with self._changed:
                self._done += len(batch)
                self._changed.notify_all()
            self._expire()

    def _write(self, batch: list[Callable[[], Row]]) -> None:
        for build in batch:
            try:
                row = redacted(build(), self._redact)
                if row is not None and inspect.isawaitable(self._sink(row)):
                    self._count("lost", "the function of the row is async, and must not be")
                    continue
            except BaseException as error:
                # Its text may quote the row. Not even an exit ends this thread: all rows after it would be lost.
                self._count("lost", type(error).__name__)
            else:
                self._count("dropped" if row is None else "written")

    def _count(self, what: str, why: str = "") -> None:
        with self._changed:
            self._tally[what] += 1
            lost = self._tally["lost"]
            if why and lost & (lost - 1) == 0:  # the 1st, 2nd, 4th, 8th ...
                logger.warning("traces: %d rows lost so far; the last because of: %s", lost, why)

    def _expire(self) -> None:
        if not self._expires or self._file is None or time.monotonic() < self._expired_at + _EXPIRE_EVERY:
            return
        self._expired_at = time.monotonic()
        try:
            self._file.expire(time.time())
        except OSError as error:
            logger.warning("traces: old files could not be deleted: %s", error.strerror)


def writer_for(to: Any) -> TraceWriter:
    """A writer as it is, or that of a path or function (ConfigurationError if it is none); one path has one writer in a process."""
    if isinstance(to, TraceWriter):
        return to
    if not isinstance(to, str | os.PathLike):
        return TraceWriter(to)
    path = Path(os.path.abspath(to))
    with _sharing.held:
        writer = _shared.get(path)
        if writer is None:
            writer = _shared[path] = TraceWriter(path)
    return writer


_writers: WeakSet[TraceWriter] = WeakSet()
_shared: WeakValueDictionary[Path, TraceWriter] = WeakValueDictionary()
_sharing = Lock()


def _at_exit() -> None:
    for writer in list(_writers):
        writer.flush(_AT_EXIT)


atexit.register(_at_exit)
