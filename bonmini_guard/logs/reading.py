"""Files of rows as a stream of (place, row): JSON lines, plain or gzip, and Parquet.

A place is ``file:line``, as every message about a bad row begins. One thing is forgiven: a torn last line, which a killed
writer leaves behind.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from bonmini_guard.errors import InputError, MissingExtraError

Row = dict[str, Any]


class RowFile:
    """The rows of one file, streamed.

    Args:
        path: ``.jsonl``, ``.jsonl.gz`` (any gzip file is recognised by its first bytes) or ``.parquet``.
        whole: whether a last line without an end is torn although it can be read: for files whose writer ends every line.

    Attributes:
        torn: after the iteration, how many torn last lines were dropped: 0 or 1.

    Raises:
        InputError: while iterating; the file cannot be read, or a line is not one JSON object.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, whole: bool = False) -> None:
        self.path = Path(path)
        self._whole = whole
        self.torn = 0

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        if self.path.suffix == ".parquet":
            yield from self._parquet()
        else:
            with self._open() as file:
                yield from self.rows_of(1, file)

    def lines(self) -> int:
        """How many lines a JSON lines file has, without reading them as JSON.

        Raises:
            InputError: the file cannot be read.
        """
        with self._open() as file:
            return sum(1 for line in self._lines(file) if line.strip())

    def blocks(self, size: int) -> Iterator[tuple[int, bytes]]:
        """(number of the first line, lines) of about ``size`` bytes of a JSON lines file; a last line without an end comes alone.

        Raises:
            InputError: the file cannot be read.
        """
        first, rest = 1, b""
        with self._open() as file:
            for piece in self._lines(iter(lambda: file.read1(size), b"")):  # type: ignore[attr-defined]
                whole, end, begun = piece.rpartition(b"\n")
                if end:
                    yield first, rest + whole + end
                    first += whole.count(b"\n") + 1
                rest = begun if end else rest + begun
        if rest:
            yield first, rest

    def rows_of(self, first: int, lines: IO[bytes]) -> Iterator[tuple[str, Row]]:
        """The rows of some lines, of which the first has the number ``first``.

        Raises:
            InputError: a line is not one JSON object.
        """
        for number, line in enumerate(self._lines(lines), start=first):
            if line.strip() and (row := self._row(line, number)) is not None:
                yield f"{self.path}:{number}", row

    def parsed(self, line: bytes, number: int) -> Row:
        """The row in a line.

        Raises:
            InputError: it is not one JSON object.
        """
        place = f"{self.path}:{number}"
        try:
            row = json.loads(line)
        except RecursionError as error:
            raise InputError(f"{place}: lists or objects lie too deep in each other; remove the line") from error
        except ValueError as error:
            raise InputError(f"{place}: not JSON ({error}); mend or remove the line") from error
        if not isinstance(row, dict):
            raise InputError(f"{place}: a row must be a JSON object, not {type(row).__name__}; mend or remove the line")
        return row

    def _row(self, line: bytes, number: int) -> Row | None:
        ended = line.endswith(b"\n")
        try:
            row = self.parsed(line, number)
            if ended or not self._whole:
                return row
        except InputError as error:
            if ended or not isinstance(error.__cause__, ValueError):
                raise
        self.torn = 1
        return None

    @contextlib.contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with self._told(), self.path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield gzip.GzipFile(fileobj=file) if compressed else file  # type: ignore[misc]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error}); check the path") from error

    def _lines(self, file: Iterable[bytes]) -> Iterator[bytes]:
        try:
            yield from file
        except EOFError:  # the gzip stream ends before its end mark: its writer was killed
            self.torn = 1
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{self.path}: the gzip data are damaged ({error}); copy the file again") from error

    def batches(self, size: int, columns: Callable[[list[str]], list[str]] | None = None) -> Iterator[Any]:
        """The record batches of a Parquet file, of at most ``size`` rows.

        Args:
            size: in rows.
            columns: chooses from the dotted paths of the file's leaf columns.

        Raises:
            InputError: the file cannot be read.
            MissingExtraError: pyarrow is not installed.
        """
        try:
            import pyarrow as arrow
            from pyarrow import parquet
        except ImportError as error:
            raise MissingExtraError("pyarrow", "parquet") from error
        try:
            with self._told(), parquet.ParquetFile(self.path) as file:
                paths = [file.schema.column(number).path for number in range(len(file.schema))]
                yield from file.iter_batches(batch_size=size, columns=columns and columns(paths))
        except arrow.ArrowInvalid as error:
            problem = str(error).splitlines()[0]
            raise InputError(f"{self.path}: not a Parquet file ({problem}); write it anew") from error

    def rows_of_batch(self, first: int, batch: Any) -> Iterator[tuple[str, Row]]:
        """The rows of a record batch, of which the first has the number ``first``; keys without a value are left out."""
        for number, row in enumerate(batch.to_pylist(), start=first):
            yield f"{self.path}:{number}", {key: value for key, value in row.items() if value is not None}

    def _parquet(self) -> Iterator[tuple[str, Row]]:
        first = 1
        for batch in self.batches(1024):
            yield from self.rows_of_batch(first, batch)
            first += len(batch)
