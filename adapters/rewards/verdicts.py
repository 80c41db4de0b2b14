"""Verdict tokens of a model on a server, read from the log-probabilities of what it writes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence, Set
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from bonmini_guard.adapters.rewards.judge import Questioner, served
from bonmini_guard.conversation import NOT_SHOWN
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.reward.spec import ScorerSpec, Token
from bonmini_guard.reward.texts import asked

#: The likeliest tokens that OpenAI's protocol tells of each place; a verdict that is not among them counts as the last of them.
_TOLD = 20
#: Tokens before a verdict that is not the first, and how cold they are drawn.
_BEFORE, _COLD = 32, 0.01


class Verdicts(Questioner):
    """Scores answers by the log-odds of verdict tokens; see :class:`bonmini_guard.reward.verdicts.VerdictReading`."""

    def __init__(self, generator: Any, token: Token, not_shown: Collection[str] = NOT_SHOWN) -> None:
        super().__init__(generator, not_shown)
        self._token = token
        wanted, unwanted = self._sides = [{word.strip() for word in words} for words in (token.wanted, token.unwanted)]
        if "" in wanted | unwanted or wanted & unwanted:
            raise ConfigurationError("token: a verdict is blank, or wanted and unwanted, white space around it aside: name another")

    def question(self, messages: Sequence[BaseMessage], answer: str) -> list[BaseMessage]:
        """The conversation with its answer, or one turn that asks about both."""
        token = self._token
        first: list[BaseMessage] = [] if token.system is None else [SystemMessage(token.system)]
        if token.ask is None:
            return [*first, *messages, AIMessage(answer)]
        return [*first, HumanMessage(token.asked(asked(messages, roles=len(messages) > 1), answer))]

    def judged(self, said: Sequence[AIMessage]) -> tuple[float | None, None]:
        """Log-odds at the place behind what comes before the verdict; None where the model wrote no verdict there."""
        before = ""
        for place in [place for one in said for place in (one.response_metadata.get("logprobs") or {}).get("content") or ()]:
            if place["token"].strip() and before.rstrip().endswith(self._token.after.strip()):
                likely = place.get("top_logprobs") or ()
                told = {one["token"]: float(one["logprob"]) for one in likely if one["logprob"] is not None}
                words = self._sides[0] | self._sides[1]
                several = words - {token.strip() for token in told}
                if not _meant(place["token"], words, several):
                    several = set()  # what it wrote begins no verdict, and no other token there is taken for the first of one
                meant = {token: _meant(token, words, several) for token in told}
                sides = [_together([told[each] for each, its in meant.items() if its and its <= side]) for side in self._sides]
                if any(side > -math.inf for side in sides):
                    least = min(told.values())
                    wanted, unwanted = (max(side, least) for side in sides)
                    return wanted - unwanted, None
            before += place["token"]
        return None, None


def verdicts(spec: ScorerSpec) -> Verdicts:
    """The remote verdicts of a spec."""
    token = spec.token
    assert token is not None
    extra: dict[str, Any] = {"top_logprobs": _TOLD} | ({"chat_template_kwargs": token.options} if token.options else {})
    most = _BEFORE if token.after else 2
    return Verdicts(served(spec, logprobs=True, temperature=_COLD, max_tokens=most, extra_body=extra), token, spec.hidden)


def _meant(token: str, words: Set[str], several: Set[str]) -> Set[str]:
    """The verdicts that a token stands for, white space aside: the one that it is, or those of several tokens that it begins."""
    bare = token.strip()
    return {bare} & words or {word for word in several if bare and word.startswith(bare)}


def _together(told: Sequence[float]) -> float:
    """The log-probability of any of the tokens."""
    whole = sum(map(math.exp, told))
    return math.log(whole) if whole else -math.inf
