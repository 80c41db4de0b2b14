"""A fingerprint covers what a reward model reads; a template that writes today's date is told the same day for ever."""

from __future__ import annotations

import datetime
import json

import pytest
import transformers.utils.chat_template_utils as clock

from bonmini_guard import RewardModel
from tests.reward.test_model import CONFIGS, save

WRITING = "{{ 'Today is ' + strftime_now('%d %b %Y (%A)') + '. ' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
ASKING = "{% if strftime_now is defined %}{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def copy(tmp_path):
    return save(tmp_path, CONFIGS["llama"])


def with_template(copy, template):
    (copy / "chat_template.jinja").write_text(template)
    config = copy / "tokenizer_config.json"
    config.write_text(json.dumps({key: value for key, value in json.loads(config.read_text()).items() if key != "chat_template"}))
    return RewardModel.load(copy, device="cpu")


class Later(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime(2031, 1, 2)


@pytest.mark.parametrize("start", ["", "\n"])
def test_a_score_is_the_same_tomorrow_and_that_is_said(copy, monkeypatch, caplog, start):
    model = with_template(copy, start + WRITING)
    assert "writes today's date" in caplog.text
    score, mark = model.score("q", ["an answer"]), model.fingerprint()
    monkeypatch.setattr(clock, "datetime", Later)
    assert model.score("q", ["an answer"]) == score
    assert RewardModel.load(copy, device="cpu").fingerprint() == mark


def test_a_template_that_only_asks_for_the_clock_is_left_alone(copy, caplog):
    with_template(copy, ASKING)
    assert "date" not in caplog.text


def test_the_fingerprint_follows_what_is_read(copy):
    model = RewardModel.load(copy, device="cpu")
    shorter = RewardModel.load(copy, device="cpu", max_length=16)
    assert shorter.fingerprint() != model.fingerprint()
    assert shorter.earlier_fingerprint() == model.earlier_fingerprint()
    tokenizer = copy / "tokenizer.json"
    changed = json.loads(tokenizer.read_text())
    changed["normalizer"] = {"type": "Lowercase"}
    tokenizer.write_text(json.dumps(changed))
    other = RewardModel.load(copy, device="cpu")
    assert other.fingerprint() != model.fingerprint()
    assert other.earlier_fingerprint() == model.earlier_fingerprint()
