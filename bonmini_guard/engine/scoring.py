"""Scoring: what has arrived is scored together, once where it is equal; a scorer that fails ends the request."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from langchain_core.messages import AIMessage

from bonmini_guard.engine.containment import as_failure, is_failure
from bonmini_guard.engine.detach import is_graph_signal
from bonmini_guard.engine.result import Candidate, finite
from bonmini_guard.engine.scorers import as_scores
from bonmini_guard.engine.snapshot import copies, frozen, identity
from bonmini_guard.errors import ConfigurationError, place_of

if TYPE_CHECKING:
    from bonmini_guard.engine.engine import Request

logger = logging.getLogger(__name__)


class ScoringFailed(Exception):  # noqa: N818 - a signal, never seen outside
    """The scorer raised, or did not answer in kind."""


class Ended(Exception):  # noqa: N818 - a signal, never seen outside
    """The request is over: a draw has ended it, or whoever asked has long gone on."""


async def collect(request: Request, draws: int) -> list[Candidate]:
    """Score draws as they arrive, until those of a loop are there; cut short by a turn of tools, or an eager exit's winner."""
    policy = request.policy
    while len(request.scored) < draws:
        batch = await request.arrived.take()
        if request.ended is not None or request.closed:
            raise Ended
        request.turn = _tool_turn(request)
        if request.turn is None:
            await _score(request, [candidate for candidate in batch if candidate.message is not None])
        for observer in request.observers:
            await observer.drawn(batch)
        request.turn = request.turn or _tool_turn(request)
        request.scored += batch
        if policy.exit == "eager":
            request.winner = next((candidate for candidate in batch if policy.passes(request.loops - 1, candidate.score)), None)
        if request.turn is not None or request.winner is not None:
            return []
    if not request.rolling:
        request.scored.clear()
        return request.candidates[-draws:]
    candidate = request.scored.pop(0)
    candidate.loop = request.loops
    request.loops += 1
    request.candidates.append(candidate)
    return [candidate]


def _tool_turn(request: Request) -> Candidate | None:
    """The first draw that did not fail, in order of drawing, if it is there and calls tools: it makes the turn one of tools."""
    if request.engine.tool_turns not in ("text", "pass"):
        return None
    first = next((candidate for candidate in request.seen if candidate.error is None), None)
    return first if first is not None and first.message is not None and first.index in request.calling else None


async def passes(request: Request, candidate: Candidate, said: AIMessage) -> bool:
    """Whether what a draw says beside its calls passes as an answer would."""
    key = identity(said)
    try:
        if key not in request.known:
            await _score_fresh(request, {key: frozen(said)}, [candidate])
    except ScoringFailed:
        return False
    candidate.raw_score, candidate.score = request.known[key]
    candidate.scored = request.elapsed()
    return request.policy.passes(max(0, request.loops - 1), candidate.score)


async def _score(request: Request, batch: Sequence[Candidate]) -> None:
    fresh: dict[Hashable, AIMessage] = {}
    for candidate in batch:
        key = request.keys[candidate.index]
        if key in request.known or key in fresh or candidate.message is None:
            continue
        if candidate.index in request.calling and not _judges_calls(request):
            request.known[key] = None, None
        else:
            # A copy of its own: a scorer must not change what is served either.
            fresh[key] = candidate.message if request.only_reads else frozen(candidate.message)
    if fresh:
        await _score_fresh(request, fresh, batch)
    now = request.elapsed()
    for candidate in batch:
        candidate.raw_score, candidate.score = request.known[request.keys[candidate.index]]
        candidate.scored = now
        if request.parts:
            candidate.parts = request.parts.get(request.keys[candidate.index])


def _judges_calls(request: Request) -> bool:
    """Whether calls are scored.

    Raises:
        ConfigurationError: they are to be, and the reward model cannot read them.
    """
    if request.engine.tool_turns == "judge" and not getattr(request.engine.scorer, "reads_calls", True):
        raise ConfigurationError(
            "tool_turns='judge' and the reward model reads texts alone: use one that reads tool calls (a RewardModel, a "
            "function of the messages), or tool_turns='text', which scores what is said beside them"
        )
    return request.engine.tool_turns in ("judge", "answer")


async def _score_fresh(request: Request, fresh: Mapping[Hashable, AIMessage], batch: Sequence[Candidate]) -> None:
    begun = perf_counter()
    try:
        if request.session is None:
            # The prompt is the draws' and the caller's, too.
            request.session = request.engine.scorer.session([*request.asked] if request.only_reads else copies(request.asked))
        given = await request.session.score(list(fresh.values()))
        request.scoring_usage = getattr(request.session, "usage_metadata", None)
        if request.closed:
            raise Ended
        request.known |= zip(fresh, _usable(request, as_scores(given, len(fresh))), strict=True)
        if parts := getattr(request.session, "parts", None):
            told = [each and dict(zip(each, map(finite, as_scores(each.values(), len(each))), strict=True)) for each in parts]
            request.parts |= zip(fresh, told, strict=False)
    except BaseException as error:
        if request.closed or is_graph_signal(error) or not is_failure(error, [request.work]):
            raise
        request.scorer_error = as_failure(error)
        # Of what is wrong with how it is set up, its own words say the cure, and quote no candidate.
        words = f": {error}" if isinstance(error, ConfigurationError) else ""
        logger.warning("scoring failed: %s%s", place_of(request.scorer_error), words)
        raise ScoringFailed from request.scorer_error
    finally:
        request.scoring += perf_counter() - begun
    for observer in request.observers:
        await observer.scored(batch, perf_counter() - begun)


def _usable(request: Request, raws: Sequence[float | None]) -> Iterator[tuple[float | None, float | None]]:
    """Raw scores, each with what it is transformed to; None for what is not finite."""
    transform = request.engine.transform
    for raw in raws:
        finite = raw if raw is not None and math.isfinite(raw) else None
        score = finite if finite is None or transform is None else transform(finite)
        yield raw, score if score is not None and math.isfinite(score) else None
