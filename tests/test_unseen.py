"""Images, audio and files of a prompt are seen by its judge, or refused, or told of."""

from __future__ import annotations

import json
import logging

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from bonmini_guard import BestOfMiniN
from bonmini_guard.cli import main
from bonmini_guard.errors import InputError
from bonmini_guard.testing import FakeGenerator, FakeRewardModel
from bonmini_guard.unseen import tell_of

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

PARTS = {
    "image_url": {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
    "input_audio": {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
    "file": {"type": "file", "file": {"file_id": "f"}},
}


class TextAlone(FakeRewardModel):
    """A scorer that reads text alone."""

    text_alone = True

    def __init__(self, not_shown=()):
        super().__init__(lambda messages, candidates: [1.0] * len(candidates))
        self.not_shown = frozenset(not_shown)


def guard(scorer, **settings):
    return BestOfMiniN(generator=FakeGenerator(["a"]), reward_model=scorer, schedule=[1], threshold=0.0, **settings)


def prompt(kind):
    return [HumanMessage([{"type": "text", "text": "what is it?"}, PARTS[kind]])]


@pytest.fixture(autouse=True)
def not_told_before():
    tell_of.cache_clear()


@pytest.mark.parametrize("kind", PARTS)
def test_a_guardrail_refuses_it_before_anything_is_drawn(kind):
    scorer, generator = TextAlone(), FakeGenerator(["a"])
    refusing = BestOfMiniN(generator=generator, reward_model=scorer, schedule=[1], threshold=0.0, mode="guardrail")
    with pytest.raises(InputError, match=f"a part of type '{kind}', which the reward model cannot read"):
        refusing.invoke(prompt(kind))
    assert refusing.invoke("what is it?").text == "a"


@pytest.mark.parametrize("kind", PARTS)
def test_an_accelerator_tells_of_it_once(kind, caplog):
    accelerator = guard(TextAlone(), mode="accelerator")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert accelerator.invoke(prompt(kind)).text == "a"
    assert caplog.text.count(f"a part of type '{kind}'") == 1


def test_functions_see_it_and_what_is_declared_is_borne(caplog):
    seen = []
    by_function = guard(lambda messages, candidates: seen.append(messages) or [1.0] * len(candidates), mode="guardrail")
    assert by_function.invoke(prompt("image_url")).text == "a"
    assert seen[0][0].content[1]["type"] == "image_url"
    assert guard(TextAlone(["image_url"]), mode="guardrail").invoke(prompt("image_url")).text == "a"
    history = [
        HumanMessage("q"),
        AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "c"}]),
        ToolMessage("42", tool_call_id="c"),
    ]
    assert guard(TextAlone(), mode="guardrail").invoke(history).text == "a"
    assert "a part of type" not in caplog.text


def test_logs_choices_and_labels_tell_of_it_and_scores_refuse_it(tmp_path, capsys, caplog):
    from bonmini_guard.calibration.scoring_logs import score_log
    from bonmini_guard.labelling.rows import read_rows

    turn = {"role": "user", "content": [{"type": "text", "text": "what?"}, PARTS["image_url"]]}
    row = {"id": "1", "prompt": [turn], "candidates": [{"text": "a", "acceptable": True}]}
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(row) + "\n")
    scorer = TextAlone()
    scorer.fingerprint = lambda: "f"
    with pytest.raises(InputError, match=r"log.jsonl:1: the prompt holds a part of type 'image_url'"):
        score_log([log], scorer, tmp_path / "out.jsonl")
    with caplog.at_level(logging.WARNING):
        read_rows([log])
        assert main(["convert", str(log), "--from", "log", "-o", str(tmp_path / "choices.jsonl")]) == 0
    assert "a labeller cannot see it" in caplog.text
    assert "is told the type, no more" in caplog.text
    assert json.loads((tmp_path / "choices.jsonl").read_text())["prompt"][0]["content"][1] == PARTS["image_url"]
