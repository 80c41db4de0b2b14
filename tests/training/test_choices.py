import gzip
import json

import pyarrow as arrow
import pytest
from langchain_core.messages import HumanMessage
from pyarrow import parquet

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError
from bonmini_guard.training.choices import ChoiceRow, read_choices

GOOD = {"prompt": "p", "responses": ["a", "b"], "choice": 0}

MALFORMED = {
    "not json": "{",
    "deep": "[" * 100_000,
    "not an object": "[1]",
    "no prompt": {"responses": ["a"], "choice": 0},
    "empty prompt": GOOD | {"prompt": ""},
    "empty conversation": GOOD | {"prompt": []},
    "prompt is a number": GOOD | {"prompt": 3},
    "unknown role": GOOD | {"prompt": [{"role": "robot", "content": "x"}]},
    "role is a list": GOOD | {"prompt": [{"role": [], "content": "x"}]},
    "content is a number": GOOD | {"prompt": [{"role": "user", "content": 1}]},
    "turn is a text": GOOD | {"prompt": ["x"]},
    "no responses": GOOD | {"responses": []},
    "responses is a text": GOOD | {"responses": "ab"},
    "empty response": GOOD | {"responses": ["a", ""]},
    "response is null": GOOD | {"responses": ["a", None]},
    "no choice": {"prompt": "p", "responses": ["a"]},
    "choice is a word": GOOD | {"choice": "neither"},
    "choice is a bool": GOOD | {"choice": True},
    "choice is a float": GOOD | {"choice": 0.0},
    "choice too large": GOOD | {"choice": 2},
    "choice negative": GOOD | {"choice": -1},
    "choice is huge": GOOD | {"choice": 10**60},
    "count is zero": GOOD | {"count": 0},
    "count is a bool": GOOD | {"count": True},
}


def as_line(value):
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_row_is_named_with_its_line(tmp_path, value):
    path = tmp_path / "choices.jsonl"
    path.write_text(as_line(GOOD) + "\n\n" + as_line(value) + "\n")
    with pytest.raises(InputError) as caught:
        read_choices(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")
    assert ";" in message
    assert "\n" not in message
    assert len(message) < 300


def test_bytes_that_are_no_utf8_are_named_with_their_line(tmp_path):
    path = tmp_path / "choices.jsonl"
    path.write_bytes(b'{"prompt": "\xff\xfe"}\n')
    with pytest.raises(InputError, match=":1: not JSON"):
        read_choices(path)


def test_a_missing_an_empty_and_a_broken_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_choices(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no rows"):
        read_choices(tmp_path / "empty.jsonl")
    (tmp_path / "broken.jsonl.gz").write_bytes(b"\x1f\x8b" + b"x" * 100)
    with pytest.raises(InputError, match="the packed data are damaged"):
        read_choices(tmp_path / "broken.jsonl.gz")


def test_a_torn_last_line_is_told(tmp_path):
    (tmp_path / "torn.jsonl").write_text(json.dumps(GOOD) + '\n{"prompt": "p", "resp')
    with pytest.raises(InputError, match="the last line is cut off; write"):
        read_choices(tmp_path / "torn.jsonl")


def test_gzip_conversations_counts_and_unknown_keys(tmp_path):
    path = tmp_path / "choices.jsonl.gz"
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": ""}, {"role": "tool", "content": "t"}]
    rows = [GOOD | {"count": 3, "labeller": 7}, {"prompt": chat, "responses": [" "], "choice": "none"}]
    with gzip.open(path, "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    first, second = read_choices(path)
    assert (first.prompt, first.choice, first.count, first.target) == ((Turn("user", "p"),), 0, 3, 0)
    assert (second.choice, second.target, second.responses) == ("none", 1, (" ",))
    assert [turn.role for turn in second.prompt] == ["system", "user", "tool"]


def test_a_prompt_in_python_may_be_a_text_or_pairs():
    for prompt in ("Hi", [("user", "Hi")]):
        row = ChoiceRow(prompt, ("a",), 0)
        assert row.prompt == (Turn("user", "Hi"),)
        assert row.messages == [HumanMessage("Hi")]


def test_parquet_whose_column_of_choices_holds_texts(tmp_path):
    rows = [GOOD | {"choice": "1", "none_offered": None}, GOOD | {"choice": "none", "none_offered": True}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "choices.parquet")
    assert [row.choice for row in read_choices(tmp_path / "choices.parquet")] == [1, "none"]


def test_parquet_whose_counts_have_gaps_and_are_floats_therefore(tmp_path):
    rows = [GOOD | {"count": 2.0}, GOOD | {"count": None}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "choices.parquet")
    assert [row.count for row in read_choices(tmp_path / "choices.parquet")] == [2, 1]


def test_equal_texts_are_kept_once(tmp_path):
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(GOOD | {"responses": ["long " * 50, "b"]}) + "\n" for _ in range(3)))
    one, *others = read_choices(path)
    assert all(row.prompt is one.prompt and row.responses is one.responses for row in others)
