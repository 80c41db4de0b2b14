"""Why there is no answer, so that clients can tell an abstention, an outage, overload and a wrong request apart."""

from __future__ import annotations

import logging
import math
from typing import Any

from bonmini_guard.adapters.http_errors import EndpointError, EndpointMisconfigured, NoAnswer, Overloaded
from bonmini_guard.engine.result import GuardResult
from bonmini_guard.errors import BonMiniGuardError, CandidateTooLong, ConfigurationError, GenerationError, InputError, TooBusy
from bonmini_guard.server.door import Refused

logger = logging.getLogger("bonmini_guard.gateway")

#: Statuses with which an upstream says that the request itself is wrong.
_WRONG = frozenset({400, 413, 422})
#: Seconds after which to come again where nobody says better.
_SOON = 2


def body_of(refused: Refused) -> dict[str, Any]:
    """A refusal as OpenAI's protocol writes errors; it quotes no text of a candidate."""
    error = {"message": refused.message, "type": refused.kind, "param": None, "code": refused.kind}
    return {"error": error | ({"bonmini_guard": refused.about} if refused.about else {})}


def check_judged(result: GuardResult) -> None:
    """Refuse an abstention that no score has decided, for an outage is behind it; one that a score has decided is final."""
    if not result.served and all(candidate.score is None for candidate in result.candidates):
        raise Refused(503, "outage", f"no draw could be judged: {result.reason}", _SOON)


def refusal_of(error: Exception) -> Refused:
    """What to answer to a request that has failed so."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, GenerationError | EndpointError | EndpointMisconfigured):
        return _of_upstream(error)
    if isinstance(error, InputError | CandidateTooLong | ConfigurationError):
        return Refused(400, "invalid_request", str(error))
    if isinstance(error, TooBusy):
        return Refused(429, "overloaded", str(error), _SOON)
    # Its message may quote a text.
    logger.error("a request failed: %s", type(error).__name__)
    return Refused(500, "internal", f"the gateway failed: {type(error).__name__}")


def _of_upstream(error: BonMiniGuardError) -> Refused:
    causes = error.__cause__.exceptions if isinstance(error.__cause__, BaseExceptionGroup) else [error]
    ours = [cause for cause in causes if not isinstance(cause, EndpointMisconfigured)]
    wrong = next((cause for cause in ours if isinstance(cause, ConfigurationError) or getattr(cause, "status", 0) in _WRONG), None)
    if wrong is not None:
        return Refused(400, "invalid_request", str(wrong))
    if all(isinstance(cause, NoAnswer) for cause in causes):
        return Refused(422, "no_answer", str(error))
    waits = [wait for cause in causes if (wait := getattr(cause, "retry_after", None)) is not None]
    seconds = max(1, math.ceil(min(max(waits), 60))) if waits else _SOON
    if all(isinstance(cause, Overloaded) and cause.status == 429 for cause in causes):
        return Refused(429, "overloaded", str(error), seconds)
    return Refused(503, "outage", str(error), seconds)
