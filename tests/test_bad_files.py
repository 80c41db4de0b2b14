"""Every command that reads files, and files that no command can read: one line that names the file, and nothing half-written."""

import json
import os
import signal
import zipfile

import pytest

from bonmini_guard import writing
from bonmini_guard.cli import main
from bonmini_guard.logs import opening

DEEP = "[" * 100_000 + "]" * 100_000
ROW = {"prompt": "p", "candidates": [{"text": "a", "score": 1.0, "acceptable": True}, {"text": "b", "score": -1.0}]}
PROFILE = {"mode": "guardrail", "schedule": [2], "thresholds": [0.5]}
#: Seconds that a command may take; the machine may be busy.
PATIENCE = 60

#: BAD is the file, OUT what would be written; the others are as they should be.
ROWS = {
    "calibrate": ["calibrate", "BAD", "--mode", "guardrail", "--schedule", "2", "--alpha", "0.3", "-o", "OUT.json"],
    "replay": ["replay", "BAD", "--profile", "profile.json"],
    "report": ["report", "BAD", "--profile", "profile.json", "-o", "OUT.html"],
    "drift": ["drift", "profile.json", "BAD"],
    "score": ["score", "BAD", "--reward-model", "spec.toml", "-o", "OUT.jsonl"],
    "label": ["label", "BAD", "-o", "OUT.jsonl"],
    "import": ["import", "BAD", "--from", "langsmith", "-o", "OUT.jsonl"],
    "import a table": ["import", "BAD", "--from", "csv", "-o", "OUT.jsonl"],
    "import an archive": ["import", "BAD", "--from", "inspect", "-o", "OUT.jsonl"],
    "convert": ["convert", "BAD", "--from", "pairs", "-o", "OUT.jsonl"],
    "convert a log": ["convert", "BAD", "--from", "log", "-o", "OUT.jsonl"],
    "train": ["train", "BAD", "--base", "none", "-o", "OUT"],
    "train's own exam": ["train", "choices.jsonl", "--eval", "BAD", "--base", "none", "-o", "OUT"],
    "inspect": ["inspect", "spec.toml", "--examples", "BAD"],
    "forget": ["forget", "BAD", "--id", "1"],
}
WHOLE = {
    "replay": ["replay", "log.jsonl", "--profile", "BAD"],
    "report": ["report", "log.jsonl", "--profile", "BAD", "-o", "OUT.html"],
    "drift": ["drift", "BAD", "log.jsonl"],
    "drift's state": ["drift", "reference.json", "log.jsonl", "--state", "BAD"],
    "score, a TOML spec": ["score", "log.jsonl", "--reward-model", "BAD.toml", "-o", "OUT.jsonl"],
    "score, a JSON spec": ["score", "log.jsonl", "--reward-model", "BAD.json", "-o", "OUT.jsonl"],
    "drift, a spec": ["drift", "reference.json", "log.jsonl", "--reward-model", "BAD.json"],
    "inspect": ["inspect", "BAD.json"],
    "serve": ["serve", "--reward-model", "BAD.json", "--port", "0"],
    "gateway": ["gateway", "BAD"],
    "label, an export": ["label", "log.jsonl", "-o", "OUT.jsonl", "--import", "label-studio=BAD"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "WRITER_WAIT", 0.2)
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"id": str(number)} | ROW) + "\n" for number in range(30)))
    (tmp_path / "choices.jsonl").write_text(json.dumps({"prompt": "p", "responses": ["a", "b"], "choice": 0}) + "\n")
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
    (tmp_path / "reference.json").write_text(json.dumps(PROFILE | {"reference": [0.0, 1.0] * 50}))
    (tmp_path / "spec.toml").write_text('kind = "check"\n[check]\ntype = "regex"\npattern = "a"\n')
    return tmp_path


def one_line(command, bad, capsys):
    """The line that a command says of a bad file, in time, with nothing written."""
    names = [word.replace("BAD", bad) for word in command]
    for name in names:
        if name != bad and name.startswith(bad):
            os.symlink(bad, name)
    before = set(os.listdir())
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(PATIENCE)
    try:
        status = main(names)
    finally:
        signal.alarm(0)
    # A progress bar may stand before it.
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "rows scored" not in line]
    assert status == 2
    assert bad in line
    assert len(line) < 400
    # The lock beside a watch's state stays: whoever removed it would take it from another.
    assert {name for name in os.listdir() if not name.endswith(".lock")} == before
    return line


def _hangs(*_):
    raise AssertionError(f"the command took longer than {PATIENCE} s")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("command", [*ROWS.values(), *WHOLE.values()], ids=[*ROWS, *(f"{name}'s own" for name in WHOLE)])
def test_nobody_waits_for_a_pipe_without_a_writer(command, folder, capsys):
    os.mkfifo("pipe")
    one_line(command, "pipe", capsys)


@pytest.mark.parametrize("command", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("text", [DEEP, f'{{"id": "1", "x": {DEEP}}}'], ids=["lists", "row"])
def test_rows_nested_deeply_are_one_line(command, text, folder, capsys):
    (folder / "deep").write_text(text + "\n" + json.dumps(ROW) + "\n")
    assert "too deep" in one_line(command, "deep", capsys)
    assert (folder / "deep").stat().st_size > len(DEEP)


@pytest.mark.parametrize("command", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("text", [DEEP, f"a = {DEEP}", f'{{"mode": {DEEP}}}'], ids=["lists", "TOML", "JSON"])
def test_what_is_read_as_a_whole_may_be_nested_deeply(command, text, folder, capsys):
    (folder / "deep").write_text(text)
    one_line(command, "deep", capsys)


@pytest.mark.parametrize(("name", "command"), [(name, each) for name, each in WHOLE.items() if "export" not in name])
def test_what_is_huge_is_not_read(name, command, folder, capsys, monkeypatch):
    with (folder / "huge").open("wb") as file:
        file.truncate(writing.MOST + 1)
    assert "larger than 32 MiB" in one_line(command, "huge", capsys)


@pytest.mark.parametrize(
    "command",
    [
        "start torn",
        "zero spec.toml --no-anchors --labels torn -o OUT.json",
        "judge torn --judge spec.toml -o OUT.jsonl",
        "score torn --reward-model spec.toml -o OUT.jsonl --dry-run",
        "inspect spec.toml --examples torn",
    ],
)
def test_a_torn_last_line_is_counted_wherever_logs_are_read(command, folder, capsys):
    candidates = [{"text": "a", "score": 1.0, "acceptable": True}, {"text": "b", "score": -1.0, "acceptable": False}]
    rows = [json.dumps({"id": str(number), "prompt": f"p{number}", "candidates": candidates}) + "\n" for number in range(30)]
    (folder / "torn").write_text("".join(rows))
    assert main(command.split()) == 0
    assert "torn" not in capsys.readouterr().err
    (folder / "torn").write_text("".join(rows) + '{"id": "30", "pro')
    assert main(command.split()) == 0
    assert "left out: torn last lines: 1\n" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["calibrate", "report", "score", "import", "convert"])
def test_a_file_that_is_given_twice_is_refused(command, folder, capsys):
    again = [each for word in ROWS[command] for each in (["BAD", "./BAD"] if word == "BAD" else [word])]
    (folder / "x.jsonl").write_text((folder / "log.jsonl").read_text())
    assert "is given twice" in one_line(again, "x.jsonl", capsys)


def test_cells_and_members_of_archives_may_be_nested_deeply(folder, capsys):
    with zipfile.ZipFile("deep.eval", "w") as archive:
        archive.writestr("header.json", DEEP)
    one_line(["import", "BAD", "--from", "inspect", "-o", "OUT.jsonl"], "deep.eval", capsys)
    (folder / "deep.csv").write_text('prompt,answer\n"[{' + "[" * 100_000 + '",a\n')
    assert main(["import", "deep.csv", "--from", "csv", "-o", "OUT.jsonl"]) == 0
