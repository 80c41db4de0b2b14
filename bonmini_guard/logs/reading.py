"""Files of rows as a stream of (place, row): JSON lines, plain or packed, and Parquet.

A place is ``file:line``, as every message about a bad row begins. One thing is forgiven: a torn last line, which a killed
writer leaves behind.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from bonmini_guard.errors import InputError, needing
from bonmini_guard.logs.opening import Opened, is_pipe, opened

Row = dict[str, Any]
Columns = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class Piece:
    """Some lines of a file (bytes), or some rows of a table (a record batch), with the number of the first."""

    file: RowFile
    first: int
    data: Any

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Their rows; keys of a table without a value are left out."""
        if isinstance(self.data, bytes):
            return self.file.rows_of(self.first, io.BytesIO(self.data))
        try:
            numbered = enumerate(self.data.to_pylist(), start=self.first)
        except (ValueError, OverflowError) as error:  # a text that is no UTF-8, a time that no calendar has
            problem = f"a value in one of {len(self.data)} rows from here cannot be read ({error})"
            raise InputError(f"{self.file.path}:{self.first}: {problem}; write the file anew without it") from error
        return ((f"{self.file.path}:{number}", plain_row(row)) for number, row in numbered)


class RowFile:
    """The rows of one file, streamed.

    Args:
        path: JSON lines, packed or not, or Parquet: recognised by its first bytes. ``-`` is standard input.
        whole: whether a last line without an end is torn although it can be read: for files whose writer ends every line.

    Attributes:
        torn: after the iteration, how many torn last lines were dropped: 0 or 1.

    Raises:
        InputError: from whatever reads; the file cannot be read, or a line is not one JSON object.
        MissingExtraError: likewise; a Parquet file, and pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, whole: bool = False) -> None:
        self.path = Path(path)
        self._whole = whole
        self._was_read = False
        self.torn = 0

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        with self.open() as file:
            if file.is_table:
                for batch in self._batches(file, 1024):
                    yield from batch.rows()
            else:
                yield from self._texts(file.stream)

    def _texts(self, stream: IO[bytes]) -> Iterator[tuple[str, Row]]:
        """The rows of what is no table."""
        return self.rows_of(1, stream)

    def lines(self) -> int | None:
        """How many lines a JSON lines file has, without reading them as JSON; None for other files, and for pipes."""
        if is_pipe(self.path):
            return None
        with self.open() as file:
            return None if file.is_table else sum(1 for line in self._lines(file.stream) if line.strip())

    def pieces(self, size: int, rows: int, columns: Columns | None = None) -> Iterator[Piece]:
        """The file in pieces, of lines of about so many bytes or at most so many rows; a last line without an end comes alone.

        Of a table, ``columns`` chooses from the dotted paths of its leaf columns.
        """
        with self.open() as file:
            yield from self._batches(file, rows, columns) if file.is_table else self._blocks(file.stream, size)

    def rows_of(self, first: int, lines: Iterable[bytes]) -> Iterator[tuple[str, Row]]:
        """The rows of some lines, of which the first has the number ``first``."""
        for number, line in enumerate(self._lines(lines), start=first):
            if line.strip() and (row := self._row(line, number)) is not None:
                yield f"{self.path}:{number}", row

    def parsed(self, line: bytes, number: int) -> Row:
        """The row in a line."""
        place = f"{self.path}:{number}"
        try:
            row = json.loads(line)
        except RecursionError as error:
            raise InputError(f"{place}: lists or objects lie too deep in each other; remove the line") from error
        except ValueError as error:
            raise InputError(f"{place}: not JSON ({error}); {_cure(line, number)}") from error
        if not isinstance(row, dict):
            raise InputError(f"{place}: a row must be a JSON object, not {type(row).__name__}; {_cure(line, number)}")
        return row

    @contextlib.contextmanager
    def open(self) -> Iterator[Opened]:
        """The file, open; InputError if it cannot be read (again). Packed data that end before their end are a torn last line."""
        if self._was_read and is_pipe(self.path):
            raise InputError(f"{self.path}: a pipe can be read only once; write it to a file first")
        self._was_read = True
        try:
            with contextlib.ExitStack() as stack:
                try:
                    file = stack.enter_context(opened(self.path))
                except EOFError:
                    self.torn, file = 1, Opened(io.BytesIO(), is_table=False)
                yield file
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error}); check the path") from error

    def _row(self, line: bytes, number: int) -> Row | None:
        ended = line.endswith(b"\n")
        try:
            row = self.parsed(line, number)
            if ended or not self._whole:
                return row
        except InputError as error:
            cause = error.__cause__  # a value and more was not torn: files were put together, or lines end in CR
            if ended or not isinstance(cause, ValueError) or getattr(cause, "msg", "") == "Extra data":
                raise
        self.torn = 1
        return None

    def _lines(self, file: Iterable[bytes]) -> Iterator[bytes]:
        try:
            yield from file
        except EOFError:  # packed data end before their end mark: their writer was killed
            self.torn = 1

    def _blocks(self, stream: IO[bytes], size: int) -> Iterator[Piece]:
        first, rest = 1, b""
        for piece in self._lines(iter(lambda: stream.read1(size), b"")):  # type: ignore[attr-defined]
            whole, end, begun = piece.rpartition(b"\n")
            if end:
                yield Piece(self, first, rest + whole + end)
                first += whole.count(b"\n") + 1
            rest = begun if end else rest + begun
        if rest:
            yield Piece(self, first, rest)

    def _batches(self, file: Opened, rows: int, columns: Columns | None = None) -> Iterator[Piece]:
        with needing("parquet"):
            import pyarrow as arrow
            from pyarrow import parquet
        first = 1
        try:
            with parquet.ParquetFile(file.stream, pre_buffer=False) as table:
                paths = [table.schema.column(number).path for number in range(len(table.schema))]
                wanted = columns and columns(paths)
                for group in range(table.num_row_groups):  # one after the other: pyarrow keeps the bytes of all it is asked for
                    for batch in table.iter_batches(batch_size=rows, row_groups=[group], columns=wanted):
                        yield Piece(self, first, batch)
                        first += len(batch)
        except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
            problem = str(error).splitlines()[0]
            raise InputError(f"{self.path}: not a Parquet file ({problem}); write it anew") from error


def _cure(line: bytes, number: int) -> str:
    """A file that begins with something else than an object is of another form."""
    if number == 1 and not line.lstrip().startswith(b"{"):
        return "this reads JSON lines and Parquet; 'bonmini-guard import' reads arrays, CSV and other forms"
    return "mend or remove the line"


def plain_row(value: Any) -> Any:
    """A row, or what is in it, without the nulls with which Arrow fills up keys that other rows have, and with JSON's types alone.

    The content of a turn stays null where the turn has no other: there it says that the turn holds calls alone.
    """
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    if isinstance(value, Mapping):
        kept = {key: plain_row(each) for key, each in value.items() if each is not None}
        return kept | {"content": None} if "role" in kept and value.get("content", 0) is None else kept
    if isinstance(value, list | tuple):
        return [plain_row(each) for each in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    """Numbers as numbers, times as ISO 8601 has them, bytes as their text (in base64 if they are none), all else as its text."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return str(value)
