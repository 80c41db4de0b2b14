"""Converters: what each shape of label says about zero, and what is refused."""

import gzip
import json

import pytest

from bonmini_guard.cli import main
from bonmini_guard.conversation import Turn
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.training.choices import ChoiceRow, as_record, choice_row, read_choices
from bonmini_guard.training.data import ConversionOptions, convert
from bonmini_guard.training.data.converters import Tally


def converted(record, source, tally=None, **options):
    rows = convert([("f:1", record)], source, ConversionOptions(**options), tally)
    return [(row.responses, row.choice, row.none_offered) for row in rows]


AB = {"prompt": "p", "response_a": "x", "response_b": "y"}


@pytest.mark.parametrize(
    ("label", "choice"),
    [("A", 0), ("B", 1), ("neither", "none"), ("model_a", 0), ("tie (bothbad)", "none"), ("both_bad", "none"), ("Neither", "none")],
)
def test_a_b_or_neither(label, choice):
    assert converted(AB | {"preference": label}, "preferences") == [(("x", "y"), choice, True)]


def test_a_tie_is_never_none():
    tally = Tally()
    assert converted(AB | {"winner": "tie"}, "preferences", tally) == []
    assert tally.left_out == {"ties": 1}
    winners = set()
    for number in range(40):
        [(_, choice, _)] = converted(AB | {"prompt": f"p{number}", "winner": "tie"}, "preferences", ties="winner")
        winners.add(choice)
    assert winners == {0, 1}
    ranks = [{"answer": text, "rank": rank} for text, rank in (("x", 2), ("y", 1), ("z", 1))]
    records = ({"prompt": f"p{number}", "answers": ranks} for number in range(40))
    assert {choice for one in records for _, choice, _ in converted(one, "ranks", ties="winner")} == {1, 2}
    # "both good" says that either would be taken, whatever --ties.
    assert converted(AB | {"winner": "both_good"}, "preferences")[0][1] in (0, 1)


def test_pairs_say_nothing_about_zero_unless_none_was_offered():
    pair = {"prompt": "p", "chosen": "x", "rejected": "y"}
    assert converted(pair, "pairs") == [(("x", "y"), 0, False)]
    assert converted(pair, "pairs", none_offered=True) == [(("x", "y"), 0, True)]
    assert converted(AB | {"winner": "a"}, "preferences", none_offered=False) == [(("x", "y"), 0, False)]
    assert converted(pair | {"rejected": "x"}, "pairs") == []


@pytest.mark.parametrize(
    ("source", "record", "responses", "choice"),
    [
        ("pairs", {"chosen": "x", "rejected": ["y", "y", "x", "z"]}, ("x", "y", "z"), 0),
        ("ranks", {"answers": [("y", 2), ("y", 3), ("x", 1), ("z", 4)]}, ("y", "x", "z"), 1),
        ("ranks", {"answers": [("y", 2), ("x", 1), ("x", 1)]}, ("y", "x"), 1),
    ],
)
def test_a_text_that_comes_twice_is_offered_once(source, record, responses, choice):
    if source == "ranks":
        record = {"answers": [{"answer": text, "rank": rank} for text, rank in record["answers"]]}
    assert converted({"prompt": "p", **record}, source) == [(responses, choice, False)]


def test_pairs_without_a_prompt_share_their_conversation():
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: "
    [row] = convert([("f:1", {"chosen": start + "x", "rejected": start + "y"})], "pairs")
    assert row.prompt == tuple(map(Turn.of, [("user", "hi"), ("assistant", "hello"), ("user", "and?")]))
    assert row.responses == ("x", "y")
    with pytest.raises(InputError, match="same conversation"):
        converted({"chosen": start + "x", "rejected": "\n\nHuman: ho\n\nAssistant: y"}, "pairs")
    with pytest.raises(InputError, match="no prompt"):
        converted({"chosen": "x", "rejected": "y"}, "pairs")


def test_turns_between_a_prompt_and_the_last_of_an_answer_belong_to_the_prompt():
    ask, more = {"role": "user", "content": "q"}, [{"role": "assistant", "content": "a"}, {"role": "user", "content": "and?"}]
    good, bad = ({"role": "assistant", "content": said} for said in "xy")
    whole = tuple(map(Turn.of, [ask, *more]))

    def prompts(record, source="pairs", **options):
        return [row.prompt for row in convert([("f:1", record)], source, ConversionOptions(**options))]

    # UltraFeedback's likes hold the conversation once more, some with its first or last text alone as prompt; TRL's go on from it.
    for prompt, before in (
        ("q", [ask, *more]),
        ("and?", [ask, *more]),
        ([ask], more),
        ([ask, *more], []),
        ([ask, *more], [more[-1]]),
    ):
        pair = {"prompt": prompt, "chosen": [*before, good], "rejected": [*before, bad]}
        assert prompts(pair) == [whole]
        assert prompts(pair | {"score_chosen": 3, "score_rejected": 1}, "ratings", cut=2) == [whole] * 2
        assert prompts({"prompt": prompt, "completion": pair["chosen"], "label": True}, "accept-reject") == [whole]
    assert prompts({"prompt": "q", "chosen": [ask, good], "rejected": [bad]}) == [(Turn("user", "q"),)]
    system = {"role": "system", "content": "s"}
    assert prompts({"prompt": [system, ask], "chosen": [ask, good], "rejected": [bad]}) == [tuple(map(Turn.of, [system, ask]))]
    with pytest.raises(InputError, match="same conversation"):
        prompts({"prompt": "q", "chosen": [*more, good], "rejected": [bad]})


def test_the_input_beside_an_instruction_is_part_of_the_question():
    record = {"instruction": "Translate.", "input": "Hund", "chosen": "dog", "rejected": "cat"}
    assert [row.prompt[0].text for row in convert([("f:1", record)], "pairs")] == ["Translate.\nHund"]
    assert [row.prompt[0].text for row in convert([("f:1", record | {"input": ""})], "pairs")] == ["Translate."]


def test_a_system_text_beside_the_prompt_is_its_first_turn():
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "q"}
    good, bad = ({"role": "assistant", "content": said} for said in "xy")
    whole = (Turn("system", "s"), Turn("user", "q"))
    for source, record in (
        ("pairs", {"system": "s", "question": "q", "chosen": "x", "rejected": "y"}),  # Orca's pairs
        ("pairs", {"system": "s", "chosen": [user, good], "rejected": [user, bad]}),
        ("pairs", {"system": "s", "prompt": "?", "chosen": [user, good], "rejected": [user, bad]}),
        ("pairs", {"system": "other", "prompt": [system, user], "chosen": "x", "rejected": "y"}),
        ("accept-reject", {"system_prompt": "s", "messages": [user, good], "label": True}),
        ("preferences", {"system": "s", "prompt": "q", "response_a": "x", "response_b": "y", "preference": "A"}),
    ):
        assert [row.prompt for row in convert([("f:1", record)], source)] == [whole]
    for empty in ("", None, 5):
        [row] = convert([("f:1", {"system": empty, "prompt": "q", "completion": "x", "label": True})], "accept-reject")
        assert row.prompt == (Turn("user", "q"),)


def test_accept_reject():
    assert converted({"prompt": "p", "completion": "x", "label": True}, "accept-reject") == [(("x",), 0, True)]
    assert converted({"question": "p", "answer": "x", "acceptable": False}, "accept-reject") == [(("x",), "none", True)]
    with pytest.raises(InputError, match="f:1: no label"):
        converted({"prompt": "p", "completion": "x", "label": 1}, "accept-reject")


RATED = {
    "instruction": "p",
    "completions": [{"response": text, "overall_score": str(rate)} for text, rate in zip("wxyz", (9, 7, 7, 2), strict=True)],
}


def test_ratings_with_a_cut():
    assert [choice for _, choice, _ in converted(RATED, "ratings", cut=7)] == [0, 0, 0, "none"]
    assert converted(RATED, "ratings", cut=7, rows="choice") == [(("w", "x", "y", "z"), 0, True)]
    assert converted(RATED, "ratings", cut=10, rows="choice") == [(("w", "x", "y", "z"), "none", True)]
    pairs = {responses: choice for responses, choice, _ in converted(RATED, "ratings", cut=8, rows="pairs")}
    assert len(pairs) == 6
    assert pairs["w", "z"] == 0
    assert pairs["x", "y"] == pairs["y", "z"] == "none"


def test_ratings_of_one_answer_a_record_and_of_binarized_pairs():
    one = {"prompt": "p", "response": "x", "helpfulness": 3, "correctness": 1}
    assert converted(one, "ratings", cut=3) == [(("x",), 0, True)]
    assert converted(one, "ratings", cut=3, rating="correctness") == [(("x",), "none", True)]
    nested = {"prompt": "p", "response": "x", "annotations": {"honesty": {"Rating": "4"}}}
    assert converted(nested, "ratings", cut=4, rating="annotations.honesty.Rating")[0][1] == 0
    both = {"prompt": "p", "chosen": [{"content": "x"}], "rejected": [{"content": "y"}], "score_chosen": 8, "score_rejected": 4}
    assert converted(both, "ratings", cut=5, rows="choice") == [(("x", "y"), 0, True)]


@pytest.mark.parametrize(
    ("source", "key", "values", "options"),
    [
        ("ratings", "rating", (9, 2, 7, 3), {"cut": 5}),
        ("accept-reject", "label", (True, False, False, False), {}),
        ("log", "candidates", [[{"text": text, "acceptable": text == "w"}] for text in "wxyz"], {}),
    ],
)
def test_answers_that_come_one_a_record_belong_together_with_those_to_their_prompt(source, key, values, options):
    texts = zip("wxyz", values, ("p", "p", [{"role": "user", "content": "p"}], "q"), strict=True)
    records = [(f"f:{text}", {"prompt": prompt, "answer": text, key: value}) for text, value, prompt in texts]
    tally = Tally()

    def rows(kind):
        found = convert(records, source, ConversionOptions(**options, rows=kind), tally)
        return [(row.prompt[0].text, row.responses, row.choice) for row in found]

    assert rows("choice") == [("p", ("w", "x", "y"), 0), ("q", ("z",), "none")]
    third = 1 if source == "ratings" else "none"
    assert rows("pairs") == [("p", ("w", "x"), 0), ("p", ("w", "y"), 0), ("p", ("x", "y"), third)]
    assert tally.left_out == {"answers without another one to their prompt": 1}
    records[0][1]["prompt"] = ""
    with pytest.raises(InputError, match="f:w: "):
        rows("pairs")


def test_equally_good_answers_have_a_random_winner_so_that_easy_prompts_stay():
    rated = {"completions": [{"response": text, "rating": 1} for text in "xyz"]}
    winners = [converted(rated | {"prompt": f"p{n}"}, "ratings", cut=1, rows="choice")[0][1] for n in range(60)]
    assert set(winners) == {0, 1, 2}
    again = [converted(rated | {"prompt": f"p{n}"}, "ratings", cut=1, rows="choice")[0][1] for n in range(60)]
    assert winners == again


TRACE = {
    "id": "r",
    "prompt": [{"role": "user", "content": "p"}],
    "decision": "accepted",
    "candidates": [
        {"text": "x", "score": 1.5, "acceptable": True},
        {"text": "y", "score": -1.0, "acceptable": False},
        {"text": "z", "score": 0.5},
        {"text": "", "acceptable": False, "score": 0.1},
        {"text": None, "failed": True},
    ],
}


def test_guard_traces_give_their_labelled_candidates():
    tally = Tally()
    assert converted(TRACE, "log", tally) == [(("x",), 0, True), (("y",), "none", True)]
    assert tally.left_out == {"without a label": 1, "without a text": 1, "failed draws": 1}
    assert converted(TRACE, "log", rows="choice") == [(("x", "y"), 0, True)]
    # With a cut the score judges what nobody labelled.
    assert converted(TRACE, "log", cut=0.0)[2] == (("z",), 0, True)


BAD = {
    "unknown choice": ("preferences", AB | {"winner": "C"}, "unknown choice 'C'"),
    "a number as choice": ("preferences", AB | {"winner": 2}, "unknown choice '2'"),
    "no label": ("preferences", AB, "no label"),
    "three answers": ("preferences", {"prompt": "p", "responses": ["a", "b", "c"], "winner": "A"}, "3 answers; give two"),
    "no prompt": ("preferences", {"response_a": "x", "response_b": "y", "winner": "A"}, "no prompt"),
    "empty response": ("pairs", {"prompt": "p", "chosen": "", "rejected": "y"}, "chosen is empty"),
    "nothing rejected": ("pairs", {"prompt": "p", "chosen": "x"}, 'no "rejected"'),
    "index out of range": ("choices", {"prompt": "p", "responses": ["x"], "choice": 1}, "out of range"),
    "rating is a word": ("ratings", {"prompt": "p", "response": "x", "rating": "good"}, "rating 'good' is not a number"),
    "no rating": ("ratings", {"prompt": "p", "response": "x"}, "answer 1 has no rating"),
    "unknown role": ("ratings", {"prompt": [{"role": "x", "content": "y"}], "response": "x", "rating": 1}, "unknown role"),
    "no candidates": ("log", {"prompt": "p"}, 'no "candidates"'),
    "label is a number": ("log", {"prompt": "p", "candidates": [{"text": "x", "acceptable": 1}]}, '"acceptable" of candidate 1'),
    "none without offer": (
        "choices",
        {"prompt": "p", "responses": ["x", "y"], "choice": "none", "none_offered": False},
        "mend one",
    ),
    "one without offer": ("choices", {"prompt": "p", "responses": ["x"], "choice": 0, "none_offered": False}, "leave the row out"),
}


@pytest.mark.parametrize(("source", "record", "said"), BAD.values(), ids=BAD.keys())
def test_bad_records_end_with_code_2_one_line_and_no_file(tmp_path, capsys, converted_file, source, record, said):
    good = [{"prompt": "p", "responses": ["x", "y"], "choice": 0}] if source == "choices" else []
    assert converted_file(source, [*good, record], *(["--cut", "3"] if source == "ratings" else [])) == 2
    error, path = capsys.readouterr().err, tmp_path / "in.jsonl"
    assert f"{path}:{len(good) + 1}: " in error
    assert said in error
    assert ";" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_an_answer_that_was_refused_once_is_not_acceptable_in_a_choice():
    twice = [{"text": "x", "acceptable": False}, {"text": "x", "acceptable": True}, {"text": "y", "acceptable": False}]
    for candidates in (twice, twice[::-1]):
        assert converted({"prompt": "p", "candidates": candidates}, "log", rows="choice")[0][1] == "none"


@pytest.mark.parametrize(
    ("source", "option"),
    [
        ("log", ["--none-offered"]),
        ("log", ["--only-compared"]),
        ("ratings", ["--ties", "winner", "--cut", "3"]),
        ("pairs", ["--rows", "choice"]),
        ("preferences", ["--cut", "3"]),
        ("accept-reject", ["--rating", "stars"]),
        ("ranks", ["--rows", "single"]),
        ("log", ["--rating", "stars"]),
    ],
)
def test_an_option_that_the_format_has_not_is_refused(capsys, converted_file, source, option):
    assert converted_file(source, [TRACE], *option) == 2
    error = capsys.readouterr().err
    assert "leave" in error
    assert option[0] in error


def test_ratings_without_a_cut_are_refused(tmp_path, capsys, converted_file):
    assert converted_file("ratings", [RATED]) == 2
    assert "give the lowest acceptable rating with --cut" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "in.jsonl"]


def test_the_command_reads_packed_files_and_tells_what_it_left_out(tmp_path, capsys):
    path, out = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl.gz"
    rows = [AB | {"prompt": f"p{n % 50}", "preference": ["A", "B", "neither", "tie"][n % 4]} for n in range(200)]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert main(["convert", str(path), "--from", "preferences", "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "left out: ties: 50" in said.err
    assert '"none" was chosen in' in said.out
    assert len(read_choices(out)) == 150


def test_records_without_a_label_at_all_are_an_error(tmp_path, capsys, converted_file):
    assert converted_file("log", [{"prompt": "p", "candidates": [{"text": "x"}]}]) == 2
    assert "no choice rows in 1 records (without a label: 1)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "in.jsonl"]


def test_outputs_and_inputs_are_checked_first(tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    path.write_text("{}")
    base = ["convert", str(path), "--from", "pairs", "-o"]
    assert main([*base, str(tmp_path / "out.csv")]) == 2
    (tmp_path / "link.jsonl").symlink_to(path)
    for again in (path, tmp_path / "link.jsonl"):
        assert main(["convert", str(path), str(again), *base[2:], str(tmp_path / "out.jsonl")]) == 2
        assert f"{again}: is given twice; give each file once" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="ties must be '"):
        ConversionOptions(ties="none")
    with pytest.raises(ConfigurationError, match="unknown format"):
        list(convert([], "csv"))


@pytest.mark.parametrize(
    "row",
    [
        ChoiceRow((("user", "p"),), ("x", "y"), "none", 3),
        ChoiceRow((("system", "s"), ("user", "p")), ("x", "y"), 1, 1, False),
        ChoiceRow((("user", ""),), (" ",), 0),
    ],
)
def test_a_row_survives_writing_and_reading(row):
    assert choice_row(json.loads(json.dumps(as_record(row)))) == row


def test_labels_that_a_judge_gave_are_taken_and_told(capsys, converted_file):
    candidate = {"text": "x", "acceptable": True, "acceptable_by": "correctness"}
    people, unlabelled = {"text": "y", "acceptable": False}, {"text": "z", "acceptable": None, "acceptable_by": "correctness"}
    assert converted_file("log", [{"prompt": "p", "candidates": [candidate, people, unlabelled]}]) == 0
    assert "labels that say who or what judged (acceptable_by): correctness: 1\n" in capsys.readouterr().out
    assert converted_file("log", [{"prompt": "p", "candidates": [people]}]) == 0
    assert "acceptable_by" not in capsys.readouterr().out
