"""The arithmetic of the teaching benchmarks, by hand on small cases."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2ForSequenceClassification

from benchmarks.imdb.beyond import disturbed, nested, some_prompts
from benchmarks.imdb.models import model_path
from benchmarks.imdb.teaching import meets, texts_of
from benchmarks.real_base import write_base
from benchmarks.real_labels import (
    FOLDS,
    Part,
    batch_size,
    by_length,
    chance,
    evaluated,
    fold_of,
    folded,
    joined,
    length_alone,
    parts,
)
from bonmini_guard.training.batches import Group, Judgement
from bonmini_guard.training.choices import ChoiceRow
from bonmini_guard.training.evidence import figures


class Flat:
    """A truth by which every answer has utility 0."""

    def utilities(self, texts):
        return np.zeros(len(texts))


def row(prompt="p", choice=0, count=1):
    return ChoiceRow((("user", prompt),), ("a", "b"), choice, count)


def test_shared_taste_makes_none_likelier_for_like_answers():
    rows = nested([row(count=40_000)], Flat(), 0.5, seed=0)
    counts = {one.choice: one.count for one in rows}
    assert sum(counts.values()) == 40_000
    # Two answers of utility 0: P(none) = 1 / (1 + 2^d).
    assert counts["none"] / 40_000 == pytest.approx(1 / (1 + math.sqrt(2)), abs=0.01)
    assert counts[0] == pytest.approx(counts[1], rel=0.05)


def test_a_share_of_judgements_becomes_random():
    rows = disturbed([row(count=9000)], 0.3, seed=0)
    assert len(rows) == 9000
    changed = sum(one.choice != 0 for one in rows)
    assert changed / 9000 == pytest.approx(0.3 * 2 / 3, abs=0.02)


def test_texts_come_in_the_order_of_the_encoding_and_prompts_are_limited():
    rows = [ChoiceRow((("user", "q"),), ("b", "a"), 0), ChoiceRow((("user", "p"),), ("c",), 0), row("q")]
    assert texts_of(rows) == ["qa", "qb", "pc"]
    assert {one.prompt[0].text for one in some_prompts(rows, 1)} == {"q"}


def test_the_checks_can_fail():
    good = {"acceptance_accuracy": 0.9, "pair_accuracy": 0.8, "reliability_error": 0.01}
    assert all(meets(good, good | {"acceptance_accuracy": 0.7}).values())
    assert not any(meets(good | {"reliability_error": 0.06}, good | {"pair_accuracy": 0.82}).values())


def test_chance_is_the_best_constant():
    group = Group((0,), (Judgement((0,), 0, 3.0), Judgement((0,), 1, 1.0)))
    found = chance([[group]])
    assert found["acceptance_accuracy"] == 0.75
    assert found["log_likelihood"] == pytest.approx(0.75 * math.log(0.75) + 0.25 * math.log(0.25))


def test_every_set_is_split_by_prompt_and_every_row_is_measured_once(tmp_path):
    (tmp_path / "hh").mkdir()
    (tmp_path / "logs").mkdir()
    with gzip.open(tmp_path / "hh" / "one.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"prompt": f"p{n}", "chosen": "x", "rejected": "y"}) + "\n" for n in range(60))
    with gzip.open(tmp_path / "logs" / "two.jsonl.gz", "wt") as file:
        for n in range(60):
            candidates = [{"text": f"t{k}", "acceptable": k > 1} for k in range(3)]
            file.write(json.dumps({"id": str(n), "prompt": f"q{n}", "candidates": candidates}) + "\n")
    first, second = parts(tmp_path / "hh", tmp_path / "logs", seed=0)
    assert (first.name, second.name) == ("one", "two")
    assert (list(first.learnt), list(second.learnt)) == (["twin"], ["reward", "twin"])
    for part in (first, second):
        splits = [part.split(fold, seed=0) for fold in range(FOLDS)]
        assert sorted(map(str, part.measured)) == sorted(str(row) for split in splits for row in split.measured)
        for split in splits:
            assert split.measured
            for learnt in split.learnt.values():
                assert learnt
                assert not {r.prompt for r in learnt} & {r.prompt for r in split.measured}
    assert not any(r.none_offered for r in first.learnt["twin"])
    assert second.learnt["reward"] == second.measured
    assert {r.responses[r.choice] for r in second.learnt["twin"]} == {"t2"}


def test_length_alone_learns_which_way_round():
    shorter = [ChoiceRow((("user", f"p{n}"),), ("long answer", "short"), 1) for n in range(9)]
    part = Part("set", {"twin": shorter}, shorter[:2])
    scores, groups = length_alone(part)
    assert scores.tolist() == [-11, -5, -11, -5]
    assert figures(scores, groups, outside=True)["pair_accuracy"] == 1.0
    assert {fold_of(one, seed=0) for one in shorter} == set(range(FOLDS))


def test_a_small_set_is_learnt_in_smaller_batches():
    rows = [ChoiceRow((("user", f"p{n}"),), ("a", "b"), 0) for n in range(600)]
    assert batch_size(rows, epochs=2) == 24
    assert batch_size(rows * 2, epochs=2) == 24
    assert (batch_size(rows[:9], epochs=2), batch_size(rows, epochs=20)) == (2, 32)


def test_folds_are_joined_without_mixing_their_texts():
    one, other = by_length([row("p", 0)]), by_length([ChoiceRow((("user", "q"),), ("xx", "y"), 0)])
    scores, folds = joined([one, other])
    assert scores.tolist() == [1, 1, 2, 1]
    assert [group.judgements[0].members for fold in folds for group in fold] == [(0, 1), (2, 3)]
    assert folded(scores, folds)["pair_accuracy"] == 0.75
    only_compared = [[Group((0, 1), (Judgement((0, 1), 0, 1.0, False),))]]
    assert folded(torch.tensor([1.0, 0.0]), only_compared)["acceptance_auc"] is None
    assert evaluated(torch.tensor([1.0, 0.0]), only_compared)["intervals"]["pair_accuracy"] == [1.0, 1.0]


def test_answers_are_ranked_against_answers_of_their_own_fold_alone():
    accepted, rejected = Judgement((0,), 0, 1.0), Judgement((1,), 1, 1.0)
    group = Group((0, 1), (accepted, rejected))
    scores, folds = joined([(torch.tensor([2.0, 1.0]), [group]), (torch.tensor([-1.0, -2.0]), [group])])
    assert folded(scores, folds)["acceptance_auc"] == 1.0
    assert figures(scores, folds[0] + folds[1], outside=True)["acceptance_auc"] == 0.75
    # A fold without rejected answers ranks nothing; the other speaks for both.
    scores, folds = joined([(torch.tensor([2.0]), [Group((0,), (accepted,))]), (torch.tensor([-3.0, -2.0]), [group])])
    assert folded(scores, folds)["acceptance_auc"] == 0.0


@torch.inference_mode()
def test_the_base_of_real_labels_knows_places_and_the_language_models_words(tmp_path):
    write_base(tmp_path / "base", layers=1, length=64, seed=0)
    model = GPT2ForSequenceClassification.from_pretrained(tmp_path / "base")
    words = AutoModelForCausalLM.from_pretrained(model_path("lm")).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, words)
    places = model.transformer.wpe.weight
    steps = [float((places[n] - places[0]).norm()) for n in (1, 8, 63)]
    assert 0 < steps[0] < steps[1] < steps[2]
    assert AutoTokenizer.from_pretrained(tmp_path / "base").model_max_length == 64


@torch.inference_mode()
def test_the_last_token_of_the_base_hears_the_words_before_it(tmp_path):
    write_base(tmp_path / "base", layers=1, length=64, seed=0)
    model = GPT2ForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    ids = torch.randint(10, 4000, (2, 32), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 9
    one, other = model.transformer(ids).last_hidden_state[:, -1]
    # With transformers' own start of the attention it is 0.13.
    assert float((one - other).norm() / one.norm()) > 0.2
