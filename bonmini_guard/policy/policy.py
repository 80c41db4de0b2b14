"""The policy: when to draw more, what to serve, when to abstain. Pure; standard library only.

It is told scores and answers with a decision, so the same object drives the live engine, the offline replay and the benchmarks:
what was calibrated is what runs. The procedure is best of mini-N in loops (arXiv 2510.04087): after each loop the best score so
far, over all loops, is compared with that loop's threshold.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

Mode = Literal["guardrail", "accelerator"]
Exit = Literal["loop", "eager", "rolling"]


@dataclass(frozen=True, slots=True)
class State:
    """What is known after some finished loops.

    Attributes:
        loops: finished loops.
        scores: one entry a draw, in the order drawn; None for a failed draw or a score that is missing or not finite.
        best: the largest score so far, -inf while there is none.
        best_index: the earliest draw that holds ``best``; None while there is none.
        tokens: read and written by the draws so far, as the generator reports them; counted only for rules beside the thresholds.
    """

    loops: int = 0
    scores: tuple[float | None, ...] = ()
    best: float = -math.inf
    best_index: int | None = None
    tokens: tuple[int, int] = (0, 0)

    @property
    def drawn(self) -> int:
        """Draws so far, failed ones included."""
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop rule's verdict: its reason, in one word. What a threshold has not accepted, no rule can."""

    reason: str


class StopRule:
    """A small pure callable: a state in, a verdict or None out."""

    def __call__(self, state: State) -> Stop | None:
        """The verdict, or None to go on drawing."""
        raise NotImplementedError

    def __or__(self, other: StopRule) -> StopRule:
        """Stop when either says so; the left one names the reason when both do."""
        return AnyOf((self, other))


@dataclass(frozen=True)
class AnyOf(StopRule):
    """Stop as soon as one rule stops; the first such rule names the reason."""

    rules: tuple[StopRule, ...]

    def __call__(self, state: State) -> Stop | None:
        """The first verdict."""
        for rule in self.rules:
            verdict = rule(state)
            if verdict is not None:
                return verdict
        return None


@dataclass(frozen=True)
class Never(StopRule):
    """Never stops: the neutral element of ``|``, and false."""

    def __bool__(self) -> bool:
        return False

    def __call__(self, state: State) -> Stop | None:
        """None, always."""
        return None


@dataclass(frozen=True)
class BelowFloor(StopRule):
    """The best score after a loop is below that loop's floor: calibration found that hardly anything comes back from there.

    Attributes:
        floors: one for each loop; -inf never stops.
    """

    floors: tuple[float, ...]

    def __call__(self, state: State) -> Stop | None:
        """Stop below the floor of the loop just finished."""
        if not 0 < state.loops <= len(self.floors):
            return None
        return Stop("hopeless") if state.best < self.floors[state.loops - 1] else None


class Action(Enum):
    """What to do next."""

    DRAW = "draw"
    SERVE = "serve"
    ABSTAIN = "abstain"


@dataclass(frozen=True, slots=True)
class Decision:
    """The policy's answer.

    Attributes:
        action: draw, serve or abstain.
        draws: how many to draw now; 0 unless drawing.
        index: the selected draw: the one to serve, or, in an abstention, the best so far (for accounting only).
        accepted: whether the selected draw passed.
        reason: why, in one word: more, passed, budget_spent, budget, deadline, hopeless.
        threshold: the threshold last compared with; None before the first loop.
    """

    action: Action
    reason: str
    draws: int = 0
    index: int | None = None
    accepted: bool = False
    threshold: float | None = None


@dataclass(frozen=True)
class Policy:
    """Best of mini-N in loops.

    Attributes:
        mode: guardrail abstains when nothing passed; accelerator serves the best so far.
        schedule: draws of each loop, each positive; the budget N is their sum.
        thresholds: one for each loop; +inf never exits there.
        exit: "loop" compares after a loop; "eager" serves the first draw to pass, in order of arrival; "rolling" compares after
            each arrival, so that its loops are of one draw, and its scores come in order of arrival.
        stop: further stop rules; they can only stop earlier, never accept.
        ladder: for a rolling exit, draws in flight and the threshold that holds for so many; for others hold ``thresholds``.

    Raises:
        ValueError: the schedule or the thresholds are malformed.
    """

    mode: Mode
    schedule: tuple[int, ...]
    thresholds: tuple[float, ...]
    exit: Exit = "loop"
    stop: StopRule = field(default_factory=Never)
    ladder: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_schedule(self.schedule)
        check_thresholds(self.thresholds, len(self.schedule))
        if self.exit not in ("loop", "eager", "rolling"):
            raise ValueError(f"unknown exit {self.exit!r}: use 'loop', 'eager' or 'rolling'")
        if self.exit == "rolling" and set(self.schedule) != {1}:
            raise ValueError(f"a rolling exit decides after each draw: schedule {list(self.schedule)} must list ones")
        loops = len(self.schedule)
        rungs = {width: replace(self, thresholds=(threshold,) * loops, ladder=()) for width, threshold in self.ladder}
        object.__setattr__(self, "_rungs", rungs)

    @property
    def budget(self) -> int:
        """N: the most draws a request can cost."""
        return sum(self.schedule)

    def at(self, in_flight: int | None) -> Policy:
        """The policy of a request with so many draws in flight; None where its exit asks for no number."""
        return self._rungs.get(in_flight, self)  # type: ignore[attr-defined, no-any-return]

    def observe(self, state: State, scores: Sequence[float | None], tokens: tuple[int, int] = (0, 0)) -> State:
        """The state after one more finished loop, of whose draws, in their order, are the scores; ``tokens`` they read and wrote.

        Raises:
            ValueError: the number of scores is not the loop's number of draws, or no loop is left.
        """
        if state.loops >= len(self.schedule) or len(scores) != self.schedule[state.loops]:
            raise ValueError(f"loop {state.loops + 1} of schedule {list(self.schedule)} cannot take {len(scores)} scores")
        best, best_index = state.best, state.best_index
        kept: list[float | None] = []
        for index, score in enumerate(scores, start=len(state.scores)):
            if score is None or not math.isfinite(score):
                kept.append(None)
                continue
            kept.append(score)
            if best_index is None or score > best:
                best, best_index = score, index
        used = (state.tokens[0] + tokens[0], state.tokens[1] + tokens[1])
        return State(state.loops + 1, state.scores + tuple(kept), best, best_index, used)

    def decide(self, state: State) -> Decision:
        """What to do after the loops of ``state``: serve what passed, else abstain (guardrail) or serve the best (accelerator)."""
        loops = state.loops
        threshold = self.thresholds[loops - 1] if loops else None
        if threshold is not None and state.best_index is not None and state.best >= threshold:
            return Decision(Action.SERVE, "passed", index=state.best_index, accepted=True, threshold=threshold)
        verdict = Stop("budget_spent") if loops >= len(self.schedule) else self.stop(state)
        if verdict is None:
            return Decision(Action.DRAW, "more", draws=self.schedule[loops], threshold=threshold)
        serve = self.mode == "accelerator" and state.best_index is not None
        return Decision(Action.SERVE if serve else Action.ABSTAIN, verdict.reason, index=state.best_index, threshold=threshold)

    def passes(self, loop: int, score: float | None) -> bool:
        """Whether a score passes in a loop (counted from 0): the eager exit's question for each arrival."""
        return score is not None and math.isfinite(score) and score >= self.thresholds[loop]


@dataclass(frozen=True, slots=True)
class Run:
    """What a policy does with given draws.

    Attributes:
        decision: its last one; ``index`` is the selected draw.
        loops: loops it took.
        order: the draws that it decided on.
    """

    decision: Decision
    loops: int
    order: Sequence[int]

    @property
    def draws(self) -> int:
        """How many it decided on."""
        return len(self.order)


def arrival_order(seconds: Sequence[float], in_flight: int, failed: Collection[int] = ()) -> list[int]:
    """Numbers of draws, of which each takes so many seconds, in order of arrival; ties in order of launch.

    So many are in flight at a time: each that arrives makes room for the next one. Where as many in a row ``failed``, those that
    are left in flight are waited for, up to one that did not fail.
    """
    running = [(took, index) for index, took in enumerate(seconds[:in_flight])]
    order, failing = list[int](), 0
    while running:
        first = min(running)
        running.remove(first)
        order.append(first[1])
        failing = failing + 1 if first[1] in failed else 0
        if failing < in_flight or not running:
            following = len(order) + len(running)
            launched = enumerate(seconds[following : len(order) + in_flight], start=following)
            running += [(first[0] + took, index) for index, took in launched]
    return order


def run(
    policy: Policy,
    scores: Sequence[float | None],
    seconds: Sequence[float] = (),
    tokens: Sequence[tuple[int, int]] = (),
    in_flight: int = 1,
) -> Run:
    """Follow a policy over the draws of a whole budget, launched in their order, so many at a time for a rolling exit.

    By the ``seconds`` that each took they arrive, for an exit that asks; ``tokens`` that they read and wrote are for a budget.
    """
    policy, state = policy.at(in_flight), State()
    order: Sequence[int] = range(policy.budget)
    if policy.exit == "rolling" and seconds:
        failed = {index for index, score in enumerate(scores) if score is None or not math.isfinite(score)}
        order = arrival_order(seconds[: policy.budget], in_flight, failed)
    while (decision := policy.decide(state)).action is Action.DRAW:
        loop = order[state.drawn : state.drawn + decision.draws]
        if policy.exit == "eager":
            arrived = sorted(loop, key=seconds.__getitem__) if seconds else loop
            winner = next((index for index in arrived if policy.passes(state.loops, scores[index])), None)
            if winner is not None:
                passed = Decision(Action.SERVE, "passed", 0, winner, True, policy.thresholds[state.loops])
                return Run(passed, state.loops + 1, order[: state.drawn + len(loop)])
        used = [tokens[index] for index in loop] if tokens else []
        sums = sum(read for read, _ in used), sum(written for _, written in used)
        state = policy.observe(state, [scores[index] for index in loop], sums)
    index = None if decision.index is None else order[decision.index]
    return Run(replace(decision, index=index), state.loops, order[: state.drawn])


def guardrail(schedule: Sequence[int], threshold: float | Sequence[float] = 0.0, stop: StopRule | None = None) -> Policy:
    """Serve only what passed; abstain otherwise."""
    return Policy("guardrail", tuple(schedule), spread(threshold, len(schedule)), stop=stop or Never())


def accelerator(schedule: Sequence[int], threshold: float | Sequence[float] = 0.0, stop: StopRule | None = None) -> Policy:
    """Serve the first best that passed, else the best of all."""
    return Policy("accelerator", tuple(schedule), spread(threshold, len(schedule)), stop=stop or Never())


def best_of_n(n: int) -> Policy:
    """Plain best-of-N: one loop, never an early exit, always served."""
    return Policy("accelerator", (n,), (math.inf,))


def spread(threshold: float | Sequence[float], loops: int) -> tuple[float, ...]:
    """One threshold for each loop, from one number or a sequence of them."""
    several = (threshold,) * loops if isinstance(threshold, int | float) else tuple(threshold)
    if any(isinstance(each, bool) for each in several):
        raise TypeError("true and false are no thresholds")
    # A plus, for a text such as "12" would be two thresholds.
    return tuple(float(+each) for each in several)


def check_mode(mode: str) -> None:
    """Raise ValueError unless the mode is known."""
    if mode not in ("guardrail", "accelerator"):
        raise ValueError(f"unknown mode {mode!r}: use 'guardrail' or 'accelerator'")


def check_schedule(schedule: Sequence[int]) -> None:
    """Raise ValueError unless the schedule is a non-empty sequence of positive integers."""
    positive = all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in schedule)
    if not schedule or not positive:
        raise ValueError(f"schedule {list(schedule)} must list at least one loop, each of 1 or more draws, e.g. [4, 4, 4, 4]")


def check_thresholds(thresholds: Sequence[float], loops: int) -> None:
    """Raise ValueError unless there is one threshold for each loop and none is NaN."""
    if len(thresholds) != loops:
        raise ValueError(f"{len(thresholds)} thresholds for {loops} loops: give one number, or one for each loop")
    if any(math.isnan(threshold) for threshold in thresholds):
        raise ValueError("a threshold is NaN: use a number, or infinity to never exit at that loop")
