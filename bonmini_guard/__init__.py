"""A good enough answer or an honest refusal: best of mini-N in loops with a calibrated early exit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.budget import Budget
    from bonmini_guard.chat_model import ChatBestOfMiniN
    from bonmini_guard.errors import NoAcceptableResponse, ScorerError
    from bonmini_guard.guard import BestOfMiniN
    from bonmini_guard.limiter import Limiter
    from bonmini_guard.options import GuardOptions
    from bonmini_guard.profile import GuardProfile
    from bonmini_guard.result import GuardResult
    from bonmini_guard.reward.model import RewardModel
    from bonmini_guard.reward.spec import ScorerSpec
    from bonmini_guard.scorers import reward_function
    from bonmini_guard.shadow import ShadowBestOfMiniN
    from bonmini_guard.traces import TraceWriter

__version__ = "0.1.0"

_HOMES = {
    "BestOfMiniN": "guard",
    "Budget": "budget",
    "ChatBestOfMiniN": "chat_model",
    "GuardOptions": "options",
    "GuardProfile": "profile",
    "GuardResult": "result",
    "Limiter": "limiter",
    "NoAcceptableResponse": "errors",
    "RewardModel": "reward.model",
    "ScorerError": "errors",
    "ScorerSpec": "reward.spec",
    "ShadowBestOfMiniN": "shadow",
    "TraceWriter": "traces",
    "reward_function": "scorers",
}
__all__ = [
    "BestOfMiniN",
    "Budget",
    "ChatBestOfMiniN",
    "GuardOptions",
    "GuardProfile",
    "GuardResult",
    "Limiter",
    "NoAcceptableResponse",
    "RewardModel",
    "ScorerError",
    "ScorerSpec",
    "ShadowBestOfMiniN",
    "TraceWriter",
    "__version__",
    "reward_function",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
