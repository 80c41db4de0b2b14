"""Trace files on disk: append-only JSON lines that threads, processes and killed writers can share.

All who write or rewrite a file hold the lock beside it. A row is one ``write`` on a descriptor that appends, so a killed writer
leaves at most a torn last line; whoever comes next puts that file aside as it is and begins a new one.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.logs.appending import Appender, lock, rewrite, unlock
from bonmini_guard.logs.rows import name_of
from bonmini_guard.writing import check_output

#: A file is put aside when it is this share of its rows' keeping time old, so that no row is kept much longer than asked.
_AGE_SHARE = 0.25


class TraceFile:
    """One trace path with the files put aside beside it; arguments, and the ConfigurationError, are those of ``TraceWriter``."""

    def __init__(
        self, path: str | os.PathLike[str], max_bytes: int, keep_seconds: float | None = None, fsync: bool = False
    ) -> None:
        # Absolute, for a program may change its folder.
        self.path = Path(os.path.abspath(_file_of(path)))
        if self.path.suffix in (".gz", ".parquet"):
            raise ConfigurationError(f"{path}: traces are plain JSON lines; name the file .jsonl, and compress what was put aside")
        check_output(self.path)
        if self.path.exists() and not os.access(self.path, os.W_OK):
            raise ConfigurationError(f"{path}: this file is not yours to write; give another, or change its mode")
        self._lock_path = self.path.with_name(f".{self.path.name}.lock")
        self._max_bytes = max_bytes
        self._keep_seconds = keep_seconds
        self._fsync = fsync
        self._file: Appender | None = None
        self._lock: int | None = None

    def append(self, line: bytes) -> None:
        """Write one whole line; OSError if it could not be written, and nothing of it stays in the file."""
        try:
            with self._locked():
                file = self._current()
                # One that ends in a torn line is put aside as it is.
                if file.size and (file.size + len(line) > self._max_bytes or file.is_torn):
                    self._put_aside()
                    file = self._current()
                file.append(line)
        except OSError:
            # The folder may be gone, and the lock with it.
            self.close()
            raise

    def expire(self, now: float) -> None:
        """Delete what is too old now (seconds since the epoch), and put the current file aside if its first row is getting old."""
        if self._keep_seconds is None:
            return
        with self._locked() as lock:
            # The lock's time is when the current file was begun.
            begun = os.fstat(lock).st_mtime
            if begun < now - _AGE_SHARE * self._keep_seconds and self.path.exists() and self.path.stat().st_size:
                self._put_aside()
            for path in trace_files(self.path):
                if path != self.path and path.stat().st_mtime < now - self._keep_seconds:
                    path.unlink()

    def rewrite(self, keep: Callable[[dict[str, Any]], bool]) -> int:
        """Remove rows, and every torn line; how many rows were removed. Each file changes as a whole or not at all.

        InputError if a line of a file is not JSON, OSError if one cannot be read or written: those after it are as they were.
        """
        with self._locked():
            files = trace_files(self.path)
            # The current one first, in one hold with the list: what writers put aside afterwards is done already.
            removed = rewrite(self.path, keep) if self.path in files else 0
        for path in files:
            # One file at a time: writers wait meanwhile.
            with self._locked():
                if path != self.path and path.exists():
                    removed += rewrite(path, keep)
        return removed

    def files(self) -> list[Path]:
        """The files that exist, oldest rows first, with none missed because a writer is putting it aside."""
        # Without a lock there is no writer, and no reason to leave a lock in a folder that has no traces.
        with self._locked() if self._lock_path.exists() else contextlib.nullcontext():
            return trace_files(self.path)

    def close(self) -> None:
        """Close the files; the next row opens them again."""
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock)
        self._file = self._lock = None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        if self._lock is None:
            self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        lock(self._lock)
        try:
            yield self._lock
        finally:
            unlock(self._lock)

    def _current(self) -> Appender:
        """The current file, whoever put it aside, rewrote or removed it."""
        if self._file is None or not self._file.refresh():
            # Closed once: its descriptor's number may soon be another file's.
            gone, self._file = self._file, None
            if gone is not None:
                gone.close()
            new = not self.path.exists()
            # Traces hold what users wrote: they are their owner's alone.
            self._file = Appender(self.path, mode=0o600, fsync=self._fsync)
            if new:
                os.utime(self._lock_path)
        return self._file

    def _put_aside(self) -> None:
        name = f"{self.path.stem}.{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(2)}{self.path.suffix}"
        os.rename(self.path, self.path.with_name(name))


def trace_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files of a trace path that exist, oldest rows first: those put aside, then the current one. Shards of one log.

    While a writer puts a file aside, that file may be missing here: `TraceFile.files` waits for it.
    """
    current = _file_of(path)
    name = re.compile(rf"{re.escape(current.stem)}\.\d{{8}}T\d{{12}}-[0-9a-f]{{4}}{re.escape(current.suffix)}")
    aside = sorted(file for file in current.parent.iterdir() if name.fullmatch(file.name)) if current.parent.is_dir() else []
    return [*aside, *([current] if current.exists() else [])]


def feedback_beside(path: str | os.PathLike[str]) -> Path:
    """Where the gateway keeps what users say of the answers in a trace path."""
    return (path := Path(path)).with_name(f"{path.stem}.feedback{path.suffix}")


def _file_of(path: str | os.PathLike[str]) -> Path:
    """The path, or what it is a link to: of a link, nothing but the link would be put aside, and deleted later."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def forget(path: str | os.PathLike[str], *, ids: Collection[str] = (), groups: Collection[str] = ()) -> int:
    """Delete rows from a trace path for good, while guards may go on writing to it.

    Args:
        path: as given to ``trace_to``; the files put aside beside it are included, and those of the gateway's thumbs.
        ids: of rows to delete: ``GuardResult.request_id``.
        groups: of rows to delete: conversations or users.

    Returns:
        How many rows were deleted.

    Raises:
        InputError: there are no such files, a line is not JSON, or ids or groups are one text instead of several.
    """
    for name, given in (("ids", ids), ("groups", groups)):
        # A text is a collection of texts too, and "in" finds any part of it: far more would be deleted than was meant.
        if isinstance(given, str | bytes):
            raise InputError(f"{name}= takes several, not one text: give [{given!r}]")
    with closing(TraceFile(path, max_bytes=0)) as traces, closing(TraceFile(feedback_beside(path), max_bytes=0)) as feedback:
        files = [file for file in (traces, feedback) if file.files()]
        if not files:
            raise InputError(f"{path}: there are no traces here; give the path that the guard's trace_to has")
        return sum(file.rewrite(lambda row: row.get("id") not in ids and name_of(row.get("group")) not in groups) for file in files)
