"""What the reward model does not read is not served."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN
from bonmini_guard.conversation import Turn
from bonmini_guard.engine.snapshot import shown
from bonmini_guard.errors import ConfigurationError, NotRendered
from bonmini_guard.reward.formatting import Formatter
from bonmini_guard.testing import FakeGenerator, FakeRewardModel
from tests.reward.tiny import CHATML, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

PICTURE = {"type": "image_url", "image_url": {"url": "x"}}
RICH = AIMessage(
    [{"type": "thinking", "thinking": "secret"}, {"type": "text", "text": "good"}, PICTURE],
    additional_kwargs={"reasoning_content": "secret", "refusal": "no", "other": 1},
)


class TextAlone(FakeRewardModel):
    not_shown = frozenset({"reasoning", "image_url"})


def test_a_scorer_that_names_what_it_is_not_shown_as_one_text_is_refused():
    """Of a text each letter was a kind of parts, and reasoning was served that nobody had scored."""
    scorer = FakeRewardModel(lambda text: 1.0)
    scorer.not_shown = "reasoning"
    with pytest.raises(ConfigurationError, match="not_shown must be a list of names, not 'reasoning'"):
        BestOfMiniN(generator=FakeGenerator(["a"]), reward_model=scorer)


@pytest.mark.parametrize("face", [BestOfMiniN, ChatBestOfMiniN])
def test_parts_that_were_not_read_are_not_served_and_are_kept_in_the_record(face):
    made = face(generator=FakeGenerator([RICH]), reward_model=TextAlone({"good": 1.0}), schedule=[1])
    served = made.invoke("q")
    assert served.content == [{"type": "text", "text": "good"}]
    assert served.additional_kwargs == {"refusal": "no", "other": 1}


def test_the_record_keeps_them():
    made = BestOfMiniN(generator=FakeGenerator([RICH]), reward_model=TextAlone({"good": 1.0}), schedule=[1])
    result = made.run("q")
    assert "secret" not in str(result.message)
    assert result.candidates[0].message.additional_kwargs["reasoning_content"] == "secret"


def test_a_scorer_that_reads_everything_has_everything_served():
    made = BestOfMiniN(generator=FakeGenerator([RICH]), reward_model=FakeRewardModel({"good": 1.0}), schedule=[1])
    assert made.run("q").message == RICH


def test_a_plain_answer_is_left_as_it_is():
    plain = AIMessage("good")
    assert shown(plain, TextAlone.not_shown) is plain
    assert shown(AIMessage("", additional_kwargs={"refusal": "no"}), {"refusal"}).additional_kwargs == {}


SPOKEN = AIMessage("", additional_kwargs={"audio": {"id": "a", "data": "QUJD", "transcript": "bad"}})
THOUGHT = AIMessage("good", additional_kwargs={"reasoning": {"id": "r", "summary": [{"type": "summary_text", "text": "bad"}]}})

RAN = AIMessage([{"type": "text", "text": "good"}], additional_kwargs={"tool_outputs": [{"type": "mcp_call", "output": "bad"}]})


@pytest.mark.parametrize(("message", "kind"), [(SPOKEN, "audio"), (THOUGHT, "reasoning"), (RAN, "mcp_call")])
def test_what_stands_beside_the_content_is_read_or_not_served(message, kind):
    formatter = Formatter(make_tokenizer(CHATML), not_shown=())
    with pytest.raises(NotRendered):
        formatter.encode([HumanMessage("q")], message)
    assert "bad" in str(Turn.of(message).openai())
    assert "bad" not in str(shown(message, {kind}))
    assert "bad" not in str(Turn.of(message).without({kind}))
