"""A log as arrays: the scores and labels of its complete rows, and a count of what was left out and why."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bonmini_guard.calibration.files import RowFile
from bonmini_guard.calibration.rows import ScoredRow, candidate_costs, is_complete, row_id, scored_row
from bonmini_guard.errors import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FINGERPRINTS = ("scored_by", "generated_by")


@dataclass(frozen=True)
class Log:
    """The complete, scored rows of a log: R rows with up to W candidates.

    Attributes:
        source: where it came from, for messages.
        ids: of the rows.
        places: ``file:line`` of the rows.
        scores: (R, W), in the order drawn; NaN for failed draws and beyond the row's count.
        labels: (R, W): 1 acceptable, 0 not, NaN unlabelled, failed, or beyond the row's count.
        counts: (R,) candidates of each row, failed ones included.
        groups: (R,) code of the row's ``group``, or of the row itself where it has none: the unit of exchangeability.
        fingerprints: the log's ``scored_by`` and ``generated_by``, where it carries them.
        left_out: rows not used: ``incomplete``, ``unscored``, ``torn`` (a last line cut off); and rows used without their labels,
            which were ``not_random``.
        extra: for each key asked for, that key's value in every row.
        costs: (R, W) ``tokens`` or ``seconds`` of each candidate, where asked for; NaN beyond the row's count.
        traced: (R,) rows that a guard wrote, whose logged order is that of drawing; None for none.
        asked: (R,) rows that say ``"label_sampling": "random"``: a set fixed before its first label; None for none.
        same_prompt: rows that share their unit with an earlier row because their prompts are equal.
    """

    source: str
    ids: tuple[str, ...]
    places: tuple[str, ...]
    scores: Floats
    labels: Floats
    counts: Integers
    groups: Integers
    fingerprints: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    extra: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    costs: Floats | None = None
    traced: NDArray[np.bool_] | None = None
    asked: NDArray[np.bool_] | None = None
    same_prompt: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """(R,) 64-bit BLAKE2b digests of the rows' ids: what orders and splits hang on."""
        joined = b"".join(blake2b(name.encode("utf-8", "backslashreplace"), digest_size=8).digest() for name in self.ids)
        return np.frombuffer(joined, dtype=np.uint64)

    @property
    def drawn(self) -> NDArray[np.bool_]:
        """(R, W): where a candidate has a score, so that it takes part in the choice."""
        return np.isfinite(self.scores)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(R,): rows of which every scored candidate is labelled."""
        complete: NDArray[np.bool_] = ~np.any(self.drawn & np.isnan(self.labels), axis=1)
        return complete

    @property
    def unlabelled(self) -> NDArray[np.bool_]:
        """(R,): rows with scored candidates of which none is labelled."""
        nothing: NDArray[np.bool_] = np.any(self.drawn, axis=1) & ~np.any(np.isfinite(self.labels), axis=1)
        return nothing

    def take(self, rows: NDArray[Any]) -> Log:
        """The log of some rows: a boolean mask (R,) or row numbers."""
        chosen = np.arange(len(self))[rows]
        return Log(
            self.source,
            tuple(self.ids[i] for i in chosen),
            tuple(self.places[i] for i in chosen),
            self.scores[chosen],
            self.labels[chosen],
            self.counts[chosen],
            self.groups[chosen],
            self.fingerprints,
            self.left_out,
            {key: tuple(values[i] for i in chosen) for key, values in self.extra.items()},
            None if self.costs is None else self.costs[chosen],
            None if self.traced is None else self.traced[chosen],
            None if self.asked is None else self.asked[chosen],
            self.same_prompt,
        )

    def require(self, budget: int) -> None:
        """Refuse rows with fewer candidates than a budget of draws.

        Raises:
            InputError: naming the first such row.
        """
        short = np.flatnonzero(self.counts < budget)
        if short.size:
            first = int(short[0])
            raise InputError(
                f"{self.places[first]}: {self.counts[first]} candidates, fewer than the budget of {budget} draws; "
                f"log more candidates or use a smaller schedule"
            )

    def require_scores(self) -> None:
        """Refuse a log in which every draw failed.

        Raises:
            InputError: no candidate has a score.
        """
        if not self.drawn.any():
            raise InputError(f"{self.source}: every draw failed, so there is nothing to calibrate on; log requests that worked")

    def labelled_set(self) -> tuple[Log, Literal["left_out", "counts_as_bad"]]:
        """The rows that labels were sought for, and what a label missing among them means.

        Rows that say ``"label_sampling": "random"`` are a set fixed before its first label: all of them count, and a missing
        label was not asked for. Else a row counts if it has any label; where a needed label is missing, by chance, it is left out.

        Raises:
            InputError: no row has a label.
        """
        known = np.any(np.isfinite(self.labels), axis=1)
        if not known.any():
            raise InputError(f"{self.source}: {self._why_no_label()}")
        if self.asked is not None and self.asked.any():
            others = {"not_in_the_labelled_set": int((~self.asked).sum())}
            return replace(self.take(self.asked), left_out={**self.left_out, **others}), "counts_as_bad"
        if known.all() or not self.unlabelled.any():
            return self, "left_out"
        bare, failed = int(self.unlabelled.sum()), int((~np.any(self.drawn, axis=1)).sum())
        left_out = {**self.left_out, "unlabelled": bare - self.left_out.get("not_random", 0), "failed": failed}
        return replace(self.take(known), left_out={name: number for name, number in left_out.items() if number}), "left_out"

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
        if np.all(self.unlabelled):
            raise InputError(f"{self.source}: {self._why_no_label()}")
        if not np.any(self.unlabelled):
            return self
        failed = ~np.any(self.drawn, axis=1)
        log = self.take(~self.unlabelled & ~failed)
        bare = int(self.unlabelled.sum()) - self.left_out.get("not_random", 0)
        also = {"unlabelled": bare, "failed": int(failed.sum())}
        return replace(log, left_out={**log.left_out, **{reason: number for reason, number in also.items() if number > 0}})

    def _why_no_label(self) -> str:
        if self.left_out.get("not_random"):
            return (
                "all labels are of rows that were not drawn at random, which say nothing about other rows; "
                "go on with 'bonmini-guard label' until random ones are whole"
            )
        return "no candidate is labelled; run 'bonmini-guard label'"


def load_log(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    keys: Iterable[str] = (),
    cost: str | None = None,
    group: str | None = None,
) -> Log:
    """Read a log from one file or several shards.

    Args:
        paths: JSON lines (gzip or not) or Parquet.
        keys: further row keys to keep in ``extra``.
        cost: a numeric key of candidates, ``tokens`` or ``seconds``, to keep in ``costs``; a failed draw may lack it.
        group: what is one unit, which counts once. None: the row's ``group`` where it has one, else rows of equal prompts (after
            normalising white space). ``"none"``: each row. ``"prompt"``: equal prompts. Else a row key that every row has.

    Raises:
        InputError: a file cannot be read, or a row is not what design calls a log row; the message is one line,
            ``file:line: problem; cure``.
        MissingExtraError: a Parquet file without pyarrow.
    """
    files = [RowFile(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    builder = _Builder(", ".join(str(file.path) for file in files), tuple(keys), cost, group)
    for file in files:
        for place, row in file:
            builder.add(row, place)
        builder.left_out["torn"] += file.torn
    return builder.build()


def log_of_rows(rows: Iterable[Mapping[str, Any]], source: str = "rows", keys: Iterable[str] = (), group: str | None = None) -> Log:
    """A log from rows already in memory; the place of a row is ``source:number``, from 1.

    Raises:
        InputError: as :func:`load_log`.
    """
    builder = _Builder(source, tuple(keys), group=group)
    for number, row in enumerate(rows, start=1):
        builder.add(row, f"{source}:{number}")
    return builder.build()


class _Builder:
    """Collects rows into flat arrays: 8 bytes a number, not a Python object."""

    def __init__(self, source: str, keys: tuple[str, ...], cost: str | None = None, group: str | None = None) -> None:
        self.source = source
        self._group = group
        self._units: dict[str | bytes, int] = {}
        self._same_prompt = 0
        self._traced = bytearray()
        self._asked = bytearray()
        self._cost = cost
        self._costs = array("d")
        self.left_out = {"incomplete": 0, "unscored": 0, "torn": 0, "not_random": 0}
        self._seen: dict[str, str] = {}
        self._ids: list[str] = []
        self._places: list[str] = []
        self._scores = array("d")
        self._labels = array("d")
        self._counts = array("q")
        self._groups = array("q")
        self._extra: dict[str, list[Any]] = {key: [] for key in keys}
        self._fingerprints: dict[str, tuple[str, Any]] = {}
        self._unscored_at = ""

    def add(self, row: Mapping[str, Any], place: str) -> None:
        """Check a row, and keep its numbers if it is complete and scored."""
        name = row_id(row, place)
        if name in self._seen:
            raise InputError(f"{place}: id {name!r} is already on {self._seen[name]}; give each row its own id")
        self._seen[name] = place
        if not is_complete(row, place):
            self.left_out["incomplete"] += 1
            return
        numbers = scored_row(row, place)
        if not numbers.scored:
            self.left_out["unscored"] += 1
            self._unscored_at = self._unscored_at or place
            return
        self._check_fingerprints(row, place)
        self.left_out["not_random"] += not numbers.random
        self._keep(name, place, row, numbers)

    def _keep(self, name: str, place: str, row: Mapping[str, Any], numbers: ScoredRow) -> None:
        self._ids.append(name)
        self._places.append(place)
        self._scores.extend(numbers.scores)
        self._labels.extend(numbers.labels)
        self._counts.append(len(numbers.scores))
        if self._cost is not None:
            self._costs.extend(candidate_costs(row, place, self._cost))
        self._groups.append(self._unit(row, place))
        self._traced.append("decision" in row)
        self._asked.append(row.get("label_sampling") == "random")
        for key, values in self._extra.items():
            values.append(row.get(key))

    def _unit(self, row: Mapping[str, Any], place: str) -> int:
        """The code of the row's unit; equal prompts are counted."""
        name, by_prompt = unit_of(row, place, self._group)
        known = len(self._units)
        code = self._units.setdefault(name, known) if name else self._units.setdefault(f"row {row['id']}", known)
        self._same_prompt += by_prompt and code < known
        return code

    def _check_fingerprints(self, row: Mapping[str, Any], place: str) -> None:
        for key in FINGERPRINTS:
            text = json.dumps(row.get(key), sort_keys=True, default=str)
            known, _ = self._fingerprints.setdefault(key, (text, row.get(key)))
            if known != text:
                raise InputError(
                    f'{place}: "{key}" differs from the rows before; one log must come from one source: '
                    f"split it, or run 'bonmini-guard score' on all of it"
                )

    def build(self) -> Log:
        """The log of what was kept."""
        if not self._ids:
            raise InputError(self._nothing())
        counts = np.frombuffer(self._counts, dtype=np.int64).copy()
        return Log(
            self.source,
            tuple(self._ids),
            tuple(self._places),
            _padded(self._scores, counts),
            _padded(self._labels, counts),
            counts,
            np.frombuffer(self._groups, dtype=np.int64).copy(),
            {key: value for key, (_, value) in self._fingerprints.items() if value is not None},
            dict(self.left_out),
            {key: tuple(values) for key, values in self._extra.items()},
            None if self._cost is None else _padded(self._costs, counts),
            np.frombuffer(self._traced, dtype=np.bool_).copy(),
            np.frombuffer(self._asked, dtype=np.bool_).copy(),
            self._same_prompt,
        )

    def _nothing(self) -> str:
        if self.left_out["unscored"]:
            return f"{self._unscored_at}: no candidate has a score; run 'bonmini-guard score'"
        if self.left_out["incomplete"]:
            return (
                f"{self.source}: all {self.left_out['incomplete']} rows are incomplete (cut short by an early exit) and say too "
                f"little; collect complete rows with the guard's explore=0.02"
            )
        return f"{self.source}: the log is empty; it needs one JSON object a line"


def _padded(flat: array[float], counts: Integers) -> Floats:
    """(R, W) with NaN beyond each row's count."""
    table = np.full((counts.size, int(counts.max())), np.nan)
    table[np.arange(table.shape[1]) < counts[:, None]] = np.frombuffer(flat, dtype=np.float64)
    return table


def unit_of(row: Mapping[str, Any], place: str, group: str | None) -> tuple[str | bytes, bool]:
    """The name of the unit that a row belongs to, empty for itself alone; and whether its prompt decides.

    Raises:
        InputError: ``group`` names a key that the row lacks.
    """
    if group not in (None, "none", "prompt"):
        if row.get(group) is None:
            raise InputError(f'{place}: the row has no "{group}", which --group names; write it, or use --group prompt')
        return f"group {row[group]}", False
    if group is None and row.get("group") is not None:
        return f"group {row['group']}", False
    text = "" if group == "none" else prompt_text(row.get("prompt"))
    return (blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).digest() if text else ""), bool(text)


def prompt_text(prompt: Any) -> str:
    """A prompt as one string with white space normalised; empty where there is none (or it was redacted)."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    if not prompt:
        return ""
    return " ".join(json.dumps(prompt, sort_keys=True, default=str).replace("\\n", " ").replace("\\t", " ").split())
