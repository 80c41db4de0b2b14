"""A person's answer through LangGraph's ``interrupt``: the node runs a second time then, and nothing is drawn again.

LangGraph hands a node that is resumed the answers to its interrupts, in order. An abstention that ``on_abstain`` is to answer is
put among them, as an interrupt that is answered already, and goes through the checkpointer with them: numbers, and no text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables.config import var_child_runnable_config

from bonmini_guard.conversation import Turn
from bonmini_guard.engine.detach import checkpointed
from bonmini_guard.engine.engine import Engine
from bonmini_guard.engine.result import Candidate, GuardResult, Timings, finite
from bonmini_guard.engine.wrapped import model_name

_SCRATCHPAD, _SEND, _RESUME = "__pregel_scratchpad", "__pregel_send", "__resume__"
_MARK = "bonmini_guard_abstention"


class _Used(dict[str, Any]):
    """One that a guard of the running node has taken up."""


def request_key(engine: Engine, messages: Sequence[BaseMessage], options: Mapping[str, Any], asked: list[Any], profile: Any) -> str:
    """Equal for the same request to the same guard, also in another process; holds no text.

    Of its judge may be ``asked`` a question, criteria and a rubric; its ``profile`` is as it was given.
    """
    policy = engine.policy
    guard: list[Any] = [type(engine.generator).__name__, type(engine.scorer).__name__, engine.profile, policy.mode]
    # A profile may be another one by the time that a person answers.
    shape, level = ([], None) if engine.profile is not None else ([policy.schedule], repr(policy.thresholds))
    said = [[*guard, *shape], level, [(turn.role, turn.digest()) for turn in map(Turn.of, messages)], sorted(options)]
    judged_by = getattr(getattr(engine.scorer, "function", None), "__qualname__", None) or getattr(engine.scorer, "model_id", None)
    more = [model_name(engine.generator), judged_by, sorted(options.items()), *filter(None, asked)]
    # Profiles of one name may lie in several folders; where all of them lie may be another place by then: a later release's.
    folder = Path(profile).parent.name if isinstance(profile, str | Path) else None
    return _digest(said) + _digest(more) + _digest(folder)


def _digest(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, default=lambda value: type(value).__name__).encode()).hexdigest()[:32]


def resumable() -> bool:
    """Whether the call is made in a node of a graph whose interrupts can be answered: one with a checkpointer."""
    values = configurable()
    return checkpointed(values) and isinstance(getattr(values.get(_SCRATCHPAD), "resume", None), list)


def recall(key: str, engine: Engine) -> GuardResult | None:
    """The abstention with which an earlier run of this node ended the request; None if there is none."""
    scratchpad = configurable()[_SCRATCHPAD]
    kept = [(place, value) for place, value in enumerate(scratchpad.resume) if isinstance(value, dict) and _MARK in value]
    # Checkpoints may be older, and hold less of it.
    found = [(place, value) for place, value in kept if key.startswith(value[_MARK])]
    if not found:
        return None
    place, value = next(((place, value) for place, value in found if not isinstance(value, _Used)), found[-1])
    if not isinstance(value, _Used):
        scratchpad.resume[place] = _Used(value)
        scratchpad.interrupt_counter()  # this answer is taken up: the next interrupt takes the next one
    return _result(value, engine)


def keep(key: str, result: GuardResult) -> None:
    """Have an abstention known to the next run of this node."""
    values = configurable()
    scratchpad, send = values[_SCRATCHPAD], values.get(_SEND)
    if send is None or scratchpad.interrupt_counter() != len(scratchpad.resume):
        return
    scratchpad.resume.append(_Used(_kept(key, result)))
    send([(_RESUME, list(scratchpad.resume))])


def configurable() -> Mapping[str, Any]:
    """What the config of the call chooses, and what LangGraph says of its run."""
    return (var_child_runnable_config.get() or {}).get("configurable") or {}


#: What of a result is kept as it is.
_AS_IT_IS = ("reason", "loops", "ahead", "usage", "seed", "request_id", "traced")


def _kept(key: str, result: GuardResult) -> dict[str, Any]:
    draws = [
        [each.loop, each.seed, each.score, finite(each.raw_score), each.message is None, each.parts and dict(each.parts)]
        for each in result.candidates
    ]
    return {name: getattr(result, name) for name in _AS_IT_IS} | {
        _MARK: key,
        "draws": draws,
        "selected": next((number for number, each in enumerate(result.candidates) if each is result.selected), None),
        "seconds": [result.timings.total, result.timings.scoring],
        "threshold": finite(result.threshold),
    }


def _result(value: Mapping[str, Any], engine: Engine) -> GuardResult:
    """The record, without the texts of its draws."""
    candidates = tuple(
        Candidate(
            number, loop, seed, message=None if failed else AIMessage(""), score=score, raw_score=raw, parts=next(iter(more), None)
        )
        for number, (loop, seed, score, raw, failed, *more) in enumerate(value["draws"])
    )
    total, scoring = value["seconds"]
    return GuardResult(
        mode=engine.policy.mode,
        decision="abstained",
        selected=None if value["selected"] is None else candidates[value["selected"]],
        candidates=candidates,
        timings=Timings(total, scoring, perf_counter()),
        threshold=value["threshold"],
        profile=engine.profile,
        has_zero=engine.has_zero,
        **{name: value[name] for name in _AS_IT_IS if name in value},  # checkpoints may be older
    )
