"""``drift --follow``: what it shows of a file that grows, on every width, and how it ends."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from contextlib import closing

import pytest
from rich.console import Console

from bonmini_guard.calibration.traces import traces_of_rows
from bonmini_guard.calibration.watch import Watch
from bonmini_guard.cli import main
from bonmini_guard.commands.following import Tail, Tally, table, view
from bonmini_guard.errors import InputError
from tests.calibration.helpers import written
from tests.calibration.populations import Population
from tests.calibration.watching import TRAFFIC, calibrated, guarded, placed

USAGE = {"usage": {"input_tokens": 100, "output_tokens": 50}}


def rows_of(profile, population, count, seed, **extra):
    return [{**row, "draws": len(row["candidates"])} for row in guarded(profile, population.log(count, seed), **extra, **USAGE)]


def seen(profile, rows, prices=(2.0, 8.0), watch=None):
    watch, tally = watch or Watch(profile), Tally(prices)
    return watch.look(traces_of_rows(tally.through(placed(rows)), profile, memory=watch.memory)), tally


def test_the_view_says_what_the_requests_came_to():
    profile = calibrated()
    rows = rows_of(profile, TRAFFIC, 200, 7)
    drift, tally = seen(profile, [*rows, *rows[:50]])  # the latter are known by then
    shown = {name: what for name, what, _ in view(drift, tally, profile) if name}
    draws = sum(row["draws"] for row in rows)
    assert sum(tally.reasons.values()) == 200
    assert tally.cost == pytest.approx(200 * (100 * 2 + 50 * 8) / 1e6)
    assert shown["draws"].startswith(f"{draws / 200:.2f} a request of 4; {800 - draws:,} saved")
    assert f"{tally.cost:,.4g} spent, about {tally.cost * (800 - draws) / draws:,.4g} saved" == shown["money"]
    assert shown["promise"].startswith("not refuted")
    assert shown["drift"].startswith("none found in 200 requests")


def test_a_state_that_is_gone_on_from_changes_nothing_of_what_the_requests_came_to():
    profile = calibrated()
    rows = rows_of(profile, TRAFFIC, 100, 7)
    rows = [{**row, "group": f"g{number // 2}"} for number, row in enumerate(rows)]
    rows[0] |= {"candidates": rows[0]["candidates"][:1], "reason": "deadline", "decision": "abstained", "selected": None}
    watch = Watch(profile)
    (first, one), (second, other) = (seen(profile, rows, watch=watch) for _ in range(2))
    assert first.traces == second.traces == 50
    assert sum(one.reasons.values()) == 100
    assert (one.reasons, one.draws, one.cost) == (other.reasons, other.draws, other.cost)


def test_drift_and_a_refuted_promise_stand_out():
    profile = calibrated()
    drift, tally = seen(profile, rows_of(profile, Population(size=4, middle=-1.0), 400, 7))
    assert next(row for row in view(drift, tally, profile) if row[0] == "drift")[2] == "bold red"
    fooled = TRAFFIC.log(400, 3)
    fooled.labels[:] = 0.0
    rows = [{**row, "draws": len(row["candidates"])} for row in guarded(profile, fooled, **USAGE)]
    assert view(*seen(profile, rows), profile)[0][1].startswith("REFUTED")
    nothing = profile.model_copy(update={"delta": None, "alpha": None})
    assert view(*seen(nothing, rows), nothing)[0][1].startswith("none")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_width_breaks_a_word_or_loses_one(width):
    profile = calibrated()
    drift, tally = seen(profile, rows_of(profile, TRAFFIC, 60, 7))
    console = Console(file=io.StringIO(), width=width)
    rows = view(drift, tally, profile)
    console.print(table(rows))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(lines).split() == " ".join(f"{name} {what}" for name, what, _ in rows).split()


def test_a_tail_reads_whole_lines_once_and_begins_anew_with_another_file(tmp_path):
    path = tmp_path / "traces.jsonl"
    with closing(Tail(str(path))) as tail:
        follows(tail, path)


def follows(tail, path):
    assert list(tail.rows()) == []
    path.write_text('{"id": "a"}\n{"id": ')
    assert list(tail.rows()) == [(f"{path}:1", {"id": "a"})]
    with path.open("a") as file:
        file.write('"b"}\n')
    assert list(tail.rows()) == [(f"{path}:2", {"id": "b"})]
    assert list(tail.rows()) == []
    path.rename(path.with_name("traces.1.jsonl"))
    path.write_text('{"id": "c"}\n')
    assert list(tail.rows()) == [(f"{path}:1", {"id": "c"})]
    with path.open("a") as file:  # put aside before anybody looked again
        file.write('{"id": "d"}\n')
    path.rename(path.with_name("traces.2.jsonl"))
    assert list(tail.rows()) == []
    path.write_text('{"id": "e"}\n')
    assert list(tail.rows()) == [(f"{path}:2", {"id": "d"}), (f"{path}:1", {"id": "e"})]
    path.write_text("")
    assert list(tail.rows()) == []
    path.write_text('{"id": "f"}\n')
    assert list(tail.rows()) == [(f"{path}:1", {"id": "f"})]
    first, second = (path.with_name(f"traces.20260102T00000{n}000000-abcd.jsonl") for n in range(2))
    path.rename(first)  # as a guard names them, and twice before anybody looked again
    path.write_text('{"id": "g"}\n')
    path.rename(second)
    path.write_text('{"id": "h"}\n')
    assert list(tail.rows()) == [(f"{second}:1", {"id": "g"}), (f"{path}:1", {"id": "h"})]
    path.write_text("")
    assert list(tail.rows()) == []


@pytest.fixture
def interruptible():
    """A process started in the background inherits that Ctrl-C is ignored, and hands it down."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("ended", [signal.SIGINT, signal.SIGTERM])
def test_it_follows_until_it_is_ended_and_keeps_its_state(tmp_path, interruptible, ended):
    profile, traces, state = calibrated(), tmp_path / "traces.jsonl", tmp_path / "watch.json"
    profile.save(tmp_path / "profile.json")
    rows = rows_of(profile, TRAFFIC, 60, 12345)
    arguments = ["drift", tmp_path / "profile.json", traces, "--follow", "--every", "0.1", "--state", state, "--output-price", "9"]
    command = [sys.executable, "-m", "bonmini_guard.cli", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for number in (20, 60):
            written(traces, rows[:number])
            assert any(f"in {number} requests" in line for line in process.stdout)
        process.send_signal(ended)
        try:
            assert process.wait(600) == 0, process.stderr.read()
        finally:
            process.kill()
    assert json.loads(state.read_text())["traces"] == 60


@pytest.mark.parametrize("said", [{"draws": "two"}, {"usage": [1]}, {"usage": {"input_tokens": "many"}}])
def test_a_row_that_no_guard_wrote_so_is_told(said):
    with pytest.raises(InputError, match="jsonl:3: is no row of a guard"):
        list(Tally((1.0, 1.0)).through([("traces.jsonl:3", {"id": "a", "decision": "accepted", **said})]))


def test_options_that_do_not_belong_together_are_refused(tmp_path, capsys):
    calibrated().save(tmp_path / "profile.json")
    assert main(["drift", str(tmp_path / "profile.json"), "x", "--follow", "--json"]) == 2
    assert "leave out --looks and --json" in capsys.readouterr().err
    for every in ("-1", "0", "nan", "inf", "1e300"):
        assert main(["drift", str(tmp_path / "profile.json"), "x", "--follow", "--every", every]) == 2
        assert "--every" in capsys.readouterr().err
    for given in (["--every", "2"], ["--input-price", "3"], ["--output-price", "0"]):
        assert main(["drift", str(tmp_path / "profile.json"), "x", *given]) == 2
        assert f"{given[0]} belongs to --follow" in capsys.readouterr().err
    for price in ("-1", "nan", "inf"):
        assert main(["drift", str(tmp_path / "profile.json"), "x", "--follow", "--input-price", price]) == 2
        assert "--input-price" in capsys.readouterr().err
