"""Every error this package raises on purpose.

::

    BonMiniGuardError
    ├── ConfigurationError (ValueError)   a constructor argument or a combination of them is wrong
    │   ├── ProfileError                  a profile is malformed, or was calibrated for other parts
    │   └── CheckpointError               a model checkpoint is missing or of the wrong kind
    ├── InputError (ValueError)           a prompt or a data file is wrong; names file and line where there are any
    ├── Unscorable (ValueError)           an answer that the reward model cannot read as it is
    │   ├── CandidateTooLong              it does not fit; answers are never cut
    │   └── NotRendered                   a part of it would not reach the model
    ├── TooBusy                           a limiter has no room left to wait in
    ├── Unanswered                        a draw is no answer: filtered, nothing but reasoning, or of a form that nothing reads
    ├── GenerationError                   not one draw of the request arrived
    ├── ForeignError                      stands for another package's error in a record that came from another process
    └── NoAcceptableResponse              (RuntimeError, langchain-core's ModelError) the guard abstained; carries ``.result``
        └── ScorerError                   ... because scoring failed
    MissingExtraError (ImportError)       an optional dependency is not installed

Texts of candidates never appear in a message of these errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_core.exceptions import ModelError

    from bonmini_guard.engine.result import GuardResult
else:
    try:
        from langchain_core.exceptions import ModelError
    except ImportError:  # an older langchain-core has no word for it

        class ModelError(Exception):
            """Stands in for langchain-core's."""


class BonMiniGuardError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(BonMiniGuardError, ValueError):
    """A constructor argument, or a combination of arguments, is wrong."""


class ProfileError(ConfigurationError):
    """A profile is malformed, or was calibrated for other parts than the guard's."""


class CheckpointError(ConfigurationError):
    """A model checkpoint is missing, or is not what the caller needs."""


class InputError(BonMiniGuardError, ValueError):
    """A prompt or a data file is wrong."""


class Unscorable(BonMiniGuardError, ValueError):  # noqa: N818 - says it all
    """An answer that the reward model cannot read as it is: it has no score."""


class NotRendered(Unscorable):
    """A part of an answer would be served and does not reach the reward model's input."""


class CandidateTooLong(Unscorable):
    """An answer with its last prompt turn exceeds the reward model's context; answers are never cut."""


class TooBusy(BonMiniGuardError):  # noqa: N818 - says it all
    """More wait for a place than a limiter allows; nothing was drawn for this request."""


class Unanswered(BonMiniGuardError):  # noqa: N818 - says it all
    """A draw came back and is no answer: it counts as failed, and is never scored.

    Attributes:
        usage_metadata: tokens that it was billed, where the back end reported them.
    """

    def __init__(self, why: str, usage: Any = None) -> None:
        super().__init__(why)
        self.usage_metadata = usage


class GenerationError(BonMiniGuardError):
    """Not one draw of the request arrived. The causes are chained as an exception group.

    Attributes:
        usage: tokens that the back end billed for the failed draws, where it reported them.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.usage: dict[str, Any] = {}


class ForeignError(BonMiniGuardError):
    """Stands for an exception of another package in a record that was pickled or copied; says its type, and no more."""


class NoAcceptableResponse(BonMiniGuardError, RuntimeError, ModelError):  # noqa: N818 - the contract's name
    """The guard abstained: nothing that was drawn is good enough to serve.

    An abstention is final: a second request would be a second chance outside the policy. LangGraph's default retries no
    RuntimeError, and LangChain's retrying middleware asks ``is_retryable``: True only where no draw has a score.

    Args:
        result: the whole record of the request; its ``repr`` holds no candidate text, nor does a pickle of this error.
    """

    def __init__(self, result: GuardResult) -> None:
        self.result = result
        self.is_retryable = not any(candidate.score is not None for candidate in result.candidates)
        raised = result.scorer_error
        cause = "" if raised is None else f"; the scorer raised {place_of(raised)}, see .result.scorer_error"
        super().__init__(
            f"abstained after {result.draws} draws in {result.loops} loops: {result.reason} "
            f"(best score {_number(result.score)}, threshold {_number(result.threshold)}){cause}"
        )

    def __reduce__(self) -> tuple[type[NoAcceptableResponse], tuple[GuardResult]]:
        return type(self), (self.result,)


class ScorerError(NoAcceptableResponse):
    """The guard abstained because the reward model failed; what it raised is ``.result.scorer_error``.

    It is not chained, since its message may quote a candidate.
    """


def abstention(result: GuardResult) -> NoAcceptableResponse:
    """The error that says why a request was not answered."""
    return (ScorerError if result.reason == "scorer_failed" else NoAcceptableResponse)(result)


class MissingExtraError(ImportError):
    """An optional dependency is not installed.

    Args:
        package: what could not be imported.
        extra: the extra of bonmini-guard that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{package} is needed here and is not installed: pip install 'bonmini-guard[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.package, self.extra)


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Where what an extra brings is imported; MissingExtraError if it is not installed."""
    try:
        yield
    except ImportError as error:
        if error.name is None:  # it is told already
            raise
        raise MissingExtraError(error.name.partition(".")[0], extra) from error


def place_of(error: BaseException) -> str:
    """An error's type and where it was raised; nothing of what it says, which may quote a candidate."""
    kind, trace = type(error).__name__, error.__traceback__
    if trace is None:
        return kind
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return f"{kind} in {code.co_name}() at {os.path.basename(code.co_filename)}:{trace.tb_lineno}"


def first_line(error: BaseException) -> str:
    """The first line of an error, for a message of one line; with the next one where it ends in a colon."""
    text = str(error).strip()
    return " ".join(re.split(r"(?<!:)\n", text, maxsplit=1)[0].split()) if text else type(error).__name__


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
