"""``inspect``: what is wrong with a declaration shows in scores."""

from __future__ import annotations

import json

import pytest

from bonmini_guard.cli import main
from bonmini_guard.reward.selftest import problems, ranked_rightly

from .test_model import CONFIGS, save

GOOD, BAD = True, False


def found(*answers, kind="template", has_zero=True):
    return problems([answers], kind, has_zero)


def test_what_is_right_is_left_alone():
    assert found((2.0, GOOD), (-1.0, BAD), (0.5, GOOD), (-3.0, BAD)) == []
    assert found((2.0, None), (-1.0, None)) == []
    # Log-odds of a classifier that is hardly sure of anything, for which there is no other scale to declare.
    assert found((0.9, None), (0.1, None), kind="labels") == []


@pytest.mark.parametrize(
    ("answers", "more", "words"),
    [
        ([(-2.0, GOOD), (1.0, BAD)], {"kind": "token"}, "wanted and unwanted are swapped"),
        ([(-2.0, GOOD), (1.0, BAD)], {}, "the sign is wrong"),
        ([(1.0, GOOD), (1.0, BAD)], {}, "leaves the answer out"),
        ([(0.9, GOOD), (0.1, BAD)], {}, "scale = 'probability'"),
        ([(9.0, GOOD), (5.0, BAD)], {}, "but not at 0: with zero = { shift = -7 }"),
        ([(-3.0, GOOD), (-9.0, BAD)], {}, "but not at 0: with zero = { shift = 6 }"),
        ([(3.0, GOOD), (-1.0, GOOD), (1.0, BAD)], {}, "hardly tells these apart"),
        ([(3.0, GOOD), (None, BAD)], {}, "1 of 2 texts have no score"),
        ([(None, GOOD), (None, BAD)], {}, "not one text has a score"),
    ],
)
def test_what_is_wrong_is_named(answers, more, words):
    assert any(words in problem for problem in found(*answers, **more))


def test_without_a_zero_nothing_is_said_of_it():
    assert found((9.0, GOOD), (5.0, BAD), has_zero=False) == []
    assert found((0.9, GOOD), (0.1, BAD), has_zero=None) == []


def test_ties_are_half():
    assert ranked_rightly([[(1.0, GOOD), (1.0, BAD)], [(2.0, GOOD)]]) == pytest.approx(0.75)


# The command


@pytest.fixture
def examples(tmp_path):
    both = [{"text": "Paris", "acceptable": True}, {"text": "Rome", "acceptable": False}]
    one = [{"text": "It is Paris.", "acceptable": True}, {"text": "Oslo"}]
    rows = [{"id": "a", "prompt": "Where?", "candidates": both}, {"id": "b", "prompt": "Where is it?", "candidates": one}]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def spec(folder, more=""):
    (folder / "scorer.toml").write_text(f'kind = "check"\n[check]\ntype = "regex"\npattern = "Paris"\n{more}')
    return str(folder / "scorer.toml")


def test_a_good_spec_passes(tmp_path, examples, capsys):
    assert main(["inspect", spec(tmp_path), "--examples", examples]) == 0
    said = capsys.readouterr().out
    assert "kind check; zero: 0 means acceptable; not shown to it, and not served: reasoning" in said
    assert "3 examples: acceptable answers score higher in 100% of pairs" in said
    assert said.endswith("ok\n")


def test_a_spec_that_is_upside_down_does_not(tmp_path, examples, capsys):
    assert main(["inspect", spec(tmp_path, "absent = true"), "--examples", examples, "--json"]) == 4
    about = json.loads(capsys.readouterr().out)
    assert about["ranked_rightly"] == 0
    assert "the sign is wrong" in about["problems"][0]
    assert about["scores"] == [[-6, 6], [-6]]


def test_examples_of_one_kind_are_refused(tmp_path, capsys):
    path = tmp_path / "examples.jsonl"
    path.write_text(json.dumps({"id": "a", "prompt": "Where?", "candidates": [{"text": "Paris", "acceptable": True}]}) + "\n")
    assert main(["inspect", spec(tmp_path), "--examples", str(path)]) == 2
    assert "needs both kinds of answers" in capsys.readouterr().err


def test_scores_that_are_declared_as_probabilities_and_are_none_are_one_clear_error(tmp_path, capsys):
    save(tmp_path / "model", CONFIGS["llama"])
    spec = tmp_path / "spec.toml"
    spec.write_text('kind = "template"\nmodel = "model"\nscale = "probability"\n')
    assert main(["inspect", str(spec)]) == 2
    assert "is declared as a probability and lies outside [0, 1]: leave the scale out\n" in capsys.readouterr().err


def test_a_checkpoint_is_tried_on_fixed_texts(tmp_path, capsys):
    folder = save(tmp_path, CONFIGS["llama"], bonmini_guard={"zero": "outside_option", "version": 1})
    assert main(["inspect", str(folder), "--device", "cpu", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["kind"], about["has_zero"], about["problems"]) == ("template", True, [])
    assert [len(scores) for scores in about["scores"]] == [2, 2, 2, 2]
