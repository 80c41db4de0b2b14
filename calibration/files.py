"""Log files as a stream of (place, row): JSON lines, plain or gzip, and Parquet.

A place is ``file:line``, as every message about a bad row begins. One thing is forgiven: a torn last line, which a killed
writer leaves behind.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from bonmini_guard.errors import InputError, MissingExtraError

Row = dict[str, Any]


class RowFile:
    """The rows of one file, streamed.

    Args:
        path: ``.jsonl``, ``.jsonl.gz`` (any gzip file is recognised by its first bytes) or ``.parquet``.

    Attributes:
        torn: after the iteration, how many torn last lines were dropped: 0 or 1.

    Raises:
        InputError: while iterating; the file cannot be read, or a line is not one JSON object.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.torn = 0

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        try:
            yield from self._parquet() if self.path.suffix == ".parquet" else self._json_lines()
        except OSError as error:
            raise InputError(f"{self.path}: cannot read the log ({error.strerror or error}); check the path") from error

    def lines(self) -> int:
        """How many lines a JSON lines file has, without reading them as JSON.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            with self._open() as file:
                return sum(1 for line in self._lines(file) if line.strip())
        except OSError as error:
            raise InputError(f"{self.path}: cannot read the log ({error.strerror or error}); check the path") from error

    def _json_lines(self) -> Iterator[tuple[str, Row]]:
        with self._open() as file:
            for number, line in enumerate(self._lines(file), start=1):
                if not line.strip():
                    continue
                place = f"{self.path}:{number}"
                row = self._parse(line, place)
                if row is not None:
                    yield place, row

    def _open(self) -> IO[bytes]:
        with self.path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        return gzip.open(self.path, "rb") if compressed else self.path.open("rb")  # type: ignore[return-value]

    def _lines(self, file: IO[bytes]) -> Iterator[bytes]:
        try:
            yield from file
        except EOFError:  # the gzip stream ends before its end mark: its writer was killed
            self.torn = 1
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{self.path}: the gzip data are damaged ({error}); copy the file again") from error

    def _parse(self, line: bytes, place: str) -> Row | None:
        try:
            row = json.loads(line)
        except RecursionError as error:
            raise InputError(f"{place}: lists or objects lie too deep in each other; remove the line") from error
        except ValueError as error:
            if not line.endswith(b"\n"):  # every finished line has one, so this is the torn last line
                self.torn = 1
                return None
            raise InputError(f"{place}: not JSON ({error}); mend or remove the line") from error
        if not isinstance(row, dict):
            raise InputError(f"{place}: a row must be a JSON object, not {type(row).__name__}; one row a line")
        return row

    def _parquet(self) -> Iterator[tuple[str, Row]]:
        try:
            import pyarrow as arrow
            from pyarrow import parquet
        except ImportError as error:
            raise MissingExtraError("pyarrow", "parquet") from error
        try:
            number = 0
            for batch in parquet.ParquetFile(self.path).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{self.path}:{number}", {key: value for key, value in row.items() if value is not None}
        except arrow.ArrowInvalid as error:
            problem = str(error).splitlines()[0]
            raise InputError(f"{self.path}: not a Parquet file ({problem}); write it anew") from error
