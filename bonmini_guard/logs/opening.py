"""Files as they come: opened once, so that a pipe loses nothing, unpacked, and told by their first bytes.

``-`` is standard input. A byte order mark is passed over. What cannot be read (UTF-16, archives) is named.
"""

from __future__ import annotations

import bz2
import contextlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

from bonmini_guard.engine.workers import Workers
from bonmini_guard.errors import InputError

#: Seconds that the writer of a named pipe is waited for.
WRITER_WAIT = 10.0
#: Bytes read at a time.
_PIECE = 2**18
#: Enough of a file to tell what it is.
_HEAD = 8
_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"


@dataclass
class Opened:
    """An open file.

    Attributes:
        stream: its bytes, unpacked, without a byte order mark.
        is_table: whether they are Parquet; the stream can then be sought in.
    """

    stream: IO[bytes]
    is_table: bool


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """A file, whatever packed it: gzip, Zstandard, bzip2, xz, or nothing.

    Raises:
        InputError: it is in a form that is not read; from the stream, packed data are damaged.
        EOFError: from the stream: packed data end before their end, as a killed writer leaves them.
        OSError: it cannot be opened.
    """
    with _file(path) as file:
        stream, head = _headed(file, path)
        make = next((make for magic, make in _PACKERS.items() if head.startswith(magic)), None)
        if make is not None:
            stream, head = _headed(_buffered(_unpacked(stream, make, path)), path)
        is_table = head.startswith(_PARQUET) or path.suffix == ".parquet"
        if is_table and not stream.seekable():
            stream = io.BytesIO(stream.read())
        yield Opened(stream, is_table)


def is_pipe(path: str | os.PathLike[str]) -> bool:
    """Whether a file can be read once only."""
    return os.fspath(path) == "-" or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path))


def _file(path: Path) -> IO[bytes]:
    if os.fspath(path) == "-":
        return open(0, "rb", closefd=False)
    return _written(path) if path.is_fifo() else path.open("rb")


def _written(pipe: Path) -> IO[bytes]:
    """A named pipe that somebody has opened to write into; opening one waits for that, and nobody else may come."""
    opening = Workers(1, "bonmini-guard-pipe").submit(lambda: pipe.open("rb"))
    try:
        return opening.result(WRITER_WAIT)
    except TimeoutError:
        os.close(os.open(pipe, os.O_WRONLY))  # so that the thread goes on, and ends
        opening.result().close()
        raise InputError(f"{pipe}: a pipe that nobody wrote into for {WRITER_WAIT:g} s; start its writer first") from None


def _headed(stream: IO[bytes], path: Path) -> tuple[IO[bytes], bytes]:
    """The stream from its beginning (after a byte order mark), and what it begins with."""
    head = stream.read(_HEAD)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (head[:1] in b"{[" and head[1:2] == b"\0") or head[:2] in (b"\0{", b"\0["):
        raise InputError(f"{path}: is UTF-16, which is not read; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    for magic, what, cure in _OTHERS:
        if head.startswith(magic):
            raise InputError(f"{path}: is {what}, which is not read; {cure}")
    skipped = len(_BOM) * head.startswith(_BOM)
    if stream.seekable():
        stream.seek(skipped)
        return stream, head[skipped:]
    return _buffered(chain([head[skipped:]], _pieces(stream))), head[skipped:]


_OTHERS = (
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or export CSV"),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet or JSON lines"),
    (b"ORC", "an ORC file", "write it as Parquet or JSON lines"),
    (b"SQLite f", "an SQLite database", "export JSON lines or CSV"),
    (b"\x04\x22\x4d\x18", "packed with lz4", "unpack it"),
)


def _pieces(stream: Any) -> Iterator[bytes]:
    return iter(partial(stream.read1, _PIECE), b"")


def _unpacked(stream: IO[bytes], make: Callable[[], Any], path: Path) -> Iterator[bytes]:
    """Members that follow each other are one; zeros behind the last are padding."""
    unpacker = None
    try:
        for piece in _pieces(stream):
            rest = piece
            while rest := (rest if unpacker is not None else rest.lstrip(b"\0")):
                unpacker = unpacker or make()
                yield unpacker.decompress(rest)
                rest = unpacker.unused_data if unpacker.eof else b""
                unpacker = None if unpacker.eof else unpacker
    except (EOFError, InputError, MemoryError):
        raise
    except Exception as error:  # each library has an error of its own
        raise InputError(f"{path}: the packed data are damaged ({error}); copy the file again") from error
    if unpacker is not None:
        raise EOFError


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise InputError("a file packed with Zstandard needs the package zstandard; install it, or unpack the file") from error
    return zstandard.ZstdDecompressor().decompressobj()


_PACKERS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(31),
    b"\x28\xb5\x2f\xfd": _zstandard,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lzma.LZMADecompressor,
}


class _Pieces(io.RawIOBase):
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _buffered(pieces: Iterator[bytes]) -> IO[bytes]:
    return io.BufferedReader(_Pieces(pieces), _PIECE)
