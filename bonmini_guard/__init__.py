"""A good enough answer or an honest refusal: best of mini-N in loops with a calibrated early exit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.engine.limiter import Limiter as Limiter
    from bonmini_guard.engine.protocols import DrawRequest as DrawRequest
    from bonmini_guard.engine.protocols import EndRequest as EndRequest
    from bonmini_guard.engine.protocols import Generator as Generator
    from bonmini_guard.engine.protocols import GroupGenerator as GroupGenerator
    from bonmini_guard.engine.protocols import Scorer as Scorer
    from bonmini_guard.engine.protocols import ScoringSession as ScoringSession
    from bonmini_guard.engine.result import GuardResult as GuardResult
    from bonmini_guard.engine.scorers import reward_function as reward_function
    from bonmini_guard.errors import BonMiniGuardError as BonMiniGuardError
    from bonmini_guard.errors import CandidateTooLong as CandidateTooLong
    from bonmini_guard.errors import CheckpointError as CheckpointError
    from bonmini_guard.errors import ConfigurationError as ConfigurationError
    from bonmini_guard.errors import ForeignError as ForeignError
    from bonmini_guard.errors import GenerationError as GenerationError
    from bonmini_guard.errors import InputError as InputError
    from bonmini_guard.errors import MissingExtraError as MissingExtraError
    from bonmini_guard.errors import NoAcceptableResponse as NoAcceptableResponse
    from bonmini_guard.errors import NotRendered as NotRendered
    from bonmini_guard.errors import ProfileError as ProfileError
    from bonmini_guard.errors import ScorerError as ScorerError
    from bonmini_guard.errors import TooBusy as TooBusy
    from bonmini_guard.errors import Unanswered as Unanswered
    from bonmini_guard.errors import Unscorable as Unscorable
    from bonmini_guard.logs.traces import TraceWriter as TraceWriter
    from bonmini_guard.policy.budget import Budget as Budget
    from bonmini_guard.policy.policy import AnyOf as AnyOf
    from bonmini_guard.policy.policy import BelowFloor as BelowFloor
    from bonmini_guard.policy.policy import Never as Never
    from bonmini_guard.policy.policy import StopRule as StopRule
    from bonmini_guard.policy.profile import GuardProfile as GuardProfile
    from bonmini_guard.policy.select import MinimumBayesRisk as MinimumBayesRisk
    from bonmini_guard.policy.select import Soft as Soft
    from bonmini_guard.reward.model import RewardModel as RewardModel
    from bonmini_guard.reward.spec import ScorerSpec as ScorerSpec
    from bonmini_guard.runnables.chat_model import ChatBestOfMiniN as ChatBestOfMiniN
    from bonmini_guard.runnables.guard import BestOfMiniN as BestOfMiniN
    from bonmini_guard.runnables.options import GuardOptions as GuardOptions
    from bonmini_guard.runnables.shadow import ShadowBestOfMiniN as ShadowBestOfMiniN

__version__ = "0.1.0"

_NAMES = {
    "engine.limiter": "Limiter",
    "engine.protocols": "DrawRequest EndRequest Generator GroupGenerator Scorer ScoringSession",
    "engine.result": "GuardResult",
    "engine.scorers": "reward_function",
    "errors": "BonMiniGuardError CandidateTooLong CheckpointError ConfigurationError ForeignError GenerationError InputError "
    "MissingExtraError NoAcceptableResponse NotRendered ProfileError ScorerError TooBusy Unanswered Unscorable",
    "logs.traces": "TraceWriter",
    "policy.budget": "Budget",
    "policy.policy": "AnyOf BelowFloor Never StopRule",
    "policy.profile": "GuardProfile",
    "policy.select": "MinimumBayesRisk Soft",
    "reward.model": "RewardModel",
    "reward.spec": "ScorerSpec",
    "runnables.chat_model": "ChatBestOfMiniN",
    "runnables.guard": "BestOfMiniN",
    "runnables.options": "GuardOptions",
    "runnables.shadow": "ShadowBestOfMiniN",
}
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
__all__ = list(_HOMES)
__all__ += ["__version__"]
