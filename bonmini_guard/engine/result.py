"""What a guarded request leaves behind: every candidate, every score, and why it ended as it did.

``repr`` and ``str`` of these records hold no candidate text, so that logging a result never logs a rejected answer. Those that
leave their process hold no rejected texts, and no exceptions of other packages, which may hold anything.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata, add_usage

from bonmini_guard.engine.snapshot import calls, shown
from bonmini_guard.errors import BonMiniGuardError, ForeignError, TooBusy, place_of
from bonmini_guard.policy.policy import Mode

Outcome = Literal["accepted", "best_effort", "abstained", "unscored", "fallback"]


@dataclass(slots=True)
class Candidate:
    """One draw.

    Attributes:
        index: number of the draw in the request, from 0.
        loop: number of its loop, from 0.
        seed: the seed the generator was given.
        message: the answer; None if the draw failed or was cancelled.
        error: why there is no answer; None where there is one.
        raw_score: the reward model's score.
        score: the transformed score, compared with thresholds; None if missing or not finite.
        parts: what the score is made of, by name: of several questions or criteria the least counts. None where there is one.
        started: when the draw was asked for, seconds since the request began.
        finished: when the answer (or the error) arrived.
        scored: when its score arrived.
    """

    index: int
    loop: int
    seed: int
    message: AIMessage | None = field(default=None, repr=False)
    error: BaseException | None = field(default=None, repr=False)
    raw_score: float | None = None
    score: float | None = None
    started: float | None = None
    finished: float | None = None
    scored: float | None = None
    parts: Mapping[str, float | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"error": portable(self.error)}

    _asdict = __getstate__  # what LangGraph's checkpoints keep

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    @property
    def failed(self) -> bool:
        """Whether the draw counts without taking part in the choice: no answer, or no usable score."""
        return self.message is None or self.score is None

    @property
    def unfinished(self) -> bool:
        """Whether the draw was never made, or it or its scoring was cut short.

        Such a draw neither failed by itself nor was scored (if only as not a number): it says nothing about the generator.
        """
        return self.refused or (self.scored is None and not isinstance(self.error, Exception))

    @property
    def refused(self) -> bool:
        """Whether the draw was never made, because too many waited for a limiter."""
        return isinstance(self.error, TooBusy)

    @property
    def usage(self) -> dict[str, Any] | None:
        """The tokens that the generator reported for this draw (``input_tokens``, ``output_tokens``, ``total_tokens``).

        A failed or cancelled draw has them where its error carries ``usage_metadata``.
        """
        usage = getattr(self.error if self.message is None else self.message, "usage_metadata", None)
        # Errors of other packages may call something else so.
        if not isinstance(usage, Mapping) or not all(isinstance(usage.get(name), int) for name in UsageMetadata.__required_keys__):
            return None
        return dict(usage)


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock seconds of one request.

    Attributes:
        total: from call to decision.
        scoring: spent waiting for the reward model.
        decided: ``time.perf_counter()`` of the decision, in this process.
    """

    total: float
    scoring: float
    decided: float = field(default=0.0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class GuardResult:
    """The record of one guarded request.

    Attributes:
        mode: guardrail or accelerator.
        decision: accepted, best_effort, abstained or unscored (``fallback`` is a message's, never a result's).
        reason: passed, budget_spent, deadline, hopeless, scorer_failed, generator_failed, ...
        selected: the served candidate, or the best so far of an abstention; None when there was none.
        candidates: every draw of the loops begun, in order.
        loops: loops begun.
        ahead: further draws that were started, and not needed.
        in_flight: draws that a rolling request kept in flight; None for other exits.
        usage: tokens over all draws, failed and cancelled ones included where the back end reported them.
        timings: seconds.
        threshold: the threshold last compared with.
        seed: repeats the request with generators that honour seeds.
        profile: name or fingerprint of the profile; None without one.
        has_zero: whether sigmoid(score) is the probability of beating "none".
        traced: whether a trace is written; its row has ``request_id`` as "id", which the served message then carries too.
        ended: whether one of its draws ended it; see :class:`~bonmini_guard.engine.protocols.EndRequest`.
        not_shown: kinds of parts of answers that the reward model does not read, and that are not served.
        with_texts: whether a pickle of it holds the texts of rejected candidates (``trace_candidates=True``); a copy always does.
        withheld: whether what was said beside tool calls did not pass; the calls are served alone.
    """

    mode: Mode
    decision: Outcome
    reason: str
    selected: Candidate | None
    candidates: tuple[Candidate, ...]
    loops: int
    usage: dict[str, int]
    timings: Timings
    threshold: float | None
    seed: int
    request_id: str = ""
    profile: str | None = None
    has_zero: bool = True
    ahead: int = 0
    in_flight: int | None = None
    scorer_error: BaseException | None = field(default=None, repr=False)
    traced: bool = False
    ended: bool = False
    not_shown: frozenset[str] = frozenset()
    withheld: bool = False
    with_texts: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (state_of(self),)

    def _asdict(self) -> dict[str, Any]:
        # LangGraph's checkpoints ask for it, and would keep every field of a dataclass.
        return state_of(self)

    def __copy__(self) -> GuardResult:
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> GuardResult:
        # Whoever copies a record within its process may read it.
        with_texts = state_of(replace(self, with_texts=True))
        return _restored({**copy.deepcopy(with_texts, memo), "with_texts": self.with_texts})

    @property
    def draws(self) -> int:
        """Draws that were decided on, failed and cancelled ones included."""
        return len(self.candidates)

    @property
    def draws_started(self) -> int:
        """Draws that were started: what the request cost."""
        return len(self.candidates) + self.ahead

    @property
    def served(self) -> bool:
        """Whether an answer was given."""
        return self.decision in ("accepted", "best_effort", "unscored")

    @property
    def message(self) -> AIMessage | None:
        """The served answer, without what its reward model was not shown; None after an abstention."""
        if not self.served or self.selected is None or self.selected.message is None:
            return None
        message = calls(self.selected.message) if self.withheld else self.selected.message
        return shown(message, self.not_shown) if self.not_shown else message

    @property
    def score(self) -> float | None:
        """The selected candidate's score."""
        return None if self.selected is None else self.selected.score

    @property
    def acceptance_probability(self) -> float | None:
        """sigmoid(score): the modelled probability that the answer beats "none"; None where the model has no zero."""
        score = self.score
        return None if score is None or not self.has_zero else sigmoid(score)

    def metadata(self) -> dict[str, Any]:
        """What every served message carries as ``response_metadata["bonmini_guard"]``; holds no text."""
        return {
            "decision": self.decision,
            "reason": self.reason,
            "score": self.score,
            "raw_score": None if self.selected is None else finite(self.selected.raw_score),
            "acceptance_probability": self.acceptance_probability,
            **({} if self.selected is None or not self.selected.parts else {"parts": dict(self.selected.parts)}),
            "threshold": finite(self.threshold),
            "draws": len(self.candidates),
            "draws_started": len(self.candidates) + self.ahead,
            "failed_draws": sum(candidate.message is None for candidate in self.candidates),
            "loops": self.loops,
            "profile": self.profile,
            **({"withheld": "text"} if self.withheld else {}),
            **({"request_id": self.request_id} if self.traced else {}),
            **({} if self.scorer_error is None else {"scorer_error": place_of(self.scorer_error)}),
        }


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


def finite(number: float | None) -> float | None:
    """The number, as strict JSON has it: None for what it has no words for."""
    return None if number is None or not math.isfinite(number) else number


def _restored(state: dict[str, Any]) -> GuardResult:
    return GuardResult(**state)


def sigmoid(score: float) -> float:
    """1 / (1 + exp(-score)) without overflow."""
    if score >= 0:
        return 1.0 / (1.0 + math.exp(-score))
    return math.exp(score) / (1.0 + math.exp(score))
