"""A tiny tokenizer and a tiny base model for the reward tests."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .tiny import CHATML, make_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def plain_tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer():
    return make_tokenizer(CHATML)


@pytest.fixture(scope="session")
def base(tmp_path_factory, plain_tokenizer):
    """A random Llama language model of 2 layers, as a folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(plain_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    plain_tokenizer.save_pretrained(folder)
    return folder
