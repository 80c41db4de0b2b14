"""``score``: missing scores are filled, nothing else changes, and a kill loses no finished row."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification

from bonmini_guard.adapters import ray_data
from bonmini_guard.adapters.ray_data import _check_earlier, _merge, _part, score_log_on_ray
from bonmini_guard.calibration.scoring_logs import score_log
from bonmini_guard.commands import score as command
from bonmini_guard.errors import BonMiniGuardError, InputError
from bonmini_guard.logs.appending import encoded
from bonmini_guard.logs.reading import RowFile
from tests.adapters.drawing import open_files
from tests.calibration.helpers import options_of, written
from tests.reward.test_kinds import saved
from tests.reward.tiny import CHATML


class LengthScorer:
    """Scores an answer by its length; dies at one row if told to."""

    def __init__(self, mark="length-1", dies_at=None, number=float):
        self.mark, self.dies_at, self.number, self.calls = mark, dies_at, number, 0

    def fingerprint(self):
        return self.mark

    def score(self, messages, candidates):
        self.calls += 1
        if self.calls == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return [None if "huge" in candidate.text else self.number(len(candidate.text)) for candidate in candidates]


def rows(number):
    return [
        {"id": f"r{i}", "prompt": "p", "candidates": [{"text": "é" * (i + 1), "acceptable": True}, {"text": "b"}], "topic": i}
        for i in range(number)
    ]


def read(path):
    return [row for _, row in RowFile(path)]


@pytest.mark.parametrize("number", [float, np.float32])
def test_missing_scores_are_filled_and_all_else_is_kept(tmp_path, number):
    log = written(tmp_path / "log.jsonl", rows(3))
    tally = score_log([log], LengthScorer(number=number), tmp_path / "out.jsonl.gz")
    assert (tally.rows, tally.scored, tally.kept) == (3, 6, 0)
    scored = read(tmp_path / "out.jsonl.gz")
    assert [[c["score"] for c in row["candidates"]] for row in scored] == [[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]
    assert all(row["scored_by"] == "length-1" and row["topic"] == i for i, row in enumerate(scored))
    assert scored[0]["candidates"][0] == {"text": "é", "acceptable": True, "score": 1.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "out.jsonl.gz"]
    score_log([log], LengthScorer(number=number), tmp_path / "judged.jsonl", beside="j")
    assert read(tmp_path / "judged.jsonl")[0]["candidates"][0]["verdicts"] == {"j": True}


def test_only_scores_of_the_same_model_are_kept(tmp_path):
    answers = [
        {"text": "aa", "score": 9.0, "raw_score": 9.0},
        {"text": "b", "score": None},
        {"text": "c", "failed": True, "score": None},
    ]
    values = [
        {"id": name, "prompt": "p", "candidates": [dict(answer) for answer in answers], **mark}
        for name, mark in (("same", {"scored_by": "length-1"}), ("other", {"scored_by": "x"}), ("unknown", {}))
    ]
    tally = score_log([written(tmp_path / "log.jsonl", values)], LengthScorer(), tmp_path / "out.jsonl")
    assert (tally.kept, tally.replaced, tally.scored) == (1, 2, 5)
    same, other, unknown = read(tmp_path / "out.jsonl")
    assert [c["score"] for c in same["candidates"]] == [9.0, 1.0, None]
    assert other["candidates"] == unknown["candidates"]
    assert other["candidates"][0] == {"text": "aa", "score": 2.0}


def test_what_cannot_be_scored_is_a_failed_draw(tmp_path):
    log = written(tmp_path / "log.jsonl", [{"id": "a", "prompt": "p", "candidates": [{"text": "huge"}, {"text": "b"}]}])
    assert score_log([log], LengthScorer(), tmp_path / "out.jsonl").unscorable == 1
    assert read(tmp_path / "out.jsonl")[0]["candidates"][0] == {"text": "huge", "score": None, "failed": True}


def test_shards_make_up_the_whole(tmp_path):
    log = written(tmp_path / "log.jsonl", rows(7))
    for number in (1, 2, 3):
        score_log([log], LengthScorer(), tmp_path / f"{number}.jsonl", shard=(number, 3))
    assert [row["id"] for row in read(tmp_path / "2.jsonl")] == ["r1", "r4"]
    ids = sorted(row["id"] for number in (1, 2, 3) for row in read(tmp_path / f"{number}.jsonl"))
    assert ids == [f"r{i}" for i in range(7)]


def test_shards_of_a_cluster_are_merged_in_the_order_of_the_log(tmp_path, monkeypatch):
    log, target = written(tmp_path / "log.jsonl", rows(7)), tmp_path / "merged.jsonl.gz"
    parts = [_part(target, number, 3) for number in (1, 2, 3)]
    for number, part in enumerate(parts, start=1):
        score_log([log], LengthScorer(), part, shard=(number, 3))
    whole = parts[1].read_bytes()
    parts[1].write_bytes(whole[:-5])
    with pytest.raises(InputError, match="a shard of it was cut off"):
        _merge(parts, target)
    parts[1].write_bytes(whole)
    opened = []
    monkeypatch.setattr(ray_data, "encoded", lambda row: opened.append(open_files(".shard-")) or encoded(row))
    _merge(parts, target)
    assert opened == [0] * 7  # there may be more shards than a process may open
    score_log([log], LengthScorer(), tmp_path / "whole.jsonl")
    assert read(target) == read(tmp_path / "whole.jsonl")
    assert not any(part.exists() for part in parts)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_shard_without_rows_is_an_empty_file(tmp_path, name):
    log = written(tmp_path / "log.jsonl", rows(3))
    for number in range(1, 9):
        assert score_log([log], LengthScorer(), tmp_path / f"{number}-{name}", shard=(number, 8)).rows == (number <= 3)
    assert [len(read(tmp_path / f"{number}-{name}")) for number in range(1, 9)] == [1, 1, 1, 0, 0, 0, 0, 0]
    target = tmp_path / "whole.jsonl"
    parts = [_part(target, number, 8) for number in range(1, 9)]
    for number, part in enumerate(parts, start=1):
        score_log([log], LengthScorer(), part, shard=(number, 8))
    _merge(parts, target)
    assert [row["id"] for row in read(target)] == ["r0", "r1", "r2"]


def test_messages_are_scored_where_there_is_no_text(tmp_path):
    values = [{"id": "a", "prompt": [{"role": "user", "content": "q"}], "candidates": [{"message": {"content": "four"}}]}]
    score_log([written(tmp_path / "log.jsonl", values)], LengthScorer(), tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0]["candidates"][0]["score"] == 4.0


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    log, out = written(tmp_path / "log.jsonl", rows(30)), tmp_path / "out.jsonl"
    if os.fork() == 0:  # the child dies while it scores its 11th row
        score_log([log], LengthScorer(dies_at=11), out)
        os._exit(0)
    _, status = os.wait()
    assert os.WTERMSIG(status) == signal.SIGKILL
    partial = tmp_path / "out.jsonl.partial"
    assert len(read(partial)) == 10
    with partial.open("ab") as file:
        file.write(b'{"id": "r10", "cand')  # what a kill in the middle of a write leaves
    scorer = LengthScorer()
    tally = score_log([log], scorer, out)
    assert (tally.resumed, scorer.calls, tally.rows) == (10, 20, 30)
    score_log([log], LengthScorer(), tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()


def test_a_partial_file_of_something_else_is_refused(tmp_path):
    log, out = written(tmp_path / "log.jsonl", rows(3)), tmp_path / "out.jsonl"
    done = [{**row, "scored_by": "length-1"} for row in rows(3)]
    for values, problem in (
        ([{**done[0], "scored_by": "x"}], "another reward model"),
        ([done[1]], "other rows"),
        ([*done, done[0]], "more rows"),
    ):
        written(tmp_path / "out.jsonl.partial", values)
        with pytest.raises(InputError, match=problem):
            score_log([log], LengthScorer(), out)
        assert not out.exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"candidates": None}, "no .candidates."),
        ({"candidates": [{}]}, "no .text."),
        ({"prompt": ""}, "prompt"),
        ({"id": None}, "no .id."),
        ({"id": 3}, "write it in quotes"),
    ],
)
def test_malformed_rows_are_refused_with_their_place(tmp_path, change, problem):
    log = written(tmp_path / "log.jsonl", [{**rows(1)[0], **change}])
    with pytest.raises(InputError, match=f"log.jsonl:1: .*{problem}"):
        score_log([log], LengthScorer(), tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    with pytest.raises(BonMiniGuardError, match="is what is to be read"):
        score_log([log], LengthScorer(), log)
    with pytest.raises(BonMiniGuardError, match="the output is JSON lines; give a name that ends in"):
        score_log([log], LengthScorer(), tmp_path / "out.parquet")


options = partial(options_of, command)


def test_the_log_is_never_its_own_output(tmp_path):
    log = written(tmp_path / "log.jsonl", rows(7))
    for further in ([], ["--ray", 2]):
        with pytest.raises(BonMiniGuardError, match="is what is to be read"):
            command.run(options(log, "--reward-model", "m", "-o", log, *further))
    with pytest.raises(BonMiniGuardError, match="is what is to be read"):
        score_log_on_ray([log], LengthScorer, log)
    assert read(log) == rows(7)


def test_the_command_refuses_bad_outputs_and_shards(tmp_path):
    for name in ("out.parquet", "no/out.jsonl"):
        with pytest.raises(BonMiniGuardError):
            command.run(options("log", "--reward-model", "m", "-o", tmp_path / name))
    with pytest.raises(BonMiniGuardError, match="leave out --shard"):
        command.run(options("log", "--reward-model", "m", "-o", tmp_path / "out.jsonl", "--ray", 2, "--shard", "1/2"))
    for text in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no shard"):
            command._shard(text)
    log = str(written(tmp_path / "log.jsonl", rows(7)))
    assert [command._rows([log], (number, 3)) for number in (1, 2, 3)] == [3, 2, 2]
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert command._rows([str(tmp_path / "a.parquet")], (1, 1)) is None


@pytest.mark.parametrize(
    "message",
    [{"content": 5}, {"content": "x", "tool_calls": "no"}, {"role": "banana", "content": "x"}, {"tool_calls": [{"odd": 1}]}],
)
def test_a_message_that_cannot_be_read_is_told_with_its_place_and_leaves_nothing(message, tmp_path):
    log = written(tmp_path / "log.jsonl", [{"id": "a", "prompt": "p", "candidates": [{"message": message}]}])
    with pytest.raises(InputError, match=r"log.jsonl:1: the \"message\" of candidate 1 cannot be read"):
        score_log([log], LengthScorer(), tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("text", ['{"thesis": 1}\n', "not json\n", "[1]\n"])
def test_a_partial_file_of_somebody_else_is_left_alone(text, tmp_path):
    partial = tmp_path / "out.jsonl.partial"
    partial.write_text(text)
    with pytest.raises(InputError, match="is no log that 'score' began; move it away"):
        score_log([written(tmp_path / "log.jsonl", rows(1))], LengthScorer(), tmp_path / "out.jsonl")
    assert partial.read_text() == text


def test_a_cut_emoji_survives(tmp_path):
    log = written(tmp_path / "log.jsonl", [{"id": "a", "prompt": "p", "candidates": [{"text": "cut \ud83d"}]}])
    score_log([log], LengthScorer(), tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0]["candidates"][0]["text"] == "cut \ud83d"


@pytest.mark.slow
def test_kill_9_with_a_real_checkpoint(tmp_path, capsys):
    saved(tmp_path / "model", LlamaForSequenceClassification, LlamaConfig, CHATML, num_labels=1)
    answers = [{"id": str(i), "prompt": "the", "candidates": [{"text": f" good film {i}"}] * 2} for i in range(400)]
    log, out, partial = written(tmp_path / "log.jsonl", answers), tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    arguments = ["--reward-model", str(tmp_path / "model"), "-o", str(out)]
    running = [sys.executable, "-m", "bonmini_guard.cli", "score", "-", *arguments]
    with subprocess.Popen(running, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdin.write(log.read_bytes()[:20_000])  # it waits for the rest, however late the kill comes
        process.stdin.flush()
        while process.poll() is None and (not partial.exists() or not partial.stat().st_size):
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert command.run(options(log, *arguments)) == 0
    said = capsys.readouterr().out
    assert "400 rows" in said
    assert "taken over from an earlier run" in said
    assert [row["id"] for row in read(out)] == [str(i) for i in range(400)]
    assert not partial.exists()


def test_gzip_output_is_gzip(tmp_path):
    score_log([written(tmp_path / "log.jsonl", rows(1))], LengthScorer(), tmp_path / "out.jsonl.gz")
    assert gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()).startswith(b'{"id": "r0"')


def test_two_runs_never_write_one_output(tmp_path):
    log, out, told = written(tmp_path / "log.jsonl", rows(3)), tmp_path / "out.jsonl", []

    def second(number):
        with pytest.raises(InputError, match=r"out.jsonl.partial: another run is writing it"):
            score_log([log], LengthScorer(), out)
        told.append(number)

    score_log([log], LengthScorer(), out, progress=second)
    assert told == [1, 2, 3]
    assert len(read(out)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "out.jsonl"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_link_stays_a_link(tmp_path, name):
    (tmp_path / "disk").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    score_log([written(tmp_path / "log.jsonl", rows(2))], LengthScorer(), tmp_path / name)
    assert (tmp_path / name).is_symlink()
    assert len(read(tmp_path / "disk" / name)) == 2


@pytest.mark.parametrize("text", ['{"id": "a"}\n{"id": "b"}{"id": "c"}', '{"id": "a"}\r{"id": "b"}\r'])
def test_what_holds_several_rows_is_no_torn_line(tmp_path, text):
    (tmp_path / "log.jsonl").write_bytes(text.encode())
    with pytest.raises(InputError, match=r"log.jsonl:[12]: not JSON .Extra data"):
        read(tmp_path / "log.jsonl")


def test_rows_whose_prompt_the_model_was_trained_on_are_marked(tmp_path):
    class Knows(LengthScorer):
        def trained_on(self, messages):
            return messages[-1].text == "seen"

    rows = [{"id": name, "prompt": name, "trained_on": True, "candidates": [{"text": "a"}]} for name in ("seen", "new")]
    log = written(tmp_path / "log.jsonl", rows)
    tally = score_log([log], Knows(), tmp_path / "out.jsonl")
    assert tally.trained_on == 1
    assert [json.loads(line).get("trained_on") for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [True, None]


def test_shards_of_an_earlier_run_are_found_whatever_the_name_of_the_output(tmp_path):
    target = tmp_path / "scored[1].jsonl"
    _part(target, 1, 3).touch()
    with pytest.raises(InputError, match="another number of shards"):
        _check_earlier(target, 2)
