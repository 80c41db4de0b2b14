"""One file for each outside system: what draws candidates, and what scores them elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.adapters.langchain import LangChainGenerator as LangChainGenerator
    from bonmini_guard.adapters.local import TransformersGenerator as TransformersGenerator
    from bonmini_guard.adapters.openai import OpenAICompatibleGenerator as OpenAICompatibleGenerator
    from bonmini_guard.adapters.rewards.decision_wires import DecisionEndpoint as DecisionEndpoint
    from bonmini_guard.adapters.rewards.decisions import Decisions as Decisions
    from bonmini_guard.adapters.rewards.remote import RemoteRewardModel as RemoteRewardModel
    from bonmini_guard.adapters.tgi import TGIGenerator as TGIGenerator

_NAMES = {
    "langchain": "LangChainGenerator",
    "local": "TransformersGenerator",
    "openai": "OpenAICompatibleGenerator",
    "rewards.decision_wires": "DecisionEndpoint",
    "rewards.decisions": "Decisions",
    "rewards.remote": "RemoteRewardModel",
    "tgi": "TGIGenerator",
}
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
__all__ = list(_HOMES)
