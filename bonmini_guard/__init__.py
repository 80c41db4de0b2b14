"""A good enough answer or an honest refusal: best of mini-N in loops with a calibrated early exit."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bonmini_guard.chat_model import ChatBestOfMiniN
    from bonmini_guard.errors import NoAcceptableResponse, ScorerError
    from bonmini_guard.guard import BestOfMiniN
    from bonmini_guard.profile import GuardProfile
    from bonmini_guard.result import GuardResult
    from bonmini_guard.reward.model import RewardModel

__version__ = "0.1.0"

_HOMES = {
    "BestOfMiniN": "guard",
    "ChatBestOfMiniN": "chat_model",
    "GuardProfile": "profile",
    "GuardResult": "result",
    "NoAcceptableResponse": "errors",
    "RewardModel": "reward.model",
    "ScorerError": "errors",
}
__all__ = [
    "BestOfMiniN",
    "ChatBestOfMiniN",
    "GuardProfile",
    "GuardResult",
    "NoAcceptableResponse",
    "RewardModel",
    "ScorerError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package stays fast and light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
