"""Long runs and large models: resuming after a kill, early stopping, adapters, several processes; what the zero depends on."""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from langchain_core.messages import HumanMessage, SystemMessage
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    OpenAIGPTConfig,
    OpenAIGPTModel,
)

from bonmini_guard.cli import main
from bonmini_guard.conversation import Turn, prompt_digest
from bonmini_guard.errors import CheckpointError, ConfigurationError, InputError
from bonmini_guard.reward.model import RewardModel, trained_prompts
from bonmini_guard.training import run
from bonmini_guard.training.choices import ChoiceRow, choice_row, read_choices
from bonmini_guard.training.run import evaluate_reward_model, train_reward_model
from bonmini_guard.training.settings import Settings
from tests.reward.tiny import UTILITY, WORDS, gumbel, make_tokenizer, simulated_rows, text_of, utility, write_jsonl
from tests.training.launched import begun, ended

FAST = {"learning_rate": 3e-3, "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def rows():
    return [choice_row(row) for row in simulated_rows(400, seed=1)]


def weights(folder):
    return load_file(folder / "model.safetensors")


def largest_difference(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


LONG = {"epochs": 12.0, "checkpoints": 12}


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_result_of_an_uninterrupted_one(tmp_path, base, caplog):
    path = write_jsonl(tmp_path / "choices.jsonl", simulated_rows(300, seed=4))
    fast = ["--learning-rate", "3e-3", "--device", "cpu", "--threads", "1", "--epochs", "12", "--checkpoints", "12"]
    arguments = ["train", str(path), "--base", str(base), "-o", str(tmp_path / "killed"), *fast]
    process = begun(arguments, Path(os.devnull), {"STOP": "1"})
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    with pytest.raises(ConfigurationError, match=r"killed\.partial: holds a run that was begun with other .*seed"):
        train_reward_model(read_choices(path), base, tmp_path / "killed", seed=7, **LONG, **FAST)
    # What a kill in the middle of writing a checkpoint leaves: weights without the state, which is written last.
    torn = tmp_path / "killed.partial" / "checkpoints" / "checkpoint-999999"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"torn")
    train_reward_model(read_choices(path), base, tmp_path / "killed", **LONG, **FAST)
    assert "going on from the checkpoints" in caplog.text
    train_reward_model(read_choices(path), base, tmp_path / "whole", **LONG, **FAST)
    assert largest_difference(tmp_path / "killed", tmp_path / "whole") < 1e-6
    assert sorted(item.name for item in tmp_path.iterdir()) == ["choices.jsonl", "killed", "whole"]


def test_a_failure_before_the_first_checkpoint_leaves_nothing(tmp_path, base, rows, monkeypatch):
    monkeypatch.setattr("bonmini_guard.training.trainer.OutsideOptionTrainer.compute_loss", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_reward_model(rows, base, tmp_path / "m", **FAST)
    assert not list(tmp_path.iterdir())


def test_two_runs_of_one_output_do_not_meet(tmp_path, base, rows, monkeypatch):
    whole = run._train

    def meanwhile(*arguments):
        monkeypatch.setattr(run, "_train", whole)
        with pytest.raises(ConfigurationError, match="another run is at work there"):
            train_reward_model(rows, base, tmp_path / "m", **FAST)
        return whole(*arguments)

    monkeypatch.setattr(run, "_train", meanwhile)
    train_reward_model(rows, base, tmp_path / "m", epochs=1, **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_run_that_held_out_other_rows_is_no_run_to_go_on_with(tmp_path, base, rows, monkeypatch):
    monkeypatch.setattr(run, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_reward_model(rows[:300], base, tmp_path / "m", eval_rows=rows[300:], epochs=1, **FAST)
    with pytest.raises(ConfigurationError, match="begun with other rows, held-out rows;"):
        train_reward_model(rows[:200], base, tmp_path / "m", eval_rows=rows[200:], epochs=1, **FAST)


def test_early_stopping_keeps_the_best_and_stops(tmp_path, base, rows):
    # So few rows for so many passes that the model soon learns them by heart.
    few = rows[:12] + [row for row in rows if row.choice == "none"][:4]
    report = train_reward_model(
        few, base, tmp_path / "m", eval_rows=rows[100:], epochs=200, checkpoints=50, early_stopping=2, **FAST
    )
    longer = train_reward_model(few, base, tmp_path / "l", eval_rows=rows[100:], epochs=200, checkpoints=0, **FAST)
    assert report["eval"]["log_likelihood"] > longer["eval"]["log_likelihood"]
    # Held-out prompts that chose the checkpoint are no fresh ones.
    known = {prompt_digest(row.prompt) for row in few}
    assert trained_prompts(tmp_path / "l") == known
    assert trained_prompts(tmp_path / "m") == known | {prompt_digest(row.prompt) for row in rows[100:]}
    assert "The checkpoint was chosen by them: its own figures flatter a little." in (tmp_path / "m" / "README.md").read_text()
    with pytest.raises(ConfigurationError, match="early stopping needs held-out rows"):
        train_reward_model(few, base, tmp_path / "x", early_stopping=2, **FAST)


def test_adapters_stay_adapters_and_load_everywhere(tmp_path, base, rows):
    report = train_reward_model(rows, base, tmp_path / "m", lora_rank=4, eval_rows=rows[:100], **(FAST | {"learning_rate": 1e-2}))
    names = load_file(tmp_path / "m" / "adapter_model.safetensors").keys()
    assert sum("lora_" not in name for name in names) == 1, "only the head is whole"
    assert not (tmp_path / "m" / "model.safetensors").exists()
    model = RewardModel.load(tmp_path / "m", device="cpu")
    assert model.has_zero
    assert "Low-rank adapters and a head over the base" in (tmp_path / "m" / "README.md").read_text()
    assert model.score("the film", [" good"])[0] > model.score("the film", [" awful"])[0]
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    plain = PeftModel.from_pretrained(plain, tmp_path / "m").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    found = plain(**tokenizer("the film good", return_tensors="pt", add_special_tokens=True)).logits.item()
    assert model.score("the film", [" good"])[0] == pytest.approx(found, abs=1e-5)
    again = evaluate_reward_model(tmp_path / "m", rows[:100])
    assert again["log_likelihood"] == pytest.approx(report["eval"]["log_likelihood"], abs=1e-5)
    with pytest.raises(CheckpointError, match="without weights for"):
        evaluate_reward_model(base, rows[:10])


def test_adapters_of_a_base_whose_layers_are_none_of_torchs(tmp_path, rows):
    """GPT-2's are transformers' Conv1D, which keep their weights the other way round."""
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    GPT2Model(config).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    report = train_reward_model(rows[:100], tmp_path / "base", tmp_path / "m", eval_rows=rows[100:150], lora_rank=2, **FAST)
    names = load_file(tmp_path / "m" / "adapter_model.safetensors").keys()
    assert sum("lora_A" in name for name in names) == 4
    again = evaluate_reward_model(tmp_path / "m", rows[100:150])
    assert again["log_likelihood"] == pytest.approx(report["eval"]["log_likelihood"], abs=1e-5)


def test_frozen_weights_take_half_the_memory_and_what_is_trained_keeps_its_digits(tmp_path, base, rows, monkeypatch):
    # A GPU's arithmetic on this CPU, which computes it slowly and as exactly.
    monkeypatch.setattr(Settings, "half", property(lambda plan: True))
    kept, add = {}, run.add_adapters

    def looked_at(model, *arguments):
        add(model, *arguments)
        kept.update({name: (weight.dtype, weight.requires_grad) for name, weight in model.named_parameters()})

    monkeypatch.setattr(run, "add_adapters", looked_at)
    fast = FAST | {"learning_rate": 1e-2, "head_learning_rate": 1e-2}
    report = train_reward_model(rows, base, tmp_path / "m", lora_rank=4, eval_rows=rows[:100], **fast)
    assert {trained for dtype, trained in kept.values() if dtype == torch.bfloat16} == {False}
    assert {dtype for dtype, trained in kept.values() if trained} == {torch.float32}
    assert sum(dtype == torch.bfloat16 for dtype, _ in kept.values()) > 10
    assert all(weight.dtype == torch.float32 for weight in load_file(tmp_path / "m" / "adapter_model.safetensors").values())
    again = evaluate_reward_model(tmp_path / "m", rows[:100])
    assert again["log_likelihood"] == pytest.approx(report["eval"]["log_likelihood"], abs=0.02)
    assert again["log_likelihood"] > -1.0
    with pytest.raises(ConfigurationError, match="--report-to nowhere"):
        Settings(report_to="nowhere")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, base, rows):
    folder = tmp_path_factory.mktemp("adapters") / "m"
    train_reward_model(rows[:40], base, folder, lora_rank=2, epochs=0.5, **FAST)
    return folder


def set_in(file, **values):
    """A JSON file, with other values."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_the_base_of_adapters_is_found_by_name_and_verified(tmp_path, base, adapters, monkeypatch):
    known = RewardModel.load(adapters, device="cpu")
    moved = shutil.copytree(adapters, tmp_path / "moved")
    settings = moved / "adapter_config.json"
    set_in(settings, base_model_name_or_path="gone")
    with pytest.raises(CheckpointError, match=r"an adapter whose base 'gone' is not here; say where it is with base="):
        RewardModel.load(moved, device="cpu")
    set_in(settings, base_model_name_or_path="bases/gone")  # as an id of a hub looks
    with pytest.raises(CheckpointError, match=r"moved: an adapter whose base is neither here nor to be had; say where it is with"):
        RewardModel.load(moved, device="cpu")
    with monkeypatch.context() as patched:
        patched.setattr(AutoModelForSequenceClassification, "from_pretrained", lambda *_, **__: importlib.import_module("no_such"))
        with pytest.raises(CheckpointError, match=r"^bases/gone: its weights need a library that is missing"):
            RewardModel.load(moved, device="cpu")
    assert RewardModel.load(moved, base=base, device="cpu").fingerprint() == known.fingerprint()
    trained = json.loads(settings.read_text())["lora_alpha"]
    set_in(settings, lora_alpha=1)
    assert RewardModel.load(moved, base=base, device="cpu").fingerprint() != known.fingerprint()
    set_in(settings, lora_alpha=trained)
    # In the user's cache by its name; and not if anything in it has changed.
    shutil.copytree(base, tmp_path / "cache" / "bonmini-guard" / "gone")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert RewardModel.load(moved, device="cpu").score("the film", ["good"]) == known.score("the film", ["good"])
    weights = tmp_path / "cache" / "bonmini-guard" / "gone" / "model.safetensors"
    changed = load_file(weights)
    changed["model.norm.weight"] += 1e-3
    save_file(changed, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is not the base it was trained on"):
        RewardModel.load(moved, device="cpu")


def renamed(file, change):
    """Weights, changed by name and value."""
    save_file(dict(change(name, weight) for name, weight in load_file(file).items()), file)


NOTED, ADAPTERS, NO_FIT = "config.json", "adapter_model.safetensors", "does not fit the base, or is broken"


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        (NOTED, lambda file: set_in(file, bonmini_guard={"base": "somewhere"}), r"that config\.json notes .* is 'somewhere'"),
        (
            "adapter_config.json",
            lambda file: set_in(file, base_model_name_or_path="nobody/has-this"),
            "nobody/has-this: cannot be loaded as a sequence classifier",
        ),
        (ADAPTERS, lambda file: renamed(file, lambda name, weight: (name, weight[:1].clone())), NO_FIT),
        (ADAPTERS, lambda file: renamed(file, lambda name, weight: (name.replace("layers.0", "layers.7"), weight)), NO_FIT),
        (ADAPTERS, lambda file: file.write_bytes(file.read_bytes()[:100]), NO_FIT),
        (ADAPTERS, lambda file: file.write_bytes(file.read_bytes()[:-100]), NO_FIT),
        (ADAPTERS, lambda file: file.write_bytes(b""), NO_FIT),
        (
            ADAPTERS,
            lambda file: save_file(load_file(file) | {"base_model.model.score.bias": torch.ones(1)}, file),
            r"score\.bias is of a layer that has none here",
        ),
    ],
)
def test_adapters_that_do_not_fit_or_are_broken_are_one_clear_error(tmp_path, adapters, name, spoil, said):
    spoil(shutil.copytree(adapters, tmp_path / "m") / name)
    with pytest.raises(CheckpointError, match=said):
        RewardModel.load(tmp_path / "m", device="cpu")


def test_adapters_are_not_put_onto_adapters_which_nothing_could_load(tmp_path, adapters, rows):
    with pytest.raises(ConfigurationError, match="adapters, which no others can be put onto: merge them first"):
        train_reward_model(rows[:40], adapters, tmp_path / "m", lora_rank=2, epochs=0.5, **FAST)
    train_reward_model(rows[:40], adapters, tmp_path / "m", epochs=0.5, **FAST)
    assert RewardModel.load(tmp_path / "m", device="cpu").has_zero


def test_adapters_without_a_vocabulary_have_that_of_their_base_and_keep_their_settings(tmp_path, base, adapters):
    shutil.copytree(adapters, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    set_in(tmp_path / "m" / "tokenizer_config.json", model_max_length=30)
    (tmp_path / "m" / "chat_template.jinja").write_text("<s>{{ messages[0]['content'] }} {{ messages[-1]['content'] }}")
    model = RewardModel.load(tmp_path / "m", base=base, device="cpu")
    assert model.max_length == 30
    known = RewardModel.load(adapters, device="cpu")
    assert model.score("the film", ["good"]) == pytest.approx(known.score("the film", [" good"]), abs=1e-6)
    other = tmp_path / "other"
    shutil.copytree(base, other)
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["g"], words["a"] = words["a"], words["g"]
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(CheckpointError, match="is not the one it was trained with; give the base that it names"):
        RewardModel.load(tmp_path / "m", base=other, device="cpu")


def test_prompts_of_the_training_are_known_again(adapters, rows):
    model = RewardModel.load(adapters, device="cpu")
    seen = rows[0].prompt[0].text
    assert model.trained_on([HumanMessage(f"  {seen.upper()} ")])
    assert not model.trained_on([HumanMessage(seen + " and more")])
    assert not model.trained_on([SystemMessage("s"), HumanMessage(seen)])


def test_the_limit_of_tokens_stays_with_the_checkpoint_and_what_it_leaves_out_is_said(tmp_path, base, capsys):
    rows = simulated_rows(30, seed=1)
    path = write_jsonl(tmp_path / "c.jsonl", [*rows, {"prompt": "long", "responses": [" film" * 45, "short"], "choice": "none"}])
    fast = ["--learning-rate", "3e-3", "--device", "cpu", "--threads", "1", "--epochs", "2"]
    assert main(["train", str(path), "--base", str(base), "-o", str(tmp_path / "m"), "--max-length", "40", *fast]) == 0
    said = capsys.readouterr()
    assert "left out: 1 judgements (3%), with more than 40 tokens (raise --max-length" in said.out
    texts, prompts = len({(one["prompt"], text) for one in rows for text in one["responses"]}), len({one["prompt"] for one in rows})
    assert f"30 judgements of {texts} texts learnt" in said.out
    card = (tmp_path / "m" / "README.md").read_text()
    nones = sum(one["choice"] == "none" for one in rows) / 30
    assert f'30 judgements of {texts} answers to {prompts} prompts. "None" was chosen in {nones:.1%} of them.' in card
    assert RewardModel.load(tmp_path / "m", device="cpu").max_length == 40
    assert "LOAD REPORT" not in said.err
    # Whole passes, not the share of the run.
    assert "'epoch': '2'" in said.out


def test_a_new_head_has_its_own_rate(base, rows, tmp_path, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def spy(self, *arguments, **more):
        seen.append([(group["initial_lr"], len(group["params"])) for group in self.param_groups])
        return step(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    more = [*rows[:40], ChoiceRow((Turn("user", "another prompt"),), ("a", "b"), 0)]
    train_reward_model(more, base, tmp_path / "new", epochs=0.2, learning_rate=1e-4, device="cpu", threads=1)
    assert (1e-3, 1) in seen[0]
    assert {rate for rate, _ in seen[0]} == {1e-4, 1e-3}
    del seen[:]
    train_reward_model(rows[:40], tmp_path / "new", tmp_path / "old", epochs=0.2, learning_rate=1e-4, device="cpu", threads=1)
    assert {rate for rate, _ in seen[0]} == {1e-4}, "a head that has learnt is as careful as its base"
    first, second = (trained_prompts(str(tmp_path / name)) for name in ("new", "old"))
    assert first == second, "what the base was trained on is not forgotten"


def test_a_ranking_model_learns_its_zero_from_few_absolute_labels(tmp_path, base):
    """Pairs only first; then the same pairs and a small absolute set: it keeps ranking and learns what is acceptable."""
    pairs = [row for row in (choice_row(r) for r in simulated_rows(1200, seed=5, sizes=(2,))) if row.choice != "none"]
    forced = [ChoiceRow(row.prompt, row.responses, row.choice, row.count, none_offered=False) for row in pairs]
    absolute = [choice_row(row) for row in simulated_rows(250, seed=6, sizes=(1,))]
    held_out = [choice_row(row) for row in simulated_rows(300, seed=7, sizes=(1, 2))]
    train_reward_model(forced, base, tmp_path / "ranks", objective="bradley_terry", **FAST)
    report = train_reward_model([*forced, *absolute], tmp_path / "ranks", tmp_path / "zero", eval_rows=held_out, **FAST)
    before, after = report["base_eval"], report["eval"]
    assert after["pair_accuracy"] > before["pair_accuracy"] - 0.03
    assert after["reliability_error"] < 0.1
    assert after["log_likelihood"] > before["log_likelihood"]
    assert not RewardModel.load(tmp_path / "ranks", device="cpu").has_zero
    assert RewardModel.load(tmp_path / "zero", device="cpu").has_zero


DEMAND = {"cast": 0.0, "very": 2.5}
FILLERS = WORDS[7:10]


def demanding_rows(count, seed):
    """The same answers under prompts of which one demands 2.5 more before anything is acceptable."""
    source, found = random.Random(seed), []
    for _ in range(count):
        word = source.choice(list(DEMAND))
        prompt = " ".join([word, *(source.choice(FILLERS) for _ in range(4))])
        responses = [text_of(source.choice(list(UTILITY)), source) for _ in range(2)]
        noisy = [utility(text) - DEMAND[word] + gumbel(source) for text in responses] + [gumbel(source)]
        best = max(range(3), key=noisy.__getitem__)
        found.append(ChoiceRow((("user", prompt),), tuple(responses), "none" if best == 2 else best))
    return found


@pytest.mark.slow
def test_the_zero_moves_with_how_demanding_the_prompt_is(tmp_path, base):
    report = train_reward_model(demanding_rows(3000, 1), base, tmp_path / "m", eval_rows=demanding_rows(300, 2), twin=True, **FAST)
    model = RewardModel.load(tmp_path / "m", device="cpu")
    source = random.Random(3)
    # Not the hopeless ones: how far below zero an answer is that nobody takes, labels hardly tell.
    texts = [text_of(word, source) for word in ("good", "fine") for _ in range(25)]
    lenient, strict = model.score("cast the and was the", texts), model.score("very the and was the", texts)
    moved = sum(one - other for one, other in zip(lenient, strict, strict=True)) / len(texts)
    assert moved == pytest.approx(2.5, abs=0.7)
    fine = [index for index, text in enumerate(texts) if "fine" in text]
    assert all(lenient[index] > 0 for index in fine)
    assert sum(strict[index] > 0 for index in fine) < len(fine) / 2
    # The twin of the same rows ranks as well and decides worse.
    assert report["eval"]["pair_accuracy"] > report["twin_eval"]["pair_accuracy"] - 0.03
    assert report["eval"]["acceptance_accuracy"] > report["twin_eval"]["acceptance_accuracy"]
    assert report["eval"]["log_likelihood"] > report["twin_eval"]["log_likelihood"]


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path, base):
    path = write_jsonl(tmp_path / "choices.jsonl", simulated_rows(300, seed=4))
    output = tmp_path / "m"
    arguments = ["train", str(path), "--base", str(base), "-o", str(output), "--device", "cpu", "--threads", "1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bonmini_guard.cli"]
    more = ["--learning-rate", "6e-3", "--epochs", "6", "--eval-share", "0.2"]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *arguments, *more], check=False, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("judgements of") == 1
    report = json.loads((output / "training.json").read_text())
    assert report["processes"] == 2
    assert report["eval"]["log_likelihood"] > -0.8
    assert sorted(item.name for item in tmp_path.iterdir()) == ["choices.jsonl", "m"]


@pytest.mark.slow
def test_sharded_weights_learn_what_whole_ones_do_and_go_on_after_a_kill(tmp_path, base):
    path = write_jsonl(tmp_path / "choices.jsonl", simulated_rows(200, seed=4))
    fast = ["--learning-rate", "3e-3", "--epochs", "6", "--checkpoints", "9", "--device", "cpu", "--threads", "1"]
    shared = ["train", str(path), "--base", str(base), *fast, "-o"]
    losses, said = {name: str(tmp_path / f"{name}.json") for name in ("sharded", "whole")}, tmp_path / "said.txt"
    fsdp = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_state_dict_type", "SHARDED_STATE_DICT"]
    launch = [*fsdp, "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--mixed_precision", "no", "--dynamo_backend", "no"]
    sharded = [*shared, str(tmp_path / "sharded")]
    assert ended(sharded, said, launch, STOP="10") == [-signal.SIGKILL] * 2, said.read_text()[-3000:]
    checkpoint = tmp_path / "sharded.partial" / "checkpoints" / "checkpoint-10"
    assert len(list((checkpoint / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2
    assert not list(checkpoint.glob("*.safetensors"))
    assert ended(sharded, said, launch, LOSSES=losses["sharded"]) == [0, 0], said.read_text()[-3000:]
    assert "going on from the checkpoints" in said.read_text()
    # Two batches a step, as two processes take them.
    alone = begun([*shared, str(tmp_path / "whole"), "--accumulate", "2"], said, {"LOSSES": losses["whole"]})
    alone.join()
    assert alone.exitcode == 0, said.read_text()[-3000:]
    one, other = (json.loads(Path(losses[name]).read_text()) for name in ("sharded", "whole"))
    assert len(one) == 4
    assert one == pytest.approx(other, abs=1e-4)
    assert largest_difference(tmp_path / "sharded", tmp_path / "whole") < 1e-4


def test_the_card_says_what_the_zero_means_and_shows_the_evidence(tmp_path, base, rows):
    train_reward_model(rows[:200], base, tmp_path / "m", eval_rows=rows[200:], epochs=1, twin=True, **FAST)
    card = (tmp_path / "m" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "as likely to take the answer as to take none" in card
    assert "| | this model | Bradley-Terry twin |" in card
    assert "reliability error" in card
    shared = {prompt_digest(row.prompt) for row in rows[:200]} & {prompt_digest(row.prompt) for row in rows[200:]}
    assert f"\n{len(shared)} of its prompts were trained on, too: it flatters.\n" in card
    assert "read as\n\n```\n<s>What is asked?An answer.\n```\n" in card, "what a scored text looks like"
    assert str(tmp_path) not in card + (tmp_path / "m" / "training.json").read_text()
    assert evaluate_reward_model(tmp_path / "m", rows[200:])["log_likelihood"] == pytest.approx(
        json.loads((tmp_path / "m" / "training.json").read_text())["eval"]["log_likelihood"], abs=1e-6
    )


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"precision": "bfloat16"}, "bfloat16 is for GPUs"),
        ({"precision": "half"}, "precision must be '"),
        ({"lora_rank": 0}, "lora_rank must be a positive integer"),
        ({"lora_alpha": 8}, "lora_alpha without lora_rank"),
        ({"checkpoints": -1}, "checkpoints must be an integer of 0 or more"),
        ({"early_stopping": 2, "checkpoints": 0}, "1 or more with early stopping"),
        ({"twin": True, "objective": "bradley_terry"}, "a twin is for"),
        ({"twin": True}, "held-out rows, and so does a twin"),
        ({"seed": -1}, "seed must be an integer of 0 or more"),
        ({"weight_decay": float("nan")}, "weight_decay must be a number of 0 or more"),
        ({"optimizer": "galore_adamw"}, "--optimizer: .*galore"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, base, rows, plan, said):
    with pytest.raises(ConfigurationError, match=said):
        train_reward_model(rows, base, tmp_path / "m", device="cpu", **plan)
    assert not list(tmp_path.iterdir())


def test_a_twin_without_comparisons_that_can_be_read_is_refused_before_the_training(tmp_path, base, rows):
    long = [row for row in rows if row.choice == "none" or len(row.responses) == 1]
    long += [ChoiceRow("film", ("good " * 80, "dull"), 0)]
    with pytest.raises(InputError, match="no row that can be read prefers one of several responses, as a twin learns"):
        train_reward_model(long, base, tmp_path / "m", eval_rows=rows[:9], twin=True, device="cpu", layers=1)
    assert not list(tmp_path.iterdir())


def test_a_twin_is_what_the_objective_makes_of_its_comparisons(tmp_path, base, rows):
    plan = {"epochs": 1, "batch_size": 8, **FAST}
    twin = train_reward_model(rows[:200], base, tmp_path / "m", eval_rows=rows[200:], twin=True, **plan)["twin_eval"]
    compared = [row for row in rows[:200] if row.choice != "none" and len(row.responses) > 1]
    train_reward_model(compared, base, tmp_path / "twin", objective="bradley_terry", **plan)
    alone = evaluate_reward_model(tmp_path / "twin", rows[200:])
    assert twin["log_likelihood"] == pytest.approx(alone["log_likelihood"], abs=1e-6)


def test_that_all_none_are_too_long_is_told(tmp_path, base, rows):
    some = [row for row in rows if row.choice != "none"] + [ChoiceRow("film", ("dull " * 80,), "none")] * 3
    with pytest.raises(InputError, match=r"where zero is \(3 are left out, with more than 64 tokens \(raise --max"):
        train_reward_model(some, base, tmp_path / "m", device="cpu")


def test_what_cannot_recompute_its_activations_is_refused(tmp_path, chat_tokenizer):
    config = OpenAIGPTConfig(vocab_size=len(chat_tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    OpenAIGPTModel(config).save_pretrained(tmp_path / "gpt")
    chat_tokenizer.save_pretrained(tmp_path / "gpt")
    with pytest.raises(ConfigurationError, match="knows no gradient checkpointing: leave it out"):
        train_reward_model(
            [choice_row(row) for row in simulated_rows(9, seed=1)], tmp_path / "gpt", tmp_path / "m", gradient_checkpointing=True
        )
    assert [each.name for each in tmp_path.iterdir()] == ["gpt"]


def test_the_card_of_a_model_of_pairs_says_so(tmp_path, rows):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    some, plan = [row for row in rows if len(row.responses) > 1][:40], {"objective": "bradley_terry", "inputs": "pair"}
    report = train_reward_model(some, tmp_path / "bert", tmp_path / "m", epochs=1, **plan, **FAST)
    assert report["inputs"] == "pair"
    card = (tmp_path / "m" / "README.md").read_text()
    assert "Give the tokenizer two texts" in card
    assert "\n<s>What is asked?</s>An answer.</s>\n" in card
    assert "chat template" not in card
    assert '"None" was chosen' not in card, "such rows were left out"
