"""Trace files: put aside by size and age, deleted by age, id and group, and never spoilt by a killed writer."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time

import pytest

from bonmini_guard import BestOfMiniN, TraceWriter
from bonmini_guard.calibration.logs import load_log
from bonmini_guard.cli import main
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.logs.trace_files import TraceFile, forget, trace_files
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

DAY = 86400.0


def line(name: str, **more) -> bytes:
    return (json.dumps({"id": name, "text": "x" * 50, **more}) + "\n").encode()


def ids(path):
    return [json.loads(row)["id"] for file in trace_files(path) for row in file.read_bytes().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "my.traces.jsonl"


def test_a_file_is_put_aside_before_it_grows_too_large(path):
    file = TraceFile(path, max_bytes=300)
    for number in range(20):
        file.append(line(str(number)))
    assert len(trace_files(path)) == 5
    assert all(part.stat().st_size <= 300 for part in trace_files(path))
    assert ids(path) == [str(number) for number in range(20)]
    assert trace_files(path)[-1] == path


def test_a_link_stays_a_link_and_what_is_put_aside_lies_beside_the_file(tmp_path):
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "t.jsonl", tmp_path / "t.jsonl"
    link.symlink_to(real)
    file = TraceFile(link, max_bytes=100, keep_seconds=4 * DAY)
    for number in range(4):
        file.append(line(str(number)))
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "t.jsonl"]
    assert ids(link) == ids(real) == list("0123")
    assert forget(link, ids=["0"]) == 1
    for path in trace_files(link):
        os.utime(path, (0, 0))
    file.expire(time.time())
    assert ids(real) == ["3"]


@pytest.mark.parametrize("name", ["a\0b.jsonl", "x" * 300 + ".jsonl"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(ConfigurationError, match="cannot write there"):
        TraceWriter(tmp_path / name)


def test_a_row_larger_than_the_limit_has_a_file_of_its_own(path):
    file = TraceFile(path, max_bytes=10)
    for name in "abc":
        file.append(line(name))
    assert [len(part.read_bytes().splitlines()) for part in trace_files(path)] == [1, 1, 1]


def test_traces_are_their_owners_alone(path):
    file = TraceFile(path, max_bytes=10)
    file.append(line("a"))
    file.append(line("b"))
    forget(path, ids={"a"})
    assert {part.stat().st_mode & 0o777 for part in trace_files(path)} == {0o600}


def test_other_files_in_the_folder_are_not_traces(path):
    for name in (
        "my.traces.old.jsonl",
        "your.traces.20260101T000000000000-abcd.jsonl",
        "my.traces.20260101T000000000000-abcd.jsonl.gz",
    ):
        path.with_name(name).write_text("{}\n")
    assert trace_files(path) == []


def test_a_file_with_a_torn_last_line_is_put_aside_as_it_is(path):
    path.write_bytes(line("a") + b'{"id": "to')
    TraceFile(path, max_bytes=10**6).append(line("b"))
    torn, current = trace_files(path)
    assert torn.read_bytes().endswith(b'{"id": "to')
    assert current.read_bytes() == line("b")


def test_a_writer_notices_that_its_file_was_renamed_removed_or_rewritten(path):
    file = TraceFile(path, max_bytes=10**6)
    file.append(line("a"))
    os.rename(path, path.with_name("elsewhere.jsonl"))
    file.append(line("b"))
    assert ids(path) == ["b"]
    path.unlink()
    file.append(line("c"))
    file.append(line("d"))
    assert forget(path, ids={"c"}) == 1
    file.append(line("e"))
    assert ids(path) == ["d", "e"]


def test_a_file_that_could_not_be_opened_is_opened_when_it_can_be(tmp_path):
    folder = tmp_path / "traces"
    folder.mkdir()
    file = TraceFile(folder / "traces.jsonl", max_bytes=10**6)
    file.append(line("a"))
    shutil.rmtree(folder)
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            file.append(line("b"))
        others += [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]  # whatever number was free is taken
    folder.mkdir()
    file.append(line("c"))
    for descriptor in others:
        os.close(descriptor)  # nobody else has closed it
    assert ids(folder / "traces.jsonl") == ["c"]


def test_old_files_are_deleted_and_the_current_one_is_put_aside_in_time(path):
    now = time.time()
    file = TraceFile(path, max_bytes=100, keep_seconds=10 * DAY)
    for name in "abc":
        file.append(line(name))
    oldest, newer, _ = trace_files(path)
    os.utime(oldest, (now - 11 * DAY, now - 11 * DAY))
    os.utime(newer, (now - 9 * DAY, now - 9 * DAY))
    file.expire(now)
    assert ids(path) == ["b", "c"]
    file.expire(now + 3 * DAY)  # the current file is a quarter of the keeping time old
    assert ids(path) == ["c"]
    file.append(line("d"))
    file.expire(now)
    assert [len(part.read_bytes().splitlines()) for part in trace_files(path)] == [1, 1]
    file.expire(now + 14 * DAY)
    assert ids(path) == []


@pytest.mark.filterwarnings("ignore:uncalibrated")
async def test_a_guard_that_runs_deletes_old_files(path):
    old = path.with_name("my.traces.20200101T000000000000-abcd.jsonl")
    old.write_bytes(line("old"))
    os.utime(old, (0, 0))
    writer = TraceWriter(path, keep_days=30)
    await BestOfMiniN(generator=FakeGenerator(["1"]), reward_model=FakeRewardModel(float), trace_to=writer).arun("q")
    await writer.aflush()
    for _ in range(1500):  # it looks after it has written
        if not old.exists():
            break
        time.sleep(0.02)
    assert not old.exists()
    assert len(ids(path)) == 1


def test_forgetting_by_id_and_group_in_all_files(path):
    file = TraceFile(path, max_bytes=200)
    for number in range(9):
        file.append(line(str(number), **({"group": "u1"} if number % 3 == 0 else {})))
    times = [part.stat().st_mtime_ns for part in trace_files(path)]
    assert forget(path, ids={"1", "99"}, groups={"u1"}) == 4
    assert ids(path) == ["2", "4", "5", "7", "8"]
    assert [part.stat().st_mtime_ns for part in trace_files(path)] == times


def test_rows_of_no_group_are_not_those_of_a_group_called_none(path):
    path.write_bytes(line("a") + line("b", group=None) + line("c", group=1.0))
    assert forget(path, groups={"None"}) == 0
    assert forget(path, groups={"1"}) == 1  # as logs tell groups apart
    assert ids(path) == ["a", "b"]


@pytest.mark.parametrize("given", [{"ids": "12"}, {"groups": "user-12"}])
def test_one_text_in_place_of_several_is_refused_since_parts_of_it_would_match(given, path):
    TraceFile(path, max_bytes=10**6).append(line("1", group="user-1"))
    with pytest.raises(InputError, match="takes several, not one text"):
        forget(path, **given)
    assert ids(path) == ["1"]


def test_forgetting_drops_torn_lines_since_nobody_can_tell_whose_they_are(path):
    path.write_bytes(line("a") + b'{"id": "b", "prompt": "person')
    assert forget(path, ids={"b"}) == 0
    assert path.read_bytes() == line("a")


def test_forgetting_keeps_a_lone_surrogate_that_another_writer_left_as_bytes(path):
    path.write_bytes(line("a") + b'{"id": "b", "text": "\xed\xa0\xbd"}\n')
    assert forget(path, ids={"a"}) == 1
    assert json.loads(path.read_bytes()) == {"id": "b", "text": "\ud83d"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_root_forgets_in_stays_its_owners(path):
    path.write_bytes(line("a") + line("b"))
    os.chown(path, 65534, 65534)
    assert forget(path, ids=["a"]) == 1
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


def test_forgetting_finishes_what_a_killed_one_left_behind(path):
    path.write_bytes(line("a"))
    half = path.with_name(f".{path.name}.x1y2z3w4.rewritten")
    others = [path.with_name(f".{name}.x1y2z3w4.unfinished") for name in (path.name, f"{path.name}.gz")]  # are being written
    for each in (half, *others):
        each.write_bytes(line("a"))
    forget(path, ids={"a"})
    assert sorted(path.parent.iterdir()) == sorted([path.with_name(f".{path.name}.lock"), *others, path])
    assert path.read_bytes() == b""


def test_rows_written_meanwhile_are_not_lost(path):
    file = TraceFile(path, max_bytes=3000)
    file.append(line("n0"))

    def write():
        for number in range(1, 200):
            file.append(line(f"n{number}"))
            time.sleep(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        forget(path, ids={f"n{10 * number}" for number in range(20)})
    thread.join()
    forget(path, ids={"n190"})
    assert ids(path) == [f"n{number}" for number in range(200) if number % 10]


def test_rows_of_a_file_that_is_put_aside_meanwhile_are_forgotten(path):
    file = TraceFile(path, max_bytes=10)  # every row puts the file before it aside
    stop = threading.Event()

    def write():
        while not stop.is_set():
            file.append(line("other"))
            time.sleep(0.0005)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            TraceFile(path, max_bytes=10**6).append(line(f"n{number}"))
            assert forget(path, ids={f"n{number}"}) == 1
    finally:
        stop.set()
        thread.join()
    assert set(ids(path)) == {"other"}


@pytest.mark.parametrize("made", [True, False])
def test_forgetting_where_there_are_no_traces_is_refused_and_leaves_nothing(made, path):
    if made:
        TraceFile(path, max_bytes=10).append(line("a"))
        path.unlink()
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputError, match="there are no traces here; give the path that the guard's trace_to has"):
        forget(path, ids={"a"})
    assert sorted(path.parent.iterdir()) == before


def test_a_line_that_is_no_json_stops_it_before_the_file_is_touched(path):
    path.write_bytes(line("a") + b"garbage\n")
    with pytest.raises(InputError, match=r"jsonl:2: not JSON .* mend or remove the line"):
        forget(path, ids={"a"})
    assert path.read_bytes() == line("a") + b"garbage\n"


@pytest.mark.filterwarnings("ignore:uncalibrated")
async def test_a_writer_forgets_rows_that_wait_too_and_the_command_does_it_from_outside(path, capsys):
    writer = TraceWriter(path)
    guard = BestOfMiniN(generator=FakeGenerator(["1"]), reward_model=FakeRewardModel(float), trace_to=writer)
    results = [await guard.arun("q") for _ in range(5)]
    assert writer.forget(ids=[results[0].request_id]) == 1
    assert main(["forget", str(path), "--id", results[1].request_id, "--id", results[2].request_id]) == 0
    assert "2 rows deleted" in capsys.readouterr().out
    assert ids(path) == [result.request_id for result in results[3:]]


@pytest.mark.parametrize("arguments", [["--id", "x"], []])
def test_the_command_refuses_in_one_line(arguments, path, capsys):
    assert main(["forget", str(path), *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.filterwarnings("ignore:uncalibrated")
async def test_all_files_of_a_path_are_one_log(path):
    guard = BestOfMiniN(
        generator=FakeGenerator(["1"]), reward_model=FakeRewardModel(float), trace_to=TraceWriter(path, max_bytes=4000), explore=1.0
    )
    for _ in range(6):
        await guard.arun("q")
        await guard.afinish()
    assert len(trace_files(path)) > 1
    assert len(load_log(trace_files(path))) == 6
