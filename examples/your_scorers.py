"""Two kinds of reward model that no checkpoint format knows: one marks steps, one compares two answers. Offline: fakes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard import BestOfMiniN, reward_function
from bonmini_guard.testing import FakeChatModel

ANSWERS = ("12 * 3 = 36\n36 + 4 = 41", "12 * 3 = 36\n36 + 4 = 40", "It is forty.", "12 * 3 = 30\n30 + 4 = 34")


def step_is_right(question: str, steps: Sequence[str]) -> float:
    """In place of a process reward model: the probability that the last of these steps is right."""
    claim = re.fullmatch(r"(\d+) (\*|\+) (\d+) = (\d+)", steps[-1])
    if claim is None:
        return 0.5
    left, right = int(claim[1]), int(claim[3])
    return 0.95 if int(claim[4]) == (left * right if claim[2] == "*" else left + right) else 0.02


@reward_function(has_zero=True, scale="probability")
def weakest_step(messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> list[float]:
    """A chain of steps is worth its weakest one; a mean would forgive a wrong step among many right ones."""
    steps = [candidate.text.splitlines() for candidate in candidates]
    return [min(step_is_right(messages[-1].text, each[: n + 1]) for n in range(len(each))) for each in steps]


def prefers(question: str, first: str, second: str) -> float:
    """In place of a pairwise model or a judge: the probability that the first answer is the better one. It likes digits."""
    digits = [sum(letter.isdigit() for letter in text) for text in (first, second)]
    return (1 + digits[0]) / (2 + sum(digits))


#: The least that would be acceptable, written by hand: the outside option, to which every candidate is compared.
BARELY = {"What is 12 * 3 + 4?": "The answer is 40, I think."}


@reward_function(has_zero=True, scale="probability")
def better_than_barely(messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> list[float]:
    """Both orders, since such models favour a place. Never among each other: a score must not depend on what else was drawn."""
    question, scores = messages[-1].text, []
    for candidate in candidates:
        ahead, behind = prefers(question, candidate.text, BARELY[question]), prefers(question, BARELY[question], candidate.text)
        scores.append((ahead + 1 - behind) / 2)
    return scores


def main() -> None:
    """Guard one model with each."""
    warnings.filterwarnings("ignore", message="uncalibrated")
    for name, scorer in (("steps", weakest_step), ("pairs", better_than_barely)):
        guard = BestOfMiniN(generator=FakeChatModel(ANSWERS), reward_model=scorer, schedule=[2, 2])
        result = guard.run("What is 12 * 3 + 4?")
        print(f"{name}: {result.message.text!r} after {result.draws} draws, {result.acceptance_probability:.2f}")


if __name__ == "__main__":
    main()
