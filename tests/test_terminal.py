"""Output on terminals of 60 to 200 columns, and in a pipe: nothing is broken off, and commands can be copied."""

from __future__ import annotations

import io
import json
import os
import pty
import struct
import subprocess
import sys
from fcntl import ioctl
from termios import TIOCSWINSZ

import pytest

from bonmini_guard.cli import main
from bonmini_guard.commands.terminal import table, wrapped
from bonmini_guard.policy.profile import GuardProfile

WIDTHS = (60, 80, 120, 200)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminal")
    answers = [{"text": f"answer {i}", "score": i / 4 - 1, "acceptable": i > 5} for i in range(8)]
    rows = [{"id": str(n), "prompt": f"question {n}", "candidates": answers[n % 8 :] + answers[: n % 8]} for n in range(60)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    GuardProfile(
        mode="guardrail", schedule=(4, 4), thresholds=(0.5, 0.5), risk="served_and_bad", alpha=0.1, delta=0.1,
        reference=tuple(i / 60 for i in range(60)), evidence={"requests": 60, "abstained": 10, "units": 60},
    ).save(folder / "profile.json")  # fmt: skip
    return folder


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(files, monkeypatch):
    """Lines of a command on a terminal of so many columns; in a pipe with None."""

    def lines(name, columns):
        monkeypatch.chdir(files)
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(columns or 80))
        monkeypatch.setattr(sys, "stdout", out := io.StringIO() if columns is None else Terminal())
        main(COMMANDS[name])
        return out.getvalue().splitlines()

    return lines


COMMANDS = {
    "replay": ["replay", "log.jsonl", "--profile", "profile.json"],
    "calibrate": ["calibrate", "log.jsonl", "--mode", "guardrail", "--alpha", "0.3", "--schedule", "4,4", "-o", "made.json"],
    "drift": ["drift", "profile.json", "log.jsonl"],
    "plan": ["calibrate", "log.jsonl", "--mode", "guardrail", "--alpha", "0.3", "--schedule", "4,4", "--plan"],
    "demo": ["demo", "--recorded"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_width_says_the_same(shown, name):
    whole = shown(name, None)
    assert whole
    for columns in WIDTHS:
        lines = shown(name, columns)
        assert all(len(line) <= columns or line.lstrip().startswith(("next: ", "bonmini-guard ")) for line in lines)
        if name not in ("demo", "replay"):  # a table may give up columns; words never go
            assert " ".join(lines).split() == " ".join(whole).split()


def test_a_table_gives_up_what_stands_last_and_no_row(shown):
    narrow, wide = (shown("replay", columns) for columns in (60, 80))
    assert len(narrow) == len(wide)
    assert "at zero" in "".join(wide)
    assert "at zero" not in "".join(narrow)
    assert "best-of-8" in "".join(narrow)
    assert all(line.split()[-1][0] in "0123456789%-" for line in narrow if line.startswith("  of"))


def test_a_table_keeps_two_columns_on_any_width():
    assert table(("", "first", "second"), [["name", "1", "2"]], 5).splitlines() == ["      first", "name      1"]
    assert table(("", "first", "second"), [["name", "1", "2"]], None).splitlines()[1].split() == ["name", "1", "2"]


def test_words_are_kept_whole_and_commands_uncut():
    line = "next: bonmini-guard label " + "log.jsonl " * 20
    assert wrapped(line, 60) == [line]
    assert wrapped("  - one two", 9) == ["  - one", "    two"]
    assert wrapped("a" * 70 + " b", 60) == ["a" * 70, "  b"]


def test_a_real_terminal_is_asked_for_its_width(files):
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 40, 60, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "bonmini_guard.cli", *COMMANDS["replay"]]
    with subprocess.Popen(command, cwd=files, env=environment, stdout=theirs, stderr=subprocess.DEVNULL):
        os.close(theirs)
        with open(ours, "rb", buffering=0) as terminal:
            told = b""
            while b"loops a request" not in told:
                told += terminal.read(65536)
    lines = told.decode().replace("\r\n", "\n").split("\n")
    assert max(map(len, lines)) <= 60
    assert "at zero" not in told.decode()
