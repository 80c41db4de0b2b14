"""Records of other tools, whatever form they come in: JSON lines, arrays and documents of JSON, CSV and TSV, Parquet."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, dropwhile
from typing import IO, Any

from bonmini_guard.errors import InputError
from bonmini_guard.logs.odd import Odd
from bonmini_guard.logs.reading import Row, RowFile

_OPEN = "a quote is not closed where its cell ends, and takes in lines after it; close it, and double quotes within quoted cells"


class Records(RowFile):
    """The records of one file as (place, record); a place is ``file:line``, or ``file:number`` in an array.

    InputError while iterating, if the file cannot be read, or is in none of these forms, or more is odd than may be.

    Args:
        path: as :class:`RowFile` takes it; in any of these forms, which the first line tells.
        odd: is told of what is no record, which is then left out.
    """

    def __init__(self, path: str | os.PathLike[str], odd: Odd | None = None) -> None:
        super().__init__(path)
        self._odd = odd or Odd()

    def _texts(self, stream: IO[bytes]) -> Iterator[tuple[str, Row]]:
        blank, lines = [], self._lines(stream)
        for line in lines:
            blank.append(line)
            if line.strip():
                break
        first = b"".join(blank).strip()
        value = None
        with suppress(ValueError, RecursionError):
            value = json.loads(first)
        whole = isinstance(value, dict)
        self._refuse_columns(value)
        if first.startswith((b"[", b"{")) and not whole:
            yield from self._documents(b"".join(chain(blank, lines)))
        elif whole:
            yield from self.rows_of(1, chain(blank, lines))
        elif first:
            yield from self._table(b"".join(chain(blank, lines)))

    def _refuse_columns(self, value: Any) -> None:
        if value and isinstance(value, dict) and any(map(_is_numbered, ([value], value.values()))):
            raise InputError(f"{self.path}: a table by columns, as pandas' to_json writes it; write it with orient='records'")

    def _row(self, line: bytes, number: int) -> Row | None:
        """JSON lines; those that are none are odd."""
        try:
            return super()._row(line, number)
        except InputError as error:
            self._odd.lose(f"{self.path}:{number}", error)
            return None

    def _documents(self, data: bytes) -> Iterator[tuple[str, Row]]:
        """JSON over several lines, value after value, of which arrays are taken apart; else lines of which the first is odd."""
        try:
            values = list(_values(data.decode()))
        except RecursionError as error:
            raise InputError(f"{self.path}: lists or objects lie too deep in each other; give another file") from error
        except ValueError as error:
            if data.lstrip().startswith(b"["):
                raise InputError(f"{self.path}: not JSON ({error}); copy the file again") from error
            yield from self.rows_of(1, data.splitlines(keepends=True))
            return
        self._refuse_columns(next(iter(values), None))
        parts = (part for value in values for part in (value if isinstance(value, list) else [value]))
        for number, part in enumerate(parts, start=1):
            if isinstance(part, dict):
                yield f"{self.path}:{number}", part
            else:
                problem = InputError(f"a record must be a JSON object, not {type(part).__name__}; remove it")
                self._odd.lose(f"{self.path}:{number}", problem)

    def _table(self, data: bytes) -> Iterator[tuple[str, Row]]:
        """CSV with a header; cells are texts, empty ones are missing, and lists of turns are read as such."""
        if self.torn:  # packed data that end within a line
            data = data[: data.rfind(b"\n") + 1]
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}: neither JSON nor UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
            ) from error
        # A table may begin with a tab, and that of a spreadsheet with a line that says what separates cells.
        table = re.sub(r"\A[\r\n]*(sep=.[\r\n]+)?", "", text)
        header, above = next(iter(table.splitlines()), ""), text.removesuffix(table).count("\n")
        delimiter = max(",\t;", key=header.count)
        if not header.count(delimiter):
            problem = "neither JSON nor a header of columns; give JSON lines, an array, CSV or Parquet"
            raise InputError(f"{self.path}:{above + 1}: {problem}")
        csv.field_size_limit(2**31 - 1)  # the default refuses long answers
        form: dict[str, Any] = {"delimiter": delimiter, "skipinitialspace": True}
        lines = io.StringIO(table, newline="").readlines()
        reader = csv.DictReader(lines, **form)
        try:
            names = list(reader.fieldnames or ())
            if twice := next((name for name in names if name and names.count(name) > 1), None):
                raise InputError(f"{self.path}:{above + 1}: two columns are called {twice!r}; rename one")
            read = reader.line_num
            if _takes_lines_in(lines[:read], form):
                raise InputError(f"{self.path}:{above + 1}: {_OPEN}")
            for cells in reader:
                begun, read = read, reader.line_num
                place, own = f"{self.path}:{above + read}", list(dropwhile(str.isspace, lines[begun:read]))
                if (len(own) > 1 or read == len(lines)) and _takes_lines_in(own, form):
                    self._odd.lose(f"{self.path}:{above + read + 1 - len(own)}", InputError(_OPEN))
                elif any(cells.pop(None, ())):
                    self._odd.lose(place, InputError(f"more cells than columns; quote those that hold {delimiter!r}"))
                else:
                    yield place, {key: _cell(cell) for key, cell in cells.items() if cell}
        except csv.Error as error:
            raise InputError(f"{self.path}:{above + reader.line_num}: not CSV ({error}); mend the line") from error


def _takes_lines_in(lines: list[str], form: Mapping[str, Any]) -> bool:
    """Whether a quote takes in lines after its own, until another cell's quote; csv.Error if it is never closed."""
    try:
        closed = (re.sub(r'" +(?=[,;\t\r\n]|\Z)', '"', line) for line in lines)  # white space behind a quote is let be
        list(csv.reader(closed, strict=True, **form))
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise
        return len(lines) > 1
    return False


def _is_numbered(tables: Iterable[Any]) -> bool:
    """Whether all are objects whose keys are numbers, as the rows of a table are called that has no other names for them."""
    return all(isinstance(table, dict) and table and all(map(str.isdecimal, table)) for table in tables)


def _values(text: str) -> Iterator[Any]:
    """The values of a text of JSON, one after the other."""
    decode: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode
    at = 0
    while at < len(text):
        if text[at].isspace() or text[at] == ",":
            at += 1
        else:
            value, at = decode(text, at)
            yield value


def _cell(cell: Any) -> Any:
    """A list of turns is what it says; every other cell is a text, whatever it looks like."""
    if not isinstance(cell, str) or not cell.startswith("[{"):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return value if all(isinstance(turn, dict) and not turn.keys().isdisjoint(("role", "from")) for turn in value) else cell
