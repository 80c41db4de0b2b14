"""From what a user passes as ``reward_model`` to a scorer: a spec or its path, a checkpoint, a scorer as it is, a function."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from bonmini_guard import reward
from bonmini_guard.conversation import Turn
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.engine.protocols import Scorer, ScoringSession
from bonmini_guard.engine.result import finite
from bonmini_guard.engine.scorers import CallableScorer, FunctionSession, log_odds, score_once, score_some
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.reward.combined import Combined, Over
from bonmini_guard.reward.questions import QUESTION, is_decision_model
from bonmini_guard.reward.spec import COMBINED, Check, ScorerSpec, Zero
from bonmini_guard.validation import check_names

#: Kinds whose model is elsewhere: the module and the function that make their scorers.
_ELSEWHERE = {
    "decision": ("decisions", "decisions"),
    "judge": ("judge", "judge"),
    "route": ("remote", "route"),
    "token": ("verdicts", "verdicts"),
}


def as_scorer(
    reward_model: Any, question: Any = None, criteria: Mapping[str, Any] | None = None, rubric: str | None = None
) -> Scorer:
    """A scorer as it is; what a path or a spec declares; or a callable ``(messages, candidates) -> scores`` made into one.

    Of a decision model (with ``rubric`` a chat model, too), what asks it; see :class:`bonmini_guard.GuardOptions`.
    ConfigurationError if it is none of these, or cannot be loaded.
    """
    if rubric is not None:
        if question is not None or criteria is not None:
            raise ConfigurationError("rubric= asks one question a line: leave out question= and criteria=")
        from bonmini_guard.adapters.rewards.rubric import by_rubric

        return by_rubric(reward_model, rubric)
    if question is not None or criteria is not None:
        from bonmini_guard.adapters.rewards.decisions import Decisions

        return Decisions(reward_model, question or "", criteria=criteria)
    if isinstance(reward_model, str | os.PathLike | ScorerSpec):
        return load_scorer(reward_model)  # type: ignore[no-any-return]
    if callable(getattr(reward_model, "session", None)):
        return reward_model  # type: ignore[no-any-return]
    if callable(reward_model):
        return CallableScorer(reward_model)
    if is_decision_model(reward_model):
        raise ConfigurationError("reward_model is a decision model: say what it is asked of each answer, question='Does the ...?'")
    raise ConfigurationError(
        f"reward_model is a {type(reward_model).__name__}: pass RewardModel.load(...), a RemoteRewardModel, the path of a "
        "checkpoint or of a scorer spec, or a callable (messages, candidates) -> list of scores"
    )


def load_scorer(source: str | os.PathLike[str] | ScorerSpec, **options: Any) -> Any:
    """The scorer of a checkpoint (folder or id), of a spec, or of its path: a :class:`RewardModel` or a :class:`Declared`.

    Options are those of :meth:`RewardModel.load`, for models that run here. ConfigurationError if it cannot be loaded.
    """
    spec = ScorerSpec.of(source)
    if spec is None:
        return reward.RewardModel.load(source, **options)  # type: ignore[arg-type]
    given = {name: value for name, value in options.items() if value is not None}
    if given and not spec.loads:
        raise ConfigurationError(
            f"{', '.join(given)} goes with a model that runs here, not with kind = {spec.kind!r}: leave it out"
        )
    if spec.kind in COMBINED:
        scorers: list[Any] = []
        try:
            scorers.extend(load_scorer(part, **(given if part.loads else {})) for part in spec.parts)
            return Declared(spec, Combined(spec, scorers))
        except BaseException:
            Over(spec, scorers).close()  # those that were loaded before it
            raise
    if spec.loads:
        declared = {} if spec.not_shown is None else {"not_shown": spec.not_shown}
        model = reward.RewardModel.load(spec.model, reading=_reading(spec), **{**given, **declared})
        plain = spec.scale != "probability" and spec.zero is None and spec.has_zero in (None, model.has_zero)
        return model if plain else Declared(spec, model)
    if spec.kind == "check":
        return Declared(spec, _check(spec))
    # Only what it needs is loaded.
    module, maker = _ELSEWHERE[spec.kind]
    return Declared(spec, getattr(import_module(f"bonmini_guard.adapters.rewards.{module}"), maker)(spec))


def as_asked(
    messages: Sequence[BaseMessage] | str, candidates: Sequence[AIMessage | str]
) -> tuple[Sequence[BaseMessage], list[AIMessage]]:
    """What ``score`` is given as messages: a text is one user turn, or an answer; InputError for a text in place of the answers."""
    if isinstance(candidates, str):
        raise InputError("candidates is a text, and its letters would be scored: give a list of answers")
    conversation = [HumanMessage(messages)] if isinstance(messages, str) else messages
    return conversation, [AIMessage(each) if isinstance(each, str) else each for each in candidates]


def decision_model_of(scorer: Any, question: str = QUESTION, any_question: bool = False) -> Any:
    """A scorer as a ``BaseDecisionModel`` of langchain-core (1.8): ``sigmoid(score)`` of its one question, and choices with "none".

    With ``any_question`` it answers any other as if it were the one that it was trained for.

    Raises:
        ConfigurationError: it has no zero, or langchain-core is older.
    """
    try:
        from bonmini_guard.reward.decision_model import RewardDecisionModel
    except ImportError as error:
        raise ConfigurationError("decision models need langchain-core 1.8: pip install -U langchain-core") from error
    return RewardDecisionModel(scorer, question, any_question)


class Declared(Over):
    """A scorer with the scale and the zero that its spec declares."""

    def __init__(self, spec: ScorerSpec, inner: Any) -> None:
        super().__init__(spec, [inner])
        self.inner = inner
        self.reads_calls &= spec.kind != "check"
        self.model_id = f"{spec.kind}:{spec.model or spec.endpoint or ''}"
        self._zero = spec.zero or Zero()

    @property
    def has_zero(self) -> bool | None:
        """Whether a score of 0 means "acceptable"; None where nobody says. A server may have to be asked."""
        if self.spec.has_zero is not None:
            return self.spec.has_zero
        return True if self.spec.zero is not None else getattr(self.inner, "has_zero", None)

    def __repr__(self) -> str:
        return f"Declared(kind={self.spec.kind!r}, {self.inner!r})"

    def session(self, messages: Sequence[BaseMessage]) -> ScoringSession:
        """A scoring session on one prompt."""
        inner = self.inner.session(messages)
        fixed = [AIMessage(anchor.text) for anchor in self._zero.anchors]
        beside: list[float | None] = []

        async def score(candidates: Sequence[AIMessage]) -> list[float | None]:
            # The fixed answers with the first call: they share its batch.
            asked = [*candidates, *(() if beside else fixed)]
            given = await score_some(inner, asked, list(map(self.reads, asked)))
            beside[:] = map(finite, given[len(candidates) :] or beside)
            return [self.transformed(value, beside) for value in given[: len(candidates)]]

        return FunctionSession(score, [inner])

    def score(self, messages: Sequence[BaseMessage] | str, candidates: Sequence[AIMessage | str]) -> list[float | None]:
        """One score for each candidate, in order; None for one that cannot be scored. Blocks."""
        return run_sync(lambda: score_once(self, *as_asked(messages, candidates)))

    def reads(self, candidate: AIMessage) -> bool:
        """Whether all that would be served of an answer reaches what scores.

        Models look for themselves. A check sees the text.
        """
        if self.spec.kind != "check":
            return True
        said = Turn.of(candidate).without(self.not_shown)
        return not (said.kinds or said.calls or said.refusal or said.reasoning)

    def transformed(self, value: float | None, beside: Sequence[float | None] = ()) -> float | None:
        """The score of what the model gave, and of what it gave for the fixed answers; None where one of these is missing."""
        value = finite(value)
        if value is None or None in beside:
            return None
        fixed = zip(self._zero.anchors, (self._raw(one) for one in beside if one is not None), strict=True)
        return self._zero.factor * self._raw(value) + self._zero.shift - sum(anchor.weight * raw for anchor, raw in fixed)

    def _raw(self, value: float) -> float:
        # A route has been told what its server gives.
        return log_odds(value) if self.spec.scale == "probability" and self.spec.kind != "route" else value

    as_decision_model = decision_model_of

    def fingerprint(self) -> str:
        """The inner scorer's, with what is declared beside it; of one that has none, the spec's."""
        asked = getattr(self.inner, "fingerprint", None)
        return f"{asked() if callable(asked) else _mark(self.spec.canonical())}{self._declared()}"

    def agrees_with(self, fingerprint: str) -> bool:
        """Whether a profile's fingerprint is this scorer's, as the inner one compares them."""
        declared, asked = self._declared(), getattr(self.inner, "agrees_with", None)
        if fingerprint == self.fingerprint():
            return True
        return callable(asked) and fingerprint.endswith(declared) and bool(asked(fingerprint[: len(fingerprint) - len(declared)]))

    def _declared(self) -> str:
        spec = self.spec
        if spec.scale != "probability" and spec.zero is None:
            return ""
        fixed = "".join(f" {anchor.weight} {anchor.text!r}" for anchor in self._zero.anchors)
        return _mark(f"{spec.scale} {self._zero.factor} {self._zero.shift}{fixed}")[:20].replace("spec:", "+")


def _mark(text: str) -> str:
    return f"spec:{hashlib.sha256(text.encode()).hexdigest()}"


def _reading(spec: ScorerSpec) -> Any:
    if spec.token is not None:
        from bonmini_guard.reward.verdicts import VerdictReading

        return VerdictReading(spec.token)
    from bonmini_guard.reward.reading import LabelReading, Reading

    return Reading("pair" if spec.kind == "pair" else "text") if spec.labels is None else LabelReading(spec.labels)


def _check(spec: ScorerSpec) -> CallableScorer:
    from bonmini_guard import checks

    assert isinstance(spec.check, Check)
    function: Callable[..., CallableScorer] = getattr(checks, spec.check.type)
    arguments = spec.check.model_extra or {}
    parameters = inspect.signature(function).parameters
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    check_names(arguments, list(parameters), needed)
    return function(**arguments)
