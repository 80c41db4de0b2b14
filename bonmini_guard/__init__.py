"""A good enough answer or an honest refusal: best of mini-N in loops with a calibrated early exit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard import _moved
from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.engine.limiter import Limiter
    from bonmini_guard.engine.result import GuardResult
    from bonmini_guard.engine.scorers import reward_function
    from bonmini_guard.errors import NoAcceptableResponse, ScorerError
    from bonmini_guard.logs.traces import TraceWriter
    from bonmini_guard.policy.budget import Budget
    from bonmini_guard.policy.profile import GuardProfile
    from bonmini_guard.policy.select import MinimumBayesRisk, Soft
    from bonmini_guard.reward.model import RewardModel
    from bonmini_guard.reward.spec import ScorerSpec
    from bonmini_guard.runnables.chat_model import ChatBestOfMiniN
    from bonmini_guard.runnables.guard import BestOfMiniN
    from bonmini_guard.runnables.options import GuardOptions
    from bonmini_guard.runnables.shadow import ShadowBestOfMiniN

__version__ = "0.1.0"

_HOMES = {
    "BestOfMiniN": "runnables.guard",
    "Budget": "policy.budget",
    "ChatBestOfMiniN": "runnables.chat_model",
    "GuardOptions": "runnables.options",
    "GuardProfile": "policy.profile",
    "GuardResult": "engine.result",
    "Limiter": "engine.limiter",
    "MinimumBayesRisk": "policy.select",
    "NoAcceptableResponse": "errors",
    "RewardModel": "reward.model",
    "ScorerError": "errors",
    "ScorerSpec": "reward.spec",
    "ShadowBestOfMiniN": "runnables.shadow",
    "Soft": "policy.select",
    "TraceWriter": "logs.traces",
    "reward_function": "engine.scorers",
}
__all__ = [
    "BestOfMiniN",
    "Budget",
    "ChatBestOfMiniN",
    "GuardOptions",
    "GuardProfile",
    "GuardResult",
    "Limiter",
    "MinimumBayesRisk",
    "NoAcceptableResponse",
    "RewardModel",
    "ScorerError",
    "ScorerSpec",
    "ShadowBestOfMiniN",
    "Soft",
    "TraceWriter",
    "__version__",
    "reward_function",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
_moved.install()
