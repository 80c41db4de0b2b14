"""A small model first, a stronger one where the small one has nothing good enough.

Three ways: a Runnable as ``on_abstain``, ``with_fallbacks``, and the same for a chat model. Offline: fakes.
"""

from __future__ import annotations

import warnings

from langchain_core.runnables import Runnable

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, NoAcceptableResponse
from bonmini_guard.testing import FakeChatModel, FakeRewardModel

SMALL = FakeChatModel(lambda messages, number: "12" if "7 + 5" in messages[-1].text else f"{100 + number}, perhaps")
STRONG = FakeChatModel(["391"], model_name="strong")
#: Its zero means "acceptable"; this one likes an answer that does not hedge.
JUDGE = FakeRewardModel(lambda text: -1.0 if "perhaps" in text else 2.0)
QUESTIONS = ("What is 7 + 5?", "What is 17 * 23?")


def ways() -> dict[str, Runnable]:
    """Each way to fall back."""
    shape = {"generator": SMALL, "reward_model": JUDGE, "mini_n": 2, "max_loops": 2}
    when = {"exceptions_to_handle": (NoAcceptableResponse,)}
    return {
        "on_abstain": BestOfMiniN(**shape, on_abstain=STRONG),
        "with_fallbacks": BestOfMiniN(**shape).with_fallbacks([STRONG], **when),
        "chat model": ChatBestOfMiniN(**shape).with_fallbacks([STRONG], **when),
    }


def main() -> None:
    """Ask an easy and a hard question each way."""
    warnings.filterwarnings("ignore", message="uncalibrated")
    for name, way in ways().items():
        for question in QUESTIONS:
            message = way.invoke(question)
            decision = message.response_metadata.get("bonmini_guard", {}).get("decision", "from the stronger model")
            print(f"{name}: {question} {message.text} ({decision})")


if __name__ == "__main__":
    main()
