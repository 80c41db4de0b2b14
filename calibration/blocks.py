"""A block of a log's rows as flat arrays: what both ways of reading make, and the way row by row, which knows every message."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonmini_guard.errors import InputError
from bonmini_guard.logs.rows import Regime, Row, name_of, regime_of, unit_of

#: By the key that tells a part's fingerprint in a log, its name in a profile.
FINGERPRINTS = {"scored_by": "reward_model", "generated_by": "generator"}
#: Among a log's further keys: what a guard ran under (:class:`~bonmini_guard.logs.rows.Regime`), or None.
RAN_UNDER = "ran_under"


@dataclass(frozen=True)
class Reading:
    """How a log is read, and the fingerprints met so far.

    Attributes:
        keys, cost, group, cut: see :func:`bonmini_guard.calibration.logs.load_log`.
        marks: for each of ``FINGERPRINTS``, its text and its value in the first row kept.
    """

    keys: tuple[str, ...] = ()
    cost: str | None = None
    group: str | None = None
    cut: bool = False
    marks: dict[str, tuple[str, Any]] = field(default_factory=dict)

    @property
    def extras(self) -> tuple[str, ...]:
        """The keys of :attr:`bonmini_guard.calibration.logs.Log.extra`."""
        return (*self.keys, RAN_UNDER) if self.cut else self.keys

    @property
    def group_key(self) -> str | None:
        """The row key that makes a unit, if any does."""
        return {None: "group", "none": None, "prompt": None}.get(self.group, self.group)

    @property
    def by_prompt(self) -> bool:
        """Whether equal prompts make a unit."""
        return self.group in (None, "prompt")

    def unit(self, group: Any, prompt: Any, key: int, place: str) -> tuple[int, bool]:
        """:func:`bonmini_guard.logs.rows.unit_of` a row; InputError if it lacks the key asked for."""
        if not self.by_prompt and self.group_key is not None and name_of(group) is None:
            raise InputError(f'{place}: the row has no "{self.group}", which --group names; write it, or use --group prompt')
        return unit_of(group, prompt, key)

    def same_source(self, key: str, value: Any) -> bool:
        """Whether a fingerprint is that of the rows before; the first one is remembered."""
        text = json.dumps(value, sort_keys=True, default=str)
        known, _ = self.marks.setdefault(key, (text, value))
        return known == text


#: The arrays of a block, and their kinds: of all its rows the digests of ids, line (or row) numbers, and which are kept; of the
#: kept ones the number of candidates, the codes of units, equal for equal units of one process, whether it is the prompt that makes
#: the unit, and what :class:`bonmini_guard.calibration.logs.Log` has by the same name; of their candidates, one after the other,
#: scores, labels, and costs, which are none where none are asked for.
ARRAYS: dict[str, type[np.generic]] = {
    **dict.fromkeys(("keys",), np.uint64),
    **dict.fromkeys(("lines", "counts", "units"), np.int64),
    **dict.fromkeys(("kept", "of_prompt", "traced", "asked", "complete"), np.bool_),
    **dict.fromkeys(("scores", "costs"), np.float64),
    **dict.fromkeys(("labels",), np.float32),
}


@dataclass
class Block:
    """Some rows of a file: :data:`ARRAYS`, the further keys' values, counts of what was left out, the first unscored line."""

    arrays: dict[str, Any] = field(default_factory=lambda: {name: [] for name in ARRAYS})
    extra: dict[str, list[Any]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    unscored_at: int | None = None


@dataclass(frozen=True)
class Places:
    """(R,) ``file:line``, made when asked for: names of files, which of them, and lines."""

    files: tuple[str, ...]
    codes: NDArray[np.int32]
    lines: NDArray[np.int64]

    def __getitem__(self, row: int) -> str:
        return f"{self.files[self.codes[row]]}:{self.lines[row]}"

    def take(self, rows: NDArray[Any]) -> Places:
        """Those of some rows."""
        return Places(self.files, self.codes[rows], self.lines[rows])


def row_key(name: str) -> int:
    """The 64-bit BLAKE2b digest of a row's id, on which orders and splits hang."""
    return int(row_keys([name.encode(errors="backslashreplace")])[0])


def row_keys(names: Iterable[bytes]) -> NDArray[np.uint64]:
    """(R,) digests of ids in UTF-8."""
    return np.frombuffer(b"".join(blake2b(name, digest_size=8).digest() for name in names), dtype="<u8").astype(np.uint64)


def block_of_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], reading: Reading) -> Block:
    """Row by row, from (place, row), where a place ends in ``:line``; InputError if one is not what design calls a log row."""
    collected = _Rows(reading)
    for place, row in rows:
        collected.add(Row(row, place))
    return collected.block


class _Rows:
    """A block whose columns are lists."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.block = Block(extra={key: [] for key in reading.extras})
        self._arrays = self.block.arrays

    def add(self, row: Row) -> None:
        """Check a row, and keep its numbers if it is to be kept."""
        block, line = self.block, int(row.place.rpartition(":")[2])
        key = row_key(row.id)
        self._arrays["keys"].append(key)
        self._arrays["lines"].append(line)
        self._arrays["kept"].append(False)
        regime, complete = regime_of(row.value) if self._reading.cut and row.is_traced else None, row.is_complete
        decided = math.inf if complete else row.decided_draws(regime)
        explored, left_out = row.value.get("explored"), block.left_out
        left_out["explore_missed"] += isinstance(explored, Mapping) and explored.get("missed") is not None
        if row.value.get("trained_on") is True or decided is None:
            left_out["trained_on" if row.value.get("trained_on") is True else "incomplete"] += 1
            return
        row.refuse_several_policies()
        lost = [one.failed or (not complete and (one.said is None or at > decided)) for at, one in enumerate(row.candidates, 1)]
        drawn = [one for one, gone in zip(row.candidates, lost, strict=True) if not gone]
        if drawn and all(one.value.get("score") is None for one in drawn):
            left_out["unscored"] += 1
            block.unscored_at = block.unscored_at or line
            return
        for mark in FINGERPRINTS:
            if not self._reading.same_source(mark, row.value.get(mark)):
                cure = "split it" + (", or run 'bonmini-guard score' on all of it" if mark == "scored_by" else " by that key")
                raise InputError(f'{row.place}: "{mark}" differs from the rows before; one log must come from one source: {cure}')
        self._numbers(row, lost)
        self._keep(row, key, regime)
        self._arrays["complete"].append(complete)

    def _numbers(self, row: Row, lost: Sequence[bool]) -> None:
        """Scores, labels and costs; NaN for draws that failed, or could not be scored."""
        random = row.is_random
        for one, gone in zip(row.candidates, lost, strict=True):
            self._arrays["scores"].append(math.nan if gone else one.score)
            label = None if gone else one.label
            self._arrays["labels"].append(float(label) if random and label is not None else math.nan)
            if self._reading.cost is not None:
                self._arrays["costs"].append(one.cost(self._reading.cost))
        self.block.left_out["not_random"] += not random
        self._arrays["counts"].append(len(lost))

    def _keep(self, row: Row, key: int, regime: Regime | None) -> None:
        reading = self._reading
        self._arrays["kept"][-1] = True
        group = None if reading.group_key is None else row.value.get(reading.group_key)
        unit, of_prompt = reading.unit(group, row.value.get("prompt") if reading.by_prompt else None, key, row.place)
        self._arrays["units"].append(unit if of_prompt or unit < 2**63 else unit - 2**64)
        self._arrays["of_prompt"].append(of_prompt)
        self._arrays["traced"].append(row.is_traced)
        self._arrays["asked"].append(row.value.get("label_sampling") == "random")
        for name, values in self.block.extra.items():
            values.append(regime if name == RAN_UNDER else row.value.get(name))
