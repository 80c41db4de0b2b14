"""When to draw more, serve or abstain: rules without I/O, a request's budget, and the profile that holds them."""

from __future__ import annotations

from bonmini_guard._lazy import lazy

#: Once this was one module: its names are found here still.
_NAMES = {
    "budget": "Budget",
    "policy": "Action AnyOf BelowFloor Decision Exit Mode Never Policy Run State Stop StopRule accelerator best_of_n check_mode "
    "check_schedule check_thresholds guardrail run spread",
    "profile": "GuardProfile ScoreTransform",
}
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
__all__ = list(_HOMES)
