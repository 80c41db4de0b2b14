"""Labelled data as people have them: public sets, exports of tools, odd records among good ones, any form of file."""

import csv
import json

import pyarrow as arrow
import pytest
from pyarrow import parquet

from bonmini_guard.cli import main
from bonmini_guard.conversation import Turn
from bonmini_guard.logs.odd import Odd
from bonmini_guard.training.choices import read_choices
from bonmini_guard.training.data import convert
from bonmini_guard.training.data.converters import Tally
from tests.junk import paths, with_junk

USER = [{"role": "user", "content": "q"}]


def answered(text, parts=False):
    content = [{"type": "text", "text": text, "image": None, "mimeType": None}] if parts else text
    return [*USER, {"role": "assistant", "content": content}]


def good(number):
    return {"chosen": f"\n\nHuman: q{number}\n\nAssistant: yes", "rejected": f"\n\nHuman: q{number}\n\nAssistant: no"}


def task(value, kind="pairwise", cancelled=False):
    result = [{"type": kind, "from_name": "comparison", "value": value}]
    data = {"prompt": "q", "answer1": "yes", "answer2": "no"}
    return {"id": 1, "data": data, "annotations": [{"was_cancelled": cancelled, "result": result}]}


SAFE = {
    "prompt": "q",
    "response_0": "yes",
    "response_1": "no",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "better_response_id": 1,
    "safer_response_id": 0,
}
HELPFUL = {"domain": "general", "context": USER, "response1": "yes", "response2": "no", "individual_preference": [{"score": 1}]}
ARENA = {"question_id": "1", "model_a": "x", "model_b": "y", "turn": 1, "language": "English"}
ARENA |= {"conversation_a": answered("yes"), "conversation_b": answered("no")}
VOTE = {"id": 7, "prompt": '["q"]', "response_a": '["yes"]', "response_b": '["no"]'}
NECTAR = {
    "prompt": "\n\nHuman: q\n\nAssistant: ",
    "answers": [{"answer": "yes", "rank": 2.0}, {"answer": "no", "rank": 1.0}, {"answer": "so", "rank": 3.0}],
}
BOTH = {"conversation_a": answered("yes", True), "conversation_b": answered("no", True)}
PREFERRED = {"preferred_output": answered("yes")[1:], "non_preferred_output": answered("no")[1:]}
FROM_0 = {"prompt": "q", "answers": [{"answer": text, "rank": rank} for text, rank in (("yes", 1), ("no", 0), ("so", 2))]}
SHP = {"history": "q", "human_ref_A": "yes", "human_ref_B": "no", "score_A": 9}
SUMMARIES = {"info": {"post": "q", "title": None}, "summaries": [{"text": "yes"}, {"text": "no"}], "worker": "w"}
WEBGPT = {"question": {"full_text": "q"}, "answer_0": "yes", "answer_1": "no", "score_0": 0.5, "score_1": -0.5}
HELPFUL_2 = {"prompt": "q", "response_1": "yes", "response_2": "no", "preference_strength": 2}

#: Choice rows as (responses, choice, none offered): of two answers, of which one is better, or neither will do; and of one answer.
FIRST, SECOND, NEITHER = ([(("yes", "no"), choice, choice == "none")] for choice in (0, 1, "none"))
CHOSEN, SECOND_OF_3 = [(("yes", "no"), 1, True)], [(("yes", "no", "so"), 1, False)]
TAKEN, REFUSED = ([(("yes",), choice, True)] for choice in (0, "none"))

#: Set: --from, record, choice rows.
SETS = {
    "HH-RLHF": ("pairs", good(""), FIRST),
    "UltraFeedback, binarized": ("pairs", {"chosen": answered("yes"), "rejected": answered("no")}, FIRST),
    "RewardBench": ("pairs", {"prompt": "q", "chosen": "yes", "rejected": "no", "subset": "x"}, FIRST),
    "RewardBench 2": ("pairs", {"prompt": "q", "chosen": ["yes"], "rejected": ["no", "so"]}, [(("yes", "no", "so"), 0, False)]),
    "RewardBench 2, ties": (
        "pairs",
        {"prompt": "q", "chosen": ["yes", "aye"], "rejected": ["no", "so"]},
        [(("yes", "no", "so"), 0, False), (("aye", "no", "so"), 0, False)],
    ),
    "OpenAI's preference data": ("pairs", {"input": {"messages": USER, "tools": []}, **PREFERRED}, FIRST),
    "arena": ("preferences", ARENA | {"winner": "model_b"}, CHOSEN),
    "arena, both bad": ("preferences", ARENA | {"winner": "tie (bothbad)"}, NEITHER),
    "arena, parts": ("preferences", ARENA | {"winner": "both_bad", **BOTH}, NEITHER),
    "arena, tie": ("preferences", ARENA | {"winner": "tie"}, []),
    "arena, apart": ("preferences", ARENA | {"winner": "model_a", "conversation_b": [*answered("no"), *answered("no")]}, []),
    "arena, votes": ("preferences", VOTE | {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, CHOSEN),
    "arena, votes tied": ("preferences", VOTE | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, []),
    "HelpSteer3": ("preferences", HELPFUL | {"overall_preference": -3}, FIRST),
    "HelpSteer3, the second": ("preferences", HELPFUL | {"overall_preference": 1}, SECOND),
    "HelpSteer3, alike": ("preferences", HELPFUL | {"overall_preference": 0}, []),
    "HelpSteer2": ("preferences", HELPFUL_2, SECOND),
    "PKU-SafeRLHF": ("preferences", SAFE, SECOND),
    "PKU-SafeRLHF, safe": ("accept-reject", SAFE, [*TAKEN, (("no",), "none", True)]),
    "SHP": ("preferences", SHP | {"labels": 1}, FIRST),
    "SHP, the second": ("pairs", SHP | {"labels": 0}, SECOND),
    "Nectar": ("ranks", NECTAR, SECOND_OF_3),
    "Nectar as pairs": ("pairs", NECTAR, SECOND_OF_3),
    "ranks from 0": ("ranks", FROM_0, SECOND_OF_3),
    "summaries": ("preferences", SUMMARIES | {"choice": 1}, SECOND),
    "WebGPT": ("preferences", WEBGPT, FIRST),
    "Label Studio, pairwise": ("label-studio", task({"selected": "right"}), SECOND),
    "Label Studio, words": ("label-studio", task({"choices": ["Neither"]}, "choices"), NEITHER),
    "Label Studio, cancelled": ("label-studio", task({"selected": "left"}, cancelled=True), []),
    "TRL's KTO, turns": ("accept-reject", {"prompt": USER, "completion": answered("yes")[1:], "label": False}, REFUSED),
    "TRL's KTO": ("accept-reject", {"prompt": "q", "completion": "yes", "label": True}, TAKEN),
    "OpenAI's feedback": ("accept-reject", {"messages": answered("yes"), "feedback": "thumbs_up"}, TAKEN),
    "feedback in words": ("accept-reject", {"input": "q", "output": "yes", "rating": "Thumbs down"}, REFUSED),
}


@pytest.mark.parametrize(("source", "record", "expected"), SETS.values(), ids=SETS)
def test_public_sets_and_exports_are_read(tmp_path, capsys, converted_file, source, record, expected):
    code = converted_file(source, [record])
    if not expected:
        assert code == 2
        assert "no choice rows in 1 records" in capsys.readouterr().err
        return
    assert code == 0, capsys.readouterr().err
    rows = read_choices(tmp_path / "out.jsonl")
    assert [(row.responses, row.choice, row.none_offered) for row in rows] == expected
    for row in rows:
        assert row.prompt == (Turn("user", "q"),) or "q" in row.prompt[0].text


def test_ranks_make_every_pair_if_asked(tmp_path, converted_file):
    assert converted_file("ranks", [NECTAR], "--rows", "pairs") == 0
    found = [(row.responses, row.choice) for row in read_choices(tmp_path / "out.jsonl")]
    assert found == [(("yes", "no"), 1), (("yes", "so"), 0), (("no", "so"), 0)]


ODD = {
    "an empty answer": {"chosen": "\n\nHuman: q\n\nAssistant: yes", "rejected": "\n\nHuman: q\n\nAssistant:"},
    "one that ends with the human": {
        "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: b",
        "rejected": "\n\nHuman: q\n\nAssistant: n",
    },
    "another conversation": {"chosen": "\n\nHuman: q\n\nAssistant: yes", "rejected": "\n\nHuman: r\n\nAssistant: no"},
    "no such key": {"prompt": "q", "chosen": "yes"},
    "a turn of somebody": {"chosen": [{"role": "wizard", "content": "x"}], "rejected": answered("no")},
}


@pytest.mark.parametrize(
    "bad", [*map(json.dumps, ODD.values()), '{"chosen": ', "[1]", '"text"'], ids=[*ODD, "cut", "array", "text"]
)
def test_odd_records_are_left_out_counted_and_named(tmp_path, capsys, bad):
    lines = [json.dumps(good(number)) for number in range(38)]
    lines[20:20], lines[30:30] = [bad], [bad]
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("\n".join(lines) + "\n")
    assert main(["convert", str(path), "--from", "pairs", "-o", str(out)]) == 0
    assert len(read_choices(out)) == 38
    assert f"left out: 2 odd, the first: {path}:21: " in capsys.readouterr().err
    out.unlink()
    assert main(["convert", str(path), "--from", "pairs", "-o", str(out), "--max-bad", "0.04"]) == 2
    error = capsys.readouterr().err
    assert "(2 of 40 records are odd, more than --max-bad 0.04)" in error
    assert error.count("\n") == 1
    assert main(["convert", str(path), "--from", "pairs", "-o", str(out), "--max-bad", "0"]) == 2
    assert f"{path}:21: " in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [path]


def test_an_answer_without_a_rating_costs_its_record_nothing_else(tmp_path, capsys):
    def rated(number):
        ratings = ["5", "N/A" if number == 7 else "3", "1"]
        answers = [
            {"response": f"{name}{number}", "annotations": {"honesty": {"Rating": said}}}
            for name, said in zip("abc", ratings, strict=True)
        ]
        return {"instruction": f"q{number}", "completions": answers}

    path, out = tmp_path / "in.json", tmp_path / "out.jsonl"
    path.write_text(json.dumps([rated(number) for number in range(40)], indent=1))
    arguments = ["convert", str(path), "--from", "ratings", "--cut", "4", "--rating", "annotations.honesty.Rating", "-o", str(out)]
    assert main(arguments) == 0
    assert len(read_choices(out)) == 119
    assert "left out: 1 odd" in capsys.readouterr().err
    assert main([*arguments[:-4], "--rating", "annotations.nothing", "-o", str(out)]) == 2
    assert "(40 of 40 records are odd" in capsys.readouterr().err


FORMS = {
    "lines.jsonl": lambda rows, path: path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8-sig"),
    "array.json": lambda rows, path: path.write_text(json.dumps(rows), encoding="utf-8-sig"),
    "pretty.json": lambda rows, path: path.write_text(json.dumps(rows, indent=2)),
    "one after the other.json": lambda rows, path: path.write_text("\n".join(json.dumps(row, indent=2) for row in rows)),
    "table.csv": lambda rows, path: as_csv(rows, path, ","),
    "table.tsv": lambda rows, path: as_csv(rows, path, "\t"),
    "table.parquet": lambda rows, path: parquet.write_table(arrow.Table.from_pylist(rows), path),
}


def as_csv(rows, path, delimiter):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(
            {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()} for row in rows
        )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_says_the_same(tmp_path, form):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"q {n}"}],
            "completion": 'one, "two"\nthree; é' + "x" * 200_000 * (n == 1),
            "label": n % 2 == 0,
        }
        for n in range(4)
    ]
    FORMS[form](rows, tmp_path / form)
    out = tmp_path / "out.jsonl"
    assert main(["convert", str(tmp_path / form), "--from", "accept-reject", "-o", str(out)]) == 0
    read = read_choices(out)
    assert [row.choice for row in read] == [0, "none", 0, "none"]
    assert [row.prompt[0].text for row in read] == [f"q {n}" for n in range(4)]
    assert [row.responses[0] for row in read] == [row["completion"] for row in rows]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[{}, ", "not JSON"),
        (b"just words\n", "neither JSON nor a header of columns"),
        ("prompt,answer\nq,é\n".encode("latin-1"), "neither JSON nor UTF-8"),
        (b"[" * 100_000, "lie too deep"),
        (b"", "no choice rows in 0 records"),
    ],
)
def test_what_is_none_of_the_forms_is_told_in_one_line(tmp_path, capsys, data, said):
    path = tmp_path / "in"
    path.write_bytes(data)
    assert main(["convert", str(path), "--from", "accept-reject", "-o", str(tmp_path / "out.jsonl")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_guard_s_traces_of_images_and_developers_are_read(tmp_path, converted_file):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    prompt = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "what?"}, image]}]
    row = {"id": "1", "decision": "accepted", "prompt": prompt, "candidates": [{"text": "a cat", "acceptable": True}]}
    assert converted_file("log", [row]) == 0
    [read] = read_choices(tmp_path / "out.jsonl")
    assert [turn.role for turn in read.prompt] == ["developer", "user"]
    assert read.prompt[1].parts[1]["type"] == "image_url"


def test_training_rows_bear_a_share_of_odd_ones(tmp_path, capsys):
    path = tmp_path / "choices.jsonl"
    rows = [json.dumps({"prompt": f"p{n}", "responses": ["a", "b"], "choice": 0}) for n in range(30)]
    path.write_text("\n".join([*rows, '{"prompt": "p", "responses": ["a"], "choice": 4}', "", ""]))
    arguments = ["train", str(path), "--base", str(tmp_path / "nothing"), "-o", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"left out: 1 odd, the first: {path}:31: choice 4 is out of range" in error
    assert main([*arguments, "--max-bad", "0.01"]) == 2
    error = capsys.readouterr().err
    assert "(1 of 31 records are odd, more than --max-bad 0.01)" in error
    assert error.count("\n") == 1
    assert main([*arguments, "--max-bad", "2"]) == 2
    assert "--max-bad is 2.0: use a share" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


JUNK = (None, 3, "x", "", [], {}, [1], [[]], {"a": 1}, True, ["x"], [None])


@pytest.mark.parametrize(("source", "record"), [case[:2] for case in SETS.values()], ids=SETS)
def test_nothing_that_a_record_holds_ends_in_a_traceback(source, record):
    for path in paths(record):
        for junk in JUNK if path else ():
            list(convert([("f:1", with_junk(record, path, junk))], source, tally=Tally(odd=Odd(1.0))))
