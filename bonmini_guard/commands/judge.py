"""``bonmini-guard judge``: hold a judge's verdicts against people's labels; certifies nothing."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from bonmini_guard.commands import check_readable, row_key, say_torn
from bonmini_guard.commands.terminal import say, shown, table, width
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.logs.opening import is_pipe
from bonmini_guard.writing import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("logs", nargs="+", metavar="LOGS", help="log rows with acceptable = true or false, by people")
    parser.add_argument("--judge", required=True, metavar="SPEC", help="a scorer spec, or a reward model with a zero")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="the log with verdicts: .jsonl[.gz]")
    parser.add_argument("--name", help="what it is called in the log (default: the name of the spec)")
    parser.add_argument("--slice", type=row_key, metavar="KEY", help="a row key: agreement within each of its values, too")
    parser.add_argument("--alpha", type=float, default=0.05, help="of the certificate tried with its verdicts (default 0.05)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(options: argparse.Namespace) -> int:
    """Judge, and report."""
    check_output(options.output, options.logs, lines=True)
    check_readable(options.logs)
    from bonmini_guard.calibration.evidence import check_share
    from bonmini_guard.calibration.judging import agreement, judged, moved_certificate
    from bonmini_guard.calibration.scoring_logs import score_log
    from bonmini_guard.logs.rows import rows_in
    from bonmini_guard.reward.declared import load_scorer

    check_share("--alpha", options.alpha)
    answers = (one for row in rows_in(*options.logs) for one in row.candidates)
    if not any(map(is_pipe, options.logs)) and all(one.label is None for one in answers):
        raise InputError(f"{options.logs[0]}: no answer is labelled by people; give a log with acceptable = true or false")
    name = options.name or Path(options.judge).stem
    with closing(load_scorer(options.judge)) as judge, shown() as progress:
        if not judge.has_zero:
            raise ConfigurationError(f"{options.judge}: its scores only rank, so they are no verdicts; see 'bonmini-guard zero'")
        tally = score_log(
            options.logs, judge, options.output, beside=name, progress=lambda rows: progress.say(f"{rows:,} rows judged")
        )
    say_torn(tally.torn)
    found = agreement(judged(rows_in(options.output), name, options.slice))
    if options.slice and not any(name.startswith("kappa, ") for name in found["figures"]):
        print(f'no labelled row has the key "{options.slice}": give --slice a key of the rows', file=sys.stderr)
    found["certificate"] = moved_certificate(rows_in(options.output), name, options.alpha, 0.1)
    if options.json:
        print(json.dumps(found, allow_nan=False))
    else:
        say(_said(found, name, options.output))
    return 0


def _said(found: dict[str, Any], name: str, output: Path) -> str:
    silent = f", {found['without a verdict']:,} without a verdict" if found["without a verdict"] else ""
    lines = [f"{name}: {found['answers']:,} answers to {found['prompts']:,} prompts{silent}"]
    figures = ((key, ["-" if each is None else f"{each:.3f}" for each in told]) for key, told in found["figures"].items())
    rows = [[key, value, f"{low} to {high}"] for key, (value, low, high) in figures]
    lines.append(table(("people and judge", "", "95 % over prompts"), rows, width()))
    tried = found["certificate"]
    if tried["threshold"] is None:
        lines.append(f"its verdicts certify no guardrail at alpha {tried['alpha']} (rows need scores, labels, verdicts throughout)")
    else:
        bad = f"to {tried['by_judge']:.3f} of the requests by its word, and to {tried['by_people']:.3f} by people's"
        lines.append(f"a guardrail calibrated on its verdicts at alpha {tried['alpha']} serves bad answers {bad}")
    lines.append(f"{output}: verdicts stand beside the labels, never in their place; calibrate on people's")
    return "\n".join(lines)
