"""One message in every form: nothing that was said vanishes between one form and the next."""

from __future__ import annotations

import json

import pytest
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage, message_to_dict

from bonmini_guard.conversation import Turn, as_messages, as_turns
from bonmini_guard.errors import InputError

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
CALL = {"name": "look", "args": {"film": "fine", "n": 1}, "id": "c1"}
RICH = AIMessage(
    [{"type": "text", "text": "it was "}, {"type": "text", "text": "good"}, IMAGE],
    tool_calls=[CALL],
    invalid_tool_calls=[{"name": "broken", "args": "{", "id": "c2", "error": None}],
    additional_kwargs={"reasoning_content": "hmm", "refusal": "not that"},
)
CONVERSATION = [SystemMessage("be brief"), HumanMessage("the film", name="ann"), RICH, ToolMessage("seen", tool_call_id="c1")]


@pytest.mark.parametrize("message", CONVERSATION, ids=lambda message: message.type)
def test_a_turn_survives_every_way_there_and_back(message):
    turn = Turn.of(message)
    for back in (Turn.of(turn), Turn.of(turn.message()), Turn.of(json.loads(json.dumps(turn.openai())))):
        assert back == turn


def test_every_form_holds_all_of_it():
    turn = Turn.of(RICH)
    template, wire = turn.template(), turn.openai()
    assert template["content"] == "it was good\n[image_url]\nnot that"
    assert [call["function"]["arguments"] for call in template["tool_calls"]] == [CALL["args"], "{"]
    assert template["reasoning_content"] == wire["reasoning_content"] == "hmm"
    assert [json.dumps(part) for part in wire["content"]][2] == json.dumps(IMAGE)
    assert [call["function"]["arguments"] for call in wire["tool_calls"]] == ['{"film": "fine", "n": 1}', "{"]
    assert wire["refusal"] == "not that"
    assert turn.plain(thoughts=True).splitlines() == [
        "[thinks: hmm]",
        "it was good",
        "[image_url]",
        "not that",
        '[calls look {"film": "fine", "n": 1}]',
        "[calls broken {]",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"content": "it was good"},
        {"tool_calls": []},
        {"tool_calls": [{**CALL, "args": {}}]},
        {"invalid_tool_calls": []},
        {"additional_kwargs": {"reasoning_content": "hmm"}},
        {"additional_kwargs": {"refusal": "not that"}},
    ],
)
def test_a_digest_changes_with_each_part(change):
    assert Turn.of(RICH.model_copy(update=change)).digest() != Turn.of(RICH).digest()


def test_ids_and_names_are_not_in_a_digest_and_a_text_cannot_spell_a_call():
    other = RICH.model_copy(update={"id": "9", "name": "x", "tool_calls": [{**CALL, "id": "9", "args": {"n": 1, "film": "fine"}}]})
    assert Turn.of(other).digest() == Turn.of(RICH).digest()
    called = Turn.of(AIMessage("", tool_calls=[CALL]))
    assert Turn.of(AIMessage(json.dumps(["", [], [["look", CALL["args"]]], "", ""]))).digest() != called.digest()


@pytest.mark.parametrize(
    ("block", "thought"),
    [
        ({"type": "thinking", "thinking": "hmm", "signature": "s"}, "hmm"),
        ({"type": "reasoning", "reasoning": "hmm"}, "hmm"),
        ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "hmm"}]}, "hmm"),
        ({"type": "reasoning_content", "reasoning_content": {"text": "hmm", "signature": "s"}}, "hmm"),
        ({"type": "redacted_thinking", "data": "s"}, ""),
    ],
)
def test_thoughts_of_every_maker(block, thought):
    turn = Turn.of(AIMessage([block, {"type": "text", "text": "good"}]))
    assert (turn.reasoning, turn.text, turn.parts) == (thought, "good", ())


def test_a_drawn_message_is_never_refused_for_its_calls():
    broken = AIMessage("x", invalid_tool_calls=[{"name": None, "args": None, "id": None, "error": None}])
    turn = Turn.of(broken)
    assert turn.digest() != Turn.of(AIMessage("x")).digest()
    assert turn.message().invalid_tool_calls[0]["args"] == ""


def test_calls_in_the_content_are_calls_once():
    block = {"type": "tool_use", "id": "c1", "name": "look", "input": CALL["args"]}
    said = {"role": "assistant", "content": [{"type": "text", "text": "x"}, block]}
    turn = Turn.of(said)
    assert turn == Turn.of(AIMessage("x", tool_calls=[CALL]))
    assert Turn.of(AIMessage([{"type": "text", "text": "x"}, block], tool_calls=[CALL])) == turn


def test_a_call_of_the_responses_api_is_known_by_its_call_id_and_calls_without_ids_by_what_they_say():
    block = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": json.dumps(CALL["args"])}
    assert Turn.of(AIMessage([block], tool_calls=[CALL])).calls == Turn.of(AIMessage("", tool_calls=[CALL])).calls
    calls = [{**CALL, "id": None, "args": {"n": number}} for number in (1, 2)]
    blocks = [{"type": "tool_use", "name": "look", "input": call["args"]} for call in calls]
    assert Turn.of(AIMessage(blocks, tool_calls=calls)).calls == Turn.of(AIMessage("", tool_calls=calls)).calls


def test_a_function_call_of_the_old_form_is_a_call():
    old = {"name": "look", "arguments": json.dumps(CALL["args"])}
    for said in (
        {"role": "assistant", "content": None, "function_call": old},
        AIMessage("", additional_kwargs={"function_call": old}),
    ):
        assert Turn.of(said).calls == Turn.of(AIMessage("", tool_calls=[{**CALL, "id": None}])).calls
    assert Turn.of({"role": "assistant", "content": "x", "function_call": None}).is_plain


@pytest.mark.parametrize("kind", ["input_text", "output_text"])
def test_texts_of_the_responses_api_are_texts(kind):
    assert Turn.of({"role": "user", "content": [{"type": kind, "text": "hi", "annotations": []}]}) == Turn("user", "hi")
    both = Turn.of(HumanMessage([{"type": kind, "text": "hi"}, IMAGE]))
    assert both.openai()["content"] == [{"type": "text", "text": "hi"}, IMAGE]


def test_a_block_that_says_what_it_is_by_its_key_alone_is_a_text():
    assert Turn.of({"role": "user", "content": [{"text": "hi"}]}) == Turn("user", "hi")
    (message,) = as_messages([{"role": "user", "content": [{"text": "hi"}]}])
    assert Turn.of(message) == Turn("user", "hi")


def test_what_tools_and_data_sets_write():
    turns = as_turns([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, ("developer", "c"), "d"])
    assert [(turn.role, turn.text) for turn in turns] == [("user", "a"), ("assistant", "b"), ("developer", "c"), ("user", "d")]
    assert turns[2].message().additional_kwargs == {"__openai_role__": "developer"}
    assert Turn.of(turns[2].message()).openai()["role"] == "developer"
    assert turns[2].template()["role"] == "system"
    assert Turn.of(ChatMessage("x", role="critic")).message() == ChatMessage("x", role="critic")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        [],
        3,
        None,
        [""],
        [3],
        [{"role": "banana", "content": "x"}],
        [{"role": [], "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [5]}],
        [{"role": "user", "content": "x", "tool_calls": "no"}],
        [{"role": "assistant", "tool_calls": [{"odd": 1}]}],
        [{"role": "assistant", "content": "", "tool_calls": [3]}],
        [{"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": "search", "arguments": {"q": 1}}]}],
    ],
)
def test_what_is_no_conversation_is_refused_with_a_cure(bad):
    with pytest.raises(InputError):
        as_turns(bad)


def test_messages_of_langchain_stay_as_they_are():
    assert as_messages(CONVERSATION)[2] is RICH


MARK = {"cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    "message",
    [
        HumanMessage([{"type": "text", "text": "long", **MARK}]),
        SystemMessage([{"type": "text", "text": "long", **MARK}]),
        AIMessage([{"type": "text", "text": "long", **MARK}]),
        ToolMessage([{"type": "text", "text": "long", **MARK}], tool_call_id="c"),
        HumanMessage([{"type": "text", "text": "a"}, {"type": "text", "text": "long", **MARK}]),
        HumanMessage([{"type": "image_url", "image_url": {"url": "http://x/y.png"}, **MARK}]),
    ],
)
def test_markers_for_the_servers_cache_survive(message):
    wire = Turn.of(message).openai()
    assert wire["content"][-1]["cache_control"] == MARK["cache_control"]
    assert Turn.of(wire).openai() == wire
    assert Turn.of(message).message().content[-1]["cache_control"] == MARK["cache_control"]
    assert Turn.of(message).shown in ("long", "along", "[image_url]")


@pytest.mark.parametrize("arguments", ["{bad", "", "[1]"])
def test_a_history_with_calls_that_are_no_json_goes_on_as_it_is(arguments):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    history = [("user", "q"), {"role": "assistant", "content": None, "tool_calls": [call]}, ToolMessage("r", tool_call_id="c1")]
    messages = as_messages(history)
    assert [message.type for message in messages] == ["human", "ai", "tool"]
    assert Turn.of(messages[1]).openai()["tool_calls"] == [call]
    # One blank message among them is no empty prompt, and one that cannot be read is told.
    assert len(as_messages([HumanMessage(""), *history])) == len(history) + 1
    with pytest.raises(InputError, match="cannot be read"):
        as_messages([5, *history])
    with pytest.raises(InputError, match="tool_calls is no list"):
        as_messages([{"role": "assistant", "content": "a", "tool_calls": "f"}])


@pytest.mark.parametrize("message", [HumanMessage("q"), AIMessage("", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "c"}])])
def test_what_langchain_dumps_is_read_as_it_was(message):
    dumped = message_to_dict(message)
    assert Turn.of(dumped).openai() == Turn.of(message).openai()
    assert Turn.of(dumpd(message)).openai() == Turn.of(message).openai()
    broken = {"type": "ai", "data": {"content": "", "tool_calls": ["f"]}}
    for odd in ({"type": "nobody", "data": {}}, broken, {"lc": 1, "type": "not_implemented", "id": ["x"]}):
        with pytest.raises(InputError, match="type, data"):
            Turn.of(odd)


@pytest.mark.parametrize("kind", ["refusal", "reasoning"])
def test_what_is_said_beside_the_content_and_among_its_parts_is_all_read(kind):
    beside = {"refusal": "refusal", "reasoning": "reasoning_content"}[kind]
    both = AIMessage([{"type": kind, kind: "one"}], additional_kwargs={beside: "another"})
    same = AIMessage([{"type": kind, kind: "one"}], additional_kwargs={beside: "one"})
    assert getattr(Turn.of(both), kind) == "another\none"
    assert getattr(Turn.of(same), kind) == "one"


def test_a_call_among_the_parts_that_says_otherwise_than_its_namesake_is_a_call_of_its_own():
    call = {"name": "pay", "args": {"sum": 1}, "id": "1"}

    def calls(given):
        return [each.args for each in Turn.of(AIMessage([{"type": "tool_use", "id": "1", **given}], tool_calls=[call])).calls]

    assert calls({"name": "pay", "input": {"sum": 9}}) == [{"sum": 1}, {"sum": 9}]
    assert calls({"name": "pay", "input": {"sum": 1}}) == calls({"name": "pay", "input": {}}) == [{"sum": 1}]


def test_what_a_turn_lacks_is_named():
    with pytest.raises(InputError, match="one has no 'tool_call_id'"):
        as_messages([{"role": "tool", "content": "42"}])
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(InputError, match="one has no 'tool_call_id'"):
        as_messages(["q", {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "42"}])


@pytest.mark.parametrize("content", ["rain", [{"type": "text", "text": "rain"}]])
def test_a_tools_result_as_anthropic_writes_it_is_a_tools_turn(content):
    result = {"type": "tool_result", "tool_use_id": "c1", "content": content}
    for turn in (Turn.of({"role": "user", "content": [result]}), Turn.of(HumanMessage([result]))):
        assert turn.openai() == {"role": "tool", "content": "rain", "tool_call_id": "c1"}
        assert turn.template() == turn.openai()
        assert not turn.kinds
    assert Turn.of({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1"}]}).answers == "c1"
    assert Turn.of({"role": "user", "content": [result | {"content": {"rain": 1}}]}).kinds == {"tool_result"}


def test_a_part_that_openais_form_has_no_words_for_stays_as_it_is():
    for result in ("", "7", "42"):
        part = {"type": "tool_result", "tool_use_id": "c1", "content": result}
        assert Turn.of({"role": "assistant", "content": ["So: ", part]}).openai()["content"][1] == part


@pytest.mark.parametrize("content", ["rain", [{"type": "text", "text": "rain"}]])
def test_what_several_tools_gave_is_shown(content):
    result, image = {"type": "tool_result", "tool_use_id": "c1", "content": content}, {"type": "image", "url": "http://x/y.png"}
    for turn in (
        Turn.of({"role": "user", "content": [result, result, "Go on."]}),
        Turn.of(HumanMessage([result, result, "Go on."])),
    ):
        assert (turn.shown, turn.kinds) == ("rain\nrain\nGo on.", set())
    turn = Turn.of({"role": "user", "content": [result, result | {"content": [image]}]})
    assert (turn.shown, turn.kinds) == ("rain\n\n[image]", {"image"})
