"""A small untrained decoder that can tell how long an answer is: what real labels are learnt with on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from benchmarks.imdb.models import model_path

#: How much of the mean of all tokens is added to the last one, before the first step.
LOUDNESS = 4.0


def write_base(folder: Path, *, layers: int, length: int, seed: int) -> Path:
    """Write a one-label GPT-2 whose token embeddings are the bundled language model's, everything else new.

    Its first layer starts with nearly uniform attention whose values are the tokens themselves, so the last token sees the mean of
    all tokens before it, loud enough to learn from in a hundred steps. Places grow along two directions, with the place and with
    its logarithm: places near each other mean nearly the same.

    Args:
        folder: where to write it, with its tokenizer.
        layers: of the decoder.
        length: most tokens of a text.
        seed: of what is new.
    """
    torch.manual_seed(seed)
    source = model_path("lm")
    tokenizer = AutoTokenizer.from_pretrained(source)
    embeddings = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).get_input_embeddings().weight.detach()
    width = embeddings.shape[1]
    ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=embeddings.shape[0],
            n_embd=width,
            n_inner=2 * width,
            n_layer=layers,
            n_head=4,
            n_positions=length,
            num_labels=1,
            # With it, torch writes all attention weights to memory: steps would take twice as long.
            attn_pdrop=0.0,
            **ends,
        )
    )
    place = torch.arange(length).unsqueeze(1)
    ways: torch.Tensor = torch.randn(2, width) * width**-0.5
    attention = model.transformer.h[0].attn
    with torch.no_grad():
        attention.c_attn.weight[:, 2 * width :] = LOUDNESS * torch.eye(width)
        attention.c_proj.weight.copy_(torch.eye(width))
        model.get_input_embeddings().weight.copy_(embeddings)
        model.transformer.wpe.weight.copy_(place / length * ways[0] + torch.log1p(place) / 5 * ways[1])
    model.save_pretrained(folder)
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    return folder
