"""Outputs: whole or not at all, where they were asked for, and never in place of what is read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bonmini_guard.cli import main
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.writing import check_output, write_atomically

ROWS = [
    {"id": str(n), "prompt": "p", "candidates": [{"text": f"t{k}", "score": float(k), "acceptable": k > 0} for k in range(4)]}
    for n in range(40)
]


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_new_file_obeys_the_umask_and_an_old_one_keeps_its_mode(tmp_path):
    for name, mode in (("new", None), ("old", 0o600)):
        if mode:
            (tmp_path / name).touch()
            (tmp_path / name).chmod(mode)
        write_atomically(tmp_path / name, "x")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "old")] == [0o640, 0o600]


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "there" / "file", tmp_path / "link"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_what_a_kill_left_behind_goes_with_the_next_writing_of_a_later_day(tmp_path):
    path, day = tmp_path / "out[1].json", 24 * 3600
    now = path.parent.stat().st_mtime
    for name, age in ((".out[1].json.aaaaaaaa", 2 * day), (".out[1].json.bbbbbbbb", 0), (".out1.json.aaaaaaaa", 2 * day)):
        (tmp_path / f"{name}.unfinished").touch()
        os.utime(tmp_path / f"{name}.unfinished", (now - age, now - age))
    (tmp_path / ".out[1].json.settings").touch()
    os.utime(tmp_path / ".out[1].json.settings", (0, 0))
    write_atomically(path, "x")
    kept = [".out1.json.aaaaaaaa.unfinished", ".out[1].json.bbbbbbbb.unfinished", ".out[1].json.settings", path.name]
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(kept)


def test_a_lone_surrogate_is_written_as_json_spells_it(tmp_path):
    write_atomically(tmp_path / "x.json", json.dumps({"text": "cut \ud83d é"}, ensure_ascii=False))
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "é" in text
    assert json.loads(text) == {"text": "cut \ud83d é"}


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null"), tmp_path / ("x" * 300), tmp_path / "no" / "x"):
        with pytest.raises(ConfigurationError, match="cannot write there"):
            check_output(path)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    "command",
    [
        ["calibrate", "LOG", "--mode", "guardrail", "--schedule", "2,2", "--alpha", "0.3", "-o", "LOG"],
        ["report", "LOG", "--profile", "PROFILE", "-o", "LOG"],
        ["report", "LOG", "--profile", "PROFILE", "-o", "PROFILE"],
        ["convert", "LOG", "--from", "log", "-o", "LOG"],
        ["score", "LOG", "--reward-model", "MODEL", "-o", "LOG"],
        ["drift", "PROFILE", "LOG", "LOG", "--state", "LOG"],
        ["drift", "PROFILE", "LOG", "--state", "PROFILE"],
    ],
)
def test_no_command_writes_over_what_it_reads(command, log, tmp_path, capsys):
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"mode": "guardrail", "schedule": [2, 2], "thresholds": [0.5, 0.5]}))
    names = {"LOG": str(log), "PROFILE": str(profile), "MODEL": str(tmp_path)}
    before = log.read_bytes(), profile.read_bytes()
    assert main([names.get(word, word) for word in command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is what is to be read; give another name to write to" in line
    assert (log.read_bytes(), profile.read_bytes()) == before


def test_a_cut_that_is_no_number_is_refused(log, tmp_path, capsys):
    assert main(["convert", str(log), "--from", "log", "--cut", "nan", "-o", str(tmp_path / "out.jsonl")]) == 2
    assert "--cut is nan" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_an_error_of_the_disk_is_one_line(log, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "out.jsonl")

    monkeypatch.setattr("bonmini_guard.commands.convert.appearing", full)
    assert main(["convert", str(log), "--from", "log", "-o", str(tmp_path / "out.jsonl")]) == 2
    assert capsys.readouterr().err == "bonmini-guard convert: out.jsonl: No space left on device\n"


@pytest.mark.parametrize("command", ["import LOG --from json -o OUT", "score LOG --reward-model SPEC -o OUT"])
def test_a_full_disk_is_told_with_the_file_that_it_had_no_room_for(tmp_path, log, capsys, command):
    resource = pytest.importorskip("resource")
    (tmp_path / "spec.toml").write_text('kind = "check"\n[check]\ntype = "regex"\npattern = "t"\n')
    names = {"LOG": str(log), "OUT": str(tmp_path / "out.jsonl"), "SPEC": str(tmp_path / "spec.toml")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert main([names.get(word, word) for word in command.split()]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path / 'out.jsonl'}" in capsys.readouterr().err


def test_an_empty_name_is_none_or_refused(log, tmp_path, capsys):
    """As a shell gives that of a variable that is not set."""
    (tmp_path / "profile.json").write_text(json.dumps({"mode": "guardrail", "schedule": [2, 2], "thresholds": [0.5, 0.5]}))
    profile, report = str(tmp_path / "profile.json"), tmp_path / "report.html"
    assert main(["report", str(log), "--profile", profile, "-o", str(report), "--slice", ""]) == 0
    assert report.exists()
    capsys.readouterr()
    assert main(["drift", profile, str(log), "--state", ""]) == 2
    assert "cannot write there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "calibrate LOG --mode guardrail -o OUT --group KEY",
        "replay LOG --profile OUT --group KEY",
        "report LOG --profile OUT -o OUT --slice KEY",
        "drift OUT LOG --state OUT --slice KEY",
        "judge LOG --judge OUT -o OUT --slice KEY",
    ],
)
def test_a_key_that_is_no_utf_8_is_refused(log, tmp_path, capsys, command):
    names = {"LOG": str(log), "OUT": str(tmp_path / "out"), "KEY": "caf\udce9"}
    with pytest.raises(SystemExit, match="2"):
        main([names.get(word, word) for word in command.split()])
    assert "'caf\\udce9' is no UTF-8; name a key of the rows" in capsys.readouterr().err


def test_a_log_under_a_name_that_is_no_utf_8_is_calibrated_on(log, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    try:
        os.rename(log, name)
    except OSError:
        pytest.skip("this file system has no such names")
    profile = tmp_path / "profile.json"
    asked = ["--mode", "guardrail", "--schedule", "2,2", "--alpha", "0.3", "--group", "none", "-o", str(profile)]
    assert main(["calibrate", os.fsdecode(name), *asked]) == 0
    assert json.loads(profile.read_text())["evidence"]["source"] == f"{tmp_path}/caf\ufffd.jsonl"
