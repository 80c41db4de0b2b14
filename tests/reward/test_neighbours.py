"""A score never depends on its neighbours: not on the texts of its batch, nor on those of other requests or of earlier batches."""

import asyncio
import logging

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from transformers import (
    BartConfig,
    BloomConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    XLNetConfig,
)

from bonmini_guard.errors import CheckpointError
from bonmini_guard.reward.model import RewardModel

from .test_model import CONFIGS, SIZE, save
from .test_packed import GROUPED, WINDOWED
from .tiny import CHATML, make_tokenizer


def longrope(kind, **more):
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0}
    rope["original_max_position_embeddings"] = 32
    return kind(**SIZE, intermediate_size=64, max_position_embeddings=256, rope_parameters=rope, **more)


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
PLAIN = {"intermediate_size": 64, "max_position_embeddings": 256}
UNLIKE = {
    "longrope phi3": longrope(Phi3Config, original_max_position_embeddings=32),
    "longrope llama": longrope(LlamaConfig),
    "longrope qwen2": longrope(Qwen2Config, num_key_value_heads=2),
    "dynamic llama": LlamaConfig(**SIZE, intermediate_size=64, max_position_embeddings=32, rope_parameters=DYNAMIC),
    "xlnet": XLNetConfig(vocab_size=320, d_model=32, n_layer=2, n_head=2, d_inner=64, num_labels=1, pad_token_id=0),
    "bart": BartConfig(
        **SIZE | {"num_hidden_layers": 1},
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=256,
        eos_token_id=2,
        bos_token_id=1,
        decoder_start_token_id=2,
    ),
    "opt": OPTConfig(**SIZE, ffn_dim=64, max_position_embeddings=256, word_embed_proj_dim=32),
    "bloom": BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=2, num_labels=1, pad_token_id=0),
    "gpt-neox": GPTNeoXConfig(**SIZE, **PLAIN),
    "mixtral": MixtralConfig(**SIZE, **PLAIN, num_key_value_heads=1, num_local_experts=2),
}
FAMILIES = CONFIGS | WINDOWED | GROUPED | UNLIKE
#: Whose padding, or whose texts together, would change scores.
ONE_BY_ONE = {"xlnet", "bart"}
TEXTS = ["good", "the plot was dull " * 12, "fine end", "very " * 30, "", "awful " * 3]
PROMPT = [HumanMessage("the film")]


async def beside(model):
    """The scores of all texts, each by a request of its own, all at once."""

    async def one(text):
        session = model.session(PROMPT)
        try:
            return (await session.score([AIMessage(text)]))[0]
        finally:
            await session.aclose()

    return await asyncio.gather(*map(one, TEXTS))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_score_is_the_same_alone_and_beside_others(tmp_path, kind):
    template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}" if kind == "bart" else CHATML
    model = RewardModel.load(save(tmp_path, FAMILIES[kind], tokenizer=make_tokenizer(template)), device="cpu", max_length=100)
    alone = [model.score(PROMPT, [text])[0] for text in TEXTS]
    assert sum(score is not None for score in alone) >= 4
    kept = [text for text, score in zip(TEXTS, alone, strict=True) if score is not None]
    expected = [score for score in alone if score is not None]
    assert model.score(PROMPT, kept) == pytest.approx(expected, abs=1e-4)
    assert model.score(PROMPT, kept[::-1]) == pytest.approx(expected[::-1], abs=1e-4)
    assert [score for score in asyncio.run(beside(model)) if score is not None] == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 1e-4
    model.close()


@pytest.mark.parametrize("kind", ["xlnet", "bert", "llama", "longrope llama"])
def test_only_what_padding_changes_is_scored_one_by_one(tmp_path, kind, caplog):
    with caplog.at_level(logging.WARNING):
        model = RewardModel.load(save(tmp_path, FAMILIES[kind]), device="cpu")
    assert ("scored one by one" in caplog.text) == (kind in ONE_BY_ONE)
    texts = ["good", "fine end", "dull", "plot"]
    begun = model.activity.batches
    model.score(PROMPT, texts)
    assert model.activity.batches - begun == (len(texts) if kind in ONE_BY_ONE else 1)


def with_more_tokens(template, special):
    tokenizer = make_tokenizer(template)
    added = ["<|turn|>", "<|over|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": added}) if special else tokenizer.add_tokens(["<tool_call>"])
    return tokenizer


def test_a_template_that_writes_tokens_beyond_the_embedding_is_refused_at_load(tmp_path):
    template = "{% for m in messages %}<|turn|>{{ m['role'] }} {{ m['content'] }}<|over|>{% endfor %}"
    tokenizer = with_more_tokens(template, special=True)
    size = len(tokenizer)
    config = LlamaConfig(**SIZE | {"vocab_size": size - 2}, **PLAIN)
    with pytest.raises(CheckpointError, match=r"no embedding, and its chat template writes them; call resize_token_embeddings"):
        RewardModel.load(save(tmp_path / "less", config, tokenizer=tokenizer), device="cpu")
    whole = RewardModel.load(save(tmp_path / "whole", config, tokenizer=tokenizer, vocab_size=size), device="cpu")
    assert whole.score(PROMPT, ["good"])[0] is not None


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_text_that_spells_a_token_beyond_the_embedding_costs_no_other_its_score(tmp_path, kind, caplog):
    tokenizer = with_more_tokens(CHATML, special=False)
    folder = save(tmp_path, FAMILIES[kind], tokenizer=tokenizer, vocab_size=len(tokenizer) - 1)
    with caplog.at_level(logging.WARNING):
        model = RewardModel.load(folder, device="cpu")
    assert "1 tokens, such as '<tool_call>', for which the model has no embedding" in caplog.text
    good, odd, bad = model.score(PROMPT, ["good", "<tool_call> x", "bad"])
    assert [good, bad] == pytest.approx([model.score(PROMPT, [text])[0] for text in ("good", "bad")], abs=1e-5)
    assert odd is None
