"""``bonmini-guard import``: make a log of what LangSmith, Langfuse, OpenTelemetry, lm-eval or Inspect logged, or of a table."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bonmini_guard.commands import add_max_bad, say_left_out
from bonmini_guard.commands.terminal import say
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.logs.odd import Odd, as_input
from bonmini_guard.logs.records import Records
from bonmini_guard.logs.rows import name_of
from bonmini_guard.logs.sources import inspect_ai, langfuse, langsmith, lm_eval, otel, tables
from bonmini_guard.logs.sources.draws import Draw, Rows, first
from bonmini_guard.logs.sources.messages import answers_in, prompt_in
from bonmini_guard.writing import appearing, check_output

Record = Mapping[str, Any]
_STRANGE = "is not what --from says wrote it"


@dataclass(frozen=True)
class Source:
    """How to read what a tool wrote.

    Attributes:
        draws: the answers in a unit, what is none left out and counted; InputError where one lacks a prompt, or answer and error.
        units: the calls in a record, which may hold many.
        gather: what makes several answers one row there.
        own: the fields that it reads from a unit itself, and where: there a column goes that is mapped to one.
    """

    draws: Callable[[Record, Counter[str]], Iterator[Draw]]
    units: Callable[[Record], Iterator[Record]] = lambda record: iter((record,))
    gather: str = "none"
    own: Mapping[str, str] = field(default_factory=lambda: {"model": "model"})


#: What a column or a verdict may be mapped to.
_FIELDS = ["id", "group", "prompt", "text", "failed", "score", "acceptable", "acceptable_by", "tokens"]
_FIELDS += ["started", "finished", "model"]
#: What is said of one answer; the other fields hold for all answers of a call.
_OF_ONE = ("text", "failed", "score", "acceptable", "acceptable_by", "tokens")

_SOURCES: dict[str, Callable[[], Source]] = {
    "langsmith": lambda: Source(langsmith.draws, own={"prompt": "inputs", "text": "outputs", "model": "model"}),
    "langfuse": lambda: Source(langfuse.draws, langfuse.units, own={"prompt": "input", "text": "output", "model": "model"}),
    "otel": lambda: Source(otel.draws, otel.units),
    "lm-eval": lambda: Source(partial(lm_eval.draws, {}), gather="id"),
    "inspect": lambda: Source(inspect_ai.draws, inspect_ai.units, gather="id"),
    **dict.fromkeys(("csv", "parquet", "json"), lambda: Source(tables.draws, gather="id", own={name: name for name in _FIELDS})),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="+", metavar="SOURCE", help="files: JSON lines, arrays, CSV, Parquet, .eval; - is stdin")
    parser.add_argument("--from", dest="source", required=True, choices=list(_SOURCES), help="what wrote them")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="LOG", help="where to write: .jsonl or .jsonl.gz")
    told = f"take a column, a feedback, a metric or a scorer (dots go deeper) for one of {', '.join(_FIELDS)}; may be repeated"
    parser.add_argument("--map", action="append", default=[], metavar="COLUMN=FIELD", help=told)
    gathering = "what makes answers one row (default: id for evaluations and tables, prompt for tables without ids, else none)"
    parser.add_argument("--gather", choices=["id", "prompt", "none"], help=gathering)
    parser.add_argument("--generated-by", metavar="NAME", help="what drew the answers, in place of what the source says")
    add_max_bad(parser)


def run(options: argparse.Namespace) -> int:
    """Import, and print what was taken and what was left."""
    check_output(options.output, options.files, lines=True)
    job = _Import(_SOURCES[options.source](), _mapping(options.map), options.generated_by, Odd(options.max_bad))
    for path in options.files:
        records = Records(path, job.odd)
        job.read(inspect_ai.archive(Path(path)) if path.endswith(".eval") else records)
        job.left_out["torn last lines"] += records.torn
    job.odd.check()
    gather = options.gather or job.source.gather
    if options.gather is None and gather == "id" and all(draw.id is None for draw, _ in job.draws):
        gather = "prompt"
    rows = Rows(gather)
    for draw, place in job.draws:
        rows.add(draw, place)
    found = rows.finished()
    if not found:
        why = ", ".join(f"{reason}: {count:,}" for reason, count in (+job.left_out).items()) or "no records"
        raise InputError(f"{options.files[0]}: nothing to import from {job.odd.records:,} records ({why}); check --from")
    with appearing(options.output) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    _tell(options.output, found, rows.generators, job)
    say(f"next: bonmini-guard start {shlex.quote(str(options.output))}")
    return 0


class _Import:
    """What was read so far.

    Attributes:
        mapping: columns and verdicts, to the fields that they are taken for.
        draws: with the places of their records.
        left_out: what is no answer, by kind.
        verdicts: what was said of answers and is not taken.
        seen: columns and verdicts that some record has had.
        odd: records that cannot be read.
    """

    def __init__(self, source: Source, mapping: dict[str, str], generator: str | None, odd: Odd) -> None:
        self.source, self.mapping, self._generator = source, mapping, generator
        self.draws: list[tuple[Draw, str]] = []
        self.left_out: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.seen: set[str] = set()
        self.odd = odd

    def read(self, records: Iterable[tuple[str, Record]]) -> None:
        """Read a file; InputError if it cannot be read, or no odd record is borne and one is."""
        for place, record in records:
            try:
                with as_input(_STRANGE):
                    units = list(self.source.units(record))
            except InputError as error:
                self.odd.lose(place, error)
                continue
            for number, unit in enumerate(units, start=1):
                self._read(unit, place if len(units) == 1 else f"{place}#{number}")

    def _read(self, unit: Record, place: str) -> None:
        self.odd.records += 1
        try:
            with as_input(_STRANGE):
                found = {column: value for column in self.mapping if (value := first(unit, column)) is not None}
                self.seen |= found.keys()
                own, fields, found = self.source.own, self.mapping, self._that_count(found)
                renamed = {own[fields[column]]: value for column, value in found.items() if fields[column] in own}
                judges = [("acceptable_by", column) for column in found if fields[column] == "acceptable" and "acceptable" in own]
                drawn = list(self.source.draws({**unit, **dict(judges), **renamed}, self.left_out))
                found = {column: value for column, value in found.items() if fields[column] not in own}
                # What is said of several answers at once is said of none of them.
                said = (column for draw in drawn[1:] for column in (*found, *draw.verdicts))
                shared = list(dict.fromkeys(column for column in said if fields.get(column) in _OF_ONE))
                self.left_out.update(f"{column} of several answers at once" for column in shared)
                self.draws += [(self._mapped(draw, found, shared), place) for draw in drawn]
        except InputError as error:
            self.odd.note(place, error)

    def _mapped(self, draw: Draw, found: Record, shared: Sequence[str]) -> Draw:
        """The draw with what is mapped, and not shared by several: of its record, what its source does not read; its verdicts."""
        verdicts = {name: value for name, value in draw.verdicts.items() if value is not None}
        told, others = {**found, **verdicts}, [column for column in self.mapping if self.mapping[column] not in self.source.own]
        said = self._that_count({column: told[column] for column in others if column in told and column not in shared})
        given = {self.mapping[column]: value for column, value in said.items()}
        judges = [("acceptable_by", column) for column in said if self.mapping[column] == "acceptable"]
        draw.fields |= tables.fields_of({**draw.fields, **dict(judges), **given}, self.left_out)
        draw.id, draw.group = (name_of(given.get(key)) or known for key, known in (("id", draw.id), ("group", draw.group)))
        draw.prompt = prompt_in(given["prompt"]) if "prompt" in given else draw.prompt
        if draw.fields["failed"]:
            draw.answer = None
        elif "text" in given and draw.answer is not None:
            [draw.answer] = answers_in(given["text"])
        draw.generator = self._generator or draw.generator
        self.seen |= draw.verdicts.keys()
        self.verdicts.update(name for name in verdicts if name not in self.mapping)
        return draw

    def _that_count(self, found: Record) -> dict[str, Any]:
        """Of the columns for one field the one that is mapped last; the others are left out."""
        last = {self.mapping[column]: column for column in found}
        chosen = ((column, last[self.mapping[column]]) for column in found)
        self.left_out.update(f"{column}, beside {other} for the same field" for column, other in chosen if other != column)
        return {column: found[column] for column in last.values()}


def _mapping(pairs: Iterable[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        column, equals, name = pair.rpartition("=")
        if not (column and equals) or name not in _FIELDS or column in found:
            raise ConfigurationError(f"--map {pair!r}: write COLUMN=FIELD, once for a column, with a field of {', '.join(_FIELDS)}")
        found[column] = name
    return found


def _tell(output: Path, rows: list[dict[str, Any]], generators: Counter[str], job: _Import) -> None:
    candidates = [one for row in rows for one in row["candidates"]]
    say(f"{output}: {len(rows):,} rows, {len(candidates):,} candidates")
    keys = Counter(key for one in candidates for key, value in one.items() if value is not None)
    say("taken: " + ", ".join(f"{key} {count:,}" for key, count in keys.items()))
    for name, count in generators.most_common():
        say(f"generated by {name}: {count:,}")
    if len(generators) > 1:
        told = "a certificate holds for one, and 'calibrate' refuses a log that mixes them"
        print(f"warning: {len(generators)} generators: {told}", file=sys.stderr)
    for column in (column for column in job.mapping if column not in job.seen):
        print(f"nothing found under {column}, in any record: check --map {column}={job.mapping[column]}", file=sys.stderr)
    for said, count in job.verdicts.items():
        how = f"; --map {shlex.quote(f'{said}=acceptable')} (or another field) takes it" if said else ""
        print(f"left: {said or 'a column without a name'} ({count:,} answers){how}", file=sys.stderr)
    say_left_out(job.odd, job.left_out)
