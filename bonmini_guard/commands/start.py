"""``bonmini-guard start``: look at a log, or a table of answers: what can be promised, what is missing, the next command."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from bonmini_guard.commands import logs_in_words, refuse_pipes, say_left_out, say_torn
from bonmini_guard.commands.calibrate import ALPHA, DELTA, RISKS, choose_schedule
from bonmini_guard.commands.terminal import say
from bonmini_guard.errors import InputError
from bonmini_guard.logs.odd import USUAL, Odd

#: Levels that are proposed, the strictest first, of which one is within reach of the rows.
LEVELS = (ALPHA, 0.1, 0.2)
#: Ids of rows that are named.
NAMED = 5
#: Columns that people name so and import does not know by name.
_ALIKE = {
    "prompt": ("customer", "user", "request", "message", "ticket", "note", "inquiry"),
    "text": ("reply", "agent", "bot", "assistant", "model_output", "generated"),
    "acceptable": ("ok", "good", "correct", "accepted", "approved", "label", "resolved"),
}
#: What a record of another tool has, and none of those after it does.
_TOOLS = {
    "run_type": "langsmith",
    "resps": "lm-eval",
    "samples": "inspect",
    **dict.fromkeys(("resourceSpans", "resourceLogs", "attributes"), "otel"),
    **dict.fromkeys(("observations", "traceId", "trace_id", "meta"), "langfuse"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("logs", nargs="+", metavar="LOG", help="a log (several shards are one), a table, or another tool's export")


def run(options: argparse.Namespace) -> int:
    """Look, and tell."""
    from bonmini_guard.logs.sources.messages import unpacked

    refuse_pipes(options.logs)
    first = _first(options.logs[0])
    if isinstance(unpacked(first.get("candidates")), list):  # a text of JSON is told as what it is
        _tell_of_log(options.logs)
    elif "schedule" in first and "thresholds" in first:
        say(f"{options.logs[0]}: a profile\nnext: bonmini-guard report LOG --profile {shlex.quote(options.logs[0])} -o report.html")
    elif first.get("kind") == "bonmini-guard labels":
        export = f"bonmini-guard label LOG -o {shlex.quote(options.logs[0])} --export log=labelled.jsonl"
        say(f"{options.logs[0]}: labels of a log's answers, as the page keeps them; LOG is that log\nnext: {export}")
    elif "responses" in first and "choice" in first:
        say(f"{options.logs[0]}: choice rows, which a reward model is trained on")
        say(f"next: bonmini-guard train {logs_in_words(options.logs)} --base MODEL -o guard-model")
    else:
        _tell_of_records(options.logs, first)
    return 0


def _first(path: str) -> Mapping[str, Any]:
    from bonmini_guard.logs.records import Records

    if path.endswith(".eval"):
        return {}
    odd = Odd(USUAL)
    for _, record in Records(path, odd):
        return record
    odd.check()
    raise InputError(f"{path}: holds nothing; give a file with answers in it")


def _tell_of_records(files: Sequence[str], first: Mapping[str, Any]) -> None:
    """A table, or an export of another tool: how to make a log of it."""
    from bonmini_guard.logs.records import Records
    from bonmini_guard.logs.sources.messages import PROMPT_KEYS, TEXT_KEYS

    names = [Path(file).name for file in files]
    stem = names[0].split(".")[0]
    output = shlex.quote(f"{stem}.{'rows' if f'{stem}.log.jsonl' in names else 'log'}.jsonl")
    tool = "inspect" if files[0].endswith(".eval") else next((tool for key, tool in _TOOLS.items() if key in first), None)
    if tool is not None:
        say(f"{files[0]}: written by {tool}")
        say(f"next: bonmini-guard import {logs_in_words(files)} --from {tool} -o {output}")
        return
    number, columns, odd = 0, dict[str, Any](), Odd(USUAL)  # as many as import bears
    tables = [Records(path, odd) for path in files]
    for _, record in chain.from_iterable(tables):
        number += 1
        columns |= record  # in any line a cell may be empty, and so not there
    odd.records += number
    odd.check()
    say_left_out(odd, {"torn last lines": sum(table.torn for table in tables)})
    say(f"{files[0]}: a table of {number:,} lines, each taken for one answer; columns: {', '.join(map(str, columns))}")
    known, mapped, missing = {"prompt": PROMPT_KEYS, "text": TEXT_KEYS, "acceptable": ("acceptable",)}, [], []
    for name, keys in known.items():
        if not any(key in columns for key in keys):
            column = next((column for column in columns if str(column).lower().strip() in _ALIKE[name]), None)
            mapped += [f" --map {shlex.quote(f'{column}={name}')}"] if column else []
            missing += [] if column else [name]
    for name in (name for name in missing if name != "acceptable"):
        mapped.append(f" --map COLUMN={name}")
        say(f"which column is the {'prompt' if name == 'prompt' else 'answer'}? put its name for COLUMN in {name}=")
    say("a promise needs answers of the very model that is to be guarded, drawn whatever their quality; people's say nothing of it")
    if "acceptable" in missing:
        say("no column says which answers are acceptable: labels come later, in the browser")
    source = "parquet" if files[0].endswith(".parquet") else "csv"
    say(f"next: bonmini-guard import {logs_in_words(files)} --from {source}{''.join(mapped)} -o {output}")


def _tell_of_log(files: Sequence[str]) -> None:
    seen, sizes, generators = _scan(files)
    low, high = min(sizes), max(sizes)
    each = "one answer each" if high == 1 else f"{low if low == high else f'{low} to {high}'} answers each"
    traced = f", {seen['traced']:,} of them a guard's traces" if seen["traced"] else ""
    picked = f"; {seen['picked']:,} rows were picked, and their labels are not calibrated on" if seen["picked"] else ""
    judged = f", {seen['judged']:,} of them with a word of who or what judged (acceptable_by)" if seen["judged"] else ""
    drawn = f", drawn by {', '.join(sorted(by[:60] for by in generators))}" if generators else ""
    say(f"{', '.join(files)}: a log of {seen['rows']:,} rows{traced}, {each}{drawn}")
    say(f"scores: {seen['scored']:,} of {seen['answers']:,} answers; labels: {seen['labelled']:,}{judged}{picked}")
    if len(generators) > 1:
        say("several generators: a promise holds for one, so split the log by generated_by, and start with one part")
    elif seen["scored"] < seen["answers"]:
        say(f"missing: scores of {seen['answers'] - seen['scored']:,} answers; nothing can be promised without them")
        say("SPEC is a reward model's folder or id, or a scorer spec: a judge, a check, a question (docs/questions.md)")
        say(f"next: bonmini-guard score {logs_in_words(files)} --reward-model SPEC -o scored.jsonl")
    elif not seen["complete"]:
        say("no row is complete: early exits hide what was never drawn, so these only say how far the guard may be relaxed")
        say(f"next: bonmini-guard calibrate {logs_in_words(files)} --mode guardrail --relax -o relaxed.json")
    else:
        _tell_of_labels(files)


def _scan(files: Sequence[str]) -> tuple[Counter[str], set[int], set[str]]:
    """Counts of rows and of answers that did not fail, the numbers of answers of a row, and the generators."""
    from bonmini_guard.logs.rows import rows_in

    seen, sizes, generators = Counter[str](), set[int](), set[str]()
    for row in rows_in(*files, told=say_torn):
        arrived = [one for one in row.candidates if not one.failed]
        labelled = [one for one in arrived if one.label is not None]
        seen.update(rows=1, complete=row.is_complete, traced=row.is_traced, picked=not row.is_random, answers=len(arrived))
        seen.update(scored=sum(one.value.get("score") is not None for one in arrived), labelled=len(labelled))
        seen.update(judged=sum(one.value.get("acceptable_by") is not None for one in labelled))
        sizes.add(len(row.candidates))
        generators |= {str(by)} if (by := row.value.get("generated_by")) is not None else set()
    if not sizes:
        raise InputError(f"{', '.join(files)}: holds no row; give a log")
    return seen, sizes, generators


def _tell_of_labels(files: Sequence[str]) -> None:
    """What the rows could promise at best, and the labels that this takes."""
    from bonmini_guard.calibration.logs import load_log
    from bonmini_guard.calibration.on_demand import batch_of, demand, fixed_set, prospect, request, too_few
    from bonmini_guard.calibration.orders import one_a_unit

    log = load_log(files, keys=["id", "group"])
    prompts = "groups" if any(group is not None for group in log.extra["group"]) else "prompts"
    schedule, units = choose_schedule(log, None), one_a_unit(log)
    best = f"{100 * (1 - DELTA ** (1 / len(units))):.2g} %"
    shape = f"--schedule {','.join(map(str, schedule))}"
    if max(schedule) == 1:
        say("one answer a row: a guard can serve it or refuse; to draw again it needs a log with several answers to each prompt")
    say(f"{len(units):,} {prompts} can certify at most {best} served and bad (if none is), with {100 * (1 - DELTA):g} % confidence")
    asked = next((each for level in LEVELS if not too_few(units, each := request(RISKS[0], level, DELTA, schedule))), None)
    if asked is None:
        say(f"missing: {prompts}; {too_few(units, request(RISKS[0], LEVELS[-1], DELTA, schedule))}")
        say("collect more with the guard's explore=0.02 and trace_to=, or import more; then start again")
        return
    options = f"--alpha {asked.level:g} --delta {DELTA:g} {shape}"
    if (log.labels >= 0).sum() > 0.5 * log.drawn.sum() or log.asked.any():
        say("missing: nothing for a first profile; what is promised is told when it is certified")
        say(f"next: bonmini-guard calibrate {logs_in_words(files)} --mode guardrail {options} -o guardrail.json")
        return
    chosen = fixed_set(log, None)
    say(f"missing: labels. {prospect(chosen, asked)}")
    rows = batch_of(chosen, demand(chosen, asked).wanted)[:, 0]
    named = list(dict.fromkeys(str(chosen.extra["id"][row]) for row in rows.tolist()))[:NAMED]
    say(f"asked first: the rows {', '.join(named)} and so on, strict thresholds first")
    say(f"next: bonmini-guard label {logs_in_words(files)} -o labels.jsonl --for {RISKS[0]} {options} --open")
