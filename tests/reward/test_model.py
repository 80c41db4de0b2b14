import asyncio
import json
import logging
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen3Config,
    T5Config,
)
from transformers.utils import logging as transformers_logging

from bonmini_guard.engine.protocols import Scorer, ScoringSession
from bonmini_guard.errors import CheckpointError, ConfigurationError
from bonmini_guard.reward.model import RewardModel

from .tiny import CHATML, make_tokenizer

SIZE = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 1, "pad_token_id": 0}
CONFIGS = {
    "llama": LlamaConfig(**SIZE, intermediate_size=64, max_position_embeddings=128),
    "gemma": GemmaConfig(**SIZE, intermediate_size=64, max_position_embeddings=128, num_key_value_heads=1, head_dim=16),
    "gpt2": GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=128, num_labels=1, pad_token_id=0),
    "bert": BertConfig(**SIZE, intermediate_size=64, max_position_embeddings=128),
    "qwen3": Qwen3Config(**SIZE, intermediate_size=64, max_position_embeddings=128, num_key_value_heads=1, head_dim=16),
    "modernbert": ModernBertConfig(**SIZE, intermediate_size=64, max_position_embeddings=128, local_attention=8),
    "deberta": DebertaV2Config(
        **SIZE, intermediate_size=64, max_position_embeddings=128, relative_attention=True, pos_att_type=["p2c"]
    ),
}
USER = [HumanMessage("the film")]
ANSWERS = ["good", "was very awful and dull", "", "fine " * 12, "good", "plot </s>", "the " * 3]


def save(folder, config, seed=0, dtype=torch.float32, tokenizer=None, **changes):
    torch.manual_seed(seed)
    config = type(config).from_dict(config.to_dict() | changes)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.to(dtype).save_pretrained(folder)
    (tokenizer or make_tokenizer(CHATML)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llama"), CONFIGS["llama"], bonmini_guard={"zero": "outside_option", "version": 1})


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("kind", CONFIGS)
def test_scores_are_those_of_transformers(tmp_path, kind):
    model = RewardModel.load(save(tmp_path, CONFIGS[kind]), device="cpu")
    tokenizer = make_tokenizer(CHATML)
    chat = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "very good"}]
    ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False, return_tensors="pt")["input_ids"]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert model.score(USER, ["very good"]) == pytest.approx([plain(input_ids=ids).logits.item()], abs=1e-5)
    assert not model.has_zero


def test_a_text_that_ends_with_the_pad_token_is_read_at_its_end(tmp_path):
    tokenizer = make_tokenizer("{% for message in messages %}{{ message['content'] }}</s>{% endfor %}")
    tokenizer.pad_token = "</s>"
    model = RewardModel.load(save(tmp_path, CONFIGS["llama"], tokenizer=tokenizer, pad_token_id=2), device="cpu")
    ids = torch.tensor([tokenizer("the film</s>good</s>", add_special_tokens=False)["input_ids"]])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = plain.score(plain.model(ids).last_hidden_state[:, -1]).item()
    assert model.score(USER, ["good", "very very dull"])[0] == pytest.approx(expected, abs=1e-5)


def test_the_zero_survives_saving_and_loading(folder, tmp_path):
    assert RewardModel.load(folder, device="cpu").has_zero
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["bonmini_guard"] == {"zero": "outside_option", "version": 1}


def test_it_is_a_scorer_whose_sessions_do_not_block_the_loop(folder):
    model = RewardModel.load(folder, device="cpu")
    session = model.session(USER)
    assert isinstance(model, Scorer)
    assert isinstance(session, ScoringSession)

    async def use():
        release = threading.Event()
        model._batcher._thread.submit(release.wait)
        waiting = asyncio.ensure_future(session.score([AIMessage("good")]))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        release.set()
        scores = await waiting
        await session.aclose()
        return scores

    assert asyncio.run(use()) == model.score("the film", ["good"])


def test_what_does_not_fit_has_no_score_and_the_rest_has(folder, caplog):
    model = RewardModel.load(folder, device="cpu", max_length=60)
    with caplog.at_level(logging.WARNING):
        scores = model.score(USER, ["good", "secret " * 40, "fine"])
    assert scores[1] is None
    assert scores[0] == pytest.approx(model.score(USER, ["good"])[0], abs=1e-5)
    assert "candidate 2 of 3 has no score" in caplog.text
    assert "secret" not in caplog.text
    assert model.score(USER, []) == []


def test_cut_turns_are_told_once(folder, caplog):
    model = RewardModel.load(folder, device="cpu")
    with caplog.at_level(logging.WARNING):
        model.score([HumanMessage("the film " * 3)] * 12, ["good", "fine"])
    assert caplog.text.count("oldest turns were left out") == 1
    assert model.max_length == 128


def test_the_fingerprint_follows_weights_template_and_precision(folder, copy):
    original = RewardModel.load(folder, device="cpu").fingerprint()
    assert RewardModel.load(copy, device="cpu").fingerprint() == original
    assert RewardModel.load(copy, device="cpu", dtype=torch.float64).fingerprint() != original
    make_tokenizer(CHATML + "\n").save_pretrained(copy)
    assert RewardModel.load(copy, device="cpu").fingerprint() != original
    make_tokenizer(CHATML).save_pretrained(copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert RewardModel.load(copy, device="cpu").fingerprint() != original


def test_the_fingerprint_follows_what_is_read(copy):
    model = RewardModel.load(copy, device="cpu")
    shorter = RewardModel.load(copy, device="cpu", max_length=16)
    changed = json.loads((copy / "tokenizer.json").read_text()) | {"normalizer": {"type": "Lowercase"}}
    (copy / "tokenizer.json").write_text(json.dumps(changed))
    for other in (shorter, RewardModel.load(copy, device="cpu")):
        assert other.fingerprint() != model.fingerprint()
        assert other.earlier_fingerprint() == model.earlier_fingerprint()


def test_half_precision_weights_are_widened_on_a_cpu(tmp_path, caplog):
    save(tmp_path, CONFIGS["llama"], dtype=torch.float16)
    model = RewardModel.load(tmp_path, device="cpu", dtype="auto")
    assert "float32" in repr(model)
    assert len(repr(model)) < 300
    with caplog.at_level(logging.WARNING):
        RewardModel.load(tmp_path, device="cpu", dtype="bfloat16")
    assert "75 times slower" in caplog.text


def test_checkpoints_of_another_kind_are_refused(tmp_path, base, copy):
    with pytest.raises(CheckpointError, match="a language model"):
        RewardModel.load(base)
    with pytest.raises(CheckpointError, match="2 labels"):
        RewardModel.load(save(tmp_path / "two", CONFIGS["bert"], id2label={0: "a", 1: "b"}))
    with pytest.raises(CheckpointError, match="3 labels"):
        RewardModel.load(save(tmp_path / "three", CONFIGS["bert"], id2label={0: "a", 1: "b", 2: "c"}))
    with pytest.raises(CheckpointError, match="no such folder"):
        RewardModel.load(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        RewardModel.load(tmp_path)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no safetensors"):
        RewardModel.load(copy)


def test_a_checkpoint_without_a_trained_head_is_refused(base, tmp_path):
    headless = shutil.copytree(base, tmp_path / "headless")
    claims = {"id2label": {"0": "LABEL_0"}, "architectures": ["LlamaForSequenceClassification"]}
    config = json.loads((headless / "config.json").read_text()) | claims
    (headless / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"without weights for score\.weight"):
        RewardModel.load(headless)


def test_damaged_weights_and_a_missing_tokenizer_are_refused(copy):
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        RewardModel.load(copy)
    (copy / "model.safetensors").write_bytes(weights)
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        RewardModel.load(copy)


def test_an_encoder_decoder_is_read_at_its_end_token(tmp_path):
    sizes = {"vocab_size": 320, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2}
    t5 = T5Config(**sizes, num_labels=1, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)
    ends = make_tokenizer(CHATML + "</s>")
    model = RewardModel.load(save(tmp_path / "ends", t5, tokenizer=ends), device="cpu", inputs="text")
    assert None not in model.score(USER, ANSWERS)
    with pytest.raises(CheckpointError, match="read at '</s>', and its chat template writes none"):
        RewardModel.load(save(tmp_path / "goes on", t5), device="cpu", inputs="text")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"num_attention_heads": 5}, r"config\.json is broken .*not a multiple of the number of attention heads"),
        ("config.json", {"pad_token_id": [0]}, r"config\.json is broken .*pad_token_id"),
        ("config.json", {"id2label": ["good"]}, r"config\.json is broken"),
        ("config.json", {"vocab_size": 100}, r"model\.embed_tokens\.weight has the shape \[320, 32\], and \[100, 32\] is wanted"),
        ("config.json", {"pad_token_id": 999}, "cannot be loaded"),
        ("tokenizer_config.json", {"bos_token": 5}, "no usable tokenizer"),
        ("tokenizer_config.json", {"model_max_length": "64"}, r"model_max_length is '64' in its tokenizer_config\.json"),
        ("trained_on.json", '{"prompts": ["a', "is broken"),
        ("adapter_config.json", '{"base', r"adapter_config\.json is broken"),
        ("adapter_config.json", "[]", r"adapter_config\.json is broken"),
    ],
)
def test_broken_settings_are_one_clear_error(copy, file, change, words):
    whole = change if isinstance(change, str) else json.dumps(json.loads((copy / file).read_text()) | change)
    (copy / file).write_text(whole)
    with pytest.raises(CheckpointError, match=words):
        RewardModel.load(copy, device="cpu")


def test_weights_of_whole_numbers_that_nothing_says_are_quantised_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    save_file(weights | {name: (weights[name] * 100).to(torch.int8)}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is of whole numbers"):
        RewardModel.load(copy, device="cpu")


@pytest.mark.parametrize("layer", ["score", "model.layers.0.self_attn.q_proj"])
def test_a_bias_for_which_the_architecture_has_no_place_is_refused(copy, layer):
    weights = load_file(copy / "model.safetensors")
    bias = torch.ones(len(weights[f"{layer}.weight"]))
    save_file(weights | {f"{layer}.bias": bias}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{layer}\.bias is of a layer that has none here"):
        RewardModel.load(copy, device="cpu")
    save_file(weights | {f"{layer}.bias": 0 * bias}, copy / "model.safetensors", metadata={"format": "pt"})
    assert RewardModel.load(copy, device="cpu").score("the film", ["good"])  # as of GPTQ: nothing is lost


def test_a_length_that_is_no_whole_number_is_rounded_down(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 12.5}))
    assert RewardModel.load(copy, device="cpu").max_length == 12


def test_a_base_of_a_whole_checkpoint_is_refused(folder):
    with pytest.raises(ConfigurationError, match=r"base= goes with a folder of adapters, and .* is whole"):
        RewardModel.load(folder, base=folder, device="cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"device": "tpux"},
            {"device": "mps:7"},
            {"device": "meta"},
            {"dtype": "int64"},
            {"dtype": "float99"},
            {"batch_tokens": 0},
            {"cache_bytes": -1},
        ),
        *({"max_length": 0}, {"max_length": "64"}, {"max_length": True}, {"not_shown": "reasoning"}),
    ],
)
def test_wrong_arguments_name_the_cure(folder, wrong):
    with pytest.raises(ConfigurationError, match=r"use|must"):
        RewardModel.load(folder, **wrong)


def test_a_closed_model_scores_no_more(folder):
    model = RewardModel.load(folder, device="cpu")
    model.close()
    with pytest.raises(RuntimeError):
        model.score(USER, ["good"])


def test_importing_the_room_loads_no_torch():
    code = "import sys, bonmini_guard.reward, bonmini_guard.commands.train; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_room_offers_its_names():
    import bonmini_guard.reward as room

    assert room.RewardModel is RewardModel
    assert all(hasattr(room, name) for name in dir(room))
    with pytest.raises(AttributeError, match="nothing"):
        _ = room.nothing


@pytest.mark.parametrize("quantiser", ["bitsandbytes", "compressed-tensors"])
def test_weights_that_need_a_library_which_is_missing_name_it(copy, quantiser):
    file = copy / "config.json"
    settings = {"quant_method": quantiser} | ({"load_in_4bit": True} if quantiser == "bitsandbytes" else {})
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
    with pytest.raises(CheckpointError, match=f"copy: .*{quantiser}"):
        RewardModel.load(copy, device="cpu")


def test_models_that_load_at_once_leave_transformers_as_loud_as_it_was(folder):
    before = transformers_logging.get_verbosity()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: RewardModel.load(folder, device="cpu").close(), range(8)))
    assert transformers_logging.get_verbosity() == before
