"""Traces for drift: the first loop of every request, which no early exit has cut short, with its decision and label."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bonmini_guard.calibration.files import RowFile
from bonmini_guard.calibration.rows import first_scores, labels_of, row_id, selected_index
from bonmini_guard.errors import InputError, ProfileError
from bonmini_guard.profile import GuardProfile


@dataclass(frozen=True, slots=True)
class Trace:
    """What drift needs of one request.

    Attributes:
        best: the first loop's best transformed score; -inf if all its draws failed.
        decision: accepted, best_effort, abstained, ...; None for rows that no guard wrote.
        reason: of the decision.
        label: whether the served answer is acceptable; None where that is not labelled.
    """

    best: float
    decision: str | None
    reason: str | None
    label: bool | None


@dataclass
class Traces:
    """The traces of a log in the order written, one of each group.

    Attributes:
        traces: in order.
        left_out: ``duplicate`` ids, rows of the ``same_group`` as one before, rows whose first loop is ``unfinished`` (a
            deadline) or ``unscored``, and a ``torn`` last line.
        fingerprints: of each ``scored_by`` and ``generated_by``, the values met, with counts.
    """

    traces: list[Trace] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    fingerprints: dict[str, Counter[str]] = field(default_factory=lambda: {"reward_model": Counter(), "generator": Counter()})


def read_traces(paths: Iterable[str | os.PathLike[str]], profile: GuardProfile) -> Traces:
    """Read traces: rows of early-exited, abstained and complete requests alike.

    Raises:
        InputError: a file cannot be read, a row is malformed, or no row has a whole, scored first loop.
        ProfileError: the profile's exit is "eager", which cuts first loops short too.
    """
    files = [RowFile(path) for path in paths]
    traces = traces_of_rows((pair for file in files for pair in file), profile)
    traces.left_out["torn"] += sum(file.torn for file in files)
    if not traces.traces:
        raise InputError(
            f"{files[0].path}: no row has a whole, scored first loop of {profile.schedule[0]} draws; "
            f"give traces of a guard that runs this profile"
        )
    return traces


def traces_of_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], profile: GuardProfile) -> Traces:
    """Traces from (place, row) pairs; see :func:`read_traces`."""
    if profile.exit != "loop":
        raise ProfileError("a profile with exit 'eager' cuts first loops short, so that drift cannot compare them; use exit 'loop'")
    found, ids, groups = Traces(), set[str](), set[str]()
    for place, row in rows:
        name = row_id(row, place)
        group = None if row.get("group") is None else str(row["group"])
        if name in ids or group in groups:
            found.left_out["duplicate" if name in ids else "same_group"] += 1
            continue
        ids.add(name)
        trace = _trace(row, place, profile)
        if isinstance(trace, str):
            found.left_out[trace] += 1
            continue
        if group is not None:
            groups.add(group)
        _note_fingerprints(found, row)
        found.traces.append(trace)
    return found


def _trace(row: Mapping[str, Any], place: str, profile: GuardProfile) -> Trace | str:
    scores = first_scores(row, place, profile.schedule[0])
    if scores is None:
        return "unfinished"
    if all(score is None for score in scores):
        return "unscored"
    finite = [profile.score_transform(score) for score in scores if score is not None and math.isfinite(score)]
    decision, reason = row.get("decision"), row.get("reason")
    return Trace(
        max(finite, default=-math.inf),
        None if decision is None else str(decision),
        None if reason is None else str(reason),
        _served_label(row, place),
    )


def _served_label(row: Mapping[str, Any], place: str) -> bool | None:
    if row.get("decision") not in ("accepted", "best_effort"):
        return None
    index = selected_index(row, place)
    label = math.nan if index is None else labels_of(row, place)[index]
    return None if math.isnan(label) else bool(label)


def _note_fingerprints(found: Traces, row: Mapping[str, Any]) -> None:
    from bonmini_guard.calibration.evidence import as_text

    for name, key in (("reward_model", "scored_by"), ("generator", "generated_by")):
        if row.get(key) is not None:
            found.fingerprints[name][as_text(name, row[key])] += 1


def decided(traces: Iterable[Trace]) -> Iterator[Trace]:
    """Those that carry a guard's decision."""
    return (trace for trace in traces if trace.decision is not None)
