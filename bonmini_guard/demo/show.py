"""What the demonstration looks like: lines of styled text, for any width from 60 columns on. Standard library only."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

#: A piece of text with its style: "", or a key of ``STYLES``.
Line = list[tuple[str, str]]
STYLES = {"title": "1", "good": "32", "bad": "1;31", "refused": "33", "aside": "2"}
NAMES = {"single_draw": "one draw", "best_of_n": "best of {n}", "guardrail": "guardrail", "accelerator": "accelerator"}
_LABEL = 13

WHAT = (
    "A web shop's message desk: SmolLM2, a small language model, turns a note into one message to the customer. "
    "A strict check, no model, says which messages are right: every fact of the note, and no other. "
    "The guard never sees the check. It sees the scores of a reward model, draws two answers at a time, and stops at the first "
    "that passes its calibrated threshold."
)
AFTER = (
    "All see the same draws: a guard looks at the first ones of best-of-{n}. "
    "Five requests illustrate; benchmarks/desk measures 400. "
    "Seconds are of one request at a time: loops of two use an idle machine less well than one batch of {n}. "
    "Where requests compete, fewer draws are more throughput."
)


def opening(width: int, source: str) -> list[Line]:
    """What is about to be seen, and where it comes from."""
    return [*_paragraph(WHAT, width), *_paragraph(source, width, "aside"), []]


def request(entry: dict[str, Any], place: str, width: int) -> list[Line]:
    """One request: the note, then what each procedure answered, what the check says, and what it cost."""
    headline, *given = entry["note"].split("\n")
    lines: list[Line] = [_title(f"request {place}", width), *_paragraph(f"{headline} {'; '.join(given)}", width), []]
    for name, facts in entry["answers"].items():
        lines += _answered(_label(name, entry), facts, _said(name, entry), width)
    return [*lines, []]


def totals(requests: Sequence[dict[str, Any]], width: int) -> list[Line]:
    """What all requests came to, by procedure."""
    heads = ("wrong", "right", "refused", "draws", "seconds")
    size = min(10, (width - _LABEL) // len(heads))
    head = " " * _LABEL + "".join(head.rjust(size) for head in heads)
    lines: list[Line] = [_title(f"all {len(requests)} requests", width), [(head, "aside")]]
    for name in NAMES:
        done = [each["answers"][name] for each in requests]
        served = [each["acceptable"] for each in done if each["answer"] is not None]
        wrong, right, refused = served.count(False), served.count(True), len(done) - len(served)
        spent = (str(sum(each["draws"] for each in done)), f"{sum(each['seconds'] for each in done):.1f}")
        lines.append(
            [
                (_label(name, requests[0]).ljust(_LABEL), "title"),
                (str(wrong).rjust(size), "bad" if wrong else "good"),
                *((str(value).rjust(size), "") for value in (right, refused, *spent)),
            ]
        )
    budget = requests[0]["answers"]["best_of_n"]["draws"]
    return [*lines, [], *_paragraph(AFTER.format(n=budget), width, "aside")]


def text(lines: Sequence[Line], colour: bool) -> str:
    """Lines for a terminal, or plain ones."""
    if not colour:
        return "".join("".join(part for part, _ in line).rstrip() + "\n" for line in lines)
    styled = ("".join(f"\x1b[{STYLES[style]}m{part}\x1b[0m" if style else part for part, style in line) for line in lines)
    return "".join(line + "\n" for line in styled)


def _label(name: str, entry: dict[str, Any]) -> str:
    return NAMES[name].format(n=entry["answers"]["best_of_n"]["draws"])


def _said(name: str, entry: dict[str, Any]) -> tuple[str, str, str]:
    """The answer, or what stands in its place; why the guard stopped; the check's word."""
    answers = entry["answers"]
    facts, check = answers[name], answers[name]["check"] or "right"
    if name not in ("guardrail", "accelerator"):
        return facts["answer"], "", check
    if facts["answer"] is None:
        return "no answer: it goes to a person", _why(facts), "rightly refused" if facts["check"] else "refused a right one"
    for earlier in ("best_of_n", "guardrail"):
        if earlier != name and answers[earlier]["answer"] == facts["answer"]:
            return f"same answer as {_label(earlier, entry)}", _why(facts), check
    return facts["answer"], _why(facts), check


def _why(facts: dict[str, Any]) -> str:
    loops, best, threshold = facts["loops"], facts["score"], facts["threshold"]
    if facts["decision"] == "accepted":
        return f"stopped after loop {loops}: score {best:+.1f} passes the threshold {threshold:+.1f}"
    what = "refuses" if facts["answer"] is None else "serves its best"
    return f"{what} after all {loops} loops: best score {best:+.1f}, threshold {threshold:+.1f}"


def _answered(label: str, facts: dict[str, Any], said: tuple[str, str, str], width: int) -> list[Line]:
    answer, why, check = said
    cost = f"{facts['draws']} draw{'s' if facts['draws'] > 1 else ''}, {facts['seconds']:.1f} s"
    first: Line = [(label.ljust(width - len(cost)), "title"), (cost, "")]
    shown, judged = ("refused", "refused") if facts["answer"] is None else ("", "good" if facts["acceptable"] else "bad")
    told = [*_paragraph(answer, width, shown, 3), *_paragraph(f"the check: {check}", width, judged, 3)]
    return [first, *told, *_paragraph(why, width, "aside", 3)]


def _title(words: str, width: int) -> Line:
    return [(f"-- {words} ".ljust(width, "-"), "title")]


def _paragraph(words: str, width: int, style: str = "", indent: int = 0) -> list[Line]:
    return [[(" " * indent + line, style)] for line in textwrap.wrap(words, width - indent)]
