"""``kill -9`` under load: every acknowledged row is in the file, no file has more than one torn line, and the log is readable."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bonmini_guard.calibration.blocks import row_key
from bonmini_guard.calibration.logs import load_log
from bonmini_guard.cli import main
from bonmini_guard.logs.trace_files import TraceFile, trace_files

KILLS = 20

#: Starts a process that traces requests of several sizes as fast as it can and says which rows are acknowledged; kills it; again.
DRIVER = """
import asyncio, os, random, signal, sys, time, warnings
from bonmini_guard import BestOfMiniN, TraceWriter
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

warnings.simplefilter("ignore")
path, kills, chance = sys.argv[1], int(sys.argv[2]), random.Random(0)

async def trace(acknowledge):
    scorer = FakeRewardModel(lambda text: 1.0 if text[0] == "g" else -1.0)
    generator = FakeGenerator(lambda request: "gb"[request.index % 2] * (1 + 997 * request.seed % 20000))
    guard = BestOfMiniN(generator=generator, reward_model=scorer, schedule=[2, 2], explore=0.3,
                        trace_to=TraceWriter(path, max_bytes=2_000_000))
    while True:
        results = await asyncio.gather(*(guard.arun("q") for _ in range(5)))
        await guard.afinish()
        os.write(acknowledge, " ".join(result.request_id for result in results).encode() + b"\\n")

for _ in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        asyncio.run(trace(write))
    os.close(write)
    with open(read, "rb") as said:
        acknowledged = said.readline()  # it is under load now
        time.sleep(chance.random() * 0.2)
        os.kill(child, signal.SIGKILL)
        acknowledged += said.read()
    os.waitpid(child, 0)
    print(acknowledged.rpartition(b"\\n")[0].decode())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no kill -9 on this system")
def test_nothing_acknowledged_is_lost(tmp_path, capsys):
    path = tmp_path / "traces.jsonl"
    told = subprocess.run([sys.executable, "-c", DRIVER, path, str(KILLS)], capture_output=True, text=True, check=True)
    acknowledged = set(told.stdout.split())
    assert len(acknowledged) >= 5 * KILLS
    written, torn = [], 0
    for file in trace_files(path):
        *lines, rest = file.read_bytes().split(b"\n")
        written += [json.loads(line)["id"] for line in lines]
        torn += bool(rest)
    assert acknowledged <= set(written)
    assert len(written) == len(set(written))
    log = load_log(trace_files(path))
    assert log.left_out["torn"] <= torn <= KILLS
    assert len(log) + log.left_out["incomplete"] == len(written)
    assert set(log.counts.tolist()) == {4}
    assert main(
        ["calibrate", *map(str, trace_files(path)), "--mode", "accelerator", "--schedule", "2,2", "-o", str(tmp_path / "p.json")]
    ) in (0, 3)
    assert "Traceback" not in capsys.readouterr().err


def test_a_row_torn_at_any_byte_spoils_no_other(tmp_path):
    """A kill seldom falls within a write, so here every place is tried."""
    row = json.dumps({"id": "torn", "candidates": [{"score": 1.0, "text": "é" * 20}]}, ensure_ascii=False).encode() + b"\n"
    for cut in range(1, len(row)):
        path = tmp_path / f"t{cut}.jsonl"
        path.write_bytes(row.replace(b"torn", b"good") + row[:cut])
        TraceFile(path, max_bytes=10**6).append(row.replace(b"torn", b"next"))
        log = load_log(trace_files(path))
        assert log.keys[0] == row_key("good")
        assert log.keys[-1] == row_key("next")
