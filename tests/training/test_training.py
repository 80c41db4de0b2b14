import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import CanineConfig, CanineForSequenceClassification

from bonmini_guard.cli import main
from bonmini_guard.commands.train import hold_out
from bonmini_guard.errors import CheckpointError, ConfigurationError, InputError
from bonmini_guard.reward.checkpoint import length_limit, load_config, load_tokenizer
from bonmini_guard.reward.model import RewardModel
from bonmini_guard.training.choices import ChoiceRow, read_choices
from bonmini_guard.training.data.statistics import describe
from bonmini_guard.training.run import evaluate_reward_model, partial, train_reward_model
from bonmini_guard.training.trainer import PartialState
from tests.reward import tiny
from tests.reward.tiny import UTILITY, simulated_rows, text_of, utility, write_jsonl

FAST = ["--learning-rate", "3e-3", "--device", "cpu", "--threads", "1"]


def train(path, base, output, *more):
    return main(["train", str(path), "--base", str(base), "-o", str(output), *FAST, *more])


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("choices") / "choices.jsonl", simulated_rows(2000, seed=1))


def held_out(count=200):
    source = random.Random(99)
    return [text_of(source.choice(list(UTILITY)), source) for _ in range(count)]


@pytest.mark.slow
def test_after_training_scores_above_zero_mean_acceptable(tmp_path, base, choices, capsys):
    output = tmp_path / "new" / "model"
    assert train(choices, base, output, "--epochs", "2", "--eval-share", "0.2") == 0
    assert "held out: log-likelihood -0." in capsys.readouterr().out
    texts = held_out()
    scores = RewardModel.load(output, device="cpu").score("the film", texts)
    right = sum((score > 0) == (utility(text) > 0) for text, score in zip(texts, scores, strict=True))
    assert right / len(texts) > 0.97
    # Four utilities known to 1: the size of a score means something, not only its sign.
    for word, known in UTILITY.items():
        found = [score for text, score in zip(texts, scores, strict=True) if word in text]
        assert sum(found) / len(found) == pytest.approx(known, abs=1.2)
    report = json.loads((output / "training.json").read_text())
    assert report["objective"] == "outside_option"
    assert report["seed"] == 0
    assert 0.2 < report["share_of_none"] < 0.4
    assert report["eval"]["log_likelihood"] > -0.75
    assert not list(output.parent.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("shift", [-2.5, 2.5])
def test_an_overall_offset_is_learnt(tmp_path, base, monkeypatch, shift):
    shifted = {word: known + shift for word, known in UTILITY.items()}
    monkeypatch.setattr(tiny, "UTILITY", shifted)
    path = write_jsonl(tmp_path / "choices.jsonl", simulated_rows(2500, seed=2))
    assert train(path, base, tmp_path / "model") == 0
    texts = [text for text in held_out() if abs(utility(text)) < 4.5]
    scores = RewardModel.load(tmp_path / "model", device="cpu").score("the film", texts)
    offset = sum(score - utility(text) for text, score in zip(texts, scores, strict=True)) / len(texts)
    assert abs(offset) < 0.6


def test_a_run_repeats_and_a_bradley_terry_model_has_no_zero(tmp_path, base, choices):
    rows = [row for row in read_choices(choices)[:300] if len(row.responses) > 1]
    plan = {"objective": "bradley_terry", "learning_rate": 3e-3, "device": "cpu", "threads": 1, "seed": 5}
    first = train_reward_model(rows, base, tmp_path / "one", eval_rows=rows, **plan)
    second = train_reward_model(rows, base, tmp_path / "two", eval_rows=rows, **plan)
    assert first["eval"] == second["eval"]
    assert first["share_of_none"] == 0
    assert first["eval"]["accuracy"] > 0.6
    model = RewardModel.load(tmp_path / "one", device="cpu")
    assert not model.has_zero
    note = json.loads((tmp_path / "one" / "config.json").read_text())["bonmini_guard"]
    assert note == {"zero": None, "objective": "bradley_terry", "version": 1}
    assert model.fingerprint() == RewardModel.load(tmp_path / "two", device="cpu").fingerprint()


def test_before_training_every_score_is_near_zero_and_layers_can_be_dropped(tmp_path, base, choices):
    rows = read_choices(choices)[:20]
    train_reward_model(rows, base, tmp_path / "m", layers=1, head_learning_rate=1e-9, epochs=0.5, device="cpu", max_length=40)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["num_hidden_layers"] == 1
    assert RewardModel.load(tmp_path / "m", device="cpu").score("the film", ["good", "dull"]) == pytest.approx([0, 0], abs=1e-6)


def row(responses=("a", "b"), choice=0):
    return ChoiceRow((("user", "p"),), responses, choice)


BOTH, LONG = [row(), row(choice="none")], ("film " * 90,)


@pytest.mark.parametrize(
    ("rows", "plan", "error", "said"),
    [
        ([row()], {}, InputError, "no row chose"),
        ([replace(row(), none_offered=False)], {}, InputError, 'no row offered or chose "none"'),
        ([row(choice="none")], {}, InputError, "every row chose"),
        ([row(("a",))], {"objective": "bradley_terry"}, InputError, "single response"),
        ([row(choice="none")], {"objective": "bradley_terry"}, InputError, "no row compares"),
        (BOTH, {"max_length": 1}, InputError, "no row can be read: all have more than 1 tokens"),
        (BOTH, {"eval_rows": [row(LONG)], "early_stopping": 1}, InputError, "no row can be read: all have more than 64 tokens"),
        ([row(), row(LONG, "none")], {}, InputError, 'no judgement that can be read chose "none", so nothing says where zero is'),
        ([row()], {"eval_rows": [row(("a",))], "objective": "bradley_terry"}, InputError, "single response"),
        ([row()], {"objective": "x"}, ConfigurationError, "objective must be '"),
        ([row()], {"device": "x"}, ConfigurationError, "device must be '"),
        ([row()], {"epochs": 0}, ConfigurationError, "epochs must be a number above 0, not 0"),
        ([row()], {"learning_rate": float("nan")}, ConfigurationError, "learning_rate must be a number above 0, not nan"),
        (BOTH, {"layers": 9}, ConfigurationError, "cannot keep 9 layers: use 1 to 2"),
        (BOTH, {"base": "missing/there/x"}, CheckpointError, "no such folder"),
    ],
)
def test_what_cannot_be_learnt_is_told_and_nothing_is_left(tmp_path, base, rows, plan, error, said):
    plan = {"base": base, "device": "cpu"} | plan
    with pytest.raises(error, match=said):
        train_reward_model(rows, plan.pop("base"), tmp_path / "model", **plan)
    assert not list(tmp_path.iterdir())


def test_an_output_folder_in_use_is_left_alone(tmp_path, base, choices, capsys):
    (tmp_path / "kept.txt").write_text("kept")
    assert train(choices, base, tmp_path) == 2
    assert "exists already; remove it" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("output", [".", "link"])
def test_what_cannot_be_replaced_by_a_whole_folder_is_refused(output, tmp_path, base, choices, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "empty" / "link").symlink_to(tmp_path / "empty")
    assert train(choices, base, Path(output)) == 2
    assert "is replaced as a whole, which this cannot be" in capsys.readouterr().err


def test_a_folder_of_somebody_else_where_checkpoints_go_is_left_alone(tmp_path, base, choices, capsys):
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "thesis.txt").write_text("years")
    assert train(choices, base, tmp_path / "model") == 2
    assert "checkpoints go here, and it holds something else" in capsys.readouterr().err
    assert (tmp_path / "model.partial" / "thesis.txt").read_text() == "years"


def test_a_finished_folder_is_kept_if_its_place_was_taken_meanwhile(tmp_path):
    def work():
        with partial(tmp_path / "out", {}, PartialState(cpu=True)) as folder:
            (folder / "model").mkdir()
            (folder / "model" / "weights").write_text("hours of work")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()

    with pytest.raises(ConfigurationError, match="the whole of it is in ") as caught:
        work()
    kept = Path(str(caught.value).rpartition(" is in ")[2])
    assert (kept / "weights").read_text() == "hours of work"


def test_a_finished_folder_is_not_taken_away_by_another_run_before_it_stands_in_its_place(tmp_path, monkeypatch):
    replace = os.replace

    def meanwhile(*about):
        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(ConfigurationError, match="another run is at work there"), partial(tmp_path / "out", {}, together):
            pass
        replace(*about)

    together = PartialState(cpu=True)
    with partial(tmp_path / "out", {}, together) as folder:
        (folder / "model").mkdir()
        monkeypatch.setattr(os, "replace", meanwhile)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("length", [0, -5])
def test_a_text_has_at_least_one_token(length, base):
    config, tokenizer = load_config(str(base)), load_tokenizer(str(base))
    with pytest.raises(ConfigurationError, match=f"max_length is {length}"):
        length_limit(config, tokenizer, length)


def test_a_run_of_one_step_learns(tmp_path, base):
    rows = [ChoiceRow((("user", "red"),), (text,), choice) for text, choice in (("green", 0), ("blue", "none"))]
    report = train_reward_model(rows, base, tmp_path / "m", epochs=1, learning_rate=3e-3, device="cpu", threads=1)
    assert report["texts"] == 2
    scores = RewardModel.load(tmp_path / "m", device="cpu").score("red", ["green", "blue"])
    assert scores[0] != 0.0


def test_odd_held_out_rows_are_told(tmp_path, base, choices, capsys):
    held_out = tmp_path / "held_out.jsonl"
    lines = choices.read_text().splitlines()
    held_out.write_text("\n".join([*lines[:40], '{"prompt": "no answers"}', ""]))
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join([*lines[:20], ""]))
    assert train(few, base, tmp_path / "m", "--epochs", "1", "--eval", str(held_out)) == 0
    assert f"left out: 1 odd, the first: {held_out}:41: " in capsys.readouterr().err


def test_held_out_prompts_are_not_trained_on():
    rows = [ChoiceRow((("user", str(number % 10)),), ("a",), 0) for number in range(50)]
    train_part, eval_part = hold_out(rows, 0.3, seed=1)
    assert len(eval_part) == 15
    assert not {row.prompt for row in train_part} & {row.prompt for row in eval_part}
    with pytest.raises(ConfigurationError, match="share"):
        hold_out(rows, 1.0, seed=1)


def test_a_prompt_in_capitals_is_held_out_with_its_like():
    said = ["Hi", "hi ", "HI", "other", "Other", "x", "y", "z"]
    rows = [ChoiceRow((("user", text),), ("a",), choice) for text in said for choice in (0, "none")]
    for seed in range(8):
        trained, held_out = hold_out(rows, 0.3, seed)
        assert describe(trained, held_out).leaked == 0
        assert trained
        assert held_out


def test_an_empty_output_folder_is_filled(tmp_path, base, choices):
    (tmp_path / "model").mkdir()
    train_reward_model(read_choices(choices)[:20], base, str(tmp_path / "model"), epochs=1, device="cpu", threads=1)
    assert (tmp_path / "model" / "training.json").is_file()


def told_apart(base, tmp_path, template=None, tokens=(), **more):
    """A copy of the base whose tokenizer has another template, and tokens that the model does not know."""
    tokenizer = load_tokenizer(str(base))
    tokenizer.add_tokens(list(tokens), **more)
    tokenizer.chat_template = template or tokenizer.chat_template
    folder = shutil.copytree(base, tmp_path / "base")
    tokenizer.save_pretrained(folder)
    return folder


def test_texts_that_spell_tokens_without_embedding_are_left_out(tmp_path, base, capsys):
    folder = told_apart(base, tmp_path, tokens=["<foo>"])
    rows = [*simulated_rows(40, seed=1), {"prompt": "the film", "responses": ["a <foo>"], "choice": 0}]
    path = write_jsonl(tmp_path / "choices.jsonl", rows)
    assert train(path, folder, tmp_path / "model", "--epochs", "1", "--checkpoints", "0", "--eval", str(path)) == 0
    assert "left out: 1 judgements" in capsys.readouterr().out
    report = evaluate_reward_model(tmp_path / "model", read_choices(path))
    assert report["judgements"] == 40


def test_conversations_that_the_template_refuses_are_left_out_and_counted(tmp_path, base, capsys):
    refused = "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
    folder = told_apart(base, tmp_path, f"{{% for m in messages %}}{refused}{{{{ m['content'] }}}}{{% endfor %}}")
    twice = {"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "responses": ["c"], "choice": 0}
    path = write_jsonl(tmp_path / "choices.jsonl", [*simulated_rows(40, seed=1), twice])
    assert train(path, folder, tmp_path / "model", "--epochs", "1", "--checkpoints", "0") == 0
    said = capsys.readouterr().out
    assert "left out: 1 judgements (2%), with" in said
    assert "an order of turns that the base cannot read" in said


def test_a_template_that_writes_tokens_without_embedding_is_refused_before_training(tmp_path, base):
    folder = told_apart(
        base, tmp_path, "{% for m in messages %}<foo>{{ m['content'] }}{% endfor %}", ["<foo>"], special_tokens=True
    )
    path = write_jsonl(tmp_path / "choices.jsonl", simulated_rows(40, seed=1))
    with pytest.raises(CheckpointError, match="resize_token_embeddings"):
        train_reward_model(read_choices(path), folder, tmp_path / "model", device="cpu")


def test_a_tokenizer_that_is_no_fast_one_is_refused_before_training(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_hash_buckets": 64}
    CanineForSequenceClassification(CanineConfig(**sizes, num_labels=1)).save_pretrained(tmp_path / "base")
    path = write_jsonl(tmp_path / "choices.jsonl", simulated_rows(40, seed=1))
    with pytest.raises(CheckpointError, match="the tokenizer is not a fast one"):
        train_reward_model(read_choices(path), tmp_path / "base", tmp_path / "model", device="cpu")


def test_a_run_that_ends_in_weights_that_are_no_numbers_says_so(tmp_path, base, capsys):
    path = write_jsonl(tmp_path / "choices.jsonl", simulated_rows(40, seed=1))
    assert train(path, base, tmp_path / "model", "--epochs", "2", "--learning-rate", "1e9", "--eval", str(path)) == 0
    assert "warning: the run diverged" in capsys.readouterr().err
    told = json.loads((tmp_path / "model" / "training.json").read_text(), parse_constant=pytest.fail)
    assert told["eval"]["log_likelihood"] is None


def test_held_out_rows_that_all_are_too_long_give_no_figures(tmp_path, base, capsys):
    path = write_jsonl(tmp_path / "choices.jsonl", simulated_rows(20, seed=3))
    long = {"prompt": "the", "responses": ["film " * 90], "choice": 0}
    held = write_jsonl(tmp_path / "held.jsonl", [long])
    assert train(path, base, tmp_path / "m", "--epochs", "1", "--eval", str(held)) == 0
    assert "held out" not in capsys.readouterr().out
    assert json.loads((tmp_path / "m" / "training.json").read_text())["eval"]["log_likelihood"] is None
