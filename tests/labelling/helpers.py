"""Small logs, and the command as a user runs it."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import subprocess
import sys

from bonmini_guard.cli import main
from bonmini_guard.labelling.items import Plan, sides
from bonmini_guard.labelling.rows import read_rows
from bonmini_guard.labelling.session import Session


def row(name, texts=("good", "bad"), scores=None, **more):
    scores = scores or [float(len(texts) - i) for i in range(len(texts))]
    candidates = [{"text": text, "score": score, "by": "model-x"} for text, score in zip(texts, scores, strict=True)]
    return {"id": name, "prompt": f"question {name}", "candidates": candidates, **more}


def log_file(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def session_of(tmp_path, rows, name="out.jsonl", **plan):
    return Session(read_rows([log_file(tmp_path / "log.jsonl", rows)]), tmp_path / name, Plan(**plan))


def say(session, annotator, item, chosen):
    """Judge an item as the page would: by the side on which a candidate is shown."""
    shown = sides(item, annotator, session.plan)
    answer = "none" if chosen == "none" else "accept" if len(shown) == 1 else "ab"[shown.index(chosen)]
    session.label(annotator, item.key, answer, secrets.token_hex(16))


def judge_all(session, annotator, judge):
    """Judge every item; ``judge(item)`` gives the chosen candidate or "none"."""
    while (item := session.standing(annotator).item) is not None:
        say(session, annotator, item, judge(item))


def run(*arguments):
    return main(["label", *map(str, arguments)])


@contextlib.contextmanager
def serving(*arguments):
    """``bonmini-guard label`` in a process of its own: (process, address of the page)."""
    command = [sys.executable, "-m", "bonmini_guard.cli", "label", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if found := re.search(r"label at (http\S+)", line):
                    yield process, found[1]
                    break
            else:
                raise AssertionError(process.stderr.read())
        finally:
            process.kill()
            process.wait()
