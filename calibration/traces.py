"""Traces for drift: the first loop of every request, which no early exit has cut short, with its decision and label."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from bonmini_guard.calibration.blocks import FINGERPRINTS
from bonmini_guard.calibration.evidence import as_text
from bonmini_guard.errors import InputError, ProfileError
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.logs.rows import Regime, Row, name_of, regime_of
from bonmini_guard.policy.profile import GuardProfile

#: Why a row may be left out that was read before, in this run or in an earlier one.
COUNTED = ("duplicate", "same_group", "older")


@dataclass(frozen=True, slots=True)
class Trace:
    """What drift needs of one request.

    Attributes:
        best: the first loop's best transformed score; -inf if all its draws failed.
        decision: accepted, best_effort, abstained, ...; None for rows that no guard with this profile's thresholds wrote.
        label: whether the selected answer is acceptable, served or not; None where that is not labelled.
        whole: whether all its answers are labelled.
        slice: the value of the key asked for, as text; None without one.
        counted, judged: whether the request, and its label, are to be counted: the first of its group, and not counted before.
    """

    id: str
    best: float
    decision: str | None
    reason: str | None
    label: bool | None
    whole: bool = False
    slice: str | None = None
    counted: bool = True
    judged: bool = False


class Seen:
    """Names met before: the latest ones as digests, and up to which time all others are.

    Args:
        most: how many digests are kept; None for all.
        digests: of an earlier run, with the time of each, oldest first.
        mark: what was written up to this time (seconds since the epoch) and is not among the digests counts as met.
    """

    def __init__(
        self, most: int | None = None, digests: Mapping[str, float | None] | None = None, mark: float | None = None
    ) -> None:
        self._most = most
        self.digests = dict(digests or {})
        self.mark = mark

    def __contains__(self, name: str) -> bool:
        digest = _digest(name)
        if digest in self.digests:  # met again: the latest
            self.digests[digest] = self.digests.pop(digest)
            return True
        return False

    def add(self, name: str, at: float | None = None) -> None:
        """Remember a name; beyond the most, the oldest is forgotten, and its time becomes the mark."""
        self.digests[_digest(name)] = at
        if self._most is not None and len(self.digests) > self._most:
            gone = self.digests.pop(next(iter(self.digests)))
            self.mark = gone if self.mark is None else max(self.mark, self.mark if gone is None else gone)


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


@dataclass
class Memory:
    """Which requests and which labels were counted; without a state, those of one run."""

    requests: Seen = field(default_factory=Seen)
    labels: Seen = field(default_factory=Seen)


@dataclass
class Traces:
    """The traces of a log, one of each group, in the order in which requests began, where all say when, and not in whole seconds.

    Else they are in the order written.

    Attributes:
        events: requests or labels to be counted, in order.
        left_out: ``duplicate`` ids, rows of the ``same_group`` as one before, rows ``older`` than a state remembers, rows whose
            first loop is ``unfinished`` (a deadline) or ``unscored``, and a ``torn`` last line; and requests that
            ``other_thresholds`` than the profile's decided, of which the first loops alone tell.
        fingerprints: of each ``scored_by`` and ``generated_by``, the values met, with counts.
    """

    events: list[Trace] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    fingerprints: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in FINGERPRINTS.values()})

    @property
    def traces(self) -> list[Trace]:
        """The requests."""
        return [event for event in self.events if event.counted]

    @property
    def decided(self) -> list[Trace]:
        """Those that carry a guard's decision."""
        return [trace for trace in self.traces if trace.decision is not None]

    @property
    def judged(self) -> list[Trace]:
        """Those with labels."""
        return [event for event in self.events if event.judged]


def read_traces(
    paths: Iterable[str | os.PathLike[str]], profile: GuardProfile, *, memory: Memory | None = None, key: str | None = None
) -> Traces:
    """Read traces, in files in the order they came: rows of early-exited, abstained and complete requests alike.

    The memory holds what is not to be counted again, and is brought up to date; by a row key requests are sliced.

    Raises:
        InputError: a file cannot be read, a row is malformed, or no row has a whole, scored first loop.
        ProfileError: the profile's exit is "eager" or "rolling", which cuts first loops short too.
    """
    files = [RowFile(path) for path in paths]
    found = traces_of_rows((pair for file in files for pair in file), profile, memory=memory, key=key)
    found.left_out["torn"] += sum(file.torn for file in files)
    if not found.events and not any(found.left_out[reason] for reason in COUNTED):
        raise InputError(
            f"{files[0].path}: no row has a whole, scored first loop of {profile.schedule[0]} draws; "
            f"give traces of a guard that runs this profile"
        )
    return found


def traces_of_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    profile: GuardProfile,
    *,
    memory: Memory | None = None,
    key: str | None = None,
) -> Traces:
    """Traces from (place, row) pairs; see :func:`read_traces`."""
    if profile.exit != "loop":
        raise ProfileError(
            f"a profile with exit {profile.exit!r} cuts first loops short, so that drift cannot compare them; use exit 'loop'"
        )
    found, memory, times, precise = Traces(), memory or Memory(), list[float | None](), False
    units = str(profile.evidence.get("group_key", "group")), "group"  # a guard's own traces know the latter alone
    for place, value in rows:
        row = Row(value, place)
        group = next((name for key in units if (name := name_of(row.value.get(key))) is not None), None)
        counted = _counted_before(row, group, memory.requests)
        best = _first_best(row, profile)
        if isinstance(best, str):
            found.left_out[counted or best] += 1
            continue
        regime = regime_of(row.value)
        foreign = regime is not None and replace(regime, transform=(1.0, 0.0)) != Regime(
            profile.schedule, profile.thresholds, "loop"
        )
        trace = _trace(row, group, best, memory, key=key, counted=counted is None, foreign=foreign)
        if counted is None:
            found.left_out.update(["other_thresholds"] * foreign)
            for mark, name in FINGERPRINTS.items():
                if row.value.get(mark) is not None:
                    found.fingerprints[name][as_text(name, row.value[mark])] += 1
        else:
            found.left_out[counted] += 1
        if trace.counted or trace.judged:
            found.events.append(trace)
            times.append(_began(row))
            precise = precise or (_time(row) or 0.0) % 1 > 0
    # Of requests that ran at once a guard writes those first that took few loops; whole seconds do not tell which began first.
    if None not in times and precise:
        order = sorted(range(len(times)), key=lambda number: (times[number], found.events[number].id))
        found.events = [found.events[number] for number in order]
    return found


def _counted_before(row: Row, group: str | None, seen: Seen) -> str | None:
    """Why the request is not to be counted: one of :data:`COUNTED`; None if it is."""
    if f"id {row.id}" in seen:
        return "duplicate"
    if group is not None and f"group {group}" in seen:
        return "same_group"
    at = _time(row)
    return None if at is None or seen.mark is None or at > seen.mark else "older"


def _time(row: Row) -> float | None:
    try:
        at = datetime.fromisoformat(str(row.value.get("at")))
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _began(row: Row) -> float | None:
    """When the request began: a guard's trace says when it ended, and how long it took."""
    at, timings = _time(row), row.value.get("timings")
    took = timings.get("total") if isinstance(timings, Mapping) else None
    return at - took if at is not None and isinstance(took, int | float) and 0 <= took <= 1e9 else None


def _first_best(row: Row, profile: GuardProfile) -> float | str:
    """The first loop's best transformed score, or why there is none."""
    scores = row.first_scores(profile.schedule[0])
    if scores is None:
        return "unfinished"
    if all(score is None for score in scores):
        return "unscored"
    finite = [profile.score_transform(score) for score in scores if score is not None and math.isfinite(score)]
    return max(finite, default=-math.inf)


def _trace(row: Row, group: str | None, best: float, memory: Memory, *, key: str | None, counted: bool, foreign: bool) -> Trace:
    """The trace of a row, which is now remembered."""
    unit = f"id {row.id}" if group is None else f"group {group}"
    if counted:
        memory.requests.add(f"id {row.id}", _time(row))
        if group is not None:
            memory.requests.add(unit)
    label, whole = (None, False) if foreign else _selected_label(row)
    judged = label is not None and unit not in memory.labels
    if judged:
        memory.labels.add(unit)
    decision, reason, part = (None if name is None else name_of(row.value.get(name)) for name in ("decision", "reason", key))
    return Trace(row.id, best, None if foreign else decision, reason, label, whole, part, counted, judged)


def _selected_label(row: Row) -> tuple[bool | None, bool]:
    """The label of the answer served, or of an abstention's best one; and whether every answer that was scored is labelled."""
    decision = row.value.get("decision")
    if decision not in ("accepted", "best_effort", "abstained"):
        return None, False
    labels, index = row.labels, row.selected
    scores = row.first_scores(len(labels)) or []
    scored = [number for number, score in enumerate(scores) if score is not None]
    if decision == "abstained":
        index = max(scored, key=lambda number: (scores[number], -number), default=None)
    label = math.nan if index is None else labels[index]
    return None if math.isnan(label) else bool(label), bool(scored) and not any(math.isnan(labels[n]) for n in scored)
