"""Scorers made of scorers: the smallest of several scores, or their weighted sum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.engine.result import finite
from bonmini_guard.engine.scorers import FunctionSession
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.reward.spec import ScorerSpec


class Combined:
    """Several scorers as one; an answer that one of them cannot score has no score.

    Raises:
        ConfigurationError: a part of "all" has no zero, so that the least of the scores would mean nothing.
    """

    def __init__(self, spec: ScorerSpec, parts: Sequence[Any]) -> None:
        self.parts, self._spec = parts, spec
        zeros = [getattr(part, "has_zero", None) for part in parts]
        self.not_shown = frozenset[str]().union(*(getattr(part, "not_shown", ()) for part in parts))
        self.reads_calls = all(getattr(part, "reads_calls", True) for part in parts)
        self.text_alone = any(getattr(part, "text_alone", False) for part in parts)
        self.has_zero = spec.kind == "all"
        self._weights = [own.weight for own in spec.all or spec.sum or ()]
        self._declared = f"{spec.kind}{self._weights}{spec.intercept}:"
        if self.has_zero and not all(zeros):
            number = 1 + next(place for place, zero in enumerate(zeros) if not zero)
            raise ConfigurationError(
                f"part {number} of 'all' has no zero, and the least of several scores means something only where each has one: "
                "declare has_zero = true, or zero = { shift, factor }, in that part"
            )

    def session(self, messages: Sequence[BaseMessage]) -> FunctionSession:
        """A session of each part."""
        from bonmini_guard.adapters.groups import all_or_none

        sessions = [part.session(messages) for part in self.parts]

        async def score(candidates: Sequence[AIMessage]) -> list[float | None]:
            given = await all_or_none([session.score(candidates) for session in sessions])
            return list(map(self._joined, zip(*given, strict=True)))

        return FunctionSession(score, sessions)

    def fingerprint(self) -> str:
        """Of all parts, in order, written out: one of a server is compared with a tolerance."""
        return self._declared + json.dumps([part.fingerprint() for part in self.parts])

    def agrees_with(self, fingerprint: str) -> bool:
        """Whether each part agrees with what a profile's fingerprint says of it; earlier versions wrote a digest of all."""
        if not fingerprint.startswith(self._declared):
            said = [(part.fingerprint(), weight) for part, weight in zip(self.parts, self._weights, strict=True)]
            digest = hashlib.sha256(repr((said, self._spec.intercept)).encode()).hexdigest()
            return fingerprint == f"{self._spec.kind}:{digest}"
        try:
            marks = json.loads(fingerprint.removeprefix(self._declared))
        except ValueError:  # of a spec that declares more beside its parts
            return False
        return isinstance(marks, list) and len(marks) == len(self.parts) and all(map(_agrees, self.parts, marks))

    def trained_on(self, messages: Sequence[BaseMessage]) -> bool:
        """Whether one of the models learnt from answers to this prompt."""
        return any(asked(messages) for part in self.parts if callable(asked := getattr(part, "trained_on", None)))

    def check(self) -> None:
        """Each part is asked when a guard is built."""
        for part in self.parts:
            if callable(asked := getattr(part, "check", None)):
                asked()

    def close(self) -> None:
        """End what the parts run."""
        for part in self.parts:
            part.close()

    def _joined(self, given: Sequence[float | None]) -> float | None:
        scores = [score for score in map(finite, given) if score is not None]
        if len(scores) < len(given):
            return None
        if self._spec.sum is None:
            return min(scores)
        return self._spec.intercept + sum(part.weight * score for part, score in zip(self._spec.sum, scores, strict=True))


def _agrees(part: Any, mark: str) -> bool:
    asked = getattr(part, "agrees_with", None)
    return bool(asked(mark)) if callable(asked) else part.fingerprint() == mark
