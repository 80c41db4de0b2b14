"""Distillation of a tiny generator: the reward rises, the folder loads, bad input is told."""

import json
import math
import os
import re
import shutil
import signal

import pytest
import torch
from langchain_core.messages import HumanMessage, SystemMessage
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification

from bonmini_guard.cli import main
from bonmini_guard.errors import CheckpointError, ConfigurationError, InputError
from bonmini_guard.training.distill import DistillPrompt, distill, read_prompts
from bonmini_guard.training.distill.drawing import Draw, divergence, draw, log_likelihood
from bonmini_guard.training.distill.run import _load
from tests.reward.tiny import CHATML, WORDS, make_tokenizer, write_jsonl
from tests.training.launched import forks

torch.set_num_threads(1)


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")


def liked(text):
    return sum(letter in "abcdefghijklm" for letter in text)


class Wordy:
    """A scorer that likes half of the alphabet; it has the two methods that distillation uses of a reward model."""

    def score(self, messages, candidates):
        texts = [one if isinstance(one, str) else one.text for one in candidates]
        return [liked(text) - 4.0 for text in texts]

    def fingerprint(self):
        return "wordy"


class NoNumbers(Wordy):
    """A reward model whose training has diverged."""

    def score(self, messages, candidates):
        return [math.nan for _ in candidates]


class Killed(Wordy):
    """The process is killed as the first answers are scored."""

    def score(self, messages, candidates):
        os.kill(os.getpid(), signal.SIGKILL)


def tiny_lm(base, folder, chat_template=None):
    torch.manual_seed(0)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False}
    config = AutoConfig.from_pretrained(base, num_hidden_layers=1, max_position_embeddings=96, **tokens)
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(chat_template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def generator(tmp_path_factory, base):
    return tiny_lm(base, tmp_path_factory.mktemp("lm"))


def prompts(count=20):
    return [DistillPrompt((HumanMessage(f"{WORDS[n % 12]} {WORDS[(5 * n) % 12]}"),)) for n in range(count)]


SMALL = {
    "n": 8,
    "reference_draws": 16,
    "steps": 20,
    "prompts_a_step": 4,
    "draws": 8,
    "max_new_tokens": 8,
    "learning_rate": 1e-2,
    "eval_draws": 16,
    "device": "cpu",
    "threads": 1,
}


@pytest.mark.slow
def test_one_draw_of_the_distilled_generator_is_better_and_its_divergence_is_told(tmp_path, generator):
    report = distill(prompts(), generator, Wordy(), tmp_path / "out", truth=lambda p, texts: [liked(t) for t in texts], **SMALL)
    records = {record["name"]: record for record in report["front"]}
    before, after = records["original, one draw"], records["distilled, one draw"]
    assert after["score"] > before["score"] + 0.4
    assert after["score_gain"] > after["score_gain_within"] > 0
    assert after["utility"] > before["utility"]
    assert 0 < after["kl"] < 10
    assert report["beta"] == pytest.approx(1 / 7)
    assert json.loads((tmp_path / "out" / "distillation.json").read_text())["front"] == report["front"]
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (
        tuned.generate(**AutoTokenizer.from_pretrained(tmp_path / "out")("good", return_tensors="pt"), max_new_tokens=2).shape[0]
        == 1
    )
    assert [item.name for item in tmp_path.iterdir()] == ["out"]
    assert str(tmp_path) not in (tmp_path / "out" / "distillation.json").read_text()


@pytest.mark.slow
def test_adapters_and_chat_templates_on_as_few_prompts_as_can_be(tmp_path, base):
    chat = tiny_lm(base, tmp_path / "chat", CHATML)
    report = distill(prompts(5), chat, Wordy(), tmp_path / "out", lora_rank=2, **(SMALL | {"steps": 1}))
    names = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert not any("lora" in name for name in names)
    # An interval needs two prompts; the three that are left are fewer than a step is to have.
    assert report["held_out_prompts"] == 2
    assert next(record for record in report["front"] if record["name"] == "distilled, one draw")["kl"] > 1e-6
    assert all(math.isfinite(value) for record in report["front"] for value in record.values() if not isinstance(value, str))


@pytest.mark.slow
def test_what_a_killed_run_leaves_is_taken_away_by_the_next_one(tmp_path, generator):
    process = forks.Process(target=distill, args=(prompts(), generator, Killed(), tmp_path / "out"), kwargs=SMALL)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [each.name for each in tmp_path.iterdir()] == ["out.partial"]
    distill(prompts(), generator, Wordy(), tmp_path / "out", **SMALL)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_the_command_on_a_log(tmp_path, generator, base, capsys):
    torch.manual_seed(1)
    reward = LlamaForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    reward.save_pretrained(tmp_path / "reward")
    make_tokenizer().save_pretrained(tmp_path / "reward")
    rows = [{"id": str(n), "prompt": f"{WORDS[n % 12]} {n}", "candidates": [{"text": " good"}] * 4} for n in range(10)]
    path = write_jsonl(tmp_path / "log.jsonl", rows)
    arguments = ["distill", str(path), "--generator", str(generator), "--reward-model", str(tmp_path / "reward")]
    small = ["--steps", "1", "--draws", "2", "--prompts-a-step", "2", "--reference-draws", "4", "--max-new-tokens", "4"]
    assert main([*arguments, "-o", str(tmp_path / "out"), *small, "--eval-draws", "8", "--device", "cpu", "--n", "4"]) == 0
    assert re.search(r"^best-of-4 .* 4\.0 +0\.64$", capsys.readouterr().out, re.MULTILINE)
    assert main([*arguments, "-o", str(tmp_path / "out"), *small]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_settings_of_generation_that_a_checkpoint_brings_neither_change_the_draws_nor_get_lost(tmp_path, generator):
    other = shutil.copytree(generator, tmp_path / "lm")
    own = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps(own | {"repetition_penalty": 50.0, "no_repeat_ngram_size": 1}))
    small = SMALL | {"steps": 1, "reference_draws": 4, "draws": 2, "prompts_a_step": 2}
    plain, told = (distill(prompts(5), place, Wordy(), tmp_path / place.name / "out", **small) for place in (generator, other))
    assert told["front"] == plain["front"]
    assert json.loads((other / "out" / "generation_config.json").read_text())["repetition_penalty"] == 50.0


def test_draws_continue_their_prompts_and_end_at_the_end_token(generator):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(generator), AutoTokenizer.from_pretrained(generator)
    torch.manual_seed(0)
    found = draw(model, tokenizer, ["good", "the film was very"], 40, new_tokens=6, temperature=1.0)
    assert [len(row) for row in found] == [40, 40]
    for prompt, row in zip(["good", "the film was very"], found, strict=True):
        assert all(one.prompt == tokenizer(prompt)["input_ids"] for one in row)
        assert all(1 <= len(one.answer) <= 6 for one in row)
        assert all(2 not in one.answer[:-1] for one in row)


@pytest.mark.parametrize(("own", "ends"), [(None, [2]), (5, [5, 2]), ([5, 2], [5, 2]), (2, 2)])
def test_answers_end_where_trl_ends_them_as_it_learns(tmp_path, generator, own, ends):
    """It adds the tokenizer's end token: references, figures and the distilled checkpoint would end elsewhere than what learns."""
    other = shutil.copytree(generator, tmp_path / "lm")
    for name in ("config.json", "generation_config.json"):
        (other / name).write_text(json.dumps(json.loads((other / name).read_text()) | {"eos_token_id": own}))
    model, _, kept = _load(str(other), torch.device("cpu"))
    assert model.generation_config.eos_token_id == kept.eos_token_id == ends


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_divergence_is_that_of_the_answers_laws(generator, temperature):
    """Against the log ratio of answers of one token, summed over the whole vocabulary."""
    model, reference = (AutoModelForCausalLM.from_pretrained(generator).eval() for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    prompt = [1, 40, 50]
    one = Draw(prompt, [60], "")
    with torch.no_grad():
        logs, others = ((m(torch.tensor([prompt])).logits[0, -1] / temperature).log_softmax(0) for m in (model, reference))
    expected = float((logs.exp() * (logs - others)).sum())
    assert divergence(model, reference, [one, one], temperature).tolist() == pytest.approx([expected] * 2, rel=1e-4)
    assert float(divergence(model, model, [Draw(prompt, [60, 61, 2], "")], temperature)) == pytest.approx(0.0, abs=1e-6)
    assert log_likelihood(reference, [one], temperature) == pytest.approx(float(others[60]), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 1}, "n must be an integer of 2 or more"),
        ({"draws": 1}, "draws must be an integer of 2 or more"),
        ({"temperature": math.nan}, "temperature must be a number above 0"),
        ({"device": "x"}, "device must be '"),
        pytest.param({"device": "cuda"}, "no device 'cuda' here", marks=NO_GPU),
    ],
)
def test_settings_that_do_not_fit(tmp_path, generator, settings, said):
    with pytest.raises(ConfigurationError, match=said):
        distill(prompts(), generator, Wordy(), tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_reference_scores_are_the_reward_models_own(tmp_path):
    """A profile's transform is in ``score``, and not in what completions are compared by."""
    candidates = [{"text": "a", "score": 7.0, "raw_score": 1.0}, {"text": "b", "score": -1.0}]
    rows = [{"id": str(n), "prompt": f"p{n}", "candidates": candidates} for n in range(5)]
    assert read_prompts([write_jsonl(tmp_path / "log.jsonl", rows)])[0].scores == (1.0, -1.0)
    bare, less = {"id": "x", "prompt": "p2"}, {"id": "y", "prompt": "p2", "candidates": candidates[:1]}
    again = read_prompts([write_jsonl(tmp_path / "again.jsonl", [bare, *rows, less])])
    assert {one.messages[0].text: len(one.answers) for one in again} == {f"p{n}": 2 for n in range(5)}
    rows[3]["candidates"] = [{"text": "a", "score": "7"}]
    with pytest.raises(InputError, match=r"bad.jsonl:4: the score of candidate 1 is '7', not a number"):
        read_prompts([write_jsonl(tmp_path / "bad.jsonl", rows)])


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, generator, base):
    with pytest.raises(CheckpointError, match="no such folder"):
        distill(prompts(), tmp_path / "missing" / "x", Wordy(), tmp_path / "out")
    broken = shutil.copytree(generator, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be loaded as a language model"):
        distill(prompts(), broken, Wordy(), tmp_path / "out")
    shutil.rmtree(broken)
    headless = shutil.copytree(base, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "norm" not in name}, headless / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=r"without weights for .+, which would be chance"):
        distill(prompts(), headless, Wordy(), tmp_path / "out")
    shutil.rmtree(headless)
    endless = shutil.copytree(generator, tmp_path / "endless")
    told = json.loads((endless / "tokenizer_config.json").read_text())
    (endless / "tokenizer_config.json").write_text(json.dumps(told | {"eos_token": None}))
    with pytest.raises(CheckpointError, match="its tokenizer names no end token, so no answer would end"):
        distill(prompts(), endless, Wordy(), tmp_path / "out", **SMALL)
    shutil.rmtree(endless)
    strict = tiny_lm(
        base, tmp_path / "strict", "{{ raise_exception('System role not supported') if messages[0]['role'] == 'system' }}"
    )
    asked = [*prompts(), DistillPrompt((SystemMessage("Be brief."), HumanMessage("film")))]
    with pytest.raises(InputError, match=r"prompt 21: the generator's chat template refuses it .System role not supported"):
        distill(asked, strict, Wordy(), tmp_path / "out", **SMALL)
    shutil.rmtree(strict)
    long = [*prompts(), DistillPrompt((HumanMessage("film " * 90),))]
    with pytest.raises(InputError, match=r"prompt 21: with its answer \d+ tokens, and the generator reads 96; leave it out"):
        distill(long, generator, Wordy(), tmp_path / "out", **SMALL)
    with pytest.raises(InputError, match=r"no draw for the prompt '\w+ \w+' can be scored"):
        distill(prompts(), generator, NoNumbers(), tmp_path / "out", **SMALL)
    with pytest.raises(InputError, match="distinct prompts; give 5 or more"):
        read_prompts([write_jsonl(tmp_path / "few.jsonl", [{"id": "a", "prompt": "p"}] * 9)])
    with pytest.raises(InputError, match=r"bad\.jsonl:1: "):
        read_prompts([write_jsonl(tmp_path / "bad.jsonl", [{"id": "a"}])])
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bad.jsonl", "few.jsonl"]
