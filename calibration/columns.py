"""Blocks of a log straight from pyarrow's columns, without a Python object a candidate.

What is odd (mixed types, values that are none, rows that need a message) raises :class:`OddError`: such a block is read row by row.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray
from pyarrow import compute, json, types

from bonmini_guard.calibration.blocks import FINGERPRINTS, Block, Reading, row_keys
from bonmini_guard.logs.rows import LARGEST, NOT_RANDOM

Bools = NDArray[np.bool_]

_TEXT, _FLAG, _NUMBER = arrow.string(), arrow.bool_(), arrow.float64()
#: For each type, what is taken for it.
_SORTS: dict[Any, tuple[Callable[[Any], bool], ...]] = {
    _TEXT: (types.is_string, types.is_large_string, types.is_string_view),
    _FLAG: (types.is_boolean,),
    _NUMBER: (types.is_floating, types.is_integer),
}
_TURNS = arrow.list_(arrow.struct([("role", _TEXT), ("content", _TEXT)]))
_CANDIDATE = {"score": _NUMBER, "raw_score": _NUMBER, "acceptable": _FLAG, "failed": _FLAG, "by": _TEXT}
_ROW = {"id": _TEXT, "complete": _FLAG, "decision": _TEXT, "label_sampling": _TEXT, "trained_on": _FLAG}
_ROW |= {"explored": arrow.struct([("missed", _TEXT)])}


class OddError(Exception):
    """Something that only the way row by row can read, or refuse with its message."""


def _types(reading: Reading) -> dict[str, list[Any]]:
    """For each row key that is needed, the types it may have, the likeliest first."""
    candidate = dict(_CANDIDATE)
    candidate |= {reading.cost: _NUMBER} if reading.cost is not None else {}
    found = {key: [kind] for key, kind in (_ROW | dict.fromkeys(FINGERPRINTS, _TEXT)).items()}
    found["candidates"] = [arrow.list_(arrow.struct(list(candidate.items())))]
    if reading.by_prompt:
        found["prompt"] = [_TEXT, _TURNS]
    for key in {reading.group_key, *reading.keys} - {None}:
        found.setdefault(str(key), [_TEXT, arrow.int64(), _FLAG])
    return found


class JsonLines:
    """Blocks of JSON lines as record batches; remembers which types the last one had."""

    def __init__(self, reading: Reading) -> None:
        self._types = {key: deque(kinds) for key, kinds in _types(reading).items()}

    def batch(self, lines: bytes) -> Any:
        """One record batch of whole lines; OddError if they are not one JSON object each, of the types that a log has."""
        for _ in range(sum(map(len, self._types.values()))):
            try:
                table = self._read(lines)
                if not lines.isascii():
                    lines.decode()
            except arrow.ArrowInvalid as error:
                self._try_another(str(error))
                continue
            except UnicodeDecodeError as error:
                raise OddError from error
            if len(table) != lines.count(b"\n") + (not lines.endswith(b"\n")):
                raise OddError
            return table.combine_chunks().to_batches()[0]
        raise OddError

    def _read(self, lines: bytes) -> Any:
        schema = arrow.schema([(key, kinds[0]) for key, kinds in self._types.items()])
        return json.read_json(
            arrow.BufferReader(lines),
            read_options=json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
            parse_options=json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )

    def _try_another(self, problem: str) -> None:
        found = re.search(r"Column\(/([^)]*)\) changed", problem)
        path = found.group(1) if found else ""
        key = next((key for key in self._types if path == key or path.startswith(f"{key}/")), None)
        if key is None or len(self._types[key]) == 1:
            raise OddError
        self._types[key].rotate(-1)


def needed(reading: Reading) -> Callable[[list[str]], list[str]]:
    """Chooses, among the paths of a Parquet file's leaf columns, those that are needed."""
    keys = set(_types(reading))
    parts: dict[str, set[str | None]] = {"candidates": {*_CANDIDATE, reading.cost}, "prompt": {"role", "content"}}

    def chosen(paths: list[str]) -> list[str]:
        columns = [path for path in paths if path.split(".")[0] in keys]
        for key, wanted in parts.items():
            nested = [path for path in columns if path.startswith(f"{key}.")]
            some = [path for path in nested if wanted.intersection(path.split("."))]
            columns = [path for path in columns if not some or path not in nested or path in some]
        return columns

    return chosen


class Rows:
    """A block from the columns of a record batch of R rows, which are checked for their types as they are asked for."""

    def __init__(self, batch: Any, first: int, source: str, reading: Reading) -> None:
        self._batch, self._reading, self._source = batch, reading, source
        self._names = set(batch.schema.names)
        self._lines = np.arange(first, first + len(batch))
        self._left_out: Counter[str] = Counter()

    def block(self) -> Block:
        """The block; OddError if it must be read row by row, InputError if a row has no value to group by."""
        keys = self._keys()
        traced = _valid(self._column("decision", _TEXT))
        numbers, kept, unscored_at = self._numbers(self._usable(_flags(self._column("complete", _FLAG), ~traced)))
        for key in FINGERPRINTS:
            values = compute.unique(self._column(key, _TEXT).filter(arrow.array(kept))).to_pylist()
            if len(values) > 1 or (values and not self._reading.same_source(key, values[0])):
                raise OddError
        units, of_prompt = self._units(keys, kept)
        arrays = {
            "keys": keys,
            "lines": self._lines,
            "kept": kept,
            "units": units,
            "of_prompt": of_prompt,
            "traced": traced[kept],
            "asked": self._sampling()[0][kept],
            "complete": kept[kept],
        }
        extra = {key: _shared(self._column(key).filter(arrow.array(kept))) for key in self._reading.keys}
        return Block(arrays | numbers, extra, self._left_out, unscored_at)

    def _column(self, key: str, kind: Any = None) -> Any:
        column = self._batch.column(key) if key in self._names else arrow.nulls(len(self._batch))
        return column if kind is None else _as(column, kind)

    def _keys(self) -> NDArray[np.uint64]:
        names = self._column("id", _TEXT).cast(arrow.binary())
        if names.null_count or (len(names) and not compute.min(compute.binary_length(names)).as_py()):
            raise OddError
        return row_keys(names.to_pylist())

    def _sampling(self) -> tuple[Bools, Bools]:
        """(R,) whether it says random, and whether it says something else."""
        said = self._column("label_sampling", _TEXT)
        random, other = (_flags(compute.is_in(said, arrow.array(words))) for words in (["random"], NOT_RANDOM))
        if (random | other).sum() != len(said) - said.null_count:
            raise OddError
        return random, other

    def _usable(self, usable: Bools) -> Bools:
        explored = self._column("explored").drop_null().to_pylist()
        self._left_out["explore_missed"] += sum(isinstance(said, dict) and said.get("missed") is not None for said in explored)
        trained = _flags(self._column("trained_on", _FLAG))
        self._left_out["trained_on"] += int(trained.sum())
        self._left_out["incomplete"] += int((~usable & ~trained).sum())
        return usable & ~trained

    def _numbers(self, kept: Bools) -> tuple[dict[str, Any], Bools, int | None]:
        """Scores, labels, costs and counts of the rows that are kept and scored; which these are; the first that is not scored."""
        candidates = self._column("candidates").filter(arrow.array(kept))
        if not (types.is_list(candidates.type) or types.is_large_list(candidates.type)):
            raise OddError
        counts = compute.fill_null(compute.list_value_length(candidates), 0).to_numpy().astype(np.int64)
        if not counts.size:
            return {}, kept, None
        if not counts.all():
            raise OddError
        numbers = _Candidates(candidates.flatten(), counts)
        numbers.one_policy()
        score, label, has_score = numbers.scores()
        costs = None if self._reading.cost is None else numbers.costs(self._reading.cost)
        bare = numbers.rows_without(has_score)
        where, rows = np.repeat(~bare, counts), np.flatnonzero(kept)
        if not np.isfinite(score[where & ~numbers.failed]).all():
            raise OddError
        other = self._sampling()[1][kept]
        label[np.repeat(other, counts)] = np.nan
        self._left_out["not_random"] += int((other & ~bare).sum())
        self._left_out["unscored"] += int(bare.sum())
        kept = kept.copy()
        kept[rows[bare]] = False
        found = {
            "scores": score[where],
            "labels": label[where],
            "costs": () if costs is None else costs[where],
            "counts": counts[~bare],
        }
        return found, kept, int(self._lines[rows[bare][0]]) if bare.any() else None

    def _units(self, keys: NDArray[np.uint64], kept: Bools) -> tuple[NDArray[np.int64], Bools]:
        alone, key = keys[kept].view(np.int64), self._reading.group_key
        if key is None and not self._reading.by_prompt:
            return alone, np.zeros(alone.size, dtype=bool)
        rows = arrow.array(kept)
        nothing = [None] * alone.size
        groups = nothing if key is None else self._column(key).filter(rows).to_pylist()
        prompts = self._column("prompt").filter(rows).to_pylist() if self._reading.by_prompt else nothing
        lines = self._lines[kept].tolist()
        units = [
            self._reading.unit(group, prompt, own, f"{self._source}:{line}")
            for group, prompt, own, line in zip(groups, prompts, alone.tolist(), lines, strict=True)
        ]
        return np.array([unit for unit, _ in units], dtype=np.int64), np.array([made for _, made in units], dtype=bool)


class _Candidates:
    """The C candidates of K rows, one after the other."""

    def __init__(self, flat: Any, counts: NDArray[np.int64]) -> None:
        if not arrow.types.is_struct(flat.type) or flat.null_count:
            raise OddError
        self._flat, self._counts = flat, counts
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self.failed = _flags(_part(flat, "failed", _FLAG))

    def scores(self) -> tuple[NDArray[np.float64], NDArray[np.float32], Bools]:
        """(C,) scores and labels, NaN where a draw failed or has none, and where there is a score."""
        score, raw = (_part(self._flat, key, _NUMBER) for key in ("score", "raw_score"))
        has_score = _valid(score)
        said = compute.coalesce(raw, score)
        values: NDArray[np.float64] = said.to_numpy(zero_copy_only=False).copy()
        values[np.abs(values) >= LARGEST] = np.nan
        labels = _part(self._flat, "acceptable", _FLAG).cast(arrow.float32()).to_numpy(zero_copy_only=False).copy()
        values[self.failed] = labels[self.failed] = np.nan
        return values, labels, has_score

    def rows_without(self, has_score: Bools) -> Bools:
        """(K,) rows of which no candidate was ever scored, and not all failed."""
        drawn, scored = (np.add.reduceat(part, self._starts, dtype=np.int64) for part in (~self.failed, ~self.failed & has_score))
        return np.asarray((drawn > 0) & (scored == 0))

    def one_policy(self) -> None:
        """Raise OddError where candidates of one row come from several policies."""
        by = _part(self._flat, "by", _TEXT)
        if by.null_count == len(by):
            return
        codes = compute.fill_null(by.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
        lowest = np.minimum.reduceat(np.where(codes < 0, len(codes), codes), self._starts)
        if (np.maximum.reduceat(codes, self._starts) > lowest).any():
            raise OddError

    def costs(self, key: str) -> NDArray[np.float64]:
        """(C,) of a cost; 0 for a failed draw that lacks it."""
        cost = _part(self._flat, key, _NUMBER)
        values: NDArray[np.float64] = cost.to_numpy(zero_copy_only=False).copy()
        lacking = ~_valid(cost) & self.failed
        values[lacking] = 0.0
        # in place of its seconds a draw may say when it started and finished
        if (key == "seconds" and lacking.any()) or not ((values >= 0) & (values < np.inf)).all():
            raise OddError
        return values


def _part(flat: Any, key: str, kind: Any) -> Any:
    position = flat.type.get_field_index(key)
    return _as(arrow.nulls(len(flat)) if position < 0 else flat.field(position), kind)


def _as(column: Any, kind: Any) -> Any:
    """The column in that type; odd if it is of another sort."""
    own = column.type.value_type if types.is_dictionary(column.type) else column.type
    if not any(is_one(own) for is_one in (*_SORTS[kind], types.is_null)):
        raise OddError
    return column if column.type == kind else column.cast(kind, safe=False)


def _valid(column: Any) -> Bools:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False))


def _flags(column: Any, missing: Bools | bool = False) -> Bools:
    filled = compute.coalesce(column, arrow.array(missing) if isinstance(missing, np.ndarray) else arrow.scalar(missing))
    return np.asarray(filled.to_numpy(zero_copy_only=False))


def _shared(column: Any) -> list[Any]:
    """The values of a column, equal ones as one object."""
    known: dict[Any, Any] = {}
    values: list[Any] = column.to_pylist()
    return [known.setdefault(value, value) if isinstance(value, str) else value for value in values]
