"""Readers: what is accepted, what is refused and with which cure."""

from __future__ import annotations

import gzip
import json
import math
import sys

import numpy as np
import pytest

from bonmini_guard.calibration.blocks import row_key
from bonmini_guard.calibration.logs import load_log, log_of_rows
from bonmini_guard.errors import InputError, MissingExtraError

GOOD = [
    {
        "id": "a",
        "prompt": "p",
        "candidates": [{"text": "x", "score": 1, "acceptable": True}, {"text": "y", "score": -0.5, "acceptable": None}],
    },
    {"id": "b", "prompt": "p", "group": "u1", "candidates": [{"text": "x", "score": None, "failed": True}], "tier": "free"},
]


def write(path, rows, end="\n"):
    path.write_text("\n".join(json.dumps(row) for row in rows) + end)
    return path


def ids(log):
    """Those that the tests use, by their digests."""
    known = {row_key(name): name for name in [*map(str, range(10)), "a", "b", "c3"]}
    return tuple(known[key] for key in log.keys.tolist())


def changed(**changes):
    return {**GOOD[0], **changes}


def with_candidate(**changes):
    return changed(candidates=[GOOD[0]["candidates"][1], {**GOOD[0]["candidates"][0], **changes}])


def test_arrays_hold_nan_where_nothing_is_known(tmp_path):
    log = load_log(write(tmp_path / "log.jsonl", GOOD), keys=["tier"])
    np.testing.assert_array_equal(log.scores, [[1.0, -0.5], [math.nan, math.nan]])
    np.testing.assert_array_equal(log.labels, [[1.0, math.nan], [math.nan, math.nan]])
    assert log.counts.tolist() == [2, 1]
    assert log.extra == {"tier": (None, "free")}
    assert log.places[1].endswith("log.jsonl:2")


def test_gzip_and_shards(tmp_path):
    first = tmp_path / "one.gz"
    first.write_bytes(gzip.compress((json.dumps(GOOD[0]) + "\n").encode()))
    assert ids(load_log([first, write(tmp_path / "two.jsonl", GOOD[1:])])) == ("a", "b")


def test_rows_of_one_group_share_a_code():
    rows = [changed(id=name, group=group, prompt=name) for name, group in [("a", 1), ("b", None), ("c", 1), ("1", None)]]
    codes = log_of_rows(rows).groups
    assert codes[0] == codes[2]
    assert len(set(codes.tolist())) == 3


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "log.parquet"
    parquet.write_table(arrow.Table.from_pylist(GOOD), path)
    log = load_log(path)
    assert ids(log) == ("a", "b")
    assert math.isnan(log.scores[1, 0])
    path.write_text("no parquet")
    with pytest.raises(InputError, match="not a Parquet file"):
        load_log(path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pyarrow"):
        load_log(write(tmp_path / "log.parquet", GOOD))


def test_a_torn_last_line_is_dropped_and_counted(tmp_path):
    path = write(tmp_path / "log.jsonl", GOOD, end='\n{"id": "c", "cand')
    assert load_log(path).left_out["torn"] == 1


def test_a_torn_gzip_stream_keeps_its_whole_lines(tmp_path):
    rows = [changed(id=str(i), prompt=str(np.random.default_rng(i).random(50))) for i in range(200)]
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    path = tmp_path / "log.gz"
    path.write_bytes(data[: len(data) // 2])
    log = load_log(path)
    assert 0 < len(log) < 200
    assert log.left_out["torn"] == 1


def test_a_bad_line_before_the_end_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"id": "c", "cand\n' + json.dumps(GOOD[0]) + "\n")
    with pytest.raises(InputError, match=r"log.jsonl:1: not JSON"):
        load_log(path)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (changed(id=None), 'rows:1: the row has no "id"'),
        (changed(candidates=[]), "rows:1: the row has no .candidates."),
        (changed(candidates=["x"]), "candidate 1 is not an object"),
        (with_candidate(acceptable=1), '"acceptable" of candidate 2 is 1; write true, false or null'),
        (with_candidate(acceptable="yes"), '"acceptable" of candidate 2'),
        (with_candidate(score=math.nan), "score of candidate 2 is nan, not finite; run 'bonmini-guard score'"),
        (with_candidate(score=math.inf), "not finite"),
        (with_candidate(score=None), "candidate 2 has no score; run 'bonmini-guard score'"),
        (with_candidate(score="1"), "not a number"),
        (with_candidate(score=True), "not a number"),
        (with_candidate(failed="no"), '"failed" of candidate 2'),
        (changed(complete=1), '"complete" is 1'),
        (
            changed(candidates=[{"score": 1.0, "by": "m1"}, {"score": 1.0, "by": "m2"}]),
            "candidates of one row must come from one policy",
        ),
    ],
)
def test_bad_rows_are_refused_in_one_line(row, problem):
    with pytest.raises(InputError, match=problem) as caught:
        log_of_rows([row])
    assert "\n" not in str(caught.value)


def test_duplicate_ids_name_both_places():
    with pytest.raises(InputError, match="rows:2: id 'a' is already on rows:1"):
        log_of_rows([GOOD[0], GOOD[0]])


def test_mixed_fingerprints_are_refused():
    with pytest.raises(InputError, match='rows:2: "scored_by" differs'):
        log_of_rows([changed(scored_by="m1"), changed(id="b", scored_by="m2")])
    assert log_of_rows([changed(scored_by={"sha": 1})]).fingerprints == {"scored_by": {"sha": 1}}


def test_an_empty_or_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="the log is empty"):
        load_log(write(tmp_path / "log.jsonl", []))
    with pytest.raises(InputError, match="cannot read the log"):
        load_log(tmp_path / "none.jsonl")


def test_a_log_without_any_score_is_refused_and_single_unscored_rows_are_left_out():
    bare = {"id": "z", "prompt": "p", "candidates": [{"text": "x", "acceptable": True}]}
    with pytest.raises(InputError, match="rows:1: no candidate has a score; run 'bonmini-guard score'"):
        log_of_rows([bare])
    assert log_of_rows([*GOOD, bare]).left_out["unscored"] == 1


def test_early_exited_traces_are_never_taken_for_complete_rows():
    cut = [changed(id="c1", complete=False), changed(id="c2", decision="accepted")]
    log = log_of_rows([GOOD[0], *cut, changed(id="c3", decision="accepted", complete=True)])
    assert ids(log) == ("a", "c3")
    assert log.left_out["incomplete"] == 2
    with pytest.raises(InputError, match=r"all 2 rows are incomplete .* explore=0.02"):
        log_of_rows(cut)


def test_rows_of_failed_draws_go_with_the_unlabelled_ones_and_stay_where_all_are_labelled():
    """As requests that served nothing bad, all of them would stand beside the labelled share of the others."""
    rows = [changed(id=str(n), candidates=[{"score": 1.0, "acceptable": n > 1}]) for n in range(4)]
    rows += [changed(id=f"f{n}", candidates=[{"text": None, "failed": True}]) for n in range(3)]
    assert len(log_of_rows(rows).require_labels()) == 7
    log = log_of_rows([*rows, changed(id="u", candidates=[{"score": 1.0}])]).require_labels()
    assert ids(log) == ("0", "1", "2", "3")
    assert (log.left_out["unlabelled"], log.left_out["failed"]) == (1, 3)


def test_unlabelled_rows_are_left_out_and_partly_labelled_ones_refused():
    plain = changed(candidates=[{"score": 1.0, "acceptable": True}])
    bare = changed(id="u", candidates=[{"score": 1.0}, {"score": 2.0}])
    log = log_of_rows([plain, bare]).require_labels()
    assert ids(log) == ("a",)
    assert log.left_out["unlabelled"] == 1
    with pytest.raises(InputError, match="no candidate is labelled"):
        log_of_rows([bare]).require_labels()


@pytest.mark.parametrize("score", [10**400, -(10**400), -1.797e308])
def test_a_score_that_leaves_no_room_beside_it_is_refused(score):
    with pytest.raises(InputError, match="not finite; run"):
        log_of_rows([changed(candidates=[{"score": score, "acceptable": True}])])


def test_a_line_of_brackets_is_told(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(InputError, match=r"deep.jsonl:1: lists or objects lie too deep"):
        load_log(path)
