"""A log as arrays: the scores and labels of its rows, and a count of what was left out and why."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from bonmini_guard.calibration.blocks import ARRAYS, Block, Places, Reading, block_of_rows
from bonmini_guard.errors import InputError
from bonmini_guard.logs.opening import is_pipe
from bonmini_guard.logs.reading import RowFile

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Bytes of JSON lines, and rows of Parquet, of one block: what a parser's working set still fits a cache with.
_BYTES, _ROWS = 2**21, 2**14
#: Rows in a piece of a log.
ROWS_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class Log:
    """The scored rows of a log that were drawn whatever their scores (or, asked for, cut short): R rows, up to W candidates.

    Attributes:
        source: where it came from, for messages.
        keys: (R,) :func:`bonmini_guard.calibration.blocks.row_key` of the rows' ids: what orders and splits hang on.
        places: (R,) ``file:line``.
        scores: (R, W) raw, in the order logged; NaN for failed draws and beyond the row's count.
        labels: (R, W): 1 acceptable, 0 not, NaN unlabelled, failed, or beyond the row's count.
        counts: (R,) candidates of each row, failed ones included.
        groups: (R,) code of the unit of exchangeability, from 0 in order of appearance.
        traced: (R,) a guard wrote the row: its logged order is that of drawing.
        asked: (R,) the row says that its labels were sampled at random.
        complete: (R,) all candidates were drawn whatever their scores.
        requests: (R,) what drift looks at: all rows but further ones of a group. Of equal prompts each is a request.
        same_prompt: rows read that share their unit with an earlier one because their prompts are equal.
        fingerprints: the log's ``scored_by`` and ``generated_by``, where it carries them.
        left_out: rows not used: ``incomplete``, ``unscored``, ``trained_on`` (by the reward model), ``torn`` (a last line cut off);
            rows used without their labels, which were ``not_random``; and requests that were to be explored and could not be,
            ``explore_missed``.
        extra: for each key asked for, that key's value in every row; with ``cut``, also what it ran under, as ``RAN_UNDER``.
        costs: (R, W) ``tokens`` or ``seconds`` of each candidate, where asked for; NaN beyond the row's count.
        costs_are: which of them.
        group_key: the row key that made units, if any did.
    """

    source: str
    keys: NDArray[np.uint64]
    places: Places
    scores: Floats
    labels: NDArray[np.float32]
    counts: Integers
    groups: Integers
    traced: Bools
    asked: Bools
    complete: Bools
    requests: Bools
    same_prompt: int = 0
    fingerprints: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    extra: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    costs: Floats | None = None
    costs_are: str | None = None
    group_key: str | None = None

    def __len__(self) -> int:
        return self.counts.size

    @property
    def drawn(self) -> NDArray[np.bool_]:
        """(R, W): where a candidate has a score, so that it takes part in the choice."""
        return np.isfinite(self.scores)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(R,): rows of which every scored candidate is labelled."""
        return np.asarray(~np.any(self.drawn & np.isnan(self.labels), axis=1))

    @property
    def unlabelled(self) -> NDArray[np.bool_]:
        """(R,): rows with scored candidates of which none is labelled."""
        return np.asarray(np.any(self.drawn, axis=1) & ~np.any(np.isfinite(self.labels), axis=1))

    @property
    def is_bare(self) -> bool:
        """Whether no candidate is labelled, and some could be."""
        return bool(self.unlabelled.any()) and not np.isfinite(self.labels).any()

    def take(self, rows: NDArray[Any]) -> Log:
        """The log of some rows: a boolean mask (R,) or row numbers."""
        chosen = np.asarray(rows)
        arrays = {name: value[chosen] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        numbers = np.flatnonzero(chosen).tolist() if chosen.dtype == bool else chosen.tolist()
        extra = {key: tuple(values[i] for i in numbers) for key, values in self.extra.items()}
        return replace(self, places=self.places.take(chosen), extra=extra, **arrays)

    def parts(self) -> Iterator[Log]:
        """The log in pieces of some rows, one after the other: what works on one at a time needs little memory."""
        for first in range(0, max(1, len(self)), ROWS_AT_A_TIME):
            yield self.take(np.arange(first, min(first + ROWS_AT_A_TIME, len(self))))

    def require(self, budget: int) -> None:
        """Refuse complete rows with fewer candidates than a budget of draws, by an InputError that names the first."""
        short = np.flatnonzero((self.counts < budget) & self.complete)
        if short.size:
            first = int(short[0])
            raise InputError(
                f"{self.places[first]}: {self.counts[first]} candidates, fewer than the budget of {budget} draws; "
                f"log more candidates or use a smaller schedule"
            )

    def require_scores(self) -> None:
        """Refuse a log in which every draw failed, by an InputError."""
        if not self.drawn.any():
            raise InputError(f"{self.source}: every draw failed, so there is nothing to calibrate on; log requests that worked")

    def labelled_set(self) -> tuple[Log, Literal["left_out", "counts_as_bad"]]:
        """The rows that labels were sought for, and what a label missing among them means.

        Rows that say ``"label_sampling": "random"`` are a set fixed before its first label: all of them count, and a missing
        label was not asked for. Else a row counts if it has any label; where a needed label is missing, by chance, it is left out.
        InputError if no row has a label.
        """
        known = np.any(np.isfinite(self.labels), axis=1)
        if not known.any():
            raise InputError(f"{self.source}: {self._why_no_label()}")
        if self.asked.any():
            others = {"not_in_the_labelled_set": int((~self.asked).sum())}
            return replace(self.take(self.asked), left_out={**self.left_out, **others}), "counts_as_bad"
        return self._with_labels(), "left_out"

    def require_labels(self) -> Log:
        """The rows that are labelled: wholly unlabelled ones are left out and counted.

        Where some are, rows of which every draw failed go with them: nobody can tell which of these belong to the labelled share,
        and all of them, as requests that served nothing bad, would dilute its risk.

        Raises:
            InputError: a row is labelled in part (which rows would then be kept depends on the labels), or none is.
        """
        partly = np.flatnonzero(~self.labelled & ~self.unlabelled)
        if partly.size:
            place = self.places[int(partly[0])]
            raise InputError(f"{place}: only some candidates are labelled; label the others with 'bonmini-guard label'")
        if self.is_bare:
            raise InputError(f"{self.source}: {self._why_no_label()}")
        return self._with_labels()

    def _with_labels(self) -> Log:
        if np.all(self.labelled):
            return self
        failed = ~np.any(self.drawn, axis=1)
        bare = int(self.unlabelled.sum()) - self.left_out.get("not_random", 0)
        also = {"unlabelled": bare, "failed": int(failed.sum())}
        left_out = {**self.left_out, **{reason: number for reason, number in also.items() if number > 0}}
        return replace(self.take(~self.unlabelled & ~failed), left_out=left_out)

    def _why_no_label(self) -> str:
        if self.left_out.get("not_random"):
            return (
                "all labels are of rows that were not drawn at random, which say nothing about other rows; "
                "label whole rows with 'bonmini-guard label --mode accept', or with --for what a certificate needs"
            )
        return "no candidate is labelled; run 'bonmini-guard label'"


def load_log(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    keys: Iterable[str] = (),
    cost: str | None = None,
    group: str | None = None,
    cut: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Log:
    """Read a log from one file or several shards.

    Args:
        paths: JSON lines (gzip or not) or Parquet.
        keys: further row keys to keep in ``extra``.
        cost: a numeric key of candidates, ``tokens`` or ``seconds``, to keep in ``costs``; a failed draw may lack it.
        group: what makes a unit of exchangeability. None: the row's ``group``; for rows without one, equal prompts (whatever their
            white space); for rows without either, the row. ``"none"``: every row is its own. ``"prompt"``: equal prompts. Anything
            else: the value of that row key.
        cut: keep, beside complete rows, those that a guard's thresholds, or a deadline or an outage, cut short: they say what they
            ran under, with exit "loop". Their ``counts`` are the draws made; of a loop that was not decided on none has a score.
        progress: told how many rows are read, now and then.

    Raises:
        InputError: a file cannot be read, a row is not what design calls a log row, or memory does not suffice; the message is one
            line, ``file:line: problem; cure``.
        MissingExtraError: a Parquet file without pyarrow.
    """
    files = [RowFile(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    builder = _Builder([str(file.path) for file in files], Reading(tuple(keys), cost, group, cut))
    try:
        for code, file in enumerate(files):
            for block in _blocks(file, builder.reading):
                builder.add(block, code)
                progress(builder.rows)
            builder.left_out["torn"] += file.torn
        return builder.build(lambda code, line: _id_at(files[code], line))
    except MemoryError as error:
        raise InputError(
            f"{builder.source}: not enough memory for its rows ({builder.rows:,} were read); use some of its shards, "
            f"a part of its rows drawn at random, or a machine with more memory"
        ) from error


def load_timed(paths: Sequence[str | os.PathLike[str]], **options: Any) -> Log:
    """As :func:`load_log`, with the time that each draw took: its seconds, else its tokens; without, where not all rows have them.

    A pipe is read once, and without.
    """
    kinds = () if any(is_pipe(RowFile(path).path) for path in paths) else ("seconds", "tokens")
    for cost in kinds:
        with contextlib.suppress(InputError):
            return load_log(paths, cost=cost, **options)
    return load_log(paths, **options)


def log_of_rows(rows: Iterable[Mapping[str, Any]], *, keys: Iterable[str] = (), group: str | None = None, cut: bool = False) -> Log:
    """A log from rows already in memory; the place of a row is ``rows:number``, from 1. See :func:`load_log`.

    Raises:
        InputError: as :func:`load_log`.
    """
    rows = list(rows)
    builder = _Builder(["rows"], Reading(tuple(keys), None, group, cut))
    builder.add(block_of_rows(((f"rows:{number}", row) for number, row in enumerate(rows, start=1)), builder.reading), 0)
    return builder.build(lambda code, line: str(rows[line - 1]["id"]))


def _id_at(file: RowFile, line: int) -> str:
    if is_pipe(file.path):
        return "?"
    return next(str(row["id"]) for place, row in file if place == f"{file.path}:{line}")


def _blocks(file: RowFile, reading: Reading) -> Iterator[Block]:
    """Straight from columns where pyarrow is there and can; else row by row, as are rows that were cut short."""
    try:
        from bonmini_guard.calibration import columns
    except ImportError:
        columns = None  # type: ignore[assignment]
    if columns is None or reading.cut:
        yield from (block_of_rows(piece.rows(), reading) for piece in file.pieces(_BYTES, _ROWS))
        return
    parser = columns.JsonLines(reading)
    for piece in file.pieces(_BYTES, _ROWS, columns.needed(reading)):
        try:
            batch = parser.batch(piece.data) if isinstance(piece.data, bytes) else piece.data
            yield columns.Rows(batch, piece.first, str(file.path), reading).block()
        except columns.OddError:
            yield block_of_rows(piece.rows(), reading)


class _Growing:
    """A flat array that grows in place: a large one is moved by the system's page tables, never copied beside itself."""

    def __init__(self, kind: DTypeLike) -> None:
        self.values = np.empty(0, dtype=kind)

    def extend(self, more: ArrayLike | Sequence[Any]) -> None:
        """Append values."""
        size, new = self.values.size, np.asarray(more, dtype=self.values.dtype)
        self.values.resize(size + new.size, refcheck=False)
        self.values[size:] = new


class _Builder:
    """Puts blocks together."""

    def __init__(self, files: Sequence[str], reading: Reading) -> None:
        self.source = ", ".join(files)
        self.reading = reading
        self.rows = 0
        self.left_out = Counter(dict.fromkeys(("incomplete", "unscored", "trained_on", "torn", "not_random", "explore_missed"), 0))
        self._files = tuple(files)
        self._arrays = {name: _Growing(kind) for name, kind in ARRAYS.items()}
        self._codes = _Growing(np.int32)
        self._extra: dict[str, list[Any]] = {key: [] for key in reading.extras}
        self._unscored_at = ""

    def add(self, block: Block, code: int) -> None:
        """Append the rows of a block of the file with that code."""
        for name, array in self._arrays.items():
            array.extend(block.arrays.get(name, ()))
        rows = len(block.arrays["keys"])
        self._codes.extend(np.full(rows, code))
        for key, values in self._extra.items():
            values.extend(block.extra[key])
        self.left_out.update(block.left_out)
        self.rows += rows
        if block.unscored_at is not None and not self._unscored_at:
            self._unscored_at = f"{self._files[code]}:{block.unscored_at}"

    def build(self, id_at: Callable[[int, int], str]) -> Log:
        """The log of what was kept; ``id_at`` tells the id of a row from its file's code and its line."""
        places = Places(self._files, self._codes.values, self._arrays["lines"].values)
        self._refuse_equal_ids(places, id_at)
        kept = self._arrays["kept"].values
        if not kept.any():
            raise InputError(self._nothing())
        chosen = slice(None) if kept.all() else kept
        counts, of_prompt = self._take("counts"), self._take("of_prompt")
        groups, requests, same_prompt = _units(self._take("units"), of_prompt)
        return Log(
            self.source,
            self._take("keys")[chosen],
            places if kept.all() else places.take(kept),
            _padded(self._take("scores"), counts),
            _padded(self._take("labels"), counts),
            counts,
            groups,
            self._take("traced"),
            self._take("asked"),
            self._take("complete"),
            requests,
            same_prompt,
            {key: value for key, (_, value) in self.reading.marks.items() if value is not None},
            dict(self.left_out),
            {key: tuple(values) for key, values in self._extra.items()},
            None if self.reading.cost is None else _padded(self._take("costs"), counts),
            self.reading.cost,
            self.reading.group_key,
        )

    def _take(self, name: str) -> Any:
        return self._arrays.pop(name).values

    def _refuse_equal_ids(self, places: Places, id_at: Callable[[int, int], str]) -> None:
        keys = self._arrays["keys"].values
        if np.diff(np.sort(keys)).all():  # in a tenth of the time that an order of ten million takes
            return
        order = np.argsort(keys, kind="stable")
        twice = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        pair = twice[np.argmin(order[twice + 1])]
        first, second = order[pair], order[pair + 1]
        name = id_at(int(places.codes[second]), int(places.lines[second]))
        raise InputError(f"{places[second]}: id {name!r} is already on {places[first]}; give each row its own id")

    def _nothing(self) -> str:
        if self.left_out["unscored"]:
            return f"{self._unscored_at}: no candidate has a score; run 'bonmini-guard score'"
        if self.left_out["trained_on"]:
            return (
                f"{self.source}: no row is left beside those that the reward model was trained on ({self.left_out['trained_on']}), "
                f"which flatter it; calibrate on other rows"
            )
        if self.left_out["incomplete"]:
            return (
                f"{self.source}: all {self.left_out['incomplete']} rows are incomplete (cut short by an early exit) and say too "
                f"little; collect complete rows with the guard's explore=0.02"
            )
        return f"{self.source}: the log is empty; it needs one JSON object a line"


def _units(codes: Integers, of_prompt: Bools) -> tuple[Integers, Bools, int]:
    """(R,) numbers of the units in order of appearance, the rows that are :attr:`Log.requests`, and how many repeat a prompt."""
    _, first, numbers = np.unique(codes, return_index=True, return_inverse=True)
    order, again = np.empty(first.size, dtype=np.int64), np.ones(codes.size, dtype=bool)
    order[np.argsort(first)] = np.arange(first.size)
    again[first] = False
    return order[numbers], ~again | of_prompt, int((again & of_prompt).sum())


def _padded(flat: NDArray[Any], counts: Integers) -> NDArray[Any]:
    """(R, W) with NaN beyond each row's count, made in place from the last rows to the first."""
    width, ends = int(counts.max()), np.cumsum(counts)
    if flat.size == counts.size * width:
        return flat.reshape(counts.size, width)
    flat.resize(counts.size * width, refcheck=False)
    table = flat.reshape(counts.size, width)
    for end in range(counts.size, 0, -_ROWS):
        rows = slice(max(0, end - _ROWS), end)
        piece = np.full((rows.stop - rows.start, width), np.nan, dtype=flat.dtype)
        piece[np.arange(width) < counts[rows, None]] = flat[ends[rows.start] - counts[rows.start] : ends[end - 1]]
        table[rows] = piece
    return table
