"""Records that leave their process: without rejected texts, and without exceptions of other packages, which may hold anything."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage

from bonmini_guard.errors import BonMiniGuardError, ForeignError

if TYPE_CHECKING:
    from bonmini_guard.engine.result import Candidate, GuardResult


def portable(error: BaseException | None) -> BaseException | None:
    """An error of this package as it is; another's as its description, which quotes nothing that it says."""
    if error is None or isinstance(error, BonMiniGuardError):
        return error
    if not isinstance(error, Exception):
        # Of a draw that was cancelled; that is told by its type.
        return asyncio.CancelledError()
    kind = type(error)
    status = getattr(error, "status_code", None)
    told = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return ForeignError(told if status is None else f"{told} (status {status})")


def state_of(result: GuardResult) -> dict[str, Any]:
    """What of a result is pickled."""
    served = result.selected if result.served else None

    def allowed(candidate: Candidate) -> Candidate:
        if result.with_texts:
            return candidate
        said = candidate.message
        if candidate is served or said is None:
            return replace(candidate, message=result.message if candidate is served else None)
        return replace(candidate, message=AIMessage("", usage_metadata=said.usage_metadata))

    # By what they are: of an explored request a draw made again has the number of the one that was served.
    packed = {id(candidate): allowed(candidate) for candidate in result.candidates}
    selected = result.selected
    return {field.name: getattr(result, field.name) for field in fields(result)} | {
        "candidates": tuple(packed.values()),
        "selected": None if selected is None else packed.get(id(selected)) or allowed(selected),
        "scorer_error": portable(result.scorer_error),
    }
