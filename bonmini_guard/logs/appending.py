"""Files of JSON lines that rows are added to: whole rows, whatever kills the writer, and one writer at a time."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bonmini_guard.logs.reading import Row, RowFile
from bonmini_guard.writing import unfinished, write_atomically

#: Bytes looked at together for the end of the last whole line.
_PIECE = 2**16
#: What Python and some tools take for the end of a line, and JSON does not.
_ENDS = {number: f"\\u{number:04x}" for number in (0x85, 0x2028, 0x2029)}


class Appender:
    """A file that is open for appending; OSError if it cannot be.

    A row is in it as a whole or not at all, but for a torn last line after a kill.

    Args:
        mode: who may read it then.
        fsync: wait for the disk, so that rows survive a power failure too.
    """

    def __init__(self, path: Path, *, mode: int = 0o666, fsync: bool = False) -> None:
        self.path = path
        self._fsync = fsync
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), mode)
        self.size = os.fstat(self.descriptor).st_size

    def refresh(self) -> bool:
        """Whether the path still is this file; its size is looked up again."""
        about = os.fstat(self.descriptor)
        self.size = about.st_size
        try:
            return os.path.samestat(about, os.stat(self.path))
        except FileNotFoundError:
            return False

    @property
    def is_torn(self) -> bool:
        """Whether the last line has no end, as a killed writer leaves it."""
        return bool(self.size) and self._read(self.size - 1, self.size) != b"\n"

    def cut(self) -> None:
        """Cut off a torn last line, which nobody was told was written."""
        end, found = self.size, -1
        while end and found < 0:
            begin = max(0, end - _PIECE)
            found = self._read(begin, end).rfind(b"\n")
            end = begin
        self._truncate(end + found + 1)

    def append(self, lines: bytes) -> None:
        """Write whole lines; OSError if the disk refused, and the file is as it was before."""
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
            if self._fsync:
                os.fsync(self.descriptor)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._truncate(self.size)
            if isinstance(error, OSError) and error.errno:
                error.filename = os.fspath(self.path)
            raise
        self.size += len(lines)

    def close(self) -> None:
        """Let go of the file and of its lock."""
        with contextlib.suppress(OSError):
            os.close(self.descriptor)

    def _read(self, begin: int, end: int) -> bytes:
        os.lseek(self.descriptor, begin, os.SEEK_SET)
        return os.read(self.descriptor, end - begin)

    def _truncate(self, size: int) -> None:
        if os.fstat(self.descriptor).st_size != size:
            os.ftruncate(self.descriptor, size)
        self.size = size


def rewrite(path: Path, keep: Callable[[Row], bool]) -> int:
    """Remove rows of a file, and a torn last line; how many rows were removed. InputError if a line is not JSON.

    The file changes as a whole or not at all.
    """
    for left_behind in unfinished(path, ".rewritten"):  # by a killed rewriting, for the caller's lock lets no other one work here
        left_behind.unlink()
    file = RowFile(path)
    *lines, torn = path.read_bytes().split(b"\n")
    kept = [line for number, line in enumerate(lines, start=1) if not line.strip() or keep(file.parsed(line, number))]
    if len(kept) < len(lines) or torn:
        about = path.stat()
        write_atomically(path, b"".join(line + b"\n" for line in kept).decode(errors="surrogatepass"), ".rewritten")
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        with contextlib.suppress(OSError, AttributeError):  # or a guard could write no more where root has forgotten
            os.chown(path, about.st_uid, about.st_gid)
    return len(lines) - len(kept)


def encoded(row: Mapping[str, Any]) -> bytes:
    """A row as its line. What JSON has no words for is written as its text; a lone surrogate and what ends lines as an escape."""
    line = json.dumps(row, ensure_ascii=False, default=str).translate(_ENDS) + "\n"
    return line.encode(errors="backslashreplace")


if sys.platform == "win32":
    import msvcrt

    def lock(descriptor: int, *, wait: bool = True) -> bool:
        """The lock of an open file, among all processes; False where another has it and it is not waited for."""
        while True:
            os.lseek(descriptor, 2**62, os.SEEK_SET)  # beyond all rows: who is locked out may read them
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
                time.sleep(0.01)

    def unlock(descriptor: int) -> None:
        """Give a lock back."""
        os.lseek(descriptor, 2**62, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def lock(descriptor: int, *, wait: bool = True) -> bool:
        """The lock of an open file, among all processes; False where another has it and it is not waited for."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def unlock(descriptor: int) -> None:
        """Give a lock back."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)
