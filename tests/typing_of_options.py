"""What mypy must accept and refuse; it is checked with the package, and an error that is no longer found is an unused ignore."""

from __future__ import annotations

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN
from bonmini_guard.adapters.agents import BestOfMiniNMiddleware


def right() -> None:
    BestOfMiniN(generator=1, reward_model=2, mode="guardrail", schedule=[4, 28], threshold=[1.0, 2], timeout=3, name="guard")
    ChatBestOfMiniN(generator=1, reward_model=2, mode="accelerator", temperature=0.5, stop=["a"], tags=["b"], on_abstain=str)
    BestOfMiniNMiddleware(reward_model=2, explore=0.5, on_abstain="continue")


def wrong() -> None:
    BestOfMiniN(generater=1, reward_model=2)  # type: ignore[call-arg]
    BestOfMiniN(generator=1, reward_model=2, mod="guardrail")  # type: ignore[call-arg]
    BestOfMiniN(generator=1, reward_model=2, mode="guard")  # type: ignore[arg-type]
    ChatBestOfMiniN(generator=1, reward_model=2, treshold=1.0)  # type: ignore[call-arg]
    ChatBestOfMiniN(generator=1, reward_model=2, timeout="soon")  # type: ignore[arg-type]
    BestOfMiniNMiddleware(reward_model=2, explor=0.5)  # type: ignore[call-arg]
