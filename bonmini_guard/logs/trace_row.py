"""The trace of a request: one calibration-ready log row, and what may be taken out of it before it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from langchain_core.messages import BaseMessage

from bonmini_guard.conversation import Turn
from bonmini_guard.engine.engine import Engine
from bonmini_guard.engine.fingerprints import fingerprint_of
from bonmini_guard.engine.result import Candidate, GuardResult, finite
from bonmini_guard.policy.profile import ScoreTransform

Row = dict[str, Any]
#: What to take out: texts of rejected candidates, all texts, or what a function of the row leaves; None drops the row.
Redact = Literal["rejected", "all"] | Callable[[Row], Row | None]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request that is over.

    Attributes:
        engine: what conducted it; a later profile does not change it.
        group: the conversation or user it belongs to.
        at: when it ended, seconds since the epoch.
        context: that of the request, for a generator that its config has chosen.
        missed: why it was chosen for exploring and could not be completed: busy, deadline, failed, ended (with its event loop).
    """

    result: GuardResult
    messages: Sequence[BaseMessage]
    options: Mapping[str, Any]
    engine: Engine
    group: str | None
    at: float
    context: Context = field(default_factory=copy_context)
    missed: str | None = None


@dataclass(frozen=True, slots=True)
class Explored:
    """What was drawn in the background to complete a request.

    Attributes:
        result: the request with every draw of its budget.
    """

    result: GuardResult
    draws: int
    usage: Mapping[str, Any]
    seconds: float


def trace_row(request: RequestRecord, explored: Explored | None = None) -> Row:
    """A request as a log row; ``complete`` only if chance alone chose it to be explored, and it could be.

    The row says what it ran under, so that its draws can be weighed whatever the guard does by then. A request that spent its whole
    budget is not complete: it did so because of its scores.

    Args:
        request: as conducted; ``usage``, ``loops`` and ``timings`` of the row are those of the live request.
        explored: where the request was completed in the background; its candidates are those of the row.
    """
    result = request.result
    shown = result if explored is None else explored.result
    row: Row = {
        "id": result.request_id,
        "at": datetime.fromtimestamp(request.at, UTC).isoformat(timespec="milliseconds"),
        "prompt": [Turn.of(message).openai() for message in request.messages],
        "candidates": [_candidate(candidate) for candidate in shown.candidates],
        "complete": explored is not None,
        "mode": result.mode,
        "decision": result.decision,
        "reason": result.reason,
        # By identity: what was drawn anew for exploring is not what was served.
        "selected": next((place for place, candidate in enumerate(shown.candidates) if candidate is result.selected), None),
        "threshold": finite(result.threshold),
        "profile": result.profile,
        "seed": result.seed,
        "draws": result.draws,
        "draws_started": result.draws_started,
        "loops": result.loops,
        "timings": {"total": result.timings.total, "scoring": result.timings.scoring},
        "usage": dict(result.usage),
    }
    if explored is not None:
        row["explored"] = {"draws": explored.draws, "usage": dict(explored.usage), "seconds": explored.seconds}
    elif request.missed is not None:
        row["explored"] = {"missed": request.missed}
    # What it ran under: thresholds (null: never exit), and "also" for stop rules that these do not tell.
    policy, transform = request.engine.policy.at(result.in_flight), request.engine.transform
    row |= {} if result.in_flight is None else {"in_flight": result.in_flight}
    row |= {"schedule": list(policy.schedule), "thresholds": [finite(t) for t in policy.thresholds], "exit": policy.exit}
    if policy.stop:
        row["also"] = repr(policy.stop)
    if isinstance(transform, ScoreTransform) and transform != ScoreTransform():
        row["score_transform"] = transform.model_dump()
    marks = {
        "group": request.group,
        "scored_by": fingerprint_of(request.engine.scorer),
        "generated_by": request.context.copy().run(fingerprint_of, request.engine.generator, request.options),
    }
    return row | {key: value for key, value in marks.items() if value is not None}


def redacted(row: Row, redact: Redact | None) -> Row | None:
    """The row without what is not to be written; None if nothing is."""
    if redact is None:
        return row
    if callable(redact):
        changed = redact(row)
        if changed is not None and not isinstance(changed, dict):
            raise TypeError("redact gave no row")  # which no reader of the file could read
        return changed
    kept = None
    if redact == "rejected":  # what the user has seen stays; in shadow that is the first draw whatever the decision
        answered = row.get("decision") in ("accepted", "best_effort", "unscored")
        kept = row.get("served", row.get("selected") if answered else None)
    for place, candidate in enumerate(row["candidates"]):
        if place != kept:
            candidate.pop("message", None)
            candidate |= {"text": "", "redacted": True}
    return row if redact == "rejected" else row | {"prompt": ""}


def _candidate(candidate: Candidate) -> Row:
    """One draw; "unfinished" marks one that was cut short, which says nothing about the answers that fail."""
    message = candidate.message
    said = None if message is None else Turn.of(message)
    row: Row = {
        "text": "" if said is None else said.text,
        "score": candidate.score,
        "raw_score": finite(candidate.raw_score),
        "loop": candidate.loop,
        "seed": candidate.seed,
    }
    if candidate.parts:
        row["parts"] = dict(candidate.parts)
    if candidate.failed:
        row["failed"] = True
    if said is not None and not said.is_plain:
        row["message"] = said.openai()
    if candidate.error is not None:
        row["error"] = type(candidate.error).__name__
    if candidate.unfinished:
        row["unfinished"] = True
    if candidate.started is not None and candidate.finished is not None:
        row |= {"started": candidate.started, "finished": candidate.finished, "seconds": candidate.finished - candidate.started}
    if candidate.usage is not None:
        row["tokens"] = candidate.usage["total_tokens"]
    return row
