"""Readers: what is accepted, what is refused and with which cure."""

from __future__ import annotations

import gzip
import json
import math
import sys
import tracemalloc

import numpy as np
import pytest

from bonmini_guard.calibration.blocks import RAN_UNDER, Reading, row_key
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


def test_what_is_named_parquet_and_is_none_is_refused(tmp_path):
    path = tmp_path / "log.parquet"
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
def test_bad_rows_are_refused_in_one_line(row, problem, tmp_path):
    with pytest.raises(InputError, match=problem) as caught:
        log_of_rows([row])
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=problem.removeprefix("rows:")):
        load_log(write(tmp_path / "log.jsonl", [row]))


def test_duplicate_ids_name_both_places():
    with pytest.raises(InputError, match="rows:2: id 'a' is already on rows:1"):
        log_of_rows([GOOD[0], GOOD[0]])


def test_mixed_fingerprints_are_refused():
    with pytest.raises(InputError, match='rows:2: "scored_by" differs'):
        log_of_rows([changed(scored_by="m1"), changed(id="b", scored_by="m2")])
    with pytest.raises(InputError, match=r'rows:2: "generated_by" differs .*: split it by that key$'):
        log_of_rows([changed(generated_by="m1"), changed(id="b", generated_by="m2")])
    assert log_of_rows([changed(scored_by={"sha": 1})]).fingerprints == {"scored_by": {"sha": 1}}


def test_an_empty_or_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="the log is empty"):
        load_log(write(tmp_path / "log.jsonl", []))
    with pytest.raises(InputError, match="cannot be read"):
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


# Both ways of reading


def candidate(score, **more):
    return {"text": "x", "score": score, **more}


def traced(name, draws, reason="passed", **more):
    run = {
        "decision": "accepted",
        "reason": reason,
        "schedule": [1, 2],
        "thresholds": [0.5, None],
        "exit": "loop",
        "complete": False,
    }
    return {"id": name, "prompt": name, "candidates": [candidate(0.1 * n) for n in range(draws)], **run, **more}


ROWS = [
    {"id": "0", "prompt": "one  two", "candidates": [candidate(1, acceptable=True), candidate(None, failed=True)]},
    {"id": "1", "prompt": " one two\n", "group": None, "candidates": [candidate(0.25, raw_score=-2.5, acceptable=None)]},
    {"id": "2", "prompt": "", "candidates": [candidate(3.5, by="m"), candidate(2, by="m"), candidate(7, failed=True)]},
    {"id": "3", "prompt": "", "candidates": [candidate(1, acceptable=False)], "label_sampling": "random"},
    {"id": "4", "prompt": "p", "group": "u", "candidates": [candidate(1, acceptable=False)], "label_sampling": "informative"},
    {"id": "5", "prompt": "q", "group": "u", "candidates": [candidate(2)], "trained_on": False, "tier": "free"},
    {"id": "6", "prompt": "r", "candidates": [candidate(2, acceptable=True)], "trained_on": True},
    {"id": "7", "prompt": "s", "candidates": [{"text": "never scored"}, candidate(None, failed=True)]},
    traced("8", 1),
    traced("9", 2),
    traced("10", 3, "budget_spent", explored={"missed": "busy"}),
    traced("11", 3, "deadline"),
    traced("12", 1, exit="eager"),
    traced("13", 3, complete=True, candidates=[candidate(0.5), candidate(None, failed=True), candidate(2.0)]),
    traced("14", 1, candidates=[candidate(None, unfinished=True)]),
    traced("15", 1, candidates=[candidate(None)], score_transform={"a": 2, "b": 1}),
    traced("16", 1, thresholds=None),
]
CHAT = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]


def read_in_every_way(tmp_path, rows, monkeypatch, **options):
    """As columns of JSON lines and of Parquet, and row by row, which rows that were cut short always are."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    paths = [write(tmp_path / "log.jsonl", rows), tmp_path / "log.parquet"]
    parquet.write_table(arrow.Table.from_pylist(rows, _schema(rows)), paths[1])
    with monkeypatch.context() as patch:
        if not options.get("cut"):
            patch.setattr("bonmini_guard.calibration.logs.block_of_rows", None)
        logs = [load_log(path, **options) for path in paths]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bonmini_guard.calibration.columns", None)
        patch.delattr("bonmini_guard.calibration.columns", raising=False)
        return [*logs, load_log(paths[0], **options)]


def _schema(rows):
    import pyarrow as arrow

    some = [{key: value for row in rows for key, value in row.items() if value is not None}]
    fields = arrow.Table.from_pylist(some).schema
    keys = {key: value for row in rows for one in row["candidates"] for key, value in one.items() if value is not None}
    kinds = {"score": arrow.float64(), "raw_score": arrow.float64()}
    item = arrow.struct([(key, kinds.get(key) or arrow.scalar(value).type) for key, value in keys.items()])
    return fields.set(fields.get_field_index("candidates"), arrow.field("candidates", arrow.list_(item)))


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("rows", [ROWS, CHAT], ids=["text", "turns"])
def test_columns_and_rows_are_read_alike(tmp_path, monkeypatch, rows, cut):
    logs = read_in_every_way(tmp_path, rows, monkeypatch, keys=["tier"], cut=cut)
    expected = [0, 1, 2, 3, 4, 5, 8, 10, 11, 13, 15] if cut else [0, 1, 2, 3, 4, 5, 13]
    for log in logs:
        assert log.keys.tolist() == [row_key(str(name)) for name in expected]
        assert [place.rpartition(":")[2] for place in log.places] == [str(name + 1) for name in expected]
        assert log.groups.tolist() == [0, 0, 1, 2, 3, 3, *range(4, len(expected) - 2)]
        assert (log.same_prompt, log.extra["tier"][5]) == (1, "free")
        assert log.left_out["incomplete"] == 8 - 4 * cut
        assert [log.left_out[reason] for reason in ("unscored", "trained_on", "not_random", "explore_missed")] == [1, 1, 1, 1]
        assert np.flatnonzero(log.asked).tolist() == [3]
        assert log.traced.tolist() == [name >= 8 for name in expected]
        assert log.complete.tolist() == ([True] * 6 + [False, False, False, True, False] if cut else [True] * 7)
        ran_under = log.extra.get(RAN_UNDER, ())
        assert [ran_under.index(each) for each in ran_under] == ([0] * 6 + [6, 6, 6, 6, 10] if cut else [])
        for name in ("scores", "labels", "counts"):
            np.testing.assert_array_equal(getattr(log, name), getattr(logs[0], name))
    assert logs[0].scores[:3].tolist()[2][:2] == [3.5, 2.0]
    assert logs[0].scores[1, 0] == -2.5
    assert (logs[0].scores.dtype, logs[0].labels.dtype) == (np.float64, np.float32)


@pytest.mark.parametrize(
    ("group", "codes"), [(None, [0, 0, 1, 2]), ("none", [0, 1, 2, 3]), ("prompt", [0, 0, 1, 0]), ("user", [0, 1, 0, 1])]
)
def test_units_are_groups_prompts_rows_or_a_key(tmp_path, monkeypatch, group, codes):
    prompts, users = ["a b", " a  b ", "", "a b"], [1, 2, 1, 2]
    rows = [
        {"id": str(n), "prompt": prompt, "user": user, "candidates": [candidate(1.0)]}
        for n, (prompt, user) in enumerate(zip(prompts, users, strict=True))
    ]
    rows[3]["group"] = "g"
    for log in read_in_every_way(tmp_path, rows, monkeypatch, group=group):
        assert log.groups.tolist() == codes
        assert log.same_prompt == {None: 1, "prompt": 2}.get(group, 0)


def test_a_group_that_a_table_made_a_float_of_is_the_same_and_an_empty_one_is_none(tmp_path):
    groups = ["1", 1, 1.0, "", math.nan, None]
    rows = [changed(id=str(n), prompt=str(n), group=group, user=group) for n, group in enumerate(groups)]
    for log in (log_of_rows(rows), load_log(write(tmp_path / "log.jsonl", rows))):
        assert log.groups.tolist() == [0, 0, 0, 1, 2, 3]
    assert log_of_rows(rows[:3], group="user").groups.tolist() == [0, 0, 0]
    for row in rows[3:]:
        with pytest.raises(InputError, match='has no "user"'):
            log_of_rows([row], group="user")


def test_a_row_without_the_key_to_group_by_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "log.jsonl", [changed(user="u"), changed(id="b")])
    for columns in (True, False):
        if not columns:
            monkeypatch.setitem(sys.modules, "bonmini_guard.calibration.columns", None)
        with pytest.raises(InputError, match=r'log.jsonl:2: the row has no "user"'):
            load_log(path, group="user")


@pytest.mark.parametrize(
    "odd",
    [
        changed(id="z", scored_by=None, group=["a", 1]),
        changed(id="z", complete=None, schedule="weekly", reason={"a": 1}, explored=True, trained_on="imdb"),
        changed(id="z", prompt=[{"role": "user", "content": [{"type": "text", "text": "a"}]}]),
        changed(id="z", prompt=["a", {"role": "user"}, 3]),
        with_candidate(by=3) | {"id": "z"},
        with_candidate(failed=True, score="none") | {"id": "z"},
    ],
)
def test_odd_rows_are_read_beside_ordinary_ones_and_places_stay_right(tmp_path, odd):
    path = tmp_path / "log.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in [GOOD[0], odd, changed(id="last")]) + "\n")
    log = load_log(path)
    assert [place.rpartition(":")[2] for place in log.places] == ["1", "3", "5"]


def test_a_message_of_a_later_block_names_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr("bonmini_guard.calibration.logs._BYTES", 1000)
    rows = [changed(id=str(n)) for n in range(100)]
    path = write(tmp_path / "log.jsonl", [*rows, changed(id="bad", candidates=[candidate("1")])])
    with pytest.raises(InputError, match=r"log.jsonl:101: the score of candidate 1 is '1', not a number"):
        load_log(path)
    with pytest.raises(InputError, match=r"log.jsonl:101: id '7' is already on .*log.jsonl:8;"):
        load_log(write(path, [*rows, rows[7]]))
    told = []
    assert len(load_log(write(path, rows), progress=told.append)) == told[-1] == 100
    assert len(told) > 5


def test_rows_of_unlike_width_are_padded_in_place(monkeypatch):
    monkeypatch.setattr("bonmini_guard.calibration.logs._ROWS", 3)
    counts = [3, 1, 4, 1, 5, 2, 6, 5]
    rows = [changed(id=str(n), candidates=[candidate(10 * n + c) for c in range(count)]) for n, count in enumerate(counts)]
    log = log_of_rows(rows)
    assert [[s for s in row if not math.isnan(s)] for row in log.scores.tolist()] == [
        [10.0 * n + c for c in range(count)] for n, count in enumerate(counts)
    ]
    assert np.isnan(log.scores).sum() == 8 * 6 - sum(counts)


def test_a_group_of_a_hundred_thousand_characters_takes_its_own_room_only(tmp_path):
    rows = [changed(id=str(n), group="g" * 100_000 if n == 0 else str(n)) for n in range(5000)]
    path = write(tmp_path / "log.jsonl", rows)
    tracemalloc.start()
    assert len(set(load_log(path).groups.tolist())) == 5000
    assert tracemalloc.get_traced_memory()[1] < 2e8
    tracemalloc.stop()


def test_a_lack_of_memory_is_told_in_one_line(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("bonmini_guard.calibration.logs._padded", fail)
    with pytest.raises(InputError, match=r"not enough memory for its rows \(2 were read\); use some of its shards"):
        load_log(write(tmp_path / "log.jsonl", GOOD))


def test_a_log_of_rows_that_the_model_was_trained_on_alone_is_refused():
    with pytest.raises(InputError, match=r"rows: no row is left beside those that the reward model was trained on \(1\)"):
        log_of_rows([changed(trained_on=True)])


def test_taking_rows_takes_all_their_columns():
    log = log_of_rows([*GOOD, changed(id="c3")], keys=["tier"])
    for rows in (np.array([True, False, True]), np.array([0, 2])):
        part = log.take(rows)
        assert (ids(part), list(part.places), part.extra) == (("a", "c3"), ["rows:1", "rows:3"], {"tier": (None, None)})
        assert {len(value) for value in vars(part).values() if isinstance(value, np.ndarray)} == {2}


def test_of_several_types_the_likeliest_are_tried_first(monkeypatch):
    columns = pytest.importorskip("bonmini_guard.calibration.columns")
    read, tried = columns.json.read_json, []
    monkeypatch.setattr(columns.json, "read_json", lambda *args, **how: tried.append(how) or read(*args, **how))
    parser = columns.JsonLines(Reading(group="user"))
    for number in range(2):  # the second time it is known
        assert len(parser.batch(json.dumps({"id": "a", "user": number, "candidates": [{"score": 1.0}]}).encode())) == 1
    assert len(tried) == 3  # texts, numbers; not yes or no
