"""When to draw more, serve or abstain: rules without I/O, a request's budget, and the profile that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.policy.budget import Budget as Budget
    from bonmini_guard.policy.policy import Action as Action
    from bonmini_guard.policy.policy import AnyOf as AnyOf
    from bonmini_guard.policy.policy import BelowFloor as BelowFloor
    from bonmini_guard.policy.policy import Decision as Decision
    from bonmini_guard.policy.policy import Exit as Exit
    from bonmini_guard.policy.policy import Mode as Mode
    from bonmini_guard.policy.policy import Never as Never
    from bonmini_guard.policy.policy import Policy as Policy
    from bonmini_guard.policy.policy import Run as Run
    from bonmini_guard.policy.policy import State as State
    from bonmini_guard.policy.policy import Stop as Stop
    from bonmini_guard.policy.policy import StopRule as StopRule
    from bonmini_guard.policy.policy import accelerator as accelerator
    from bonmini_guard.policy.policy import best_of_n as best_of_n
    from bonmini_guard.policy.policy import check_mode as check_mode
    from bonmini_guard.policy.policy import check_schedule as check_schedule
    from bonmini_guard.policy.policy import check_thresholds as check_thresholds
    from bonmini_guard.policy.policy import guardrail as guardrail
    from bonmini_guard.policy.policy import run as run
    from bonmini_guard.policy.policy import spread as spread
    from bonmini_guard.policy.profile import GuardProfile as GuardProfile
    from bonmini_guard.policy.profile import ScoreTransform as ScoreTransform

_NAMES = {
    "budget": "Budget",
    "policy": "Action AnyOf BelowFloor Decision Exit Mode Never Policy Run State Stop StopRule accelerator best_of_n check_mode "
    "check_schedule check_thresholds guardrail run spread",
    "profile": "GuardProfile ScoreTransform",
}
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
__all__ = list(_HOMES)
