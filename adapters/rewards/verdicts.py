"""Verdict tokens of a model on a server, read from the log-probabilities of what it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from bonmini_guard.adapters.openai import OpenAICompatibleGenerator
from bonmini_guard.adapters.rewards.judge import Judge, Judged
from bonmini_guard.conversation import NOT_SHOWN, Turn
from bonmini_guard.engine.generators import as_generator
from bonmini_guard.reward.spec import ScorerSpec, Token

#: The likeliest tokens that OpenAI's protocol tells of each place; a verdict that is not among them counts as the last of them.
_TOLD = 20
#: Tokens before a verdict that is not the first, and how cold they are drawn.
_BEFORE, _COLD = 32, 0.01


class Verdicts(Judge):
    """Scores answers by the log-odds of verdict tokens; see :class:`bonmini_guard.reward.verdicts.VerdictReading`.

    Args:
        generator: draws with log-probabilities.
        token: the verdicts and the question.
        not_shown: parts of answers that are left out, and not served.
    """

    def __init__(self, generator: Any, token: Token, not_shown: Sequence[str] = NOT_SHOWN) -> None:
        self._generator, self._token = as_generator(generator), token
        self.not_shown = frozenset(not_shown)

    async def judged(self, messages: Sequence[BaseMessage], answer: str) -> Judged:
        """The score of one answer, None where the model wrote no verdict; what it cost; and what went wrong."""
        token = self._token
        asked: list[BaseMessage] = [] if token.system is None else [SystemMessage(token.system)]
        turns = [Turn.of(message) for message in messages]
        prompt = turns[0].plain() if len(turns) == 1 else "\n".join(f"{turn.role}: {turn.plain()}" for turn in turns)
        asked += [*messages, AIMessage(answer)] if token.ask is None else [HumanMessage(token.asked(prompt, answer))]
        written = await self.vote(asked, 0)
        if isinstance(written, Exception):
            return None, None, written
        places = (written.response_metadata.get("logprobs") or {}).get("content") or []
        return self._score(places), written.usage_metadata, None

    def _score(self, places: Sequence[Mapping[str, Any]]) -> float | None:
        """Log-odds at the place behind what comes before the verdict."""
        before = ""
        for place in places:
            if before.rstrip().endswith(self._token.after.strip()):
                told = {one["token"]: float(one["logprob"]) for one in place["top_logprobs"]}
                sides = [_together(told, words) for words in (self._token.wanted, self._token.unwanted)]
                if any(side > -math.inf for side in sides):
                    least = min(told.values())
                    wanted, unwanted = (max(side, least) for side in sides)
                    return wanted - unwanted
            before += place["token"]
        return None


def verdicts(spec: ScorerSpec) -> Verdicts:
    """The remote verdicts of a spec.

    Raises:
        ConfigurationError: the key's variable is not set, or the endpoint's settings are wrong.
    """
    assert spec.token is not None
    assert spec.endpoint is not None
    extra: dict[str, Any] = {"top_logprobs": _TOLD}
    if spec.token.options:
        extra["chat_template_kwargs"] = spec.token.options
    generator = OpenAICompatibleGenerator(
        spec.endpoint,
        model=spec.model,
        api_key=spec.key(),
        logprobs=True,
        temperature=_COLD,
        max_tokens=_BEFORE if spec.token.after else 2,
        extra_body=extra,
    )
    return Verdicts(generator, spec.token, NOT_SHOWN if spec.not_shown is None else spec.not_shown)


def _together(told: Mapping[str, float], words: Sequence[str]) -> float:
    """The log-probability of any of the words; white space around a token makes no difference."""
    bare = {word.strip() for word in words}
    found = [math.exp(value) for token, value in told.items() if token.strip() in bare]
    return math.log(sum(found)) if sum(found) else -math.inf
