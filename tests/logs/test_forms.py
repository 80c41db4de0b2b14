"""One log, one reading: the same rows, scores and exit codes in whatever form the log comes."""

from __future__ import annotations

import bz2
import contextlib
import datetime
import decimal
import gzip
import json
import lzma
import os
import threading
import uuid
from functools import partial

import numpy as np
import pyarrow as arrow
import pytest
import zstandard
from pyarrow import parquet

from bonmini_guard.calibration.logs import load_log
from bonmini_guard.calibration.scoring_logs import score_log
from bonmini_guard.cli import main
from bonmini_guard.errors import InputError
from bonmini_guard.logs.reading import RowFile, plain_row

CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}


def rich(number):
    """Rows of every kind of prompt and candidate, with keys that other rows lack."""
    prompts = [
        f"question {number}",
        [{"role": "developer", "content": "be brief"}, {"role": "user", "content": f"q {number}", "name": "ann"}],
        [
            {"role": "user", "content": f"look {number}"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "42"},
        ],
    ]
    label = number % 3 > 0
    row = {
        "id": f"r{number}",
        "prompt": prompts[number % 3],
        "candidates": [
            {"text": "a" * (number % 7 + 1), "score": float(number % 5), "acceptable": label, "tokens": 3, "note": {"lang": "en"}},
            {"text": "b", "score": -1.5, "acceptable": False},
            {"failed": True} if number % 4 == 0 else {"text": f"c{number}", "score": 0.25, "acceptable": not label},
        ],
    }
    return row | ({"topic": "maths", "about": {"user": "u"}} if number % 2 else {"group": f"g{number}", "about": {"page": 3}})


ROWS = [rich(number) for number in range(60)]
ODD = {
    "whole": ROWS,
    "a score that is none": [*ROWS, rich(60) | {"candidates": [{"text": "a", "score": float("nan"), "acceptable": True}] * 3}],
    "no prompt": [{key: value for key, value in row.items() if key != "prompt"} for row in ROWS],
    "an id that is a number": [row | {"id": number} for number, row in enumerate(ROWS)],
    "equal ids": [*ROWS, ROWS[0]],
    "no rows": [],
}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows):
    """As Parquet, whose columns are of one type: prompts are turns in all rows."""
    keys = dict.fromkeys(key for row in rows for key in row)
    values = {key: [as_list(row[key]) if key == "prompt" and key in row else row.get(key) for row in rows] for key in keys}
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.table(values), sink)
    return sink.getvalue().to_pybytes()


def as_list(prompt):
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def halves(rows, pack):
    return pack(lines(rows[:25])) + pack(lines(rows[25:]))


FORMS = {
    "plain.jsonl": lines,
    "mark.jsonl": lambda rows: b"\xef\xbb\xbf" + lines(rows),
    "windows.jsonl": lambda rows: b"\xef\xbb\xbf" + lines(rows).replace(b"\n", b"\r\n"),
    "packed.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "no name for it": lambda rows: gzip.compress(lines(rows)),
    "appended.jsonl.gz": lambda rows: halves(rows, gzip.compress) + b"\0" * 512,
    "packed.jsonl.zst": lambda rows: zstandard.compress(lines(rows)),
    "appended.jsonl.zst": lambda rows: halves(rows, zstandard.compress),
    "packed.jsonl.bz2": lambda rows: halves(rows, bz2.compress),
    "packed.jsonl.xz": lambda rows: lzma.compress(lines(rows)),
    "table.parquet": table,
    "table.pq": table,
    "packed.parquet.gz": lambda rows: gzip.compress(table(rows)),
    "pipe of lines": lines,
    "pipe of gzip": lambda rows: gzip.compress(lines(rows)),
    "pipe of a table": table,
    "-": lines,
}


@contextlib.contextmanager
def written(folder, name, data):
    """The path of a file, a named pipe or standard input with the data in it."""
    if name != "-" and not name.startswith("pipe"):
        (folder / name).write_bytes(data)
        yield folder / name
        return
    pipe = folder / "pipe"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    writer = threading.Thread(target=_pour, args=(pipe, data))
    writer.start()
    with read_from(pipe) if name == "-" else contextlib.nullcontext():
        yield "-" if name == "-" else pipe
    writer.join(10)


def _pour(pipe, data):
    with contextlib.suppress(BrokenPipeError), pipe.open("wb") as sink:
        sink.write(data)


@contextlib.contextmanager
def read_from(pipe):
    kept, opened = os.dup(0), os.open(pipe, os.O_RDONLY)
    os.dup2(opened, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(opened)
        os.close(kept)


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


class Lengths:
    """Scores by what it is shown."""

    def fingerprint(self):
        return "lengths"

    def score(self, messages, candidates):
        shown = sum(len(str(message.content)) + 10 * len(getattr(message, "tool_calls", ())) for message in messages)
        return [float(shown + len(candidate.text)) for candidate in candidates]


@pytest.mark.parametrize("form", FORMS)
def test_a_log_says_the_same_in_every_form(tmp_path, form):
    expected = [row | {"prompt": as_list(row["prompt"])} for row in ROWS]
    data = FORMS[form](ROWS)
    with written(tmp_path, form, data) as path:
        rows = [row | {"prompt": as_list(row["prompt"])} for _, row in RowFile(path)]
    assert without_nulls(rows) == without_nulls(expected)
    log = load_log(write(tmp_path / "first.jsonl", ROWS), cost=None)
    with written(tmp_path, form, data) as path:
        read = load_log(path)
    for name in ("keys", "scores", "labels", "counts"):
        np.testing.assert_array_equal(getattr(read, name), getattr(log, name))
    with written(tmp_path, form, data) as path:
        score_log([path], Lengths(), tmp_path / "scored.jsonl")
    score_log([tmp_path / "first.jsonl"], Lengths(), tmp_path / "expected.jsonl")
    assert scores(tmp_path / "scored.jsonl") == scores(tmp_path / "expected.jsonl")


def write(path, rows):
    path.write_bytes(lines(rows))
    return path


def scores(path):
    return [[one.get("score") for one in json.loads(line)["candidates"]] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("case", ODD)
def test_exit_codes_and_words_do_not_depend_on_the_form(tmp_path, capsys, case):
    profile = tmp_path / "profile.json"
    profile.write_bytes(b"\xef\xbb\xbf" + json.dumps({"mode": "guardrail", "schedule": [2], "thresholds": [0.5]}).encode())
    said = {}
    for form, make in FORMS.items():
        with written(tmp_path, form, make(ODD[case])) as path:
            code = main(["replay", str(path), "--profile", str(profile), "--json"])
        out, err = capsys.readouterr()
        assert len(err.strip().splitlines()) <= 1, err
        said[form] = code, out or err.replace(f" {path}:", " LOG:").replace("id '?'", "id 'r0'")
    first = said["plain.jsonl"]
    assert first[0] == (0 if case in ("whole", "no prompt") else 2)
    assert {form: told for form, told in said.items() if told != first} == {}


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bz2.compress, partial(lzma.compress, preset=0)])
def test_packed_logs_that_end_early_keep_their_whole_lines(tmp_path, pack):
    noise = np.random.default_rng(0)
    rows = [row | {"noise": noise.random(3000).tolist()} for row in ROWS]
    data = pack(lines(rows))
    (tmp_path / "log").write_bytes(data[: len(data) // 2])
    file = RowFile(tmp_path / "log")
    read = [row["id"] for _, row in file]
    assert file.torn == 1
    assert 0 < len(read) < len(rows)
    assert read == [row["id"] for row in rows[: len(read)]]
    (tmp_path / "log").write_bytes(data[:5])
    empty = RowFile(tmp_path / "log")
    assert list(empty) == []
    assert empty.torn == (1 if len(data) > 5 else 0)
    damaged = bytearray(data)
    damaged[len(data) // 2 : len(data) // 2 + 400] = b"\0" * 400
    (tmp_path / "log").write_bytes(bytes(damaged))
    with pytest.raises(InputError, match=r"packed data are damaged|not JSON"):
        list(RowFile(tmp_path / "log"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{}".encode("utf-16"), "is UTF-16"),
        (b"{\0}\0", "is UTF-16"),
        (b"PK\x03\x04...", "is a zip archive"),
        (b"ARROW1\0\0", "is an Arrow file"),
        (b"SQLite format 3\0", "is an SQLite database"),
        (b'[{"id": "1"}]', "this reads JSON lines and Parquet; 'bonmini-guard import'"),
        (b"id,prompt\n1,q\n", "this reads JSON lines and Parquet; 'bonmini-guard import'"),
    ],
)
def test_other_forms_are_named(tmp_path, data, said):
    (tmp_path / "log").write_bytes(data + b"\n")
    with pytest.raises(InputError, match=said) as told:
        list(RowFile(tmp_path / "log"))
    assert "\n" not in str(told.value)


def test_a_pipe_that_was_read_says_so(tmp_path):
    with written(tmp_path, "pipe", lines(ROWS[:2])) as path:
        file = RowFile(path)
        assert len(list(file)) == 2
        with pytest.raises(InputError, match="can be read only once"):
            list(file)


def test_values_that_json_has_no_words_for(tmp_path):
    when = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    row = {
        "id": "1",
        "prompt": "q",
        "candidates": [{"text": "a", "score": decimal.Decimal("0.25")}, {"text": "bb", "score": decimal.Decimal("2.00")}],
        "at": when,
        "day": when.date(),
        "took": datetime.timedelta(seconds=1.5),
        "raw": "né".encode(),
        "bytes": b"\xff\xfe",
    }
    parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / "log.parquet")
    assert load_log(tmp_path / "log.parquet").scores.tolist() == [[0.25, 2.0]]
    score_log([tmp_path / "log.parquet"], Lengths(), tmp_path / "out.jsonl")
    said = json.loads((tmp_path / "out.jsonl").read_text())
    assert said["at"].startswith("2026-01-02T00:00:00")
    assert (said["day"], said["took"], said["raw"], said["bytes"]) == ("2026-01-02", 1.5, "né", "//4=")
    number = uuid.uuid4()
    assert plain_row({"id": number, "turn": {"role": "user", "content": None, "name": None}}) == {
        "id": str(number),
        "turn": {"role": "user", "content": None},
    }


@pytest.mark.parametrize(
    "odd",
    [
        arrow.Array.from_buffers(arrow.string(), 1, [None, arrow.py_buffer(bytes(4) + b"\2\0\0\0"), arrow.py_buffer(b"\xff\xfe")]),
        arrow.array([10**12], arrow.timestamp("s")),
        arrow.array([2**62], arrow.duration("s")),
    ],
    ids=["no UTF-8", "a time", "a duration"],
)
def test_what_no_column_of_a_table_should_hold_is_told_in_one_line(odd, tmp_path):
    parquet.write_table(arrow.table({"id": ["a"], "prompt": ["q"], "odd": odd}), tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"log.parquet:1: a value in one of 1 rows from here cannot be read"):
        list(RowFile(tmp_path / "log.parquet"))


def test_a_damaged_table_is_told_in_one_line(tmp_path):
    data = table(ROWS)
    footer = int.from_bytes(data[-8:-4], "little")
    (tmp_path / "log.parquet").write_bytes(data[: -8 - footer] + b"\x0e" * footer + data[-8:])
    with pytest.raises(InputError, match="not a Parquet file") as told:
        list(RowFile(tmp_path / "log.parquet"))
    assert "\n" not in str(told.value)
