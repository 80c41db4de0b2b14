"""``bonmini-guard label``: label logs in the browser: A, B or neither, or accept and reject; exports choice and log rows."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonmini_guard.commands import logs_in_words, refuse_pipes
from bonmini_guard.commands.calibrate import ALPHA, DELTA, EPSILON, NOT_ENOUGH, RISKS, choose_schedule, schedule_of
from bonmini_guard.commands.replay import say_what_was_left_out
from bonmini_guard.commands.terminal import say
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.writing import check_output, write_atomically

if TYPE_CHECKING:
    from bonmini_guard.labelling.items import Goal, Plan
    from bonmini_guard.labelling.on_demand import OnDemand
    from bonmini_guard.labelling.rows import LabelRow
    from bonmini_guard.labelling.session import Session

EXPORTS = ("choices", "log", "label-studio", "argilla")
IMPORTS = ("label-studio", "argilla")

#: What does not speak against --agreement; --host and --port, which have defaults, are let be.
_BESIDE_AGREEMENT = ("agreement", "json", "host", "port", "command", "run")
#: What a session that exists says by itself.
_PLANNED = ("mode", "seed", "pairs")
#: What goes with --for.
_OF_FOR = ("alpha", "epsilon", "delta", "schedule", "rows")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("logs", nargs="*", metavar="LOGS", help="log files: JSON lines, packed or not, or Parquet; - is stdin")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="file of label events; one that exists is continued")
    parser.add_argument("--mode", choices=("choice", "accept"), help="A, B or neither (default); or one answer at a time")
    parser.add_argument("--annotator", metavar="NAME", help="whose labels these are (default: the page asks)")
    parser.add_argument("--question", metavar="TEXT", help="what annotators are asked: say what counts as acceptable")
    parser.add_argument("--pairs", type=int, metavar="N", help="choice: pairs of each row, at most (default 1)")
    parser.add_argument("--only", nargs="+", metavar="ID", help="these rows alone, in an OUT that is not calibrated on")
    parser.add_argument("--seed", type=int, help="of the order of items and sides (default 0)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: any free one)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    group = parser.add_argument_group("only what a certificate needs")
    group.add_argument("--for", dest="what", choices=(*RISKS, "accelerator"), help="ask on demand, strict thresholds first")
    group.add_argument("--alpha", type=float, help=f"the most that the risk may be (default {ALPHA:g})")
    group.add_argument("--epsilon", type=float, help=f"accelerator: the most quality that may be lost (default {EPSILON:g})")
    group.add_argument("--delta", type=float, help=f"chance that the promise is missed (default {DELTA:g})")
    group.add_argument("--schedule", type=schedule_of, metavar="4,28", help="draws of each loop (default 4 x 8, or what fits)")
    group.add_argument("--rows", type=int, metavar="N", help="rows that count, fixed before the first label (default all)")
    sources, kinds = " or ".join(IMPORTS), ", ".join(EXPORTS)
    repeated: dict[str, Any] = {"action": "append", "default": [], "metavar": "KIND=FILE"}
    parser.add_argument("--export", type=partial(_kind_and_file, EXPORTS), help=f"no page: write {kinds}", **repeated)
    parser.add_argument("--import", type=partial(_kind_and_file, IMPORTS), dest="imports", help=f"... read {sources}", **repeated)
    parser.add_argument("--agreement", type=Path, metavar="OUT", help="no page, no LOGS: how far the annotators of OUT agree")
    parser.add_argument("--json", action="store_true", help="with --agreement: print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Serve the page, or export, import, or tell the agreement; 3 if no labels of these rows could certify what is asked."""
    _check(options)
    if options.agreement is not None:
        return _agreement(options.agreement, options.json)
    from bonmini_guard.labelling.rows import read_rows
    from bonmini_guard.labelling.session import Session

    rows = read_rows(options.logs)
    plan, question = _settings(options)
    only_export = options.export and not options.imports and options.what is None
    plan, asking, short = (plan, None, None) if only_export else _demanded(rows, plan, options)
    if short:
        print(f"bonmini-guard label: {short}", file=sys.stderr)
        return NOT_ENOUGH
    session = partial(Session, rows, options.output, plan, question, asking, only=options.only or ())
    return (_exchange if options.export or options.imports else _page)(session, options)


def _check(options: argparse.Namespace) -> None:
    """Refuse what can be refused before a large log is read."""
    if options.agreement is not None:
        others = {name: value for name, value in vars(options).items() if name not in _BESIDE_AGREEMENT}
        if any(value is not None and value is not False and value != [] for value in others.values()):
            raise ConfigurationError("--agreement OUT needs nothing but --json; leave out LOGS, -o and every other option")
        return
    if options.json:
        raise ConfigurationError("--json belongs to --agreement; leave it out")
    if not options.logs or options.output is None:
        raise ConfigurationError("give LOGS and -o OUT, the file in which labels are kept")
    if (options.export or options.imports) and (options.open or options.annotator is not None):
        raise ConfigurationError("--open and --annotator are the page's, which exports and imports do not show; leave them out")
    _check_plan(options)
    targets = [options.output, *(path for _, path in options.export)]
    for path in targets:
        check_output(path)
    same = [path.resolve() for path in [*targets, *map(Path, options.logs), *(path for _, path in options.imports)]]
    if len(set(same)) < len(same):
        raise ConfigurationError("LOGS, -o, imports and exports must all be different files; give them different names")


def _check_plan(options: argparse.Namespace) -> None:
    if options.pairs is not None and (options.pairs < 1 or options.mode == "accept"):
        raise ConfigurationError("--pairs is 1 or more and belongs to --mode choice")
    if options.only and options.what:
        raise ConfigurationError("--only picks rows by hand, and --for must not be picked for; give one of them")
    from bonmini_guard.labelling.events import is_begun

    given = _given(options, *_OF_FOR)
    if options.what is None:
        if given and not is_begun(options.output):
            raise ConfigurationError(f"--{next(iter(given))} belongs to --for; give both or neither")
        return
    if options.mode == "choice" or options.pairs is not None:
        raise ConfigurationError("--for asks about one answer at a time; leave out --mode choice and --pairs")
    foreign = "alpha" if options.what == "accelerator" else "epsilon"
    if foreign in given:
        raise ConfigurationError(f"--{foreign} does not belong to --for {options.what}; leave it out")


def _settings(options: argparse.Namespace) -> tuple[Plan, str | None]:
    """The plan asked for, or that of the file, which options may repeat but not change (ConfigurationError)."""
    from bonmini_guard.labelling import events
    from bonmini_guard.labelling.items import Plan
    from bonmini_guard.labelling.session import NO_MORE_ROWS, settings_of

    out, given = options.output, _given(options, *_PLANNED) | ({"picked": True} if options.only else {})
    if not events.is_begun(out):
        return Plan(**{**given, **({"mode": "accept"} if options.what else {})}), options.question
    given |= _given(options, "question", "what", *_OF_FOR)
    plan, question = settings_of(out, events.read(out)[0])
    kept: dict[str, Any] = {**asdict(plan), "question": question}
    if (goal := plan.goal) is not None:
        if options.rows not in (None, len(goal.rows)):
            raise InputError(f"{out}: {len(goal.rows):,} rows were fixed before the first label; {NO_MORE_ROWS}; leave out --rows")
        kept |= asdict(goal) | {"epsilon" if goal.what == "accelerator" else "alpha": goal.level, "rows": options.rows}
    elif wrong := next((name for name in given if name in ("what", *_OF_FOR)), None):
        wrong = "for" if wrong == "what" else wrong
        raise ConfigurationError(f"{out}: was begun without --for; leave out --{wrong} to go on, or give another -o")
    if any(kept.get(name) != value for name, value in given.items()):
        raise ConfigurationError(f"{out}: was begun with other options; leave them out to go on, or give another -o")
    return plan, question


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _demanded(rows: Sequence[LabelRow], plan: Plan, options: argparse.Namespace) -> tuple[Plan, OnDemand | None, str | None]:
    """The plan, with its goal; the questions that ``--for`` or the file that is continued asks, None if neither asks on demand.

    And why no labels of these rows could certify anything; None if they could.
    """
    goal = plan.goal
    if goal is None and options.what is None:
        return plan, None, None
    from bonmini_guard.calibration.logs import load_log
    from bonmini_guard.calibration.on_demand import fixed_set, prospect, request, same_set, too_few
    from bonmini_guard.labelling.items import Goal
    from bonmini_guard.labelling.on_demand import OnDemand

    refuse_pipes(options.logs)
    log = load_log(options.logs)
    say_what_was_left_out(log.left_out)
    if goal is not None:
        asked = request(goal.what, goal.level, goal.delta, goal.schedule)
        return plan, OnDemand(same_set(log, goal.rows), asked, rows), None
    given = {"alpha": ALPHA, "epsilon": EPSILON, "delta": DELTA} | _given(options, *_OF_FOR)
    level = given["epsilon" if options.what == "accelerator" else "alpha"]
    asked = request(options.what, level, given["delta"], choose_schedule(log, options.schedule))
    chosen = fixed_set(log, options.rows)
    asking, short = OnDemand(chosen, asked, rows), too_few(chosen, asked)
    if not short:
        say(prospect(chosen, asked))
    return replace(plan, goal=Goal(options.what, asked.level, asked.delta, asked.schedule, asking.ids)), asking, short


def _page(begin: Callable[[], Session], options: argparse.Namespace) -> int:
    from bonmini_guard.labelling.server import LabelServer
    from bonmini_guard.labelling.session import check_annotator
    from bonmini_guard.server.running import address, listen

    annotator = None if options.annotator is None else check_annotator(options.annotator)
    with listen(options.host, options.port) as listening:
        session = begin()
        try:
            server = LabelServer(session, annotator, say, _next(session.plan, options))
            _say_where(f"{address(listening)}/{server.key}/", session, options)
            server.serve(listening)
        except KeyboardInterrupt:
            pass
        finally:
            _say_what(session, options)
            session.close()
    return 0


def _say_where(url: str, session: Session, options: argparse.Namespace) -> None:
    if not url.startswith(("http://127.", "http://[::1]")):
        print("others can reach this page: its address is the only key, and nothing is encrypted", file=sys.stderr)
    begun = sum(1 for _ in session.ledger.judgements())
    say(f"{options.output}: {len(session.items):,} items, {begun:,} labels so far")
    if session.plan.goal:
        say(session.said)
    say(f"label at {url}\nCtrl-C stops; every click is on disk before the next item shows")
    if options.open:
        import webbrowser

        webbrowser.open(url)


def _say_what(session: Session, options: argparse.Namespace) -> None:
    from bonmini_guard.labelling.agreement import agreement, describe

    figures = agreement(session.ledger)
    if not figures["items"]:
        return
    say(f"{options.output}:\n{describe(figures)}")
    if session.plan.goal:
        say(session.said)
    say("\n".join(_next(session.plan, options)))


def _next(plan: Plan, options: argparse.Namespace) -> list[str]:
    """What the labels make possible, and the commands for it: shown when the page has no further question, and when it stops."""
    export = f"bonmini-guard label {logs_in_words(options.logs)} -o {shlex.quote(str(options.output))} --export"
    if plan.goal is not None:
        certified = f"then: {_calibrate_next(plan.goal)}"
        return ["These labels can certify a profile, as far as is said above.", f"next: {export} log=labelled.jsonl", certified]
    if plan.picked:
        return ["These rows were picked: train on their labels, but calibrate on others.", f"next: {export} choices=choices.jsonl"]
    if plan.mode == "accept":
        start = "then: bonmini-guard start labelled.jsonl"
        return ["Whole rows can be calibrated on, and all labels trained on.", f"next: {export} log=labelled.jsonl", start]
    train = "then: bonmini-guard train choices.jsonl --base MODEL -o guard-model"
    return ["Choices train a reward model whose zero means acceptable.", f"next: {export} choices=choices.jsonl", train]


def _calibrate_next(goal: Goal, log: str = "labelled.jsonl") -> str:
    """What makes a profile of the labels in an exported log."""
    mode = "accelerator" if goal.what == "accelerator" else f"guardrail --risk {goal.what}"
    level = f"--{'epsilon' if goal.what == 'accelerator' else 'alpha'} {goal.level:g} --delta {goal.delta:g}"
    schedule = ",".join(map(str, goal.schedule))
    return f"bonmini-guard calibrate {logs_in_words([log])} --mode {mode} {level} --schedule {schedule} -o profile.json"


def _exchange(begin: Callable[[], Session], options: argparse.Namespace) -> int:
    from bonmini_guard.labelling.events import is_begun
    from bonmini_guard.labelling.exchange import READERS

    beginning = not is_begun(options.output)
    session = begin()
    try:
        judged = [(kind, list(READERS[kind](path, session))) for kind, path in options.imports]
        for kind, labels in judged:
            say(f"{options.output}: {session.take_in(labels, kind):,} new labels of {len(labels):,} from {kind}")
        texts = [(path, *_exported(kind, path, session)) for kind, path in options.export]
    except InputError:
        if beginning:
            options.output.unlink()
        raise
    finally:
        session.close()
    for path, text, said in texts:
        write_atomically(path, text)
        say(f"{path}: {said}")
    return 0


def _exported(kind: str, path: Path, session: Session) -> tuple[str, str]:
    """The text of an export, and what to say about it."""
    from bonmini_guard.labelling.exchange import WRITERS
    from bonmini_guard.labelling.exports import choice_rows, labelled_log

    if kind == "choices":
        choices = choice_rows(session)
        return _lines(choices), f"{len(choices):,} choice rows; train on them with 'bonmini-guard train'"
    if kind == "log":
        log = labelled_log(session)
        if session.plan.goal is not None:
            said = f"{log.random:,} rows fixed before the first label, {log.labelled:,} of them labelled"
            return _lines(log.rows), f"{said}; next: {_calibrate_next(session.plan.goal, str(path))}"
        said = f"{log.labelled:,} of {len(log.rows):,} rows labelled, {log.random:,} of them for calibration (random, whole)"
        said += f"; {log.unfinished:,} begun, labels withheld until whole" if log.unfinished else ""
        said += f"; {log.put_off:,} items put off: label them too, or figures will be of easy items" if log.put_off else ""
        return _lines(log.rows), said
    records = WRITERS[kind](session)
    return json.dumps(records, indent=1) + "\n", f"{len(records):,} items for {kind}"


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _agreement(path: Path, as_json: bool) -> int:
    from bonmini_guard.labelling import events
    from bonmini_guard.labelling.agreement import agreement, describe

    figures = agreement(events.Ledger(events.read(path)[1]))
    if not figures["items"]:
        raise InputError(f"{path}: holds no label yet; label first")
    print(json.dumps(figures, indent=2)) if as_json else say(describe(figures))
    return 0


def _kind_and_file(kinds: tuple[str, ...], text: str) -> tuple[str, Path]:
    kind, _, path = text.partition("=")
    if kind not in kinds or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: write KIND=FILE, with {' or '.join(kinds)}")
    return kind, Path(path)
