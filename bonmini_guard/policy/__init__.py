"""When to draw more, serve or abstain: rules without I/O, a request's budget, and the profile that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.policy.budget import Budget
    from bonmini_guard.policy.policy import (
        Action,
        AnyOf,
        BelowFloor,
        Decision,
        Exit,
        Mode,
        Never,
        Policy,
        Run,
        State,
        Stop,
        StopRule,
        accelerator,
        best_of_n,
        check_mode,
        check_schedule,
        check_thresholds,
        guardrail,
        run,
        spread,
    )
    from bonmini_guard.policy.profile import GuardProfile, ScoreTransform

__all__ = [
    "Action",
    "AnyOf",
    "BelowFloor",
    "Budget",
    "Decision",
    "Exit",
    "GuardProfile",
    "Mode",
    "Never",
    "Policy",
    "Run",
    "ScoreTransform",
    "State",
    "Stop",
    "StopRule",
    "accelerator",
    "best_of_n",
    "check_mode",
    "check_schedule",
    "check_thresholds",
    "guardrail",
    "run",
    "spread",
]

_HOMES = dict.fromkeys(__all__, "policy") | {"Budget": "budget", "GuardProfile": "profile", "ScoreTransform": "profile"}

__getattr__, __dir__ = lazy(__name__, _HOMES)
