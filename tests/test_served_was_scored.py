"""Whatever generator, template and scorer do: no part is served that was not read by a scorer and passed.

Scorers here give every input a passing score in which they do not see the word "bad", so one that is served was not seen.
BONMINI_GUARD_FUZZ_CASES sets how many requests there are (``make fuzz``: 20,000).
"""

from __future__ import annotations

import logging
import os

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from bonmini_guard import BestOfMiniN
from bonmini_guard.errors import BonMiniGuardError, Unscorable
from bonmini_guard.reward.formatting import Formatter
from tests.reward.tiny import CHATML, make_tokenizer

CASES = int(os.environ.get("BONMINI_GUARD_FUZZ_CASES", "500"))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

#: How templates lose what they are given.
ANSWER = "message['content']"
TEMPLATES = {
    "all": CHATML,
    "trims": CHATML.replace(ANSWER, f"{ANSWER} | trim"),
    "cuts thoughts": CHATML.replace(ANSWER, f"{ANSWER}.split('</think>')[-1]"),
    "drops a word": CHATML.replace(ANSWER, f"{ANSWER} | replace('bad', '')"),
    "first words": CHATML.replace(ANSWER, f"{ANSWER} | truncate(20)"),
    "calls in place of text": CHATML.replace(ANSWER, f"(message.tool_calls | tojson) if message.tool_calls else {ANSWER}"),
    "names of calls": CHATML.replace(ANSWER, f"{ANSWER} ~ ('look' if message.tool_calls else '')"),
    "reasoning": CHATML.replace(ANSWER, f"(message.reasoning_content or '') ~ {ANSWER}"),
    "parts": "{% for m in messages %}<s>{{ m['role'] }}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}</s>{% endfor %}",
}
FORMATTERS = {
    (name, shown): Formatter(make_tokenizer(template), not_shown=("reasoning", "image_url") if shown == "text" else ())
    for name, template in TEMPLATES.items()
    for shown in ("text", "everything")
}


class Session:
    def __init__(self, scorer, messages):
        self.scorer, self.messages = scorer, messages

    async def score(self, candidates):
        return self.scorer.spoilt([self.scorer.score(self.messages, each) for each in candidates], candidates)

    async def aclose(self):
        pass


class Scorer:
    """Praises whatever does not show it the word; then perhaps changes what it was given, or answers out of kind."""

    has_zero = True

    def __init__(self, formatter, how):
        self.formatter, self.how = formatter, how
        if formatter is not None:
            self.not_shown = formatter.not_shown

    def session(self, messages):
        return Session(self, messages)

    def score(self, messages, candidate):
        if self.formatter is None:
            return -1.0 if "bad" in visible(candidate, calls=True) else 1.0
        try:
            seen = self.formatter._tokenizer.decode(self.formatter.encode(messages, candidate).ids)
        except Unscorable:
            return None
        return -1.0 if "bad" in seen else 1.0

    def spoilt(self, scores, candidates):
        if self.how == "changes":
            for candidate in candidates:
                candidate.content = "bad"
                candidate.additional_kwargs["reasoning_content"] = "bad"
        kinds = {"true": [True] * len(scores), "text": ["9"] * len(scores), "mapping": dict(enumerate(scores)), "short": scores[1:]}
        return {**kinds, "long": [*scores, 9.0], "nan": [float("nan")] * len(scores)}.get(self.how, scores)


class Generator:
    """Gives what it is told, perhaps as one object again and again, which it changes afterwards."""

    def __init__(self, messages, reuses, lengthens):
        self.messages, self.reuses, self.lengthens = messages, reuses, lengthens
        self.given = []

    async def draw(self, request):
        for message in self.given:
            message.content = "bad"
            message.additional_kwargs["refusal"] = "bad"
        if self.lengthens:
            request.messages.append(AIMessage("bad"))
        message = self.messages[request.index % len(self.messages)].model_copy(deep=True)
        if self.reuses:
            self.given.append(message)
        return message


def visible(message, calls):
    """All that a reader gets; of calls only where they have to pass."""
    about = {key: message.additional_kwargs.get(key) for key in ("reasoning_content", "refusal")}
    said = [message.content if isinstance(message.content, str) else list(message.content), about, message.invalid_tool_calls]
    return str([*said, message.tool_calls] if calls else said)


WORDS = st.lists(st.sampled_from(["good", "bad", "</think>", "<think>", "<|im_end|>", "\n", " ", "fine"]), max_size=4).map("".join)
BLOCKS = st.lists(
    st.one_of(
        WORDS.map(lambda text: {"type": "text", "text": text}),
        WORDS.map(lambda text: {"type": "reasoning", "reasoning": text}),
        WORDS.map(lambda text: {"type": "image_url", "image_url": {"url": text}}),
        WORDS.map(lambda text: {"type": "refusal", "refusal": text}),
    ),
    max_size=3,
)
CALLS = st.lists(WORDS.map(lambda text: {"name": "look", "args": {"at": [text]}, "id": "1"}), max_size=2)
BROKEN = st.lists(WORDS.map(lambda text: {"name": "look", "args": "{" + text, "id": "1", "error": None}), max_size=1)
KWARGS = st.dictionaries(st.sampled_from(["reasoning_content", "refusal"]), WORDS, max_size=2)
ENDS = st.sampled_from([{}, {"finish_reason": "stop"}, {"finish_reason": "length"}, {"finish_reason": "content_filter"}])
MESSAGES = st.builds(
    lambda content, calls, broken, kwargs, end: AIMessage(
        content, tool_calls=calls, invalid_tool_calls=broken, additional_kwargs=kwargs, response_metadata=end
    ),
    st.one_of(WORDS, WORDS, BLOCKS),
    st.one_of(st.just([]), st.just([]), CALLS),
    st.one_of(st.just([]), st.just([]), BROKEN),
    st.one_of(st.just({}), KWARGS),
    ENDS,
)
PLAIN = ("honest", (False, False), "text", "loop")
READERS = st.one_of(st.just(None), st.sampled_from(sorted(FORMATTERS)))


@given(
    messages=st.lists(MESSAGES, min_size=1, max_size=4),
    reader=READERS,
    how=st.sampled_from(["honest", "honest", "changes", "true", "text", "mapping", "short", "long", "nan"]),
    generator=st.tuples(st.booleans(), st.booleans()),
    turns=st.sampled_from(["text", "judge"]),
    exit=st.sampled_from(["loop", "eager", "rolling"]),
)
@example([AIMessage("bad</think>good")], ("cuts thoughts", "text"), *PLAIN)
@example([AIMessage("good", additional_kwargs={"reasoning_content": "bad"})], ("all", "text"), *PLAIN)
@example([AIMessage([{"type": "refusal", "refusal": "bad"}], additional_kwargs={"refusal": "good"})], ("all", "everything"), *PLAIN)
@example([AIMessage("bad", tool_calls=[{"name": "look", "args": {}, "id": "1"}])], None, *PLAIN)
@example([AIMessage("good"), AIMessage("bad")], None, "changes", (True, True), "judge", "eager")
@settings(max_examples=CASES, deadline=None, derandomize=CASES == 500, suppress_health_check=list(HealthCheck))
def test_no_part_is_served_without_a_score_that_passed(messages, reader, how, generator, turns, exit):
    logging.disable(logging.WARNING)
    scorer = Scorer(None if reader is None else FORMATTERS[reader], how)
    shape = {"max_draws": 3, "in_flight": 2} if exit == "rolling" else {"schedule": [1, 2], "exit": exit}
    guard = BestOfMiniN(generator=Generator(messages, *generator), reward_model=scorer, tool_turns=turns, timeout=5, **shape)
    try:
        result = guard.run("q")
    except BonMiniGuardError:
        return
    finally:
        logging.disable(logging.NOTSET)
    if not result.served:
        return
    judged = result.decision == "accepted"
    assert judged or (turns == "text" and result.reason == "tool_call")
    assert "bad" not in visible(result.message, calls=judged)


def test_good_answers_are_served_all_the_same():
    for reader, formatter in FORMATTERS.items():
        generator, scorer = Generator([AIMessage("good")], False, False), Scorer(formatter, "honest")
        assert BestOfMiniN(generator=generator, reward_model=scorer, schedule=[1]).run("q").decision == "accepted", reader
