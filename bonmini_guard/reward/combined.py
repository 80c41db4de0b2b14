"""Scorers made of scorers: the smallest of several scores, or their weighted sum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.engine.result import finite
from bonmini_guard.engine.scorers import FunctionSession
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.reward.spec import ScorerSpec


class Over:
    """What a spec declares over scorers: of itself it says what they say.

    Attributes:
        not_shown: kinds of parts of answers that one of them does not read.
        reads_calls: whether all of them can judge tool calls.
    """

    def __init__(self, spec: ScorerSpec, parts: Sequence[Any]) -> None:
        self.spec, self.parts = spec, parts
        self.not_shown = frozenset[str]().union(*(getattr(part, "not_shown", spec.hidden) for part in parts))
        self.reads_calls = all(getattr(part, "reads_calls", True) for part in parts)
        self.text_alone = any(getattr(part, "text_alone", False) for part in parts)

    def check(self) -> None:
        """Asked when a guard is built: whether they can work."""
        for asked in self._asked("check"):
            asked()

    def trained_on(self, messages: Sequence[BaseMessage]) -> bool:
        """Whether one of the models learnt from answers to this prompt, where it can say."""
        return any(asked(messages) for asked in self._asked("trained_on"))

    def close(self) -> None:
        """End what they run and hold."""
        for part in self.parts:
            if callable(closing := getattr(part, "close", None)):
                closing()
            elif callable(closing := getattr(part, "aclose", None)):
                run_sync(closing)

    def _asked(self, name: str) -> list[Any]:
        return [asked for part in self.parts if callable(asked := getattr(part, name, None))]


class Combined(Over):
    """Several scorers as one; an answer that one cannot score has no score. ConfigurationError: a part of "all" has no zero."""

    def __init__(self, spec: ScorerSpec, parts: Sequence[Any]) -> None:
        super().__init__(spec, parts)
        self.has_zero = spec.kind == "all"
        self._weights = [own.weight for own in spec.parts]
        self._declared = f"{spec.kind}{self._weights}{spec.intercept}:"
        zeros = [getattr(part, "has_zero", None) for part in parts]
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
            digest = hashlib.sha256(repr((said, self.spec.intercept)).encode()).hexdigest()
            return fingerprint == f"{self.spec.kind}:{digest}"
        try:
            marks = json.loads(fingerprint.removeprefix(self._declared))
        except ValueError:  # of a spec that declares more beside its parts
            return False
        return isinstance(marks, list) and len(marks) == len(self.parts) and all(map(_agrees, self.parts, marks))

    def _joined(self, given: Sequence[float | None]) -> float | None:
        scores = [score for score in map(finite, given) if score is not None]
        if len(scores) < len(given):
            return None
        if self.spec.kind == "all":
            return min(scores)
        return self.spec.intercept + sum(weight * score for weight, score in zip(self._weights, scores, strict=True))


def _agrees(part: Any, mark: str) -> bool:
    asked = getattr(part, "agrees_with", None)
    return bool(asked(mark)) if callable(asked) else part.fingerprint() == mark
