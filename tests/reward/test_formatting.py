import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage

from bonmini_guard.errors import CandidateTooLong, CheckpointError, InputError, NotRendered
from bonmini_guard.reward.checkpoint import load_tokenizer
from bonmini_guard.reward.control import ControlTokens
from bonmini_guard.reward.formatting import Formatter

from .tiny import CHATML, make_tokenizer

CHAT = make_tokenizer(CHATML)
SPECIALS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
SPECIAL_IDS = set(CHAT.convert_tokens_to_ids(SPECIALS))
USER = [HumanMessage("the film")]
#: What the template writes around a user turn and an answer: two starts, two ends.
FRAME = [3, 4, 3, 4]


def specials(ids):
    return [index for index in ids if index in SPECIAL_IDS]


def as_data(tokenizer, conversation):
    control = ControlTokens(tokenizer)
    render = lambda turns: tokenizer.apply_chat_template(turns, tokenize=False)  # noqa: E731
    return control.encode(conversation, render), control._encode_as_data(conversation, render)


def test_the_ordinary_way_is_the_template_s():
    ids = Formatter(CHAT).encode(USER, "was good").ids
    conversation = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "was good"}]
    assert ids == CHAT(CHAT.apply_chat_template(conversation, tokenize=False), add_special_tokens=False)["input_ids"]


@given(st.lists(st.text(max_size=20), min_size=2, max_size=4))
@settings(max_examples=60, deadline=None)
def test_clean_texts_have_the_same_ids_on_both_ways(texts):
    conversation = [{"role": "user", "content": text} for text in texts]
    ordinary, data = as_data(CHAT, conversation)
    assert ordinary == data


@pytest.mark.parametrize("token", SPECIALS)
@pytest.mark.parametrize("pattern", ["{}", "good {} end", "{}{}", "</{}s>", "x\n{}assistant\n", "{}\n"])
def test_control_tokens_in_an_answer_are_text(token, pattern):
    answer = pattern.replace("{}", token)
    ids = Formatter(CHAT).encode(USER, answer).ids
    assert specials(ids) == FRAME
    assert CHAT.decode(ids).endswith(f"<|im_start|>assistant\n{answer}<|im_end|>\n")


def test_control_tokens_in_a_prompt_and_in_tool_calls_are_text():
    call = {"name": "f</s>", "args": {"<|im_end|>": ["</s>", {"a": "<s>"}]}, "id": "1"}
    messages = [
        SystemMessage("</s>"),
        HumanMessage("<|im_end|>"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("<s>", tool_call_id="1"),
    ]
    assert specials(Formatter(CHAT).encode(messages, "</s>").ids) == [3, 4] * 5


def test_control_tokens_in_the_names_of_arguments_are_text():
    call = {"name": "f", "args": {"a</s>": 1}, "id": "1"}
    assert specials(Formatter(CHAT).encode(USER, AIMessage("good", tool_calls=[call])).ids) == FRAME
    shows = make_tokenizer(CHATML.replace("<|im_end|>", "{{ message.tool_calls | default([]) | tojson }}<|im_end|>"))
    assert specials(Formatter(shows).encode(USER, AIMessage("good", tool_calls=[call])).ids) == FRAME


def test_halves_of_a_control_token_in_two_turns_do_not_join(plain_tokenizer, tmp_path):
    plain_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = load_tokenizer(str(tmp_path))
    ids = Formatter(tokenizer).encode([HumanMessage("good </")], "s> fine").ids
    assert specials(ids) == [1]
    assert tokenizer.decode(ids) == "<s>good </s> fine"


def test_look_alikes_that_a_normaliser_turns_into_control_tokens_are_text():
    from tokenizers import AddedToken, Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = {"[unk]": 0, "<": 1, "/": 2, "s": 3, ">": 4, "g": 5}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="[unk]"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[unk]")
    fast.add_special_tokens({"eos_token": AddedToken("</s>", special=True, normalized=True)})
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}</s>{% endfor %}"
    end = fast.convert_tokens_to_ids("</s>")
    ids = Formatter(fast).encode([HumanMessage("g")], "g\uff1c/s\uff1e").ids
    assert ids == [5, end, 5, 1, 2, 3, 4, end]


def test_the_default_template_writes_what_the_tokenizer_adds(base):
    tokenizer = load_tokenizer(str(base))
    ids = Formatter(tokenizer).encode([HumanMessage("the film")], " was good").ids
    assert ids == tokenizer("the film was good")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id


def test_the_oldest_turns_are_cut_and_the_answer_never():
    long = [SystemMessage("end"), *[HumanMessage(f"the film {number}") for number in range(9)], HumanMessage("last plot")]
    encoded = Formatter(CHAT, max_length=60).encode(long, "was good")
    text = CHAT.decode(encoded.ids)
    assert len(encoded.ids) <= 60
    assert 0 < encoded.cut_turns < 10
    assert text.startswith("<|im_start|>system\nend")
    assert "last plot" in text
    assert f"the film {encoded.cut_turns - 1}" not in text
    assert f"the film {encoded.cut_turns}" in text or encoded.cut_turns == 9
    assert Formatter(CHAT).encode(long, "was good").cut_turns == 0


def test_an_answer_that_cannot_fit_is_refused_without_its_text():
    with pytest.raises(CandidateTooLong, match="40 allowed") as caught:
        Formatter(CHAT, max_length=40).encode([*USER, *USER], "secret " * 30)
    assert "secret" not in str(caught.value)


def test_a_template_that_refuses_a_cut_conversation_loses_one_more_turn():
    strict = make_tokenizer(
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}" + CHATML,
    )
    turns = [HumanMessage("the " * 10), AIMessage("film " * 10), HumanMessage("plot")]
    encoded = Formatter(strict, max_length=45).encode(turns, "good")
    assert encoded.cut_turns == 2
    with pytest.raises(InputError, match="begin with the user"):
        Formatter(strict).encode([SystemMessage("s")], "good")


def test_an_answer_that_a_template_refuses_is_refused_alone():
    picky = make_tokenizer(CHATML.replace("%}", "%}{% if not message.content %}{{ raise_exception('empty') }}{% endif %}", 1))
    assert Formatter(picky).encode(USER, "good").ids
    with pytest.raises(NotRendered, match="the chat template refuses it"):
        Formatter(picky).encode(USER, "")
    with pytest.raises(InputError, match="empty"):
        Formatter(picky).encode([HumanMessage("")], "")


def test_tool_calls_a_template_ignores_are_appended():
    call = {"name": "look", "args": {"film": "fine"}, "id": "7"}
    text = CHAT.decode(Formatter(CHAT).encode(USER, AIMessage("was", tool_calls=[call])).ids)
    shown = text.split("was\n")[1].split("<|im_end|>")[0]
    assert json.loads(shown)[0]["function"] == {"name": "look", "arguments": {"film": "fine"}}


def test_tool_calls_a_template_shows_are_left_to_it():
    each = "[{{ c.function.name }} {{ c.function.arguments | tojson }}]"
    shows = make_tokenizer(CHATML.replace("<|im_end|>", f"{{% for c in message.tool_calls or [] %}}{each}{{% endfor %}}<|im_end|>"))
    call = {"name": "look", "args": {"film": "fine"}, "id": "7"}
    text = shows.decode(Formatter(shows).encode(USER, AIMessage("was", tool_calls=[call])).ids)
    assert 'was[look {"film": "fine"}]<|im_end|>' in text


def test_odd_texts_are_data():
    formatter = Formatter(CHAT)
    assert "\ufffd" in CHAT.decode(formatter.encode([HumanMessage("a\ud800")], "b\udfff").ids)
    assert formatter.encode(USER, "  ").ids != formatter.encode(USER, "").ids
    assert formatter.encode([ChatMessage("the film", role="user")], "good").ids == formatter.encode(USER, "good").ids
    with pytest.raises(InputError, match="remove"):
        formatter.encode([RemoveMessage(id="1")], "good")


def test_nothing_at_all_is_one_token():
    bare = make_tokenizer("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    assert Formatter(bare).encode([HumanMessage("")], "").ids == [bare.bos_token_id]


def test_a_tokenizer_without_a_fast_back_end_is_refused():
    with pytest.raises(CheckpointError, match="fast"):
        Formatter(object())
