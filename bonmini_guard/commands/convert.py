"""``bonmini-guard convert``: labelled data of other shapes, as choice rows."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bonmini_guard.commands import add_max_bad, say_left_out
from bonmini_guard.commands.terminal import say
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.logs.odd import Odd
from bonmini_guard.training.choices import ChoiceRow, as_record
from bonmini_guard.training.data.converters import EMITTERS, FORMATS, ConversionOptions, Tally, convert, in_held_out
from bonmini_guard.training.data.statistics import Statistics, show
from bonmini_guard.writing import appearing, check_output

HELP = "convert preferences, accept/reject labels, ratings, pairs or logs to choice rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="+", metavar="FILES", help="records: JSON lines, arrays, CSV or Parquet; - is stdin")
    parser.add_argument("--from", dest="source", required=True, choices=list(FORMATS), help="what the records are")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="where to write: .jsonl or .jsonl.gz")
    parser.add_argument("--cut", type=float, help="the lowest rating (or score) of an acceptable answer")
    parser.add_argument("--rating", metavar="KEY", help="key of the rating, with dots for deeper ones")
    parser.add_argument("--ties", choices=["drop", "winner"], default="drop", help="a tie tells nothing about zero (default: drop)")
    parser.add_argument("--rows", choices=list(EMITTERS), default="single", help="what judged answers become (default: single)")
    offered = parser.add_mutually_exclusive_group()
    offered.add_argument("--none-offered", dest="none_offered", action="store_true", default=None, help="'none' could be chosen")
    offered.add_argument("--only-compared", dest="none_offered", action="store_false", help="'none' could not be chosen")
    parser.add_argument("--held-out", type=Path, metavar="FILE", help="write a share of the prompts there instead")
    parser.add_argument("--held-out-share", type=float, default=0.1, metavar="SHARE", help="that share (default 0.1)")
    add_max_bad(parser)
    parser.add_argument("--seed", type=int, default=0, help="of random winners and of the held-out prompts")


def run(options: argparse.Namespace) -> int:
    """Convert, and print what the rows are like."""
    _check(options)
    tally, found = Tally(odd=Odd(options.max_bad)), Statistics()
    with ExitStack() as files:
        outputs = {held: files.enter_context(appearing(path)) for held, path in _targets(options).items()}
        written = dict.fromkeys(outputs, 0)
        for row in _rows(options, tally):
            held = options.held_out is not None and in_held_out(row, options.held_out_share, options.seed)
            outputs[held].write(json.dumps(as_record(row), ensure_ascii=False) + "\n")
            written[held] += 1
            if not held:
                found.add(row)
        tally.odd.check()
        _refuse_empty(options, tally, written)
    for held, path in _targets(options).items():
        say(f"{path}: {written[held]:,} choice rows")
    say_left_out(tally.odd, tally.left_out)
    say(show(found))
    return 0


def _check(options: argparse.Namespace) -> None:
    for path in _targets(options).values():
        check_output(path, options.files, lines=True)
    if options.cut is not None and not math.isfinite(options.cut):
        raise ConfigurationError(f"--cut is {options.cut}: give a number that ratings can reach")
    if not 0 < options.held_out_share < 1:
        raise ConfigurationError(f"--held-out-share is {options.held_out_share}: use a share between 0 and 1")
    if options.held_out is not None and options.held_out == options.output:
        raise ConfigurationError(f"{options.output}: is both the output and --held-out; give two names")


def _targets(options: argparse.Namespace) -> dict[bool, Path]:
    return {False: options.output} | ({True: options.held_out} if options.held_out is not None else {})


def _rows(options: argparse.Namespace, tally: Tally) -> Iterator[ChoiceRow]:
    from bonmini_guard.logs.records import Records

    plan = ConversionOptions(options.cut, options.rating, options.ties, options.rows, options.none_offered, options.seed)
    for path in options.files:
        file = Records(path, tally.odd)
        yield from convert(file, options.source, plan, tally)
        tally.left_out["torn last lines"] += file.torn


def _refuse_empty(options: argparse.Namespace, tally: Tally, written: dict[bool, int]) -> None:
    if not tally.rows:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in tally.left_out.items() if count)
        why = reasons or "no labels"
        raise InputError(f"{options.files[0]}: no choice rows in {tally.odd.records:,} records ({why}); check --from")
    empty = next((path for held, path in _targets(options).items() if not written[held]), None)
    if empty is not None:
        raise InputError(f"{empty}: no prompt would go there; change --held-out-share")
