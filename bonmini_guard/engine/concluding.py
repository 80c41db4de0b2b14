"""Concluding: from a decision, a deadline or an outage to the record of the request."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING

from bonmini_guard.conversation import Turn
from bonmini_guard.engine.drawing import draw_seed
from bonmini_guard.engine.outages import decided_by_failures, nothing_arrived
from bonmini_guard.engine.protocols import EndRequest
from bonmini_guard.engine.result import Candidate, GuardResult, Outcome, Timings, total_usage, used_tokens
from bonmini_guard.engine.scoring import passes
from bonmini_guard.engine.snapshot import shown, words
from bonmini_guard.errors import ConfigurationError, GenerationError, place_of
from bonmini_guard.policy.policy import Action, Decision

if TYPE_CHECKING:
    from bonmini_guard.engine.engine import Request

logger = logging.getLogger(__name__)


async def selected(request: Request, decision: Decision) -> Decision:
    """With another draw than the best: of those that passed where one did, else of all that have a score."""
    select, policy = request.engine.select, request.policy
    if select is None or decision.action is not Action.SERVE:
        return decision
    eligible = [
        (place, each.score, Turn.of(each.message).plain())
        for place, each in enumerate(request.candidates)
        if each.score is not None and each.message is not None
        if not decision.accepted or policy.passes(request.loops - 1, each.score)
    ]
    places, scores, texts = zip(*eligible, strict=True)
    try:
        # By a number that no draw has, and in a thread: similarities are foreign code.
        chosen = await asyncio.to_thread(select, scores, texts, draw_seed(request.seed, -1) / 2**31)
        return replace(decision, index=places[chosen])
    except Exception as error:
        logger.warning("select= failed, the best draw is served: %s", place_of(error))
        return decision


def finish(request: Request, decision: Decision) -> GuardResult:
    """The record of what the policy has decided."""
    if _first(request) is None:
        return without_generator(request)
    if decision.index is None:
        return without_scores(request, getattr(request.engine.scorer, "none_scored", "scorer_failed"))
    selected = request.candidates[decision.index]
    if decision.action is Action.ABSTAIN:
        failed = decision.reason == "budget_spent" and decided_by_failures(request.candidates)
        return record(request, "abstained", "generator_failed" if failed else decision.reason, selected)
    return record(request, "accepted" if decision.accepted else "best_effort", decision.reason, selected)


def end(request: Request, end: EndRequest) -> GuardResult:
    """The record of a request that a draw has ended.

    Raises:
        ConfigurationError: it serves a draw that has not arrived.
    """
    if end.signal is not None:
        raise end.signal
    served = next((each for each in request.launched if each.index == end.serve), None)
    if served is None or not (served.message or served.error):
        raise ConfigurationError(f"the generator ended its request with draw {end.serve!r}, which has not arrived")
    return replace(record(request, "unscored", end.reason, served), ended=True)


def out_of_time(request: Request) -> GuardResult:
    """The deadline: guardrail abstains, accelerator serves the best so far."""
    # An unfinished loop does not count in guardrail mode; what it scored may still be the best so far.
    if request.policy.mode == "guardrail":
        return record(request, "abstained", "deadline", _best(request))
    if _best(request) is not None or _first(request) is not None:
        return without_scores(request, "deadline")
    raise GenerationError(
        f"no draw arrived within the timeout of {request.engine.timeout:.4g} s: raise timeout="
    ) from TimeoutError()


async def finish_turn(request: Request, candidate: Candidate) -> GuardResult:
    """The calls go on; what is said beside them only if it passes as an answer would."""
    said = None
    if request.engine.tool_turns == "text" and candidate.message is not None:
        said = words(shown(candidate.message, request.not_shown))
    withheld = said is not None and not await passes(request, candidate, said)
    return replace(record(request, "unscored", "tool_call", candidate), ended=True, withheld=withheld)


def without_generator(request: Request) -> GuardResult:
    """Draws fail, and more of them would."""
    if _first(request) is not None:
        return without_scores(request, "generator_failed")
    error = request.candidates[0].error
    if error is not None and all(candidate.refused for candidate in request.candidates):
        raise error
    raise nothing_arrived(request.candidates)


def without_scores(request: Request, reason: str) -> GuardResult:
    """Scores are missing or incomplete: guardrail fails closed, accelerator serves what it has and says so."""
    best = _best(request)
    if request.policy.mode == "guardrail":
        return record(request, "abstained", reason, best)
    return (
        record(request, "best_effort", reason, best) if best is not None else record(request, "unscored", reason, _first(request))
    )


def _best(request: Request) -> Candidate | None:
    scored = [candidate for candidate in request.seen if candidate.score is not None]
    return max(scored, key=lambda candidate: (candidate.score, -candidate.index), default=None)


def _first(request: Request) -> Candidate | None:
    return next((candidate for candidate in request.seen if candidate.message is not None), None)


def pace(request: Request) -> tuple[float | None, int]:
    """What the request has to tell of its endpoint's load; see :meth:`~bonmini_guard.engine.load.Load.end`."""
    refused = sum(getattr(candidate.error, "status", None) == HTTPStatus.TOO_MANY_REQUESTS for candidate in request.launched)
    first = next((candidate for candidate in request.candidates if candidate.message is not None), None)
    if first is None or first.finished is None or first.started is None:
        return None, refused
    return (first.finished - first.started) / max(1, used_tokens([first])[1]), refused


def record(request: Request, decision: Outcome, reason: str, selected: Candidate | None) -> GuardResult:
    """The record of a request that is decided."""
    if request.rolling and selected is not None and all(each is not selected for each in request.candidates):
        # Served though not decided on: it ended the request, made a turn of tools of it, or was there at the deadline.
        request.candidates.append(selected)
    return GuardResult(
        mode=request.policy.mode,
        decision=decision,
        reason=reason,
        selected=selected,
        candidates=tuple(request.candidates),
        loops=request.loops,
        in_flight=request.width if request.rolling else None,
        ahead=len(request.launched) - len(request.candidates),
        usage=total_usage(request.launched, request.scoring_usage),
        timings=Timings(request.elapsed(), request.scoring, perf_counter()),
        threshold=request.policy.thresholds[request.loops - 1] if request.loops else None,
        seed=request.seed,
        request_id=request.request_id,
        profile=request.engine.profile,
        has_zero=request.engine.has_zero,
        scorer_error=request.scorer_error,
        not_shown=request.not_shown,
    )
