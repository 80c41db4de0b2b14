"""``bonmini-guard convert``: convert preferences, accept/reject labels, ratings, pairs or logs to choice rows."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bonmini_guard.commands import add_max_bad, say_left_out
from bonmini_guard.commands.terminal import say
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.logs.odd import Odd
from bonmini_guard.training.choices import as_record
from bonmini_guard.training.data.converters import FORMATS, ROWS, ConversionOptions, Tally, convert
from bonmini_guard.training.data.statistics import Statistics, show
from bonmini_guard.writing import appearing, check_output

_JUDGED, _COMPARED = ("ratings", "log"), ("pairs", "preferences", "ranks", "label-studio")
#: Options that some formats alone have.
_OF = {
    "cut": ("--cut", _JUDGED),
    "rating": ("--rating", _JUDGED),
    "rows": ("--rows", (*_JUDGED, "accept-reject", "ranks")),
    "ties": ("--ties", _COMPARED),
    "none_offered": ("--none-offered and --only-compared", _COMPARED),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="+", metavar="FILES", help="records: JSON lines, arrays, CSV or Parquet; - is stdin")
    parser.add_argument("--from", dest="source", required=True, choices=list(FORMATS), help="what the records are")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="where to write: .jsonl or .jsonl.gz")
    parser.add_argument("--cut", type=float, help="the lowest rating (or score) of an acceptable answer")
    parser.add_argument("--rating", metavar="KEY", help="key of the rating, with dots for deeper ones")
    parser.add_argument("--ties", choices=["drop", "winner"], help="a tie tells nothing about zero (default: drop)")
    parser.add_argument("--rows", choices=list(ROWS), help="what judged answers become (default: single)")
    offered = parser.add_mutually_exclusive_group()
    offered.add_argument("--none-offered", dest="none_offered", action="store_true", default=None, help="'none' could be chosen")
    offered.add_argument("--only-compared", dest="none_offered", action="store_false", help="'none' could not be chosen")
    add_max_bad(parser)
    parser.add_argument("--seed", type=int, default=0, help="of random winners")


def run(options: argparse.Namespace) -> int:
    """Convert, and print what the rows are like."""
    check_output(options.output, options.files, lines=True)
    if options.cut is not None and not math.isfinite(options.cut):
        raise ConfigurationError(f"--cut is {options.cut}: give a number that ratings can reach")
    for name, (said, sources) in _OF.items():
        if getattr(options, name) is not None and options.source not in sources:
            raise ConfigurationError(f"leave out {said}, of --from {', '.join(sources)} alone")
    if options.source == "ranks" and options.rows == "single":
        raise ConfigurationError("leave out --rows single: ranks compare answers, and become one choice, or --rows pairs")
    if options.source == "log" and options.rating is not None and options.cut is None:
        raise ConfigurationError("--rating says what --cut is of: give --cut, too, or leave it out")
    tally, found = Tally(odd=Odd(options.max_bad)), Statistics()
    named = {name: value for name in _OF if (value := getattr(options, name)) is not None}
    plan = ConversionOptions(**named, seed=options.seed)
    with appearing(options.output) as output:
        for row in convert(_records(options.files, tally), options.source, plan, tally):
            output.write(json.dumps(as_record(row), ensure_ascii=False) + "\n")
            found.add(row)
        tally.odd.check()
        if not tally.rows:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in tally.left_out.items() if count)
            why = f"{tally.odd.records:,} records ({reasons or 'no labels'})"
            raise InputError(f"{options.files[0]}: no choice rows in {why}; check --from")
    say(f"{options.output}: {tally.rows:,} choice rows")
    say_left_out(tally.odd, tally.left_out)
    if tally.judges:
        said = ", ".join(f"{name}: {count:,}" for name, count in tally.judges.most_common())
        say(f"labels that say who or what judged (acceptable_by): {said}")
    say(show(found))
    return 0


def _records(paths: Sequence[str], tally: Tally) -> Iterator[tuple[str, dict[str, Any]]]:
    from bonmini_guard.logs.records import Records

    for path in paths:
        file = Records(path, tally.odd)
        yield from file
        tally.left_out["torn last lines"] += file.torn
