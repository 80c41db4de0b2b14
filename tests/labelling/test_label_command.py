"""``bonmini-guard label``: what it refuses, that nothing is left behind, and how it stops."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

import httpx
import pytest

from bonmini_guard.calibration.logs import load_log
from bonmini_guard.errors import InputError
from bonmini_guard.labelling.items import Plan
from bonmini_guard.labelling.rows import read_rows
from bonmini_guard.labelling.session import Session
from tests.labelling.helpers import judge_all, log_file, row, run, serving, session_of


@pytest.fixture
def log(tmp_path):
    return log_file(tmp_path / "log.jsonl", [row(str(i)) for i in range(5)])


def refused(capsys, *arguments):
    """The one line that a refusal prints."""
    assert run(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("bonmini-guard label: ")
    assert told.err.count("\n") == 1
    return told.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "give LOGS and -o OUT"),
        (["LOG"], "give LOGS and -o OUT"),
        (["LOG", "-o", "DIR/none/out.jsonl"], "cannot write there"),
        (["LOG", "-o", "LOG"], "must all be different files"),
        (["LOG", "-o", "OUT", "--export", "log=LOG"], "must all be different files"),
        (["LOG", "-o", "OUT", "--import", "argilla=X", "--export", "argilla=X"], "must all be different files"),
        (["LOG", "-o", "OUT", "--export", "log=DIR/none/x"], "cannot write there"),
        (["LOG", "-o", "OUT", "--alpha", "0.1"], "--alpha belongs to --for"),
        (["LOG", "-o", "OUT", "--for", "accelerator", "--alpha", "0.1"], "--alpha does not belong to --for accelerator"),
        (["LOG", "-o", "OUT", "--for", "served_and_bad", "--mode", "choice"], "leave out --mode choice"),
        (["LOG", "-o", "OUT", "--for", "served_and_bad", "--alpha", "1.5"], "alpha is 1.5"),
        (["LOG", "-o", "OUT", "--for", "served_and_bad", "--rows", "6"], "has 5 prompts: give 1 to 5"),
        (["LOG", "-o", "OUT", "--for", "served_and_bad", "--schedule", "4,4"], "fewer than the budget of 8 draws"),
        (["LOG", "-o", "OUT", "--for", "accelerator", "--schedule", "2"], "has one loop"),
        (["LOG", "-o", "OUT", "--pairs", "0"], "--pairs is 1 or more"),
        (["LOG", "-o", "OUT", "--mode", "accept", "--pairs", "2"], "--pairs is 1 or more"),
        (["LOG", "-o", "OUT", "--annotator", " "], "an annotator's name"),
        (["LOG", "-o", "OUT", "--annotator", "ann", "--export", "log=DIR/e.jsonl"], "--open and --annotator are the page's"),
        (["LOG", "-o", "OUT", "--open", "--import", "argilla=DIR/none"], "--open and --annotator are the page's"),
        (["LOG", "-o", "OUT", "--only", "z"], "there is no row 'z'"),
        (["LOG", "-o", "OUT", "--only", "0", "--for", "served_and_bad"], "must not be picked"),
        (["LOG", "-o", "OUT", "--port", "99999"], "cannot listen on"),
        (["LOG", "-o", "OUT", "--json"], "--json belongs to --agreement"),
        (["LOG", "-o", "OUT", "--import", "argilla=DIR/none"], "cannot be read"),
        (["DIR/none", "-o", "OUT"], "cannot be read"),
        (["--agreement", "DIR/none"], "cannot be read"),
        (["--agreement", "LOG"], "is not a file of label events"),
        (["LOG", "--agreement", "OUT"], "leave out LOGS"),
        *((["--agreement", "LOG", *more], "every other option") for more in (["--open"], ["--annotator", "ann"], ["--seed", "0"])),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_nothing(tmp_path, log, capsys, arguments, problem):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    names = {"LOG": log, "OUT": tmp_path / "out.jsonl"}
    filled = [str(names.get(a, a)).replace("DIR", str(tmp_path)).replace("=LOG", f"={log}") for a in arguments]
    assert problem in refused(capsys, *filled)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("arguments", [["--export", "log"], ["--export", "dance=x"], ["--import", "log=x"], ["--mode", "dance"]])
def test_unknown_words_are_refused_by_the_parser(tmp_path, log, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        run(log, "-o", tmp_path / "out.jsonl", *arguments)
    assert caught.value.code == 2


def test_options_may_repeat_but_not_change_what_the_file_says(tmp_path, log, capsys):
    session = session_of(tmp_path, [row(str(i)) for i in range(5)], seed=3)
    session.close()
    for options in (["--seed", "4"], ["--mode", "accept"], ["--question", "Hm?"], ["--pairs", "2"]):
        assert "was begun with other options" in refused(capsys, log, "-o", session.path, *options)
    for options in (["--for", "served_and_bad"], ["--alpha", "0.1"], ["--rows", "3", "--export", f"log={tmp_path / 'l.jsonl'}"]):
        assert f"was begun without --for; leave out {options[0]} to go on" in refused(capsys, log, "-o", session.path, *options)
    assert run(log, "-o", session.path, "--seed", "3", "--export", f"argilla={tmp_path / 'a.json'}") == 0


def test_an_interrupt_stops_the_page_and_says_what_was_labelled(tmp_path, log):
    out = tmp_path / "out.jsonl"
    with serving(log, "-o", out, "--annotator", "ann") as (process, url):
        assert url.startswith("http://127.0.0.1:")
        assert httpx.post(url + "api", json={"do": "hello"}).json() == {"annotator": "ann", "question": None}
        item = httpx.post(url + "api", json={"do": "next"}).json()["item"]["key"]
        label = {"do": "label", "annotator": "eve", "item": item, "answer": "none", "event": "1" * 32}
        assert httpx.post(url + "api", json=label).json()["done"] == 1
        second = subprocess.run(
            [sys.executable, "-m", "bonmini_guard.cli", "label", str(log), "-o", str(out)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (second.returncode, second.stderr.count("\n")) == (2, 1)
        assert "is open in another" in second.stderr
        process.send_signal(signal.SIGINT)
        told = process.stdout.read()
        assert process.wait() == 0
        assert process.stderr.read() == ""
    assert "ann: 1 labels, 100 % neither or rejected" in told
    assert "--export choices=choices.jsonl" in told


@pytest.mark.parametrize("package", ["uvicorn", "krippendorff"])
def test_a_missing_library_names_the_extra(tmp_path, log, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    for name in ("server", "agreement"):
        monkeypatch.delitem(sys.modules, f"bonmini_guard.labelling.{name}", raising=False)
    told = refused(capsys, log, "-o", tmp_path / "out.jsonl")
    assert f"{package} is needed here" in told
    assert "pip install 'bonmini-guard[label,calibration]'" in told
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_picked_by_hand_are_asked_alone_and_never_calibrated_on(tmp_path):
    log, out = log_file(tmp_path / "log.jsonl", [row(name) for name in "abc"]), tmp_path / "picked.jsonl"
    for picked in "abc":  # an OUT of picked rows takes further ones
        with contextlib.closing(Session(read_rows([log]), out, Plan(mode="accept", picked=True), only=[picked])) as session:
            standing = session.standing("ann")
            assert (standing.total, standing.put_off) == (2, 0)
            if picked == "a":
                session.put_off("ann", standing.item.key, "1" * 32)
            else:
                judge_all(session, "ann", lambda item: item.candidates[0])
    assert run(log, "-o", out, "--export", f"log={tmp_path / 'labelled.jsonl'}") == 0
    rows = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    assert [one.get("label_sampling") for one in rows] == [None, "informative", "informative"]
    with pytest.raises(InputError, match="not drawn at random"):
        load_log(tmp_path / "labelled.jsonl").labelled_set()
