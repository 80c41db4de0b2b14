"""What every benchmark prints and writes: a table, and JSON with the command and the machine that made it."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bonmini_guard.logs.reading import RowFile
from bonmini_guard.writing import appearing


def arguments(about: str | None, **known: Any) -> argparse.ArgumentParser:
    """A parser with an option of each name: a type has no default, False is a switch, any other value is the default.

    ``about``, whose first paragraph is shown, is the docstring of the benchmark.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n\n")[0])
    for name, value in known.items():
        kind = value if isinstance(value, type) else Path if isinstance(value, Path) else type(value)
        how: dict[str, Any] = {"action": "store_true"} if value is False else {"type": kind}
        parser.add_argument(f"--{name.replace('_', '-')}", default=None if value is kind else value, **how)
    return parser


def machine() -> dict[str, Any]:
    """The processor, its cores and the Python that ran."""
    return {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def command() -> str:
    """The command line, without the machine's folders."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"python -m {module.name.removesuffix('.__main__')}" if module is not None else Path(sys.argv[0]).name
    return " ".join([name, *(Path(part).name if os.path.isabs(part) else part for part in sys.argv[1:])])


def write_json(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write the results with command, machine and date; nothing without a path."""
    if path is None:
        return
    about = {"command": command(), "machine": machine(), "date": datetime.now(UTC).date().isoformat()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | dict(results), indent=1) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, gzipped if they are named so; the file appears only when it is complete."""
    with appearing(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file of JSON lines, gzipped or not, but for a torn last line."""
    return [row for _, row in RowFile(path)]


def keep_rows(path: Path, rows: Iterable[Mapping[str, Any]], **form: Any) -> None:
    """The same for the repository: without a time stamp, so that the same rows are the same bytes; ``form`` is JSON's."""
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as file:
        file.writelines((json.dumps(row, **form) + "\n").encode() for row in rows)


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for number, row in enumerate(cells):
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")


def with_interval(figure: Sequence[float | None] | None, digits: int = 3) -> str:
    """A figure with the ends of its interval; "-" where there is none."""
    return "-" if figure is None or figure[0] is None else "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*figure, d=digits)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
