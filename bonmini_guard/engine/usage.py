"""Tokens that a request was billed for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from langchain_core.messages.ai import UsageMetadata, add_usage

from bonmini_guard.engine.result import Candidate


def total_usage(candidates: Iterable[Candidate], scoring: UsageMetadata | None = None) -> dict[str, Any]:
    """The tokens of all draws for which the back end reported any, failed and cancelled ones included, and of their scoring."""
    total = scoring
    for usage in _reported(candidates):
        total = add_usage(total, usage)
    return {} if total is None else dict(total)


def used_tokens(candidates: Iterable[Candidate]) -> tuple[int, int]:
    """Tokens that the generator reported for some draws: those read (prompts), those written (answers)."""
    reports = list(_reported(candidates))
    return sum(report["input_tokens"] for report in reports), sum(report["output_tokens"] for report in reports)


def _reported(candidates: Iterable[Candidate]) -> Iterator[UsageMetadata]:
    errors: set[int] = set()
    for candidate in candidates:
        if candidate.message is not None:
            if candidate.message.usage_metadata is not None:
                yield candidate.message.usage_metadata
        # A group that fails gives all its draws one and the same error.
        elif candidate.usage is not None and id(candidate.error) not in errors:
            errors.add(id(candidate.error))
            yield UsageMetadata(**candidate.usage)  # type: ignore[typeddict-item]
