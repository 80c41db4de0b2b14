"""Whatever of an answer would be served has reached the model's input, or the answer has no score."""

import logging
from datetime import datetime

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from transformers.utils import chat_template_utils

from bonmini_guard.errors import CheckpointError, InputError, NotRendered
from bonmini_guard.reward.formatting import Formatter
from bonmini_guard.reward.rendering import rendering_digest

from .tiny import CHATML, make_tokenizer

USER = [HumanMessage("the film")]
#: As Qwen3's and R1's templates do it.
THINKS = (
    "{% for m in messages %}{% set c = m['content'] %}{% if m['role'] == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}<|im_start|>{{ m['role'] }}\n{{ c }}<|im_end|>\n{% endfor %}"
)
PARTS = "{% for m in messages %}<s>{{ m['role'] }}: {% for p in m['content'] %}{{ p['text'] }}{% endfor %}</s>{% endfor %}"
CALLS = CHATML.replace("<|im_end|>", "{% for c in message.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>", 1)
CALL = {"name": "look", "args": {"film": ["fine", {"a": 1}]}, "id": "7"}


def text(template, answer, messages=USER, **options):
    tokenizer = make_tokenizer(template)
    return tokenizer.decode(Formatter(tokenizer, **options).encode(messages, answer).ids)


# Text


@pytest.mark.parametrize("answer", ["awful</think>good", "awful\n</think>\n\ngood", "</think>good", "a</think>b</think>c"])
def test_an_answer_of_which_the_template_drops_a_part_cannot_be_scored(answer):
    with pytest.raises(NotRendered, match="leaves out"):
        text(THINKS, answer)


def test_a_prompt_that_says_the_dropped_part_does_not_stand_in_for_it():
    answer = "awful</think>good"
    with pytest.raises(NotRendered):
        text(THINKS, answer, [HumanMessage(f"say {answer}")])
    with pytest.raises(NotRendered):
        text(THINKS, answer, [HumanMessage("q"), AIMessage(answer), HumanMessage("again")])


@pytest.mark.parametrize("answer", ["good", " good\n", "", "good <think> fine", "two\nlines", "\u00e9\ud800"])
def test_other_answers_of_such_a_template_are_read(answer):
    assert text(THINKS, answer).endswith(f"assistant\n{answer.replace(chr(0xD800), chr(0xFFFD))}<|im_end|>\n")


def test_such_a_template_is_told_when_it_is_loaded(caplog):
    Formatter(make_tokenizer(THINKS))
    assert "</think>" in caplog.text
    caplog.clear()
    Formatter(make_tokenizer(CHATML))
    assert not caplog.records


def test_white_space_around_a_text_may_go():
    assert text(CHATML.replace("message['content']", "message['content'] | trim"), "  good \n").endswith(
        "assistant\ngood<|im_end|>\n"
    )


def test_a_template_that_rewrites_a_text_cannot_show_it():
    template = CHATML.replace("message['content']", "message['content'] | replace('awful', 'fine')")
    assert "good" in text(template, "good")
    with pytest.raises(NotRendered):
        text(template, "an awful film")


def test_what_stands_around_an_answer_may_depend_on_the_conversation():
    template = CHATML + "{{ messages | length }}"
    assert text(template, "good", [*USER, AIMessage("a"), *USER]).endswith("good<|im_end|>\n4")


# Other parts


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"content": [{"type": "text", "text": "good"}, {"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
        ({"content": [{"type": "text", "text": "good"}, {"type": "audio", "id": "x"}]}, "audio"),
    ],
)
def test_a_part_that_a_text_model_cannot_read_leaves_the_answer_without_score(fields, kind):
    with pytest.raises(NotRendered, match=kind):
        text(CHATML, AIMessage(**fields))
    assert "assistant\ngood<|im_end|>" in text(CHATML, AIMessage(**fields), not_shown=[kind])


def test_a_refusal_is_read_like_a_text():
    assert "assistant\nno<|im_end|>" in text(CHATML, AIMessage("", additional_kwargs={"refusal": "no"}))


THOUGHT = AIMessage("good", additional_kwargs={"reasoning_content": "thoughts"})


def test_reasoning_is_left_out_where_users_do_not_get_it():
    assert "thoughts" not in text(CHATML, THOUGHT)


def test_reasoning_that_users_get_must_be_written():
    with pytest.raises(NotRendered, match="reasoning"):
        text(CHATML, THOUGHT, not_shown=())
    shows = CHATML.replace("{{ message['content'] }}", "{{ message['reasoning_content'] or '' }}{{ message['content'] }}")
    assert "thoughtsgood" in text(shows, THOUGHT, not_shown=())


@pytest.mark.parametrize("shown", [CALLS, CHATML])
@pytest.mark.parametrize("content", ["", "good"])
def test_every_call_is_in_the_text_whether_the_template_knows_calls_or_not(shown, content):
    found = text(
        shown, AIMessage(content, tool_calls=[CALL], invalid_tool_calls=[{"name": "x", "args": "{bro", "id": "1", "error": ""}])
    )
    assert all(part in found for part in (content, "look", "film", "fine", "bro"))


def test_calls_of_which_a_template_writes_the_names_alone_are_written_beside_the_text():
    names = CHATML.replace("<|im_end|>", "{% for c in message.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}<|im_end|>", 1)
    assert "fine" in text(names, AIMessage("", tool_calls=[CALL]))


# Adapted, and said so


def test_a_template_that_reads_lists_of_parts_gets_them(caplog):
    assert text(PARTS, "good") == "<s>user: the film</s><s>assistant: good</s>"
    assert "lists of parts" in caplog.text


def test_a_template_that_stumbles_over_a_conversation_refuses_it():
    formatter = Formatter(make_tokenizer("{% if messages[0]['content'] == 'no' %}{{ 1 + 'a' }}{% endif %}" + CHATML))
    with pytest.raises(InputError, match="refuses the conversation: unsupported operand"):
        formatter.encode([HumanMessage("no")], "good")
    assert formatter.encode(USER, "good").ids


@pytest.mark.parametrize("template", [CHATML.removesuffix("{% endif %}"), "{{ messages | nosuch }}"])
def test_a_broken_template_is_refused(template):
    with pytest.raises(CheckpointError, match=r"the chat template is broken \(line \d: "):
        Formatter(make_tokenizer(template))


def test_templates_of_which_none_is_the_default_are_refused():
    with pytest.raises(CheckpointError, match=r"no chat template .*no default"):
        Formatter(make_tokenizer({"rag": CHATML}))


def test_a_template_that_writes_no_answer_is_refused():
    with pytest.raises(CheckpointError, match="chat_template"):
        Formatter(make_tokenizer("{% for m in messages %}{{ m['role'] }}{% endfor %}"))


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
        CHATML.replace("<|im_start|>{{", "{% if message['role'] == 'system' %}{% continue %}{% endif %}<|im_start|>{{", 1),
    ],
)
def test_what_a_system_turn_says_goes_before_the_users_where_there_are_none(template, caplog):
    found = text(template, "good", [SystemMessage("be kind"), *USER])
    assert found.startswith("<|im_start|>user\nbe kind\n\nthe film<|im_end|>")
    assert "system" in caplog.text


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %b %Y') }}" + CHATML,
        "\n{{ strftime_now('%d %b %Y') }}" + CHATML,
        "{{ strftime_now(format='%d %b %Y') }}" + CHATML,
        "{% set way = '%d %b %Y' %}{{ strftime_now (way) }}" + CHATML,
        "{% set now = strftime_now %}{{ now('%-d %b %Y') }}" + CHATML,
        {"default": "{{ strftime_now('%d %b %Y') }}" + CHATML, "tool_use": CHATML},
    ],
)
def test_scores_are_the_same_tomorrow(template, monkeypatch, caplog):
    formatter = Formatter(make_tokenizer(template))
    today, mark = formatter.encode(USER, "good").ids, rendering_digest(formatter)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2031, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    assert (formatter.encode(USER, "good").ids, rendering_digest(formatter)) == (today, mark)
    assert "1 Jan 2025" in formatter.render(USER, "good")
    assert "date" in caplog.text


def test_a_template_that_only_asks_for_the_clock_is_left_alone(caplog):
    assert text("{% if strftime_now is defined %}{% endif %}" + CHATML, "good")
    assert not caplog.records


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.WARNING, "bonmini_guard")
