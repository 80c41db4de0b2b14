"""Reward models with random weights in the shapes that matter, and what their computations cost."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

_WORDS = 2048
#: What texts that are not made of the words below are spelt with.
_LETTERS = [chr(code) for code in range(33, 127)]
#: Contents one after the other, a space between: every word is a token, for us and for every rival.
_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
_TINY = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
_COMMON = {"vocab_size": 1 + _WORDS + len(_LETTERS), "max_position_embeddings": 8192, "num_labels": 1, "pad_token_id": 0}

#: The tiny ones are for a CPU; the others have the shapes of Qwen3-0.6B and Llama-3-8B, but for the embedding.
SHAPES = {
    "tiny": LlamaConfig(**_COMMON, **_TINY),
    "small": LlamaConfig(**_COMMON, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8),
    "0.6B": Qwen3Config(
        **_COMMON,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
    ),
    "8B": LlamaConfig(
        **_COMMON,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}


#: Of the size of the tiny one, for pairs of texts.
_ENCODER = BertConfig(**_COMMON | _TINY | {"max_position_embeddings": 1024})


def save_model(folder: Path, shape: str, device: str, loader: Any = AutoModelForSequenceClassification, **changes: Any) -> None:
    """Write a checkpoint of one of :data:`SHAPES`, or an "encoder", with random weights in the precision of a device.

    ``changes`` are other values in its configuration. An encoder's tokenizer writes a token between two texts.
    """
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    known = _ENCODER if shape == "encoder" else SHAPES[shape]
    settings = {key: value for key, value in known.to_dict().items() if key not in ("id2label", "label2id")}
    config = type(known).from_dict(settings | {"num_labels": 1} | changes)
    with torch.device(device):
        model = loader.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    words = {"<pad>": 0} | {f"w{index}": index for index in range(1, _WORDS + 1)}
    words |= {letter: _WORDS + number for number, letter in enumerate(_LETTERS, start=1)}
    tokenizer = Tokenizer(WordPiece(words, unk_token="<pad>", continuing_subword_prefix=""))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<pad>", model_max_length=8192)
    if shape == "encoder":
        fast.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A |", pair="$A | $B:1 |:1", special_tokens=[("|", words["|"])]
        )
    else:
        fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)


def words(count: int, source: torch.Generator) -> str:
    """A text of so many tokens."""
    return " ".join(f"w{index}" for index in torch.randint(1, _WORDS + 1, (count,), generator=source).tolist())


def useful_flops(shape: str, shared: int, own: list[int]) -> float:
    """Floating point operations to score texts of ``own`` tokens behind ``shared`` ones, the shared ones computed once.

    Two for each weight and token, and for each pair of tokens where one sees the other four for each channel of the heads.
    """
    pairs = shared**2 / 2 + sum(length * shared + length**2 / 2 for length in own)
    return flops_per_token(shape) * (shared + sum(own)) + flops_per_pair(shape) * pairs


def flops_per_token(shape: str) -> float:
    """Of the linear layers."""
    config = SHAPES[shape]
    queries, keys = config.head_dim * config.num_attention_heads, config.head_dim * config.num_key_value_heads
    weights = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    return 2.0 * weights * config.num_hidden_layers


def flops_per_pair(shape: str) -> float:
    """Of the attention of one token to one other."""
    config = SHAPES[shape]
    return 4.0 * config.head_dim * config.num_attention_heads * config.num_hidden_layers


def matmul_ceiling(device: str) -> float:
    """Operations a second of one large matrix product, the best of several; of the processor's own time on a CPU."""
    size, dtype = (1024, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    clock = process_time if device == "cpu" else perf_counter
    best = float("inf")
    for _ in range(12):
        finish(device)
        begun = clock()
        a @ b
        finish(device)
        best = min(best, clock() - begun)
    return 2 * size**3 / best


def finish(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
