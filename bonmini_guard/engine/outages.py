"""What failed draws say of their generator: whether drawing more is of use, and what to tell the caller."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from bonmini_guard.engine.result import Candidate
from bonmini_guard.errors import BonMiniGuardError, ConfigurationError, GenerationError, Unanswered

#: Draws that may fail in a row before a request draws no more.
MOST_IN_A_ROW = 8
#: Seconds before another loop after one in which every draw failed and none came back; doubles each time.
FIRST_PAUSE = 0.25
#: Statuses of refusals that the same request will meet again.
_REFUSALS = frozenset({400, 401, 403, 404, 405, 422})


def patience(candidates: Sequence[Candidate], loop: Sequence[Candidate]) -> float | None:
    """Seconds to wait after the latest loop of all that a request has drawn before the next one; None for no further loop."""
    if any(candidate.message is not None for candidate in loop):
        return 0.0
    failed = next((at for at, each in enumerate(reversed(candidates)) if each.message is not None), len(candidates))
    if failed >= MOST_IN_A_ROW or all(map(is_final, (candidate.error for candidate in loop))):
        return None
    if any(isinstance(candidate.error, Unanswered) for candidate in loop):
        return 0.0  # it is there, and answers
    loops = len({each.loop for each in candidates[len(candidates) - failed :]})
    # A rolling request decides after each draw, and has several in flight.
    return FIRST_PAUSE * 2.0 ** (min(loops, math.ceil(failed / len(loop))) - 1)


def is_final(error: BaseException | None) -> bool:
    """Whether the draw would fail the same way again."""
    final = getattr(error, "final", None)
    if final is None:
        return isinstance(error, ConfigurationError) or getattr(error, "status_code", None) in _REFUSALS
    return bool(final)


def decided_by_failures(candidates: Sequence[Candidate]) -> bool:
    """Whether too few draws arrived for the generator to have had its chance."""
    return sum(candidate.message is None for candidate in candidates) * 2 >= len(candidates)


def nothing_arrived(candidates: Sequence[Candidate]) -> GenerationError:
    """The error of a request of which no draw arrived: the commonest cause first, each cause once in the chained group."""
    causes = [candidate.error for candidate in candidates if isinstance(candidate.error, Exception)]
    told = Counter(map(_told, causes))
    # That nobody asked is no cause.
    commonest = max(told, key=lambda cause: (not cause.startswith("CircuitOpen"), told[cause]), default="all were cancelled")
    error = GenerationError(f"none of {len(candidates)} draws arrived: {commonest}")
    distinct = {(type(cause), str(cause)): cause for cause in reversed(causes)}
    error.__cause__ = ExceptionGroup("the draws failed", list(distinct.values())[::-1]) if distinct else None
    return error


def _told(error: Exception) -> str:
    # The messages of others may quote an answer.
    return f"{type(error).__name__}: {error}" if isinstance(error, BonMiniGuardError) else f"{type(error).__name__}, see below"
